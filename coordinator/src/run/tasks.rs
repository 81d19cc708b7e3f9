//! The tasks of a run: where each is, and which can be assigned.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use forebay_jobs::{
    id::{AttemptId, RunId, TaskId, WorkerId},
    task::{Failure, OutputFile},
};
use serde::{Deserialize, Serialize};

use super::{Event, Millis};

/// An attempt on a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Holding {
    /// The attempt.
    pub attempt: AttemptId,
    /// Who holds it.
    pub worker: WorkerId,
    /// When it entered a slot.
    pub started: Option<Millis>,
    /// When it was asked to leave what it has not read to others.
    pub yields: Option<Millis>,
}

/// What a member of a gang has made, which counts once all have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// The attempt.
    pub attempt: AttemptId,
    /// Its files.
    pub outputs: Vec<OutputFile>,
    /// Its figures.
    pub metrics: BTreeMap<String, f64>,
    /// What it took, in microseconds.
    pub micros: u64,
}

impl Finished {
    /// It counts.
    pub(super) fn committed(self, at: Millis) -> Event {
        let Self { attempt, outputs, metrics, micros } = self;
        Event::Committed { attempt, outputs, metrics, micros, rest: Vec::new(), at }
    }
}

/// What an earlier run has made for a task, which counts as if an attempt of this run had made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reused {
    /// The attempt that nobody had to make.
    pub attempt: AttemptId,
    /// Its files, by their names in this run.
    pub outputs: Vec<OutputFile>,
    /// The run that made them.
    pub from: RunId,
}

/// Where a task is.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskState {
    /// Its inputs are being staged.
    Awaiting,
    /// To be assigned, not before this time.
    Ready(Millis),
    /// On a worker, or on two: the first attempt that is done counts.
    Held {
        /// The attempt that was given out first.
        first: Holding,
        /// Another one, beside one that takes long or whose worker is absent.
        second: Option<Box<Holding>>,
    },
    /// Done, as one of a gang of which others are not.
    Finished(Box<Finished>),
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

impl TaskState {
    fn is_open(&self) -> bool {
        matches!(self, Self::Awaiting | Self::Ready(_) | Self::Held { .. } | Self::Finished(_))
    }

    /// Its attempts on workers.
    pub fn holdings(&self) -> impl Iterator<Item = &Holding> {
        let (first, second) = match self {
            Self::Held { first, second } => (Some(first), second.as_deref()),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// Which attempts are in slots, and since when.
    fn running(&self) -> impl Iterator<Item = (Millis, AttemptId)> {
        self.holdings().filter_map(|holding| Some((holding.started?, holding.attempt)))
    }
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

/// A task of which nothing has happened.
const NEW: Task = Task { state: TaskState::Ready(Millis(0)), attempts: 0, failures: 0, losses: 0 };

/// All tasks, with what is asked of them at every step kept beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tasks {
    phases: Vec<Vec<Task>>,
    /// Tasks that are neither committed nor failed, by phase.
    open: Vec<u32>,
    /// Tasks that wait for the rest of their gang.
    finished: u32,
    failed: u32,
    /// Of each phase the first task that was never anything but ready, as all behind it: a range, not a set of a million.
    fresh: Vec<u32>,
    /// Where those before are found.
    index: Index,
}

/// Tasks by what may become of them next.
#[derive(Clone, Debug, Default, PartialEq)]
struct Index {
    /// Waiting for their inputs.
    awaiting: BTreeSet<TaskId>,
    /// Ready since ever.
    due: BTreeSet<TaskId>,
    /// Ready from a time on.
    waiting: BTreeSet<(Millis, TaskId)>,
    /// In slots, since when.
    running: BTreeSet<(Millis, AttemptId)>,
}

impl Index {
    fn insert(&mut self, id: TaskId, state: &TaskState) {
        match state {
            TaskState::Awaiting => self.awaiting.insert(id),
            TaskState::Ready(Millis(0)) => self.due.insert(id),
            TaskState::Ready(at) => self.waiting.insert((*at, id)),
            held => held.running().fold(false, |_, running| self.running.insert(running)),
        };
    }

    fn remove(&mut self, id: TaskId, state: &TaskState) {
        match state {
            TaskState::Awaiting => self.awaiting.remove(&id),
            TaskState::Ready(Millis(0)) => self.due.remove(&id),
            TaskState::Ready(at) => self.waiting.remove(&(*at, id)),
            held => held.running().fold(false, |_, running| self.running.remove(&running)),
        };
    }

    /// Whether a task is found where it is.
    fn has(&self, id: TaskId, state: &TaskState) -> bool {
        match state {
            TaskState::Awaiting => self.awaiting.contains(&id),
            TaskState::Ready(Millis(0)) => self.due.contains(&id),
            TaskState::Ready(at) => self.waiting.contains(&(*at, id)),
            held => held.running().all(|running| self.running.contains(&running)),
        }
    }

    fn len(&self) -> usize {
        self.awaiting.len() + self.due.len() + self.waiting.len() + self.running.len()
    }
}

impl Tasks {
    pub(super) fn new(phases: &[u32]) -> Self {
        Self {
            phases: phases.iter().map(|count| vec![NEW; *count as usize]).collect(),
            open: phases.to_vec(),
            finished: 0,
            failed: 0,
            fresh: vec![0; phases.len()],
            index: Index::default(),
        }
    }

    pub(super) fn get(&self, id: TaskId) -> Option<&Task> {
        self.phases.get(id.phase as usize)?.get(id.index as usize)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TaskId, &Task)> {
        let phases = (0..).zip(&self.phases);
        phases.flat_map(|(phase, tasks)| (0..).zip(tasks).map(move |(index, task)| (TaskId { phase, index }, task)))
    }

    pub(super) fn failed(&self) -> u32 {
        self.failed
    }

    pub(super) fn finished(&self) -> u32 {
        self.finished
    }

    /// Tasks that are neither committed nor failed.
    pub(super) fn open(&self) -> u32 {
        self.open.iter().sum()
    }

    /// Of these, those of one phase.
    pub(super) fn open_in(&self, phase: u32) -> u32 {
        self.open.get(phase as usize).copied().unwrap_or(0)
    }

    /// The phase whose tasks can run: the first one with open tasks.
    pub(super) fn phase(&self) -> Option<u32> {
        self.open.iter().position(|open| *open > 0).and_then(|phase| u32::try_from(phase).ok())
    }

    /// The first task of a phase that can be assigned now.
    pub(super) fn next(&self, phase: u32, now: Millis) -> Option<TaskId> {
        let again = self.index.due.range(of_phase(phase)).next().copied();
        let mut waited = self.index.waiting.iter().take_while(|(at, _)| *at <= now).map(|(_, task)| *task);
        again.or_else(|| self.fresh_in(phase).next()).or_else(|| waited.find(|task| task.phase == phase))
    }

    /// Those that were never anything but ready.
    fn fresh_in(&self, phase: u32) -> impl Iterator<Item = TaskId> + use<> {
        let from = self.fresh.get(phase as usize).copied().unwrap_or(u32::MAX);
        (from..self.count_in(phase)).map(move |index| TaskId { phase, index })
    }

    /// Attempts in slots, those first that are so for the longest time.
    pub(super) fn running(&self) -> &BTreeSet<(Millis, AttemptId)> {
        &self.index.running
    }

    /// Those that wait for their inputs.
    pub(super) fn awaiting(&self) -> &BTreeSet<TaskId> {
        &self.index.awaiting
    }

    /// How many a phase has.
    pub(super) fn count_in(&self, phase: u32) -> u32 {
        self.phases.get(phase as usize).map_or(0, |tasks| u32::try_from(tasks.len()).unwrap_or(u32::MAX))
    }

    /// Those of a phase that no worker holds and that are not done.
    pub(super) fn idle_in(&self, phase: u32) -> Vec<TaskId> {
        let waiting = self.index.waiting.iter().map(|(_, task)| *task).filter(|task| task.phase == phase);
        self.index.due.range(of_phase(phase)).copied().chain(waiting).chain(self.fresh_in(phase)).collect()
    }

    /// When the next task becomes ready that is not ready yet.
    pub(super) fn ready_after(&self, now: Millis) -> Option<Millis> {
        let first = TaskId { phase: 0, index: 0 };
        self.index.waiting.range((Millis(now.0.saturating_add(1)), first)..).next().map(|(at, _)| *at)
    }

    /// Adds so many to a phase.
    pub(super) fn add(&mut self, phase: u32, count: u32) {
        if let Some(tasks) = self.phases.get_mut(phase as usize) {
            tasks.extend(std::iter::repeat_n(NEW, count as usize));
            self.open[phase as usize] += count;
        }
    }

    /// Changes a task's numbers.
    pub(super) fn count(&mut self, id: TaskId, change: impl FnOnce(&mut Task)) {
        if let Some(task) = task_mut(&mut self.phases, id) {
            change(task);
        }
    }

    /// Moves a task; what is kept beside it follows. Says where it was.
    pub(super) fn put(&mut self, id: TaskId, state: TaskState) -> Option<TaskState> {
        let task = task_mut(&mut self.phases, id)?;
        let open = &mut self.open[id.phase as usize];
        match (task.state.is_open(), state.is_open()) {
            (true, false) => *open -= 1,
            (false, true) => *open += 1,
            _ => {}
        }
        self.finished += u32::from(matches!(state, TaskState::Finished(_)));
        self.finished -= u32::from(matches!(task.state, TaskState::Finished(_)));
        self.failed += u32::from(matches!(state, TaskState::Failed(_)));
        self.failed -= u32::from(matches!(task.state, TaskState::Failed(_)));
        let fresh = &mut self.fresh[id.phase as usize];
        if id.index >= *fresh {
            // Those before it are ready, and no more behind all others.
            self.index.due.extend((*fresh..id.index).map(|index| TaskId { index, ..id }));
            *fresh = id.index + 1;
        } else {
            self.index.remove(id, &task.state);
        }
        self.index.insert(id, &state);
        Some(std::mem::replace(&mut task.state, state))
    }

    /// Whether what is kept beside the tasks agrees with them.
    pub(super) fn agree(&self) -> Result<(), String> {
        let (mut open, mut indexed, mut finished, mut failed) = (vec![0; self.phases.len()], 0, 0, 0);
        for (id, task) in self.iter() {
            let fresh = id.index >= self.fresh[id.phase as usize];
            let agrees =
                if fresh { task.state == TaskState::Ready(Millis(0)) } else { self.index.has(id, &task.state) };
            if !agrees {
                return Err(format!("task {id} is {:?} and would never be seen to be", task.state));
            }
            indexed += match task.state {
                TaskState::Awaiting | TaskState::Ready(_) => usize::from(!fresh),
                _ => task.state.running().count(),
            };
            finished += u32::from(matches!(task.state, TaskState::Finished(_)));
            failed += u32::from(matches!(task.state, TaskState::Failed(_)));
            open[id.phase as usize] += u32::from(task.state.is_open());
        }
        let counted = open == self.open && finished == self.finished && failed == self.failed;
        match counted && indexed == self.index.len() {
            true => Ok(()),
            false => Err(format!(
                "{open:?} open, {indexed} ready or running, {finished} finished and {failed} failed are counted otherwise"
            )),
        }
    }
}

fn of_phase(phase: u32) -> RangeInclusive<TaskId> {
    TaskId { phase, index: 0 }..=TaskId { phase, index: u32::MAX }
}

fn task_mut(phases: &mut [Vec<Task>], id: TaskId) -> Option<&mut Task> {
    phases.get_mut(id.phase as usize)?.get_mut(id.index as usize)
}
