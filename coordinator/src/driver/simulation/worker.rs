//! A worker as the agent is one, without programs: what it was given waits, runs until the history ends it, and is told
//! until it is noted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use forebay_datasets::split::Split;
use forebay_jobs::{
    id::{AttemptId, WorkerId},
    task::{AttemptReport, Failure, Outcome, TaskInput},
    wire::{Assignment, FromWorker, ToWorker},
};

/// A worker's process.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) slots: u32,
    pub(super) alive: bool,
    /// No coordinator can be reached.
    pub(super) partitioned: bool,
    /// The number of its stream.
    pub(super) stream: Option<u64>,
    queue: VecDeque<AttemptId>,
    running: BTreeSet<AttemptId>,
    /// What each attempt that it was given is to read.
    splits: BTreeMap<AttemptId, Split>,
    /// What is to leave something to others.
    yields: BTreeSet<AttemptId>,
    seen: BTreeSet<AttemptId>,
    draining: bool,
    unnoted: BTreeMap<AttemptId, AttemptReport>,
    /// What it keeps as files, for a coordinator that looks after it.
    pub(super) files: Vec<Vec<AttemptReport>>,
}

impl Worker {
    pub(super) fn new(id: WorkerId, slots: u32) -> Self {
        Self {
            id,
            slots,
            alive: true,
            partitioned: false,
            stream: None,
            queue: VecDeque::new(),
            running: BTreeSet::new(),
            splits: BTreeMap::new(),
            yields: BTreeSet::new(),
            seen: BTreeSet::new(),
            draining: false,
            unnoted: BTreeMap::new(),
            files: Vec::new(),
        }
    }

    pub(super) fn running(&self) -> &BTreeSet<AttemptId> {
        &self.running
    }

    pub(super) fn holds(&self) -> BTreeSet<AttemptId> {
        self.queue.iter().chain(&self.running).chain(self.unnoted.keys()).copied().collect()
    }

    /// What it says first on a new stream: whatever the coordinator may not know.
    pub(super) fn is_back(&mut self, stream: u64) -> Vec<FromWorker> {
        self.stream = Some(stream);
        let reports: Vec<_> = self.unnoted.values().cloned().collect();
        let started: Vec<_> = self.running.iter().copied().collect();
        let mut says = Vec::new();
        if self.draining {
            says.push(FromWorker::Draining);
        }
        if !reports.is_empty() {
            says.push(FromWorker::Reports(reports));
        }
        if !started.is_empty() {
            says.push(FromWorker::Started(started));
        }
        says
    }

    /// Its stream broke, and it knows.
    pub(super) fn is_cut(&mut self) {
        if self.stream.take().is_some() && !self.unnoted.is_empty() {
            self.files.push(self.unnoted.values().cloned().collect());
        }
    }

    /// What it says to a message.
    pub(super) fn hear(&mut self, message: ToWorker) -> Vec<FromWorker> {
        match message {
            ToWorker::Assign(assignments) => {
                for Assignment { attempt, spec, .. } in &assignments {
                    if let TaskInput::Split(split) = &spec.input {
                        self.splits.insert(*attempt, split.clone());
                    }
                }
                let new = assignments.into_iter().map(|assignment| assignment.attempt);
                let new: Vec<_> = new.filter(|attempt| self.seen.insert(*attempt)).collect();
                self.queue.extend(new);
                if self.draining { self.give_back() } else { self.start() }
            }
            ToWorker::Kill(attempts) => {
                let (killed, kept) = std::mem::take(&mut self.queue).into_iter().partition(|id| attempts.contains(id));
                self.queue = kept;
                let killed: VecDeque<AttemptId> = killed;
                let ended = attempts.into_iter().filter(|attempt| self.running.remove(attempt));
                let killed: Vec<_> = killed.into_iter().chain(ended).collect();
                let cancelled = |attempt| (attempt, Outcome::Failed(Failure::Cancelled));
                self.tell(killed.into_iter().map(cancelled).collect())
            }
            ToWorker::Yield(attempts) => {
                self.yields.extend(attempts);
                Vec::new()
            }
            ToWorker::Noted(attempts) => {
                attempts.iter().for_each(|attempt| drop(self.unnoted.remove(attempt)));
                Vec::new()
            }
            ToWorker::Shutdown => {
                self.alive = false;
                Vec::new()
            }
            ToWorker::Look { .. } | ToWorker::Welcome { .. } => Vec::new(),
        }
    }

    /// It is told to end: it takes nothing more, and ends once its slots are empty.
    pub(super) fn drain(&mut self) -> Vec<FromWorker> {
        self.draining = true;
        let mut says = self.give_back();
        if self.stream.is_some() {
            says.insert(0, FromWorker::Draining);
        }
        says
    }

    pub(super) fn has_drained(&self) -> bool {
        self.draining && self.running.is_empty()
    }

    fn give_back(&mut self) -> Vec<FromWorker> {
        let queued = std::mem::take(&mut self.queue);
        self.tell(queued.into_iter().map(|attempt| (attempt, Outcome::GivenBack)).collect())
    }

    /// What an attempt that is done has read, and what it left: half of it if it was to yield, or `early`.
    pub(super) fn read(&self, attempt: AttemptId, early: bool) -> (Split, Option<Split>) {
        let all = &self.splits[&attempt];
        let mut halves = all.clone().cut(2, 1);
        match halves.len() {
            2 if early || self.yields.contains(&attempt) => {
                let rest = halves.pop();
                (halves.remove(0), rest)
            }
            _ => (all.clone(), None),
        }
    }

    /// An attempt in a slot ends.
    pub(super) fn finish(&mut self, attempt: AttemptId, outcome: Outcome) -> Vec<FromWorker> {
        self.running.remove(&attempt);
        self.tell(vec![(attempt, outcome)])
    }

    fn start(&mut self) -> Vec<FromWorker> {
        let mut started = Vec::new();
        while self.running.len() < self.slots as usize {
            let Some(attempt) = self.queue.pop_front() else { break };
            self.running.insert(attempt);
            started.push(attempt);
        }
        if started.is_empty() { Vec::new() } else { vec![FromWorker::Started(started)] }
    }

    fn tell(&mut self, ended: Vec<(AttemptId, Outcome)>) -> Vec<FromWorker> {
        let report = |(attempt, outcome)| AttemptReport { attempt, outcome, seconds: 1.0 };
        let reports: Vec<_> = ended.into_iter().map(report).collect();
        self.unnoted.extend(reports.iter().map(|report| (report.attempt, report.clone())));
        let mut says = Vec::new();
        if !reports.is_empty() {
            match self.stream {
                Some(_) => says.push(FromWorker::Reports(reports)),
                None => self.files.push(reports),
            }
        }
        says.extend(self.start());
        says
    }
}
