//! The loop: hear, decide, journal, apply, do.
//!
//! What is to be done is derived from the machine's state each time round, and compared with what is under way. So a
//! restart needs nothing but the replayed state, and doing something twice is harmless.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use forebay_datasets::{
    output::{self, OutputError},
    source::{ErrorKind, SourceUrl},
    split::Split,
    volume::Volume,
};
use forebay_jobs::{
    id::{AttemptId, Epoch, TaskId, WorkerId},
    kinds::sql::engine::choose_over,
    plan::Plan,
    spec::Engine,
    task::{AttemptReport, Failure, Outcome, OutputFile, TaskInput, TaskSpec},
    wire::Assignment,
};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    CoordinateError, FIRST, RunProgress, Tell,
    absent::Seen,
    earlier::{Found, Search},
    prepare::{self, News},
    reading::Reading,
    rendezvous::rendezvous,
    session::Session,
    workers::{Stream, Workers},
};
use crate::{
    commit::{self, CommitError, Published, chain},
    fleet::{Fleet, FleetEvent},
    run::{Done, EndState, Input, Wanted},
    rundir::RunDir,
    server::{Heard, Server},
};

/// Attempts whose outputs are read at the same time.
const CHECKS: usize = 4;
/// Messages that are decided, and journaled, together.
const BATCH: usize = 1024;
/// What a task has not read is cut into pieces of so many bytes at least.
const LEAST_REST: u64 = 1 << 20;
/// How long what was spawned may take to end.
const CLEANING_UP: Duration = Duration::from_secs(5);
/// Between two ticks: what was due at the first and could not be done then needs an event, not another tick.
const TICK: Duration = Duration::from_millis(200);
/// A worker that was told to end an attempt gives its program 10 s, and the built-in work 3 s; this long means never.
const UNANSWERED: Duration = Duration::from_secs(40);

/// Work beside the loop that has ended.
pub(super) enum Finished {
    Prepared(Result<(), CoordinateError>),
    Checked {
        worker: WorkerId,
        attempt: AttemptId,
        input: Input,
    },
    /// Earlier runs were searched.
    Searched(Found),
    /// Absent workers were looked after.
    Looked(Vec<Seen>),
    Published(Result<Published, CommitError>),
    Exported(Result<(), OutputError>),
    /// It was told to end before its time.
    Stopped,
}

/// What the loop has in its hands.
pub(super) struct Work<'a> {
    pub(super) volume: &'a Volume,
    pub(super) run: &'a RunDir,
    pub(super) epoch: Epoch,
    pub(super) epoch_dir: PathBuf,
    pub(super) session: Session,
    pub(super) inbox: mpsc::Receiver<Heard>,
    pub(super) tell: Tell,
    pub(super) workers: Workers,
    plan: Option<Arc<Plan>>,
    /// Whether all workers execute the stages of its one task.
    is_of_all: bool,
    reading: Reading,
    /// Everything spawned; dropped, all of it ends.
    pub(super) tasks: JoinSet<Finished>,
    checks: Arc<Semaphore>,
    /// Ends what runs on threads of its own; cancelled when this is dropped, too.
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
    /// Committed files by partition, of the phase before this one.
    shuffle: Option<(u32, BTreeMap<u32, Vec<OutputFile>>)>,
    /// Those who wait for a cancel to be durable.
    cancelling: Vec<oneshot::Sender<()>>,
    /// Where preparing says what it has come to; none once it was begun.
    preparing: Option<mpsc::UnboundedSender<News>>,
    prepared: mpsc::UnboundedReceiver<News>,
    /// The phase for which earlier runs are, or were last, searched.
    seeking: Option<u32>,
    found: Option<Found>,
    publishing: bool,
    exporting: bool,
    /// When absent workers are looked after; none while that is under way.
    pub(super) look_at: Option<Instant>,
    /// Why no more workers can be started.
    fleet_failure: Option<String>,
    /// When an ending run waits no longer for its workers.
    give_up_at: Option<Instant>,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        (volume, run): (&'a Volume, &'a RunDir),
        (epoch, epoch_dir): (Epoch, PathBuf),
        (session, plan): (Session, Option<Arc<Plan>>),
        inbox: mpsc::Receiver<Heard>,
        tell: Tell,
        reading: Reading,
    ) -> Self {
        let stop = CancellationToken::new();
        let (preparing, prepared) = mpsc::unbounded_channel();
        Self {
            _stop_when_dropped: stop.clone().drop_guard(),
            stop,
            volume,
            run,
            epoch,
            epoch_dir,
            session,
            inbox,
            tell,
            reading,
            workers: Workers::default(),
            is_of_all: plan.as_ref().is_some_and(|plan| is_of_all(run, plan)),
            plan,
            tasks: JoinSet::new(),
            checks: Arc::new(Semaphore::new(CHECKS)),
            shuffle: None,
            cancelling: Vec::new(),
            preparing: Some(preparing),
            prepared,
            seeking: None,
            found: None,
            publishing: false,
            exporting: false,
            look_at: Some(Instant::now()),
            fleet_failure: None,
            give_up_at: None,
        }
    }

    /// Works until the run has ended.
    pub(super) async fn until_ended(
        &mut self,
        fleet: &mut dyn Fleet,
        server: &mut Server,
    ) -> Result<EndState, CoordinateError> {
        self.session.take(&Input::Opened { epoch: self.epoch });
        let mut heard = Vec::with_capacity(BATCH);
        let mut ticked = Instant::now();
        loop {
            if self.session.commit().await? {
                (self.tell)(RunProgress::Tasks {
                    phases: self.session.figures.phases.clone(),
                    workers: self.session.figures.workers(),
                });
            }
            for noted in self.cancelling.drain(..) {
                // Who asked may have gone.
                let _ = noted.send(());
            }
            if let Some(found) = &mut self.found {
                let (input, is_last) = found.next();
                if is_last {
                    self.found = None;
                }
                self.session.take(&input);
                continue;
            }
            let wanted = self.session.wanted();
            if let Some(state) = wanted.ended {
                return Ok(state);
            }
            if let Some(error) = &self.fleet_failure
                && wanted.workers > 0
                && self.session.machine.workers().next().is_none()
            {
                return Err(CoordinateError::Fleet(error.clone()));
            }
            if self.session.machine.is_stopping() {
                self.give_up_at.get_or_insert_with(|| Instant::now() + UNANSWERED);
            }
            if self.session.machine.recalls_all() {
                let machine = &self.session.machine;
                let held =
                    machine.workers().flat_map(|worker| machine.held(worker).map(move |attempt| (worker, attempt)));
                let unsent = held.filter(|(worker, attempt)| !self.workers.was_sent(worker, *attempt));
                // No worker will ever report what no worker was given.
                let failed = unsent.map(|(worker, attempt)| Input::Failed {
                    worker: worker.clone(),
                    attempt,
                    failure: Failure::Cancelled,
                });
                let failed: Vec<_> = failed.collect();
                if !failed.is_empty() {
                    self.session.take_all(&failed);
                    continue;
                }
            }
            for worker in self.workers.forget_all_but(|worker| self.session.machine.share(worker).is_some()) {
                (self.tell)(RunProgress::Left { worker: worker.clone() });
                fleet.lost(&worker);
            }
            self.sync_workers();
            let workers = if self.is_of_all { self.all_if_any(wanted.workers) } else { wanted.workers };
            fleet.want(workers.saturating_sub(self.adopted(fleet)));
            self.look_after_absent();
            self.start_what_is_wanted(&wanted);
            let wake = wanted.wake_at.map(|at| {
                let wait = Duration::from_millis(at.0.saturating_sub(self.session.now().0));
                (Instant::now() + wait).max(ticked + TICK)
            });
            let alarm = async {
                let look_at = self.look_at.filter(|_| self.session.machine.absent().next().is_some());
                match wake.into_iter().chain(self.give_up_at).chain(look_at).min() {
                    // What becomes due by time alone: a retry, a time-out, the end of patience.
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = self.inbox.recv_many(&mut heard, BATCH) => {
                    if count == 0 {
                        return Err(server.failed().await.into());
                    }
                    let mut inputs = Vec::new();
                    for heard in heard.drain(..) {
                        self.hear(heard, fleet, &mut inputs);
                    }
                    self.session.take_all(&inputs);
                }
                Some(news) = self.prepared.recv() => self.hear_of_data(news)?,
                Some(finished) = self.tasks.join_next() => self.finished(finished?)?,
                event = fleet.observe() => self.observed(event),
                error = server.failed() => return Err(error.into()),
                () = alarm => {
                    ticked = Instant::now();
                    self.session.take(&Input::Tick { reported: self.workers.reported_attempts() });
                    if self.give_up_at.is_some_and(|at| at <= ticked) {
                        // The run is to end, and these do not say that what they held has ended.
                        let workers = self.session.machine.workers().cloned();
                        let left: Vec<_> = workers.map(|worker| Input::Gone { worker }).collect();
                        self.session.take_all(&left);
                    }
                }
            }
        }
    }

    fn hear(&mut self, heard: Heard, fleet: &mut dyn Fleet, inputs: &mut Vec<Input>) {
        match heard {
            Heard::Joined { worker, stream, slots, holds, process, left, peer, sender } => {
                fleet.joined(&worker);
                (self.tell)(RunProgress::Joined { worker: worker.clone() });
                let (holds_too, process) = (holds.clone(), Some(process));
                inputs.push(Input::Joined { worker: worker.clone(), slots, holds: holds_too, process, left });
                self.workers.joined(worker, Stream { number: stream, peer, sender }, holds);
            }
            Heard::Started { worker, stream, attempts } if self.workers.is_current(&worker, stream) => {
                inputs.push(Input::Started { worker, attempts });
            }
            Heard::Draining { worker, stream } if self.workers.is_current(&worker, stream) => {
                inputs.push(Input::Draining { worker });
            }
            Heard::Reports { worker, stream, reports } if self.workers.is_current(&worker, stream) => {
                inputs.extend(reports.into_iter().filter_map(|report| self.report(&worker, report)));
            }
            Heard::Left { worker, stream } if self.workers.is_current(&worker, stream) => {
                self.workers.left(&worker);
                self.look_soon();
                inputs.push(Input::Silent { worker });
            }
            Heard::Cancel { noted } => {
                inputs.push(Input::Cancel);
                self.cancelling.push(noted);
            }
            // A stream that was replaced.
            Heard::Started { .. } | Heard::Reports { .. } | Heard::Draining { .. } | Heard::Left { .. } => {}
        }
    }

    /// What a report means, unless it has to be looked into first.
    pub(super) fn report(&mut self, worker: &WorkerId, report: AttemptReport) -> Option<Input> {
        let AttemptReport { attempt, outcome, seconds } = report;
        let checking = matches!(&outcome, Outcome::Done { outputs, .. } if !outputs.is_empty());
        if !self.workers.reported(worker, attempt, checking) {
            return None;
        }
        let worker = worker.clone();
        match outcome {
            Outcome::Done { outputs, metrics, rest } => {
                let micros = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_micros();
                let micros = u64::try_from(micros).unwrap_or(u64::MAX);
                let rest = match rest.map(|rest| self.cut_rest(attempt.task, rest)).transpose() {
                    Ok(rest) => rest.unwrap_or_default(),
                    Err(failure) => return Some(Input::Failed { worker, attempt, failure }),
                };
                let done = Done { worker, attempt, outputs, metrics, micros, rest };
                if !checking {
                    return Some(Input::Done(done));
                }
                self.check(done);
                None
            }
            Outcome::Failed(failure) => {
                (self.tell)(RunProgress::AttemptFailed { attempt, failure: failure.clone() });
                Some(Input::Failed { worker, attempt, failure })
            }
            Outcome::GivenBack => Some(Input::GivenBack { worker, attempt }),
        }
    }

    /// What a task is to do: as it was planned, or the rest of another one.
    fn task(&self, task: TaskId) -> Option<TaskSpec> {
        task_of(self.plan.as_ref()?, &self.session.machine, task)
    }

    /// Cuts what an attempt has not read into as many splits as can be read at once.
    fn cut_rest(&self, task: TaskId, rest: Split) -> Result<Vec<Split>, Failure> {
        match self.task(task).map(|task| task.input) {
            Some(TaskInput::Split(split)) if split.has_tail(&rest) => {
                Ok(rest.cut(self.session.machine.quick_slots(), LEAST_REST))
            }
            _ => Err(Failure::BadOutput { message: "it says to have left what it was not to read".to_owned() }),
        }
    }

    /// Looks at what a worker says that it made, beside the loop.
    fn check(&mut self, done: Done) {
        let (volume, run, checks) = (self.volume.clone(), self.run.clone(), Arc::clone(&self.checks));
        self.tasks.spawn(async move {
            let (worker, attempt) = (done.worker.clone(), done.attempt);
            let permit = checks.acquire_owned().await;
            let check = move || {
                let checked = commit::check(&volume, &run, attempt, &done.outputs);
                drop(permit);
                checked.map(|()| done)
            };
            let bad = |message| Failure::BadOutput { message };
            let result = match tokio::task::spawn_blocking(check).await {
                Ok(checked) => checked.map_err(|error| bad(chain(&error))),
                Err(error) => Err(bad(error.to_string())),
            };
            let input = match result {
                Ok(done) => Input::Done(done),
                Err(failure) => Input::Failed { worker: worker.clone(), attempt, failure },
            };
            Finished::Checked { worker, attempt, input }
        });
    }

    /// As many workers as the job wants, if there is anything to do.
    fn all_if_any(&self, workers: u32) -> u32 {
        if workers > 0 { self.run.job().workers.count } else { 0 }
    }

    fn hear_of_data(&mut self, news: News) -> Result<(), CoordinateError> {
        match news {
            News::Planned(plan) => {
                let (snapshot, phases) = (plan.snapshot.clone(), plan.phases());
                self.is_of_all = is_of_all(self.run, &plan);
                self.plan = Some(plan);
                self.session.take(&Input::Planned { snapshot, phases });
            }
            News::InputsStaged(tasks) => self.session.take(&Input::InputsStaged { tasks }),
            News::Staged(snapshot) => self.session.take(&Input::Staged { snapshot }),
            News::Never(error) if self.epoch == FIRST && self.plan.is_none() => {
                return Err(CoordinateError::NoPlan(error));
            }
            News::Never(error) => self.session.take(&Input::PlanFailed { error }),
        }
        Ok(())
    }

    fn finished(&mut self, finished: Finished) -> Result<(), CoordinateError> {
        match finished {
            Finished::Stopped => {}
            Finished::Prepared(prepared) => prepared?,
            Finished::Checked { worker, attempt, input } => {
                if let Input::Failed { attempt, failure, .. } = &input {
                    (self.tell)(RunProgress::AttemptFailed { attempt: *attempt, failure: failure.clone() });
                }
                self.session.take(&input);
                self.workers.checked(&worker, attempt);
                self.take_gone();
            }
            Finished::Searched(found) => self.found = Some(found),
            Finished::Looked(seen) => self.looked(seen),
            Finished::Published(Ok(Published { files, bytes, rows })) => {
                self.session.take(&Input::Published { files, bytes, rows });
            }
            Finished::Published(Err(error)) if error.is_permanent() => {
                self.session.take(&Input::PublishFailed { error: chain(&error) });
            }
            Finished::Published(Err(error)) => return Err(CoordinateError::Publish(error)),
            Finished::Exported(Ok(())) => self.session.take(&Input::Exported),
            // What is wrong with the target itself will stay wrong; all else may be better at the next resume.
            Finished::Exported(Err(OutputError::Target(error))) if error.kind() != ErrorKind::Storage => {
                self.session.take(&Input::ExportFailed { error: chain(&error) });
            }
            Finished::Exported(Err(error)) => return Err(CoordinateError::Export(error)),
        }
        Ok(())
    }

    fn observed(&mut self, event: FleetEvent) {
        match event {
            FleetEvent::Ended { worker } => {
                // What it said before is still to be heard.
                self.workers.ended(&worker);
                self.look_soon();
            }
            // What is wanted of it is told it each time round.
            FleetEvent::Recognized => {}
            // Whoever is at work goes on; without anybody the run is interrupted.
            FleetEvent::Failed { error } => self.fleet_failure = Some(error),
        }
    }

    fn sync_workers(&mut self) {
        let Some(plan) = &self.plan else { return };
        let (machine, shuffle) = (&self.session.machine, &mut self.shuffle);
        let (gang, first) = (self.run.job().is_gang(), machine.task(TaskId { phase: 0, index: 0 }));
        let host = first.filter(|_| gang).and_then(|first| {
            let holding = first.state.holdings().next()?;
            self.workers.address(&holding.worker)
        });
        self.workers.sync(
            |worker| machine.share(worker),
            |attempt| machine.yields(attempt),
            |attempt| {
                let (task, beside) = (attempt.task, machine.is_second(attempt));
                let spec = task_of(plan, machine, task)?;
                let rendezvous = host.map(|host| rendezvous(self.run.id(), attempt, host));
                let TaskInput::Shuffle(_) = spec.input else {
                    return Some(Assignment { attempt, spec, beside, rendezvous });
                };
                // The phase before is complete once a task of this one is assigned, and stays as it is.
                if shuffle.as_ref().is_none_or(|(phase, _)| *phase != task.phase) {
                    *shuffle = Some((task.phase, machine.partitions_before(task.phase)));
                }
                let files = shuffle.as_ref().and_then(|(_, files)| files.get(&task.index)).cloned().unwrap_or_default();
                let spec = TaskSpec { input: TaskInput::Shuffle(files), ..spec };
                Some(Assignment { attempt, spec, beside, rendezvous })
            },
        );
    }

    fn start_what_is_wanted(&mut self, wanted: &Wanted) {
        if self.session.machine.wants_staging()
            && let Some(news) = self.preparing.take()
        {
            let (volume, run, epoch_dir) = (self.volume.clone(), self.run.clone(), self.epoch_dir.clone());
            let (tell, reading, plan) = (Arc::clone(&self.tell), self.reading.clone(), self.plan.clone());
            self.spawn_apart(|| async move {
                Finished::Prepared(prepare::prepare(volume, run, epoch_dir, (tell, news), &reading, plan).await)
            });
        }
        if let (Some(phase), Some(plan)) = (wanted.seek, &self.plan)
            && self.seeking.replace(phase) != Some(phase)
        {
            let search = Search::new((self.volume, self.run), self.epoch, plan, &self.session.machine, phase);
            self.tasks.spawn_blocking(move || Finished::Searched(search.run()));
        }
        if wanted.publish && !self.publishing {
            self.publishing = true;
            (self.tell)(RunProgress::Publishing);
            self.publish();
        }
        if wanted.export && !self.exporting {
            self.exporting = true;
            (self.tell)(RunProgress::Exporting);
            self.export();
        }
    }

    /// Runs on a thread of its own what rustc cannot prove to be `Send` for every lifetime (rust-lang/rust#96865), and
    /// what computes between its awaits.
    fn spawn_apart<F: Future<Output = Finished>>(&mut self, future: impl FnOnce() -> F + Send + 'static) {
        let (stop, runtime) = (self.stop.clone(), Handle::current());
        self.tasks.spawn_blocking(move || {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Finished::Stopped,
                    finished = future() => finished,
                }
            })
        });
    }

    /// What is left of it at the end.
    pub(super) fn into_parts(self) -> (Session, Option<Arc<Plan>>) {
        (self.session, self.plan)
    }

    /// Ends what was spawned, and waits until it has cleaned up behind itself.
    pub(super) async fn stop(&mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(CLEANING_UP, ended).await.is_err() {
            tracing::warn!("some work beside the loop did not end in time");
        }
    }

    fn publish(&mut self) {
        let figures = &self.session.figures;
        let phases = u32::try_from(figures.phases.len()).unwrap_or(u32::MAX);
        let outputs = (0..phases).flat_map(|phase| self.session.machine.committed(phase));
        let outputs: Vec<_> = outputs.filter(|file| file.publish_as.is_some()).cloned().collect();
        let tasks = figures.tasks();
        let summary = serde_json::json!({
            "version": 1, "run": self.run.id(), "snapshot": figures.snapshot,
            "tasks": { "total": tasks.total, "succeeded": tasks.succeeded, "failed": tasks.failed },
        });
        let (volume, run, epoch_dir) = (self.volume.clone(), self.run.clone(), self.epoch_dir.clone());
        let epoch = self.epoch;
        self.tasks.spawn_blocking(move || {
            Finished::Published(commit::publish(&volume, &run, epoch, &epoch_dir, &outputs, &summary))
        });
    }

    fn export(&mut self) {
        let output = &self.run.job().output;
        let (to, options, from) = (output.to.clone().unwrap_or_default(), output.s3.options(), self.run.output_dir());
        self.spawn_apart(|| async move {
            let exported = match to.parse::<SourceUrl>() {
                Ok(to) => output::export(&from, &to, &options).await,
                Err(error) => Err(error.into()),
            };
            Finished::Exported(exported)
        });
    }
}

fn is_of_all(run: &RunDir, plan: &Plan) -> bool {
    plan.splits.first().is_some_and(|split| choose_over(run.job(), split).engine == Engine::Ballista)
}

fn task_of(plan: &Plan, machine: &crate::run::Run, task: TaskId) -> Option<TaskSpec> {
    match machine.rest(task) {
        Some(split) => {
            let count = *plan.phases().first()?;
            Some(TaskSpec { task, count, input: TaskInput::Split(split.clone()) })
        }
        None => plan.task(task),
    }
}
