//! What is known of a run: its workers, its tasks and attempts, and what was committed.

use std::collections::BTreeMap;

use forebay_datasets::volume::Holder;
use forebay_jobs::{
    id::{AttemptId, TaskId, WorkerId},
    identity::WorkIdentity,
    task::OutputFile,
};

use super::{EndState, Holding, Millis, Run, Task, TaskState};

impl Run {
    /// How the run ended, if it has.
    pub fn ended(&self) -> Option<EndState> {
        self.ended
    }

    /// What is read; none until all of it is staged.
    pub fn snapshot(&self) -> Option<&str> {
        self.snapshot.as_deref()
    }

    /// What the work was when earlier runs were searched for what they did of it.
    pub fn work(&self) -> Option<&WorkIdentity> {
        self.work.as_ref()
    }

    /// The workers that have joined.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerId> {
        self.workers.ids()
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

    /// Slots in which what a slow task has not read can be read.
    pub fn quick_slots(&self) -> u32 {
        u32::try_from(self.workers.quick_slots()).unwrap_or(u32::MAX)
    }

    /// A task, if the plan has it.
    pub fn task(&self, task: TaskId) -> Option<&Task> {
        self.tasks.get(task)
    }

    /// All tasks in order.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, &Task)> {
        self.tasks.iter()
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

    /// Whether a task waits until its inputs are said to be staged.
    pub(super) fn awaits_inputs(&self, task: TaskId) -> bool {
        self.snapshot.is_none() && task.phase == 0
    }

    pub(super) fn holding(&self, attempt: AttemptId) -> Option<&Holding> {
        self.task(attempt.task)?.state.holdings().find(|holding| holding.attempt == attempt)
    }

    /// When the attempt was started, if this worker holds it.
    pub(super) fn holds(&self, worker: &WorkerId, attempt: AttemptId) -> Option<Option<Millis>> {
        self.holding(attempt).filter(|holding| holding.worker == *worker).map(|holding| holding.started)
    }

    /// Whether another attempt at the same task goes on: then the end of this one decides nothing.
    pub(super) fn has_second(&self, attempt: AttemptId) -> bool {
        self.task(attempt.task).is_some_and(|task| task.state.holdings().any(|holding| holding.attempt != attempt))
    }
}
