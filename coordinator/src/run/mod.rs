//! The run: a pure state machine, and the only place where scheduling is decided.
//!
//! [`Run::handle`] turns an [`Input`] and the time into [`Event`]s and folds them into the state. The driver makes the
//! events durable before it does anything that [`Run::wanted`] asks for, and replay calls the same [`Run::apply`]: there
//! is no second fold. No socket, path or clock is in here.
//!
//! Always true, and checked by [`invariants`] in tests and debug builds: at most one attempt of a task is committed and
//! never withdrawn; no task is lost; no worker holds more than its slots and its prefetch; no task fails more often than
//! it may; a report for a stale attempt, worker or epoch changes nothing.

mod assign;
mod gang;
pub mod invariants;
mod rests;
mod reuse;
mod tasks;
mod vocabulary;
mod workers;

use std::collections::{BTreeMap, BTreeSet};

use forebay_datasets::volume::Holder;
use forebay_jobs::{
    id::{AttemptId, Epoch, TaskId, WorkerId},
    identity::WorkIdentity,
    plan::MOST_TASKS,
    spec::JobSpec,
    task::{Failure, OutputFile},
};

pub use self::tasks::{Finished, Holding, Reused, Task, TaskState};
pub use self::vocabulary::{Done, EndState, Event, Input, Millis, Share, Wanted};
use self::{
    assign::{DEEPEST, Step},
    rests::Rests,
    tasks::Tasks,
    workers::{Hello, Workers},
};

/// A task whose workers are lost so often is what loses them.
pub const MAX_WORKER_LOSSES: u32 = 8;
/// With more open tasks a debug build leaves the checking of invariants to the tests.
#[cfg(debug_assertions)]
const CHECKED: u32 = 1000;
/// Beyond its time-out, an attempt whose worker does not end it is given up after this many milliseconds.
const TIMEOUT_GRACE: u64 = 30_000;
/// A worker that is absent for so many milliseconds is given up, and with it what it held.
const ABSENT: u64 = 30_000;
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
    /// Whether a task that takes long is begun a second time elsewhere.
    pub speculate: bool,
    /// Whether what such a task has not read becomes other tasks.
    pub resplit: bool,
    /// Whether the tasks only work together.
    pub gang: bool,
    /// Whether what earlier runs have done is looked for.
    pub reuse: bool,
    /// Workers at most.
    pub workers: u32,
    /// Attempts at once, of all workers; none: as many as there are slots.
    pub readers: Option<u32>,
    /// Milliseconds over which the number of attempts at once grows to all.
    pub ramp: u64,
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
            speculate: job.retry.speculate,
            resplit: job.can_yield(),
            gang: job.is_gang(),
            reuse: job.may_reuse(),
            workers: job.workers.count,
            readers: job.workers.readers,
            ramp: millis(job.workers.ramp),
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
    /// Tasks that are the rest of others.
    rests: Rests,
    /// Phases for which earlier runs were searched, or need not be.
    sought: u32,
    /// What the work was when they were searched.
    work: Option<WorkIdentity>,
    workers: Workers,
    /// What an attempt took lately, in microseconds, by phase; none before the first was committed.
    usual: Vec<Option<u64>>,
    /// When this epoch's coordinator first gave anything out.
    begun: Option<Millis>,
    /// A member of the gang ended otherwise than done, and others are held still.
    gang_is_broken: bool,
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
            rests: Rests::default(),
            sought: 0,
            work: None,
            workers: Workers::default(),
            usual: Vec::new(),
            begun: None,
            gang_is_broken: false,
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
            let decided = self.decide(input, now);
            self.apply_all(decided, now, &mut events);
        }
        let given_up = self.given_up(now);
        self.apply_all(given_up, now, &mut events);
        let mut assigned: BTreeMap<WorkerId, Vec<AttemptId>> = BTreeMap::new();
        for (worker, attempt) in self.muster(now) {
            self.assign(&worker, attempt, now);
            assigned.entry(worker).or_default().push(attempt);
        }
        while let Some(step) = self.step(now) {
            match step {
                Step::Give(worker, attempt) => {
                    self.assign(&worker, attempt, now);
                    assigned.entry(worker).or_default().push(attempt);
                }
                Step::Note(event) => {
                    self.apply(&event);
                    events.push(event);
                }
            }
        }
        let assigned = assigned.into_iter();
        events.extend(assigned.map(|(worker, attempts)| Event::Assigned { worker, attempts, at: now }));
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

    /// Applies what was decided, and what follows from it for a gang.
    fn apply_all(&mut self, decided: Vec<Event>, at: Millis, events: &mut Vec<Event>) {
        let mut next = decided;
        while !next.is_empty() {
            next.iter().for_each(|event| self.apply(event));
            events.append(&mut next);
            next = self.of_gang(at);
        }
    }

    /// What an input means by itself.
    fn decide(&self, input: &Input, at: Millis) -> Vec<Event> {
        if self.ended.is_some() {
            return Vec::new();
        }
        let one = |event| vec![event];
        match input {
            Input::Opened { epoch } if *epoch > self.epoch => {
                let absent = self.workers.ids().map(|worker| Event::WorkerAbsent { worker: worker.clone(), at });
                std::iter::once(Event::Opened { epoch: *epoch, at }).chain(absent).collect()
            }
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
            Input::Reused { tasks } => self.reused(tasks, at),
            Input::Sought { phase, work, among } if self.is_to_be_sought(*phase) => {
                one(Event::Sought { phase: *phase, work: work.clone(), among: among.clone(), at })
            }
            Input::PlanFailed { error } | Input::PublishFailed { error } if self.error.is_none() => {
                one(Event::Aborted { error: error.clone(), at })
            }
            Input::ExportFailed { error } if self.error.is_none() => one(Event::Aborted { error: error.clone(), at }),
            Input::Joined { worker, slots, holds, process, left } => {
                // What it was sent and never got, or has forgotten, nobody does any more.
                let mut events = self.lost(worker, |attempt| !holds.contains(&attempt), at);
                let (worker, slots, process) = (worker.clone(), (*slots).max(1), process.clone());
                let until = left.map(|left| Millis(at.0.saturating_add(left)));
                events.push(Event::WorkerJoined { worker, slots, process, until, at });
                events
            }
            Input::Silent { worker } if self.workers.is_there(worker) => {
                one(Event::WorkerAbsent { worker: worker.clone(), at })
            }
            Input::Draining { worker } if self.workers.get(worker).is_some_and(|worker| !worker.drains) => {
                one(Event::WorkerDrains { worker: worker.clone() })
            }
            Input::Gone { worker } => self.left(worker, at),
            Input::Started { worker, attempts } => {
                let waits = |attempt: &&AttemptId| self.holds(worker, **attempt) == Some(None);
                let attempts: Vec<_> = attempts.iter().filter(waits).copied().collect();
                if attempts.is_empty() { Vec::new() } else { one(Event::Started { attempts, at }) }
            }
            Input::Done(Done { worker, attempt, outputs, metrics, micros, rest })
                if self.holds(worker, *attempt).is_some() =>
            {
                let (attempt, outputs, metrics) = (*attempt, outputs.clone(), metrics.clone());
                let (micros, rest) = (*micros, rest.clone());
                let whole = rest.is_empty() || self.config.resplit && attempt.task.phase == 0;
                one(match self.config.gang {
                    _ if !whole => self.failed(attempt, left_something(), at),
                    true => Event::Finished { finished: Finished { attempt, outputs, metrics, micros }, at },
                    false => Event::Committed { attempt, outputs, metrics, micros, rest, at },
                })
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

    /// Absent workers that need not be waited for: those that hold nothing, and those that are absent for too long.
    fn given_up(&self, at: Millis) -> Vec<Event> {
        let long = |since: Millis| at.0 >= since.0.saturating_add(ABSENT);
        let idle = |id: &WorkerId| self.workers.get(id).is_some_and(|worker| worker.held.is_empty());
        let absent = self.workers.absent().filter(|(since, id)| long(*since) || idle(id));
        absent.flat_map(|(_, id)| self.left(id, at)).collect()
    }

    fn assign(&mut self, worker: &WorkerId, attempt: AttemptId, at: Millis) {
        if self.workers.get(worker).is_none() {
            return;
        }
        self.tasks.count(attempt.task, |task| task.attempts = attempt.number);
        let holding = Holding { attempt, worker: worker.clone(), started: None, yields: None };
        let state = match self.task(attempt.task).map(|task| &task.state) {
            Some(TaskState::Held { first, second: None }) if first.worker != *worker => {
                TaskState::Held { first: first.clone(), second: Some(Box::new(holding)) }
            }
            _ => TaskState::Held { first: holding, second: None },
        };
        self.put(attempt.task, state);
        self.workers.give(worker, at);
        self.begun.get_or_insert(at);
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

    fn holding(&self, attempt: AttemptId) -> Option<&Holding> {
        self.task(attempt.task)?.state.holdings().find(|holding| holding.attempt == attempt)
    }

    /// When the attempt was started, if this worker holds it.
    fn holds(&self, worker: &WorkerId, attempt: AttemptId) -> Option<Option<Millis>> {
        self.holding(attempt).filter(|holding| holding.worker == *worker).map(|holding| holding.started)
    }

    /// Whether another attempt at the same task goes on: then the end of this one decides nothing.
    fn has_second(&self, attempt: AttemptId) -> bool {
        self.task(attempt.task).is_some_and(|task| task.state.holdings().any(|holding| holding.attempt != attempt))
    }

    /// The end of what a worker held, as far as it is asked for.
    fn lost(&self, worker: &WorkerId, which: impl Fn(AttemptId) -> bool, at: Millis) -> Vec<Event> {
        let Some(state) = self.workers.get(worker) else { return Vec::new() };
        let lost = |attempt: AttemptId| {
            // What had not started cannot have been the reason, unless nothing ever started there.
            let lost = self.holds(worker, attempt).flatten().is_some() || !state.proven;
            let retry_at = Millis(at.0.saturating_add(if state.proven { 0 } else { self.config.backoff_first }));
            let too_often = self.task(attempt.task).is_some_and(|task| task.losses + 1 >= MAX_WORKER_LOSSES);
            match lost && too_often && !self.has_second(attempt) {
                true => Event::AttemptFailed { attempt, failure: Failure::WorkerLost, retry_at: None, at },
                false => Event::AttemptReturned { attempt, retry_at, lost },
            }
        };
        state.held.iter().copied().filter(|attempt| which(*attempt)).map(lost).collect()
    }

    fn left(&self, worker: &WorkerId, at: Millis) -> Vec<Event> {
        let mut events = self.lost(worker, |_| true, at);
        events.extend(self.workers.get(worker).map(|_| Event::WorkerLeft { worker: worker.clone() }));
        events
    }

    fn failed(&self, attempt: AttemptId, failure: Failure, at: Millis) -> Event {
        let failures = self.failures(attempt.task) + 1;
        let hopeless = matches!(failure, Failure::Error { retryable: false, .. });
        let wait = self.config.backoff_first.saturating_mul(1 << (failures - 1).min(32)).min(self.config.backoff_last);
        // Tasks that failed together do not come back together. The attempt's own number is all the chance needed.
        let spread = u64::from(attempt.task.index.wrapping_mul(2_654_435_761) >> 16) % 512;
        let wait = wait - wait / 4 + (wait / 2).saturating_mul(spread) / 512;
        let again = self.has_second(attempt) || self.gang_is_broken || !hopeless && failures < self.config.attempts;
        let retry_at = again.then(|| Millis(at.0.saturating_add(wait)));
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
        let holder = |attempt: &AttemptId| self.holding(*attempt).map(|holding| holding.worker.clone());
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
            Event::Opened { epoch, .. } => {
                self.epoch = *epoch;
                self.begun = None;
                self.await_inputs();
            }
            Event::Planned { snapshot, phases, .. } => {
                self.planned = true;
                self.snapshot = snapshot.clone();
                self.tasks = Tasks::new(phases);
                self.rests = Rests::behind(phases.first().copied().unwrap_or(0));
                self.usual = vec![None; phases.len()];
                // What its inputs hold is not known yet when its first tasks begin.
                self.sought = u32::from(snapshot.is_none());
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
            Event::Reused { tasks, .. } => tasks.iter().for_each(|reused| self.reuse(reused)),
            Event::Sought { phase, work, .. } => {
                self.sought = self.sought.max(phase.saturating_add(1));
                self.work = work.clone();
            }
            Event::WorkerJoined { worker, slots, process, until, at } => {
                let hello = Hello { slots: *slots, process: process.clone(), until: *until };
                self.workers.join(worker.clone(), hello, *at);
            }
            Event::WorkerDrains { worker } => self.workers.drain(worker),
            Event::WorkerAbsent { worker, at } => self.workers.miss(worker, *at),
            Event::WorkerLeft { worker } => self.remove_worker(worker),
            Event::Assigned { worker, attempts, at } => {
                attempts.iter().for_each(|attempt| self.assign(worker, *attempt, *at));
            }
            Event::Started { attempts, at } => attempts.iter().for_each(|attempt| self.started(*attempt, *at)),
            Event::Committed { attempt, outputs, micros, rest, .. } => {
                if rest.is_empty() {
                    self.took(attempt.task.phase, *micros);
                }
                self.prove_holder(*attempt);
                self.leave_rest(attempt.task, rest);
                self.put(attempt.task, TaskState::Committed { attempt: *attempt, outputs: outputs.clone() });
            }
            Event::Finished { finished, .. } => {
                self.took(finished.attempt.task.phase, finished.micros);
                self.prove_holder(finished.attempt);
                self.finish(finished);
            }
            Event::Yields { attempt, at } => {
                self.change_holding(*attempt, |holding| holding.yields = Some(*at));
                if let Some(worker) = self.holding(*attempt).map(|holding| holding.worker.clone()) {
                    self.workers.is_slow(&worker);
                }
            }
            Event::GangBroke => self.gang_is_broken = true,
            Event::GangReady => self.regroup(),
            Event::AttemptFailed { attempt, failure, retry_at, .. } => {
                if *failure != Failure::WorkerLost {
                    self.prove_holder(*attempt);
                }
                let follows = self.gang_is_broken;
                self.tasks.count(attempt.task, |task| match failure {
                    _ if follows => {}
                    Failure::WorkerLost => task.losses = task.losses.saturating_add(1),
                    _ => task.failures = task.failures.saturating_add(1),
                });
                let state = retry_at.map_or_else(|| TaskState::Failed(failure.clone()), TaskState::Ready);
                self.end_attempt(*attempt, state);
            }
            Event::AttemptReturned { attempt, retry_at, lost } => {
                self.tasks.count(attempt.task, |task| task.losses = task.losses.saturating_add(u32::from(*lost)));
                self.end_attempt(*attempt, TaskState::Ready(*retry_at));
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

    /// Whether a task waits until its inputs are said to be staged.
    fn awaits_inputs(&self, task: TaskId) -> bool {
        self.snapshot.is_none() && task.phase == 0
    }

    fn inputs_are_there(&mut self, task: TaskId) {
        if self.task(task).is_some_and(|task| task.state == TaskState::Awaiting) {
            self.put(task, TaskState::Ready(Millis(0)));
        }
    }

    fn started(&mut self, attempt: AttemptId, at: Millis) {
        self.prove_holder(attempt);
        self.change_holding(attempt, |holding| holding.started = Some(at));
    }

    /// Changes what is known of an attempt that is held.
    fn change_holding(&mut self, attempt: AttemptId, change: impl FnOnce(&mut Holding)) {
        let Some(mut state) = self.task(attempt.task).map(|task| task.state.clone()) else { return };
        let TaskState::Held { first, second } = &mut state else { return };
        let mut both = std::iter::once(first).chain(second.as_deref_mut());
        if let Some(holding) = both.find(|holding| holding.attempt == attempt) {
            change(holding);
            self.put(attempt.task, state);
        }
    }

    /// Who has ended an attempt can start attempts, be it told of that or not.
    fn prove_holder(&mut self, attempt: AttemptId) {
        if let Some(worker) = self.holding(attempt).map(|holding| holding.worker.clone()) {
            self.workers.prove(&worker);
        }
    }

    /// An attempt is held no more. What becomes of its task depends on it only if no other attempt goes on.
    fn end_attempt(&mut self, attempt: AttemptId, state: TaskState) {
        let Some(task) = self.task(attempt.task) else { return };
        let other = task.state.holdings().find(|holding| holding.attempt != attempt).cloned();
        let state = match (other, state) {
            (Some(first), _) => TaskState::Held { first, second: None },
            // What an earlier coordinator found staged may not have outlived the crash of its host.
            (None, TaskState::Ready(_)) if attempt.epoch != self.epoch && self.awaits_inputs(attempt.task) => {
                TaskState::Awaiting
            }
            (None, state) => state,
        };
        self.put(attempt.task, state);
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
        for Holding { attempt, worker, .. } in state.holdings() {
            self.workers.hold(worker, *attempt);
        }
        let kept = state.holdings().map(|holding| holding.attempt).collect::<Vec<_>>();
        for Holding { attempt, worker, .. } in self.tasks.put(task, state).iter().flat_map(TaskState::holdings) {
            if !kept.contains(attempt) {
                self.workers.release(worker, *attempt);
            }
        }
    }

    /// Forgets a worker; what it still held is ready again.
    fn remove_worker(&mut self, worker: &WorkerId) {
        let held = self.workers.leave(worker);
        held.into_iter().for_each(|attempt| self.end_attempt(attempt, TaskState::Ready(Millis(0))));
    }

    /// What the world should look like, where `now` is when an input was last handled.
    pub fn wanted(&self, now: Millis) -> Wanted {
        let running = self.stopping().is_none() && self.ended.is_none();
        let seek = self.seeks().filter(|_| running);
        Wanted {
            // All that there is to do may turn out to be done.
            workers: if running && seek != Some(0) { self.config.workers.min(self.tasks.open()) } else { 0 },
            seek,
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
        Some(match (self.stopping(), self.gang_is_broken) {
            (Some(_), _) => Share { version: u64::MAX, held: &NOTHING },
            (None, true) => Share { version: u64::MAX - 1, held: &NOTHING },
            (None, false) => Share { version: worker.version, held: &worker.held },
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
        // Of what was missed for too long by now an input has told.
        let absent = self.workers.absent().map(|(since, _)| Millis(since.0.saturating_add(ABSENT)));
        let given_up = absent.filter(|at| *at > now).min();
        self.tasks.ready_after(now).into_iter().chain(overdue).chain(given_up).chain(self.gives_at(now)).min()
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

    /// Whether an attempt was begun beside another one that goes on.
    pub fn is_second(&self, attempt: AttemptId) -> bool {
        let state = self.task(attempt.task).map(|task| &task.state);
        matches!(state, Some(TaskState::Held { second: Some(second), .. }) if second.attempt == attempt)
    }

    /// Whether an attempt is to be done with what it has read.
    pub fn yields(&self, attempt: AttemptId) -> bool {
        self.holding(attempt).is_some_and(|holding| holding.yields.is_some())
    }

    /// Slots in which what a slow task has not read can be read.
    pub fn quick_slots(&self) -> u32 {
        u32::try_from(self.workers.quick_slots()).unwrap_or(u32::MAX)
    }

    /// All tasks in order.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, &Task)> {
        self.tasks.iter()
    }

    /// Workers of which nothing is heard, since when, and their processes.
    pub fn absent(&self) -> impl Iterator<Item = (&WorkerId, Millis, Option<&Holder>)> {
        let process = |id| self.workers.get(id).and_then(|worker| worker.process.as_ref());
        self.workers.absent().map(move |(since, id)| (id, since, process(id)))
    }

    /// What a worker holds, be it wanted there any more or not.
    pub fn held(&self, worker: &WorkerId) -> impl Iterator<Item = AttemptId> {
        self.workers.get(worker).into_iter().flat_map(|worker| worker.held.iter().copied())
    }

    /// Whether the run only waits for what its workers still hold.
    pub fn is_stopping(&self) -> bool {
        self.stopping().is_some() && self.ended.is_none()
    }

    /// Whether nothing is to be held any more, be it for good or until a gang begins again.
    pub fn recalls_all(&self) -> bool {
        self.is_stopping() || self.gang_is_broken
    }

    /// What is read; none until all of it is staged.
    pub fn snapshot(&self) -> Option<&str> {
        self.snapshot.as_deref()
    }

    /// What the work was when earlier runs were searched for what they did of it.
    pub fn work(&self) -> Option<&WorkIdentity> {
        self.work.as_ref()
    }

    /// Files of the committed attempts of a phase, in the order of what its tasks have read.
    pub fn committed(&self, phase: u32) -> impl Iterator<Item = &OutputFile> {
        let tasks = self.in_order_of_input(phase).into_iter().filter_map(|id| self.task(id));
        tasks.flat_map(|task| match &task.state {
            TaskState::Committed { outputs, .. } => outputs.as_slice(),
            _ => &[],
        })
    }

    /// What a phase reads: the files of the phase before, by partition.
    pub fn partitions_before(&self, phase: u32) -> BTreeMap<u32, Vec<OutputFile>> {
        let mut files: BTreeMap<u32, Vec<OutputFile>> = BTreeMap::new();
        for file in phase.checked_sub(1).into_iter().flat_map(|before| self.committed(before)) {
            if let Some(partition) = file.partition {
                files.entry(partition).or_default().push(file.clone());
            }
        }
        files
    }

    /// How the run ended, if it has.
    pub fn ended(&self) -> Option<EndState> {
        self.ended
    }
}

/// What it left would be nobody's.
fn left_something() -> Failure {
    Failure::BadOutput { message: "it left some of its input unread, which this job's tasks must not".to_owned() }
}

#[cfg(test)]
mod tests;
