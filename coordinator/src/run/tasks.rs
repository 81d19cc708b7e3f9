//! The tasks of a run: where each is, and which can be assigned.

use std::collections::BTreeSet;

use forebay_jobs::{
    id::{AttemptId, TaskId, WorkerId},
    task::{Failure, OutputFile},
};

use super::Millis;

/// Where a task is.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskState {
    /// Its inputs are being staged.
    Awaiting,
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

impl TaskState {
    fn is_open(&self) -> bool {
        matches!(self, Self::Awaiting | Self::Ready(_) | Self::Held { .. })
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

/// All tasks, with what is asked of them at every step kept beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tasks {
    phases: Vec<Vec<Task>>,
    /// Tasks that are neither committed nor failed, by phase.
    open: Vec<u32>,
    failed: u32,
    /// Waiting for their inputs.
    awaiting: BTreeSet<TaskId>,
    /// Ready since ever.
    due: BTreeSet<TaskId>,
    /// Ready from a time on.
    waiting: BTreeSet<(Millis, TaskId)>,
}

impl Tasks {
    pub(super) fn new(phases: &[u32]) -> Self {
        let task = Task { state: TaskState::Ready(Millis(0)), attempts: 0, failures: 0, losses: 0 };
        let ids = (0..).zip(phases).flat_map(|(phase, count)| (0..*count).map(move |index| TaskId { phase, index }));
        Self {
            phases: phases.iter().map(|count| vec![task.clone(); *count as usize]).collect(),
            open: phases.to_vec(),
            failed: 0,
            awaiting: BTreeSet::new(),
            due: ids.collect(),
            waiting: BTreeSet::new(),
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
        let first = TaskId { phase, index: 0 }..=TaskId { phase, index: u32::MAX };
        let mut waited = self.waiting.iter().take_while(|(at, _)| *at <= now).map(|(_, task)| *task);
        self.due.range(first).next().copied().or_else(|| waited.find(|task| task.phase == phase))
    }

    /// Those that wait for their inputs.
    pub(super) fn awaiting(&self) -> &BTreeSet<TaskId> {
        &self.awaiting
    }

    /// Those of a phase that no worker holds and that are not done.
    pub(super) fn idle_in(&self, phase: u32) -> Vec<TaskId> {
        let first = TaskId { phase, index: 0 }..=TaskId { phase, index: u32::MAX };
        let due = self.due.range(first).copied();
        due.chain(self.waiting.iter().map(|(_, task)| *task).filter(|task| task.phase == phase)).collect()
    }

    /// When the next task becomes ready that is not ready yet.
    pub(super) fn ready_after(&self, now: Millis) -> Option<Millis> {
        let first = TaskId { phase: 0, index: 0 };
        self.waiting.range((Millis(now.0.saturating_add(1)), first)..).next().map(|(at, _)| *at)
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
        self.failed += u32::from(matches!(state, TaskState::Failed(_)));
        self.failed -= u32::from(matches!(task.state, TaskState::Failed(_)));
        match task.state {
            TaskState::Awaiting => self.awaiting.remove(&id),
            TaskState::Ready(Millis(0)) => self.due.remove(&id),
            TaskState::Ready(at) => self.waiting.remove(&(at, id)),
            _ => false,
        };
        match state {
            TaskState::Awaiting => self.awaiting.insert(id),
            TaskState::Ready(Millis(0)) => self.due.insert(id),
            TaskState::Ready(at) => self.waiting.insert((at, id)),
            _ => false,
        };
        Some(std::mem::replace(&mut task.state, state))
    }

    /// Whether what is kept beside the tasks agrees with them.
    pub(super) fn agree(&self) -> Result<(), String> {
        let (mut open, mut ready, mut failed) = (vec![0; self.phases.len()], 0, 0);
        for (id, task) in self.iter() {
            let indexed = match task.state {
                TaskState::Awaiting => self.awaiting.contains(&id),
                TaskState::Ready(Millis(0)) => self.due.contains(&id),
                TaskState::Ready(at) => self.waiting.contains(&(at, id)),
                _ => true,
            };
            if !indexed {
                return Err(format!("task {id} is ready and would never be assigned"));
            }
            ready += usize::from(matches!(task.state, TaskState::Awaiting | TaskState::Ready(_)));
            failed += u32::from(matches!(task.state, TaskState::Failed(_)));
            open[id.phase as usize] += u32::from(task.state.is_open());
        }
        match (
            open == self.open,
            ready == self.awaiting.len() + self.due.len() + self.waiting.len(),
            failed == self.failed,
        ) {
            (true, true, true) => Ok(()),
            _ => Err(format!("{open:?} open, {ready} ready and {failed} failed are counted otherwise")),
        }
    }
}

fn task_mut(phases: &mut [Vec<Task>], id: TaskId) -> Option<&mut Task> {
    phases.get_mut(id.phase as usize)?.get_mut(id.index as usize)
}
