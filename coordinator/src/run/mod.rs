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
mod vocabulary;

use std::collections::{BTreeMap, BTreeSet};

use forebay_jobs::{
    id::{AttemptId, Epoch, TaskId, WorkerId},
    spec::JobSpec,
    task::{Failure, OutputFile},
};

pub use self::vocabulary::{EndState, Event, Input, Millis, Wanted};

/// A task whose workers are lost so often is what loses them.
pub const MAX_WORKER_LOSSES: u32 = 8;
/// Beyond its time-out, an attempt whose worker does not end it is given up after this many milliseconds.
const TIMEOUT_GRACE: u64 = 30_000;

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

/// Where a task is.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskState {
    /// To be assigned, not before this time.
    Ready(Millis),
    /// On a worker.
    Held {
        /// The attempt.
        attempt: AttemptId,
        /// Who holds it.
        worker: WorkerId,
        /// When it entered a slot.
        started: Option<Millis>,
    },
    /// Done, for ever.
    Committed {
        /// The one attempt.
        attempt: AttemptId,
        /// What it made.
        outputs: Vec<OutputFile>,
    },
    /// Failed for good.
    Failed(Failure),
}

/// A task and its history in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Where it is.
    pub state: TaskState,
    /// Attempts so far, those that used up no try too.
    pub attempts: u32,
    /// Tries used up.
    pub failures: u32,
    /// Workers lost under it.
    pub losses: u32,
}

#[derive(Clone, Debug, PartialEq)]
struct Worker {
    slots: u32,
    held: BTreeSet<AttemptId>,
}

/// The state of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    config: RunConfig,
    epoch: Epoch,
    snapshot: Option<String>,
    phases: Vec<Vec<Task>>,
    /// Tasks that are neither committed nor failed, by phase.
    open: Vec<u32>,
    failed: u32,
    ready: BTreeSet<(TaskId, Millis)>,
    workers: BTreeMap<WorkerId, Worker>,
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
            snapshot: None,
            phases: Vec::new(),
            open: Vec::new(),
            failed: 0,
            ready: BTreeSet::new(),
            workers: BTreeMap::new(),
            cancelled: false,
            error: None,
            published: false,
            exported: false,
            ended: None,
        }
    }

    /// Decides what an input means, and everything that follows from it at this time, and applies it.
    pub fn handle(&mut self, input: &Input, now: Millis) -> Vec<Event> {
        let mut events = self.decide(input, now);
        events.iter().for_each(|event| self.apply(event));
        while let Some(event) = self.consequence(now) {
            self.apply(&event);
            events.push(event);
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
            Input::Planned { snapshot, phases } if self.snapshot.is_none() => {
                one(Event::Planned { snapshot: snapshot.clone(), phases: phases.clone(), at })
            }
            Input::PlanFailed { error } | Input::FleetFailed { error } | Input::PublishFailed { error }
                if self.error.is_none() =>
            {
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
            Input::Started { worker, attempt } => match self.holds(worker, *attempt) {
                Some(None) => one(Event::Started { attempt: *attempt, at }),
                _ => Vec::new(),
            },
            Input::Done { worker, attempt, outputs, metrics } if self.holds(worker, *attempt).is_some() => {
                one(Event::Committed { attempt: *attempt, outputs: outputs.clone(), metrics: metrics.clone(), at })
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
            Input::Cancel if !self.cancelled => one(Event::CancelRequested { at }),
            Input::Tick => self.overdue(at),
            Input::Published { files, bytes, rows } if self.is_complete() && !self.published => {
                one(Event::Published { files: *files, bytes: *bytes, rows: *rows, at })
            }
            Input::Exported if self.published && !self.exported => one(Event::Exported { at }),
            _ => Vec::new(),
        }
    }

    /// The next thing that follows from the state: one assignment, or the end.
    fn consequence(&self, now: Millis) -> Option<Event> {
        if self.ended.is_some() {
            return None;
        }
        if let Some(state) = self.stopping() {
            let idle = self.workers.values().all(|worker| worker.held.is_empty());
            return idle.then_some(Event::Ended { state, at: now });
        }
        if self.published && (self.exported || !self.config.export) {
            return Some(Event::Ended { state: EndState::Succeeded, at: now });
        }
        let phase = self.phase()?;
        let tasks = TaskId { phase, index: 0 }..=TaskId { phase, index: u32::MAX };
        let range = (*tasks.start(), Millis(0))..=(*tasks.end(), Millis(u64::MAX));
        let (task, _) = self.ready.range(range).find(|(_, at)| *at <= now)?;
        let free = self.workers.iter().filter(|(_, worker)| worker.held.len() < capacity(worker.slots));
        let (worker, _) =
            free.min_by_key(|(id, worker)| (worker.held.len() / worker.slots as usize, worker.held.len(), *id))?;
        let number = self.task(*task)?.attempts + 1;
        Some(Event::Assigned { attempt: AttemptId { task: *task, number, epoch: self.epoch }, worker: worker.clone() })
    }

    /// How the run will end, once nothing is held any more.
    fn stopping(&self) -> Option<EndState> {
        match (&self.error, self.cancelled) {
            (Some(_), _) => Some(EndState::Failed),
            (None, true) => Some(EndState::Cancelled),
            (None, false) => (self.failed > self.config.max_failures).then_some(EndState::Failed),
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
            // What had not started cannot have been the reason.
            let lost = self.holds(worker, *attempt).flatten().is_some();
            match lost && self.task(attempt.task).is_some_and(|task| task.losses + 1 >= MAX_WORKER_LOSSES) {
                true => Event::AttemptFailed { attempt: *attempt, failure: Failure::WorkerLost, retry_at: None, at },
                false => Event::AttemptReturned { attempt: *attempt, retry_at: at, lost },
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

    /// Attempts that their workers should have ended long ago.
    fn overdue(&self, at: Millis) -> Vec<Event> {
        let Some(timeout) = self.config.timeout else { return Vec::new() };
        let held =
            self.workers.iter().flat_map(|(worker, state)| state.held.iter().map(move |attempt| (worker, *attempt)));
        let late = held.filter(|(worker, attempt)| {
            let started = self.holds(worker, *attempt).flatten();
            started.is_some_and(|started| at.0 > started.0.saturating_add(timeout).saturating_add(TIMEOUT_GRACE))
        });
        late.map(|(_, attempt)| self.failed(attempt, Failure::TimedOut { seconds: timeout / 1000 }, at)).collect()
    }

    /// Folds an event into the state. Decides nothing.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Opened { epoch, at } => {
                self.epoch = *epoch;
                let held: Vec<_> = self.workers.values().flat_map(|worker| worker.held.iter().copied()).collect();
                self.workers.clear();
                held.into_iter().for_each(|attempt| self.ready_again(attempt, *at));
            }
            Event::Planned { snapshot, phases, .. } => {
                self.snapshot = Some(snapshot.clone());
                self.open.clone_from(phases);
                for (phase, count) in (0..).zip(phases) {
                    let task = Task { state: TaskState::Ready(Millis(0)), attempts: 0, failures: 0, losses: 0 };
                    self.phases.push(vec![task; *count as usize]);
                    self.ready.extend((0..*count).map(|index| (TaskId { phase, index }, Millis(0))));
                }
            }
            Event::WorkerJoined { worker, slots } => {
                self.workers.insert(worker.clone(), Worker { slots: *slots, held: BTreeSet::new() });
            }
            Event::WorkerLeft { worker } => {
                self.workers.remove(worker);
            }
            Event::Assigned { attempt, worker } => {
                let Some(task) = task_mut(&mut self.phases, attempt.task) else { return };
                let TaskState::Ready(at) = task.state else { return };
                self.ready.remove(&(attempt.task, at));
                task.attempts = attempt.number;
                task.state = TaskState::Held { attempt: *attempt, worker: worker.clone(), started: None };
                if let Some(worker) = self.workers.get_mut(worker) {
                    worker.held.insert(*attempt);
                }
            }
            Event::Started { attempt, at } => {
                if let Some(TaskState::Held { started, .. }) =
                    task_mut(&mut self.phases, attempt.task).map(|task| &mut task.state)
                {
                    *started = Some(*at);
                }
            }
            Event::Committed { attempt, outputs, .. } => {
                self.release(*attempt);
                if let Some(task) = task_mut(&mut self.phases, attempt.task) {
                    task.state = TaskState::Committed { attempt: *attempt, outputs: outputs.clone() };
                    self.open[attempt.task.phase as usize] -= 1;
                }
            }
            Event::AttemptFailed { attempt, failure, retry_at, .. } => {
                self.release(*attempt);
                let Some(task) = task_mut(&mut self.phases, attempt.task) else { return };
                match failure {
                    Failure::WorkerLost => task.losses += 1,
                    _ => task.failures += 1,
                }
                match retry_at {
                    Some(at) => self.ready_again(*attempt, *at),
                    None => {
                        task.state = TaskState::Failed(failure.clone());
                        self.open[attempt.task.phase as usize] -= 1;
                        self.failed += 1;
                    }
                }
            }
            Event::AttemptReturned { attempt, retry_at, lost } => {
                self.release(*attempt);
                if let Some(task) = task_mut(&mut self.phases, attempt.task) {
                    task.losses += u32::from(*lost);
                }
                self.ready_again(*attempt, *retry_at);
            }
            Event::CancelRequested { .. } => self.cancelled = true,
            Event::Aborted { error, .. } => self.error = Some(error.clone()),
            Event::Published { .. } => self.published = true,
            Event::Exported { .. } => self.exported = true,
            Event::Ended { state, .. } => self.ended = Some(*state),
        }
        #[cfg(debug_assertions)]
        invariants::check(self).expect("the machine keeps its invariants");
    }

    /// Takes an attempt from the worker that holds it.
    fn release(&mut self, attempt: AttemptId) {
        if let Some(TaskState::Held { worker, .. }) = self.task(attempt.task).map(|task| task.state.clone())
            && let Some(worker) = self.workers.get_mut(&worker)
        {
            worker.held.remove(&attempt);
        }
    }

    fn ready_again(&mut self, attempt: AttemptId, at: Millis) {
        if let Some(task) = task_mut(&mut self.phases, attempt.task) {
            task.state = TaskState::Ready(at);
            self.ready.insert((attempt.task, at));
        }
    }

    /// What the world should look like.
    pub fn wanted(&self) -> Wanted {
        let stopping = self.stopping().is_some();
        let held = |worker: &Worker| if stopping { Vec::new() } else { worker.held.iter().copied().collect() };
        let open = self.open.iter().sum::<u32>();
        let running = !stopping && self.ended.is_none();
        Wanted {
            held: self.workers.iter().map(|(id, worker)| (id.clone(), held(worker))).collect(),
            workers: if running { self.config.workers.min(open) } else { 0 },
            publish: running && self.is_complete() && !self.published,
            export: running && self.published && self.config.export && !self.exported,
            ended: self.ended,
            wake_at: if running { self.wake_at() } else { None },
        }
    }

    fn wake_at(&self) -> Option<Millis> {
        let retry = self.ready.iter().map(|(_, at)| *at).filter(|at| at.0 > 0).min();
        let attempts =
            self.workers.iter().flat_map(|(id, worker)| worker.held.iter().map(move |attempt| (id, *attempt)));
        let started = attempts.filter_map(|(worker, attempt)| self.holds(worker, attempt).flatten());
        let limit = |started: Millis| Some(Millis(started.0.saturating_add(self.config.timeout? + TIMEOUT_GRACE + 1)));
        retry.into_iter().chain(started.filter_map(limit)).min()
    }

    /// The phase whose tasks can run: the first one with open tasks.
    fn phase(&self) -> Option<u32> {
        self.open.iter().position(|open| *open > 0).and_then(|phase| u32::try_from(phase).ok())
    }

    fn is_complete(&self) -> bool {
        self.snapshot.is_some() && self.open.iter().all(|open| *open == 0)
    }

    /// A task, if the plan has it.
    pub fn task(&self, task: TaskId) -> Option<&Task> {
        self.phases.get(task.phase as usize)?.get(task.index as usize)
    }

    /// All tasks in order.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, &Task)> {
        let phases = (0..).zip(&self.phases);
        phases.flat_map(|(phase, tasks)| (0..).zip(tasks).map(move |(index, task)| (TaskId { phase, index }, task)))
    }

    /// How the run ended, if it has.
    pub fn ended(&self) -> Option<EndState> {
        self.ended
    }
}

fn task_mut(phases: &mut [Vec<Task>], task: TaskId) -> Option<&mut Task> {
    phases.get_mut(task.phase as usize)?.get_mut(task.index as usize)
}

/// A worker holds as many attempts again as it has slots, so that no slot waits for the network.
fn capacity(slots: u32) -> usize {
    2 * slots as usize
}

#[cfg(test)]
mod tests;
