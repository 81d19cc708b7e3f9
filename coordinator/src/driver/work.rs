//! The loop: hear, decide, journal, apply, do.
//!
//! What is to be done is derived from the machine's state each time round, and compared with what is under way. So a
//! restart needs nothing but the replayed state, and doing something twice is harmless.

mod beside;
mod reports;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use forebay_datasets::volume::Volume;
use forebay_jobs::{
    id::{Epoch, TaskId},
    identity::WorkIdentity,
    kinds::sql::engine::choose_over,
    plan::Plan,
    spec::{Engine, FleetKind},
    task::{Failure, OutputFile, TaskInput, TaskSpec},
    wire::Assignment,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(super) use self::beside::Finished;
use self::reports::task_of;
use super::{
    CoordinateError, RunProgress, Tell,
    earlier::Found,
    prepare::News,
    reading::Reading,
    rendezvous::rendezvous,
    session::Session,
    workers::{Stream, Workers},
};
use crate::{
    fleet::{Fleet, FleetEvent},
    run::{EndState, Event, Input},
    rundir::RunDir,
    server::{Heard, Server},
};

/// Attempts whose outputs are read at the same time.
const CHECKS: usize = 4;
/// Messages that are decided, and journaled, together.
const BATCH: usize = 1024;
/// Between two ticks: what was due at the first and could not be done then needs an event, not another tick.
const TICK: Duration = Duration::from_millis(200);
/// A worker that was told to end an attempt gives its program 10 s, and the built-in work 3 s; this long means never.
const UNANSWERED: Duration = Duration::from_secs(40);

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
    /// What the run's work is, if preparing has asked.
    identity: Option<WorkIdentity>,
    found: Option<Found>,
    /// Whether there is something to do, planned or not.
    will_work: bool,
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
            identity: None,
            found: None,
            will_work: false,
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
            let decided = self.session.commit().await?;
            for event in &decided {
                if let Event::AttemptFailed { attempt, failure, .. } = event {
                    (self.tell)(RunProgress::AttemptFailed { attempt: *attempt, failure: failure.clone() });
                }
            }
            if !decided.is_empty() {
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
            fleet.want(self.workers_for(wanted.workers).saturating_sub(self.adopted(fleet)));
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

    /// How many workers there are to be for what so many could do.
    pub(super) fn workers_for(&self, workers: u32) -> u32 {
        let wanted = &self.run.job().workers;
        match workers {
            // On this host one costs nothing, and is there by the time there is a plan.
            0 if self.will_work && self.plan.is_none() && wanted.fleet == FleetKind::Local => 1,
            0 => 0,
            _ if self.is_of_all => wanted.count,
            workers => workers,
        }
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

    /// What is left of it at the end.
    pub(super) fn into_parts(self) -> (Session, Option<Arc<Plan>>) {
        (self.session, self.plan)
    }
}

fn is_of_all(run: &RunDir, plan: &Plan) -> bool {
    plan.splits.first().is_some_and(|split| choose_over(run.job(), split).engine == Engine::Ballista)
}
