//! The run: a pure state machine, and the only place where scheduling is decided.
//!
//! [`Run::handle`] turns an [`Input`] and the time into [`Event`]s and folds them into the state. The driver makes the
//! events durable before it does anything that [`Run::wanted`] asks for, and replay calls the same [`Run::apply`]: there
//! is no second fold. No socket, path or clock is in here.
//!
//! Always true, and checked by [`invariants`] in tests and debug builds: at most one attempt of a task is committed and
//! never withdrawn; no task is lost; no worker holds more than its slots and its prefetch; no task fails more often than
//! it may; a report for a stale attempt, worker or epoch changes nothing.

mod apply;
mod assign;
mod config;
mod decide;
mod gang;
pub mod invariants;
mod known;
mod rests;
mod reuse;
mod tasks;
mod vocabulary;
mod wanted;
mod workers;

use std::collections::BTreeMap;

use forebay_jobs::{
    id::{AttemptId, Epoch, WorkerId},
    identity::WorkIdentity,
    plan::MOST_TASKS,
};

pub use self::config::RunConfig;
pub use self::decide::MAX_WORKER_LOSSES;
pub use self::tasks::{Finished, Holding, Reused, Task, TaskState};
pub use self::vocabulary::{Done, EndState, Event, Input, Millis, Share, Wanted};
use self::{assign::Step, rests::Rests, tasks::Tasks, workers::Workers};

/// With more open tasks a debug build leaves the checking of invariants to the tests.
#[cfg(debug_assertions)]
const CHECKED: u32 = 1000;

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
}

#[cfg(test)]
mod tests;
