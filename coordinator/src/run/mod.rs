//! The run: a pure state machine, and the only place where scheduling is decided.
//!
//! [`Run::handle`] turns an [`Input`] and the time into [`Event`]s and folds them into the state. The driver makes the
//! events durable before it does anything that [`Run::wanted`] asks for, and replay calls the same [`Run::apply`]: there
//! is no second fold. No socket, path or clock is in here.
//!
//! Always true, and checked by [`invariants`] in tests and debug builds: at most one attempt of a task is committed and
//! never withdrawn; no task is lost; no worker holds more than its slots and its prefetch; no task fails more often than
//! it may; a report for a stale attempt, worker or epoch changes nothing.

pub mod invariants;
mod tasks;
mod vocabulary;
mod workers;

use std::collections::{BTreeMap, BTreeSet};

use forebay_jobs::{
    id::{AttemptId, Epoch, TaskId, WorkerId},
    plan::MOST_TASKS,
    spec::JobSpec,
    task::Failure,
};

pub use self::tasks::{Task, TaskState};
pub use self::vocabulary::{Done, EndState, Event, Input, Millis, Share, Wanted};
use self::{tasks::Tasks, workers::Workers};

/// A task whose workers are lost so often is what loses them.
pub const MAX_WORKER_LOSSES: u32 = 8;
/// With more open tasks a debug build leaves the checking of invariants to the tests.
#[cfg(debug_assertions)]
const CHECKED: u32 = 1000;
/// Beyond its time-out, an attempt whose worker does not end it is given up after this many milliseconds.
const TIMEOUT_GRACE: u64 = 30_000;
/// What waits behind a slot lasts for so many microseconds.
const AHEAD: u64 = 200_000;
/// Attempts that a slot is given at most: what is lost with a worker is to be little.
const DEEPEST: usize = 2048;
/// The usual time of a phase's attempts follows the last so many.
const LATELY: u64 = 32;

/// What of a job concerns scheduling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunConfig {
    /// Failures of a task that end it.
    pub attempts: u32,
    /// Milliseconds before the second try; doubles with each.
    pub backoff_first: u64,
    /// The longest wait in milliseconds.
    pub backoff_last: u64,
    /// Milliseconds that an attempt may take.
    pub timeout: Option<u64>,
    /// Failed tasks that the run survives.
    pub max_failures: u32,
    /// Workers at most.
    pub workers: u32,
    /// Whether the output is copied elsewhere in the end.
    pub export: bool,
}

impl From<&JobSpec> for RunConfig {
    fn from(job: &JobSpec) -> Self {
        let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            attempts: job.retry.attempts,
            backoff_first: millis(job.retry.backoff_first),
            backoff_last: millis(job.retry.backoff_last),
            timeout: job.retry.timeout.map(millis),
            max_failures: job.retry.max_failures,
            workers: job.workers.count,
            export: job.output.to.is_some(),
        }
    }
}

/// The state of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    config: RunConfig,
    epoch: Epoch,
    planned: bool,
    /// None until all of the dataset is staged.
    snapshot: Option<String>,
    tasks: Tasks,
    workers: Workers,
    /// What an attempt took lately, in microseconds, by phase; none before the first was committed.
    usual: Vec<Option<u64>>,
    cancelled: bool,
    error: Option<String>,
    published: bool,
    exported: bool,
    ended: Option<EndState>,
}

impl Run {
    /// A run of which nothing is known yet.
    pub fn new(config: RunConfig) -> Self {
        Self {
            config,
            epoch: Epoch(0),
            planned: false,
            snapshot: None,
            tasks: Tasks::default(),
            workers: Workers::default(),
            usual: Vec::new(),
            cancelled: false,
            error: None,
            published: false,
            exported: false,
            ended: None,
        }
    }

    /// A run as its journal tells it. A journal is untrusted input.
    ///
    /// # Errors
    /// What no run can have come to.
    pub fn replay<'a>(config: RunConfig, events: impl IntoIterator<Item = &'a Event>) -> Result<Self, String> {
        let mut run = Self::new(config);
        for event in events {
            if let Event::Planned { phases, .. } = event
                && phases.iter().map(|count| u64::from(*count)).sum::<u64>() > u64::from(MOST_TASKS) * 2
            {
                return Err(format!("a plan of {phases:?} tasks"));
            }
            run.apply(event);
        }
        invariants::check(&run).map(|()| run)
    }

    /// Decides what an input means, and everything that follows from it at this time, and applies it.
    pub fn handle(&mut self, input: &Input, now: Millis) -> Vec<Event> {
        self.handle_all(std::slice::from_ref(input), now)
    }

    /// The same of inputs that came together: what follows from them follows once.
    pub fn handle_all(&mut self, inputs: &[Input], now: Millis) -> Vec<Event> {
        let mut events = Vec::new();
        for input in inputs {
            for event in self.decide(input, now) {
                self.apply(&event);
                events.push(event);
            }
        }
        let mut assigned: BTreeMap<WorkerId, Vec<AttemptId>> = BTreeMap::new();
        while let Some((worker, attempt)) = self.assignment(now) {
            self.assign(&worker, attempt);
            assigned.entry(worker).or_default().push(attempt);
        }
        events.extend(assigned.into_iter().map(|(worker, attempts)| Event::Assigned { worker, attempts }));
        if let Some(event) = self.end(now) {
            self.apply(&event);
            events.push(event);
        }
        #[cfg(debug_assertions)]
        if self.tasks.open() <= CHECKED {
            // Only a fault of the machine's own gets here, and it must not go on deciding: replay, which reads what may be
            // damaged, reports instead.
            invariants::check(self).expect("the machine keeps its invariants");
        }
        events
    }

    /// What an input means by itself.
    fn decide(&self, input: &Input, at: Millis) -> Vec<Event> {
        if self.ended.is_some() {
            return Vec::new();
        }
        let one = |event| vec![event];
        match input {
            Input::Opened { epoch } if *epoch > self.epoch => one(Event::Opened { epoch: *epoch, at }),
            Input::Planned { snapshot, phases } if !self.planned => {
                one(Event::Planned { snapshot: snapshot.clone(), phases: phases.clone(), at })
            }
            Input::InputsStaged { tasks } => {
                let task = |index: &u32| TaskId { phase: 0, index: *index };
                let awaited = |index: &&u32| self.tasks.awaiting().contains(&task(index));
                let tasks: Vec<_> = tasks.iter().filter(awaited).copied().collect();
                if tasks.is_empty() { Vec::new() } else { one(Event::InputsStaged { tasks }) }
            }
            Input::Staged { snapshot } if self.planned && self.snapshot.is_none() => {
                one(Event::Staged { snapshot: snapshot.clone(), at })
            }
            Input::PlanFailed { error } | Input::PublishFailed { error } if self.error.is_none() => {
                one(Event::Aborted { error: error.clone(), at })
            }
            Input::ExportFailed { error } if self.error.is_none() => one(Event::Aborted { error: error.clone(), at }),
            Input::Joined { worker, slots } => {
                // A second hello is a worker that lost its first stream: what it held then is gone.
                let mut events = self.left(worker, at);
                events.push(Event::WorkerJoined { worker: worker.clone(), slots: (*slots).max(1) });
                events
            }
            Input::Left { worker } => self.left(worker, at),
            Input::Started { worker, attempts } => {
                let waits = |attempt: &&AttemptId| self.holds(worker, **attempt) == Some(None);
                let attempts: Vec<_> = attempts.iter().filter(waits).copied().collect();
                if attempts.is_empty() { Vec::new() } else { one(Event::Started { attempts, at }) }
            }
            Input::Done(Done { worker, attempt, outputs, metrics, micros })
                if self.holds(worker, *attempt).is_some() =>
            {
                let (outputs, metrics) = (outputs.clone(), metrics.clone());
                one(Event::Committed { attempt: *attempt, outputs, metrics, micros: *micros, at })
            }
            Input::Failed { worker, attempt, failure } if self.holds(worker, *attempt).is_some() => {
                one(match failure {
                    Failure::Cancelled => Event::AttemptReturned { attempt: *attempt, retry_at: at, lost: false },
                    failure => self.failed(*attempt, failure.clone(), at),
                })
            }
            Input::GivenBack { worker, attempt } if self.holds(worker, *attempt).is_some() => {
                let retry_at = Millis(at.0.saturating_add(self.config.backoff_first));
                one(Event::AttemptReturned { attempt: *attempt, retry_at, lost: false })
            }
            // What is being published cannot be called back.
            Input::Cancel if !self.cancelled && !self.is_complete() => one(Event::CancelRequested { at }),
            Input::Tick { reported } => self.overdue(reported, at),
            Input::Published { files, bytes, rows } if self.is_complete() && !self.published => {
                one(Event::Published { files: *files, bytes: *bytes, rows: *rows, at })
            }
            Input::Exported if self.published && !self.exported => one(Event::Exported { at }),
            _ => Vec::new(),
        }
    }

    /// The next attempt that somebody should hold, and who.
    fn assignment(&self, now: Millis) -> Option<(WorkerId, AttemptId)> {
        if self.ended.is_some() || self.stopping().is_some() {
            return None;
        }
        let phase = self.tasks.phase()?;
        let task = self.tasks.next(phase, now)?;
        let worker = self.workers.least_loaded(self.depth(phase))?;
        let number = self.task(task)?.attempts + 1;
        Some((worker.clone(), AttemptId { task, number, epoch: self.epoch }))
    }

    fn assign(&mut self, worker: &WorkerId, attempt: AttemptId) {
        if self.workers.get(worker).is_some() {
            self.tasks.count(attempt.task, |task| task.attempts = attempt.number);
            self.put(attempt.task, TaskState::Held { attempt, worker: worker.clone(), started: None });
        }
    }

    /// How many attempts a slot is given, those included that wait behind it. While there is enough to do, a worker
    /// holds as many again as it has slots, so that no slot waits for the network; of short ones as many as last for
    /// [`AHEAD`], but none that another worker would have time for.
    fn depth(&self, phase: u32) -> usize {
        let unheld = (self.tasks.open_in(phase) as usize).saturating_sub(self.workers.held());
        if unheld <= self.workers.due_to_missing(self.config.workers) {
            return 1;
        }
        let lasting = self.usual.get(phase as usize).copied().flatten().map_or(2, |usual| AHEAD / usual.max(1));
        let fair = unheld / (2 * self.workers.slots().max(1));
        usize::try_from(lasting).unwrap_or(usize::MAX).min(fair).clamp(2, DEEPEST)
    }

    /// The run's end, if this is it.
    fn end(&self, at: Millis) -> Option<Event> {
        if self.ended.is_some() {
            return None;
        }
        if let Some(state) = self.stopping() {
            return (self.workers.held() == 0).then_some(Event::Ended { state, at });
        }
        let succeeded = self.published && (self.exported || !self.config.export);
        succeeded.then_some(Event::Ended { state: EndState::Succeeded, at })
    }

    /// How the run will end, once nothing is held any more.
    fn stopping(&self) -> Option<EndState> {
        match (&self.error, self.cancelled) {
            (Some(_), _) => Some(EndState::Failed),
            (None, true) => Some(EndState::Cancelled),
            (None, false) => (self.tasks.failed() > self.config.max_failures).then_some(EndState::Failed),
        }
    }

    /// When the attempt was started, if this worker holds it.
    fn holds(&self, worker: &WorkerId, attempt: AttemptId) -> Option<Option<Millis>> {
        match &self.task(attempt.task)?.state {
            TaskState::Held { attempt: held, worker: by, started } if (*held, by) == (attempt, worker) => {
                Some(*started)
            }
            _ => None,
        }
    }

    fn left(&self, worker: &WorkerId, at: Millis) -> Vec<Event> {
        let Some(state) = self.workers.get(worker) else { return Vec::new() };
        let lost = |attempt: &AttemptId| {
            // What had not started cannot have been the reason, unless nothing ever started there.
            let lost = self.holds(worker, *attempt).flatten().is_some() || !state.proven;
            let retry_at = Millis(at.0.saturating_add(if state.proven { 0 } else { self.config.backoff_first }));
            match lost && self.task(attempt.task).is_some_and(|task| task.losses + 1 >= MAX_WORKER_LOSSES) {
                true => Event::AttemptFailed { attempt: *attempt, failure: Failure::WorkerLost, retry_at: None, at },
                false => Event::AttemptReturned { attempt: *attempt, retry_at, lost },
            }
        };
        let mut events: Vec<_> = state.held.iter().map(lost).collect();
        events.push(Event::WorkerLeft { worker: worker.clone() });
        events
    }

    fn failed(&self, attempt: AttemptId, failure: Failure, at: Millis) -> Event {
        let failures = self.task(attempt.task).map_or(0, |task| task.failures) + 1;
        let hopeless = matches!(failure, Failure::Error { retryable: false, .. });
        let wait = self.config.backoff_first.saturating_mul(1 << (failures - 1).min(32)).min(self.config.backoff_last);
        // Tasks that failed together do not come back together. The attempt's own number is all the chance needed.
        let spread = u64::from(attempt.task.index.wrapping_mul(2_654_435_761) >> 16) % 512;
        let wait = wait - wait / 4 + (wait / 2).saturating_mul(spread) / 512;
        let retry_at = (!hopeless && failures < self.config.attempts).then(|| Millis(at.0.saturating_add(wait)));
        Event::AttemptFailed { attempt, failure, retry_at, at }
    }

    /// Attempts that their workers should have ended long ago, and the workers with them: a slot that does not come free
    /// would keep waiting whatever is given to it next.
    fn overdue(&self, reported: &BTreeSet<AttemptId>, at: Millis) -> Vec<Event> {
        let Some(timeout) = self.config.timeout else { return Vec::new() };
        let late = |started: Millis| at.0 > started.0.saturating_add(timeout).saturating_add(TIMEOUT_GRACE);
        let running =
            self.tasks.running().iter().take_while(|(started, _)| late(*started)).map(|(_, attempt)| *attempt);
        let late: BTreeSet<_> = running.filter(|attempt| !reported.contains(attempt)).collect();
        let holder = |attempt: &AttemptId| match &self.task(attempt.task)?.state {
            TaskState::Held { worker, .. } => Some(worker.clone()),
            _ => None,
        };
        let workers: BTreeSet<_> = late.iter().filter_map(holder).collect();
        let mut events = Vec::new();
        for worker in workers {
            for attempt in self.workers.get(&worker).into_iter().flat_map(|worker| &worker.held).copied() {
                events.push(match late.contains(&attempt) {
                    true => self.failed(attempt, Failure::TimedOut { seconds: timeout / 1000 }, at),
                    false => Event::AttemptReturned { attempt, retry_at: at, lost: false },
                });
            }
            events.push(Event::WorkerLeft { worker });
        }
        events
    }

    /// Folds an event into the state. Decides nothing, and believes nothing that cannot be: what an event says of a
    /// task or worker that is not there changes nothing.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Opened { epoch, at } => {
                self.epoch = *epoch;
                let workers: Vec<_> = self.workers.ids().cloned().collect();
                workers.iter().for_each(|worker| self.remove_worker(worker, *at));
                self.await_inputs();
            }
            Event::Planned { snapshot, phases, .. } => {
                self.planned = true;
                self.snapshot = snapshot.clone();
                self.tasks = Tasks::new(phases);
                self.usual = vec![None; phases.len()];
                self.workers.hold_nothing();
                self.await_inputs();
            }
            Event::InputsStaged { tasks } => {
                tasks.iter().for_each(|index| self.inputs_are_there(TaskId { phase: 0, index: *index }));
            }
            Event::Staged { snapshot, .. } => {
                self.snapshot = Some(snapshot.clone());
                let awaiting = self.tasks.awaiting().clone();
                awaiting.into_iter().for_each(|task| self.inputs_are_there(task));
            }
            Event::WorkerJoined { worker, slots } => {
                self.remove_worker(worker, Millis(0));
                self.workers.join(worker.clone(), *slots);
            }
            Event::WorkerLeft { worker } => self.remove_worker(worker, Millis(0)),
            Event::Assigned { worker, attempts } => attempts.iter().for_each(|attempt| self.assign(worker, *attempt)),
            Event::Started { attempts, at } => attempts.iter().for_each(|attempt| self.started(*attempt, *at)),
            Event::Committed { attempt, outputs, micros, .. } => {
                self.took(attempt.task.phase, *micros);
                self.prove_holder(attempt.task);
                self.put(attempt.task, TaskState::Committed { attempt: *attempt, outputs: outputs.clone() });
            }
            Event::AttemptFailed { attempt, failure, retry_at, .. } => {
                if *failure != Failure::WorkerLost {
                    self.prove_holder(attempt.task);
                }
                self.tasks.count(attempt.task, |task| match failure {
                    Failure::WorkerLost => task.losses = task.losses.saturating_add(1),
                    _ => task.failures = task.failures.saturating_add(1),
                });
                let state = retry_at.map_or_else(|| TaskState::Failed(failure.clone()), TaskState::Ready);
                self.put(attempt.task, state);
            }
            Event::AttemptReturned { attempt, retry_at, lost } => {
                self.tasks.count(attempt.task, |task| task.losses = task.losses.saturating_add(u32::from(*lost)));
                self.put(attempt.task, TaskState::Ready(*retry_at));
            }
            Event::CancelRequested { .. } => self.cancelled = true,
            Event::Aborted { error, .. } => self.error = Some(error.clone()),
            Event::Published { .. } => self.published = true,
            Event::Exported { .. } => self.exported = true,
            Event::Ended { state, .. } => self.ended = Some(*state),
        }
    }

    /// While the dataset is being staged, a new plan or a new coordinator knows of no inputs until it is told.
    fn await_inputs(&mut self) {
        if self.planned && self.snapshot.is_none() {
            self.tasks.idle_in(0).into_iter().for_each(|task| self.put(task, TaskState::Awaiting));
        }
    }

    fn inputs_are_there(&mut self, task: TaskId) {
        if self.task(task).is_some_and(|task| task.state == TaskState::Awaiting) {
            self.put(task, TaskState::Ready(Millis(0)));
        }
    }

    fn started(&mut self, attempt: AttemptId, at: Millis) {
        let Some(TaskState::Held { attempt: held, worker, .. }) = self.task(attempt.task).map(|task| &task.state)
        else {
            return;
        };
        if *held == attempt {
            let worker = worker.clone();
            self.workers.prove(&worker);
            self.put(attempt.task, TaskState::Held { attempt, worker, started: Some(at) });
        }
    }

    /// Who has ended an attempt can start attempts, be it told of that or not.
    fn prove_holder(&mut self, task: TaskId) {
        if let Some(TaskState::Held { worker, .. }) = self.task(task).map(|task| &task.state) {
            let worker = worker.clone();
            self.workers.prove(&worker);
        }
    }

    fn took(&mut self, phase: u32, micros: u64) {
        if let Some(usual) = self.usual.get_mut(phase as usize) {
            let before = usual.unwrap_or(micros);
            *usual = Some(before - before / LATELY + micros / LATELY);
        }
    }

    /// Moves a task, unless it is committed, which is for ever. Its workers' lists follow.
    fn put(&mut self, task: TaskId, state: TaskState) {
        if self.task(task).is_none_or(|task| matches!(task.state, TaskState::Committed { .. })) {
            return;
        }
        let kept = match &state {
            TaskState::Held { attempt, worker, .. } => {
                self.workers.hold(worker, *attempt);
                Some(*attempt)
            }
            _ => None,
        };
        if let Some(TaskState::Held { attempt, worker, .. }) = self.tasks.put(task, state)
            && Some(attempt) != kept
        {
            self.workers.release(&worker, attempt);
        }
    }

    /// Forgets a worker; what it still held is ready again.
    fn remove_worker(&mut self, worker: &WorkerId, at: Millis) {
        let held = self.workers.leave(worker);
        held.into_iter().for_each(|attempt| self.put(attempt.task, TaskState::Ready(at)));
    }

    /// What the world should look like, where `now` is when an input was last handled.
    pub fn wanted(&self, now: Millis) -> Wanted {
        let running = self.stopping().is_none() && self.ended.is_none();
        Wanted {
            workers: if running { self.config.workers.min(self.tasks.open()) } else { 0 },
            publish: running && self.is_complete() && !self.published,
            export: running && self.published && self.config.export && !self.exported,
            ended: self.ended,
            wake_at: if running { self.wake_at(now) } else { None },
        }
    }

    /// What a worker should hold; none of one that the run does not know, or knows no more.
    pub fn share(&self, worker: &WorkerId) -> Option<Share<'_>> {
        static NOTHING: BTreeSet<AttemptId> = BTreeSet::new();
        let worker = self.workers.get(worker)?;
        Some(match self.stopping() {
            Some(_) => Share { version: u64::MAX, held: &NOTHING },
            None => Share { version: worker.version, held: &worker.held },
        })
    }

    /// The workers that have joined.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerId> {
        self.workers.ids()
    }

    fn wake_at(&self, now: Millis) -> Option<Millis> {
        let overdue = self.config.timeout.and_then(|timeout| {
            let (started, _) = self.tasks.running().first()?;
            Some(Millis(started.0.saturating_add(timeout).saturating_add(TIMEOUT_GRACE + 1)))
        });
        self.tasks.ready_after(now).into_iter().chain(overdue).min()
    }

    fn is_complete(&self) -> bool {
        self.snapshot.is_some() && self.tasks.open() == 0
    }

    /// Whether the dataset, or a part of it, is still to be staged for a run that goes on.
    pub fn wants_staging(&self) -> bool {
        self.snapshot.is_none() && self.stopping().is_none() && self.ended.is_none()
    }

    /// A task, if the plan has it.
    pub fn task(&self, task: TaskId) -> Option<&Task> {
        self.tasks.get(task)
    }

    /// All tasks in order.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, &Task)> {
        self.tasks.iter()
    }

    /// What a worker holds, be it wanted there any more or not.
    pub fn held(&self, worker: &WorkerId) -> impl Iterator<Item = AttemptId> {
        self.workers.get(worker).into_iter().flat_map(|worker| worker.held.iter().copied())
    }

    /// Whether the run only waits for what its workers still hold.
    pub fn is_stopping(&self) -> bool {
        self.stopping().is_some() && self.ended.is_none()
    }

    /// How the run ended, if it has.
    pub fn ended(&self) -> Option<EndState> {
        self.ended
    }
}

#[cfg(test)]
mod tests;
