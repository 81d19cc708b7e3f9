//! Tasks that are made of what others left unread.
//!
//! An attempt that takes long is asked to be done with what it has read. What it left is cut into as many tasks as can be
//! begun at once, behind all others of the first phase. This is the re-splitting of Hurricane's task cloning and of
//! SkewTune (Kwon et al., SIGMOD 2012): no record is read twice, and a slow worker keeps little of its split.

use std::collections::BTreeSet;

use forebay_datasets::split::Split;
use forebay_jobs::id::TaskId;

use super::Run;

/// These tasks, all of the first phase, whose other tasks are the plan's.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rests {
    /// Tasks of the plan.
    planned: u32,
    /// What each is to read, and whose rest it is.
    splits: Vec<(u32, Split)>,
}

impl Rests {
    pub(super) fn behind(planned: u32) -> Self {
        Self { planned, splits: Vec::new() }
    }

    fn get(&self, index: u32) -> Option<&Split> {
        self.splits.get(index.checked_sub(self.planned)? as usize).map(|(_, split)| split)
    }
}

impl Run {
    /// What a task is to read that was not planned.
    pub fn rest(&self, task: TaskId) -> Option<&Split> {
        self.rests.get(task.index).filter(|_| task.phase == 0)
    }

    /// Tasks of the first phase that have not read what was planned: they left some of it to others, or have it from them.
    pub fn cut_tasks(&self) -> BTreeSet<TaskId> {
        let task = |index| TaskId { phase: 0, index };
        let rests = (self.rests.planned..).zip(&self.rests.splits);
        rests.flat_map(|(index, (of, _))| [task(index), task(*of)]).collect()
    }

    /// The tasks of a phase in the order of what they read: behind a task come those that its rest became.
    pub fn in_order_of_input(&self, phase: u32) -> Vec<TaskId> {
        let task = |index| TaskId { phase, index };
        if phase > 0 || self.rests.splits.is_empty() {
            return (0..self.tasks.count_in(phase)).map(task).collect();
        }
        let mut parts = vec![Vec::new(); self.tasks.count_in(0) as usize];
        for (index, (of, _)) in (self.rests.planned..).zip(&self.rests.splits) {
            parts[*of as usize].push(index);
        }
        let mut order = Vec::with_capacity(parts.len());
        let mut next: Vec<u32> = (0..self.rests.planned).rev().collect();
        while let Some(index) = next.pop() {
            order.push(task(index));
            next.extend(parts[index as usize].iter().rev());
        }
        order
    }

    /// What a task left unread becomes tasks, if it is not done by now.
    pub(super) fn leave_rest(&mut self, task: TaskId, rest: &[Split]) {
        let open = self.task(task).is_some_and(|task| task.state.holdings().next().is_some());
        if open && task.phase == 0 {
            self.rests.splits.extend(rest.iter().map(|split| (task.index, split.clone())));
            self.tasks.add(0, u32::try_from(rest.len()).unwrap_or(u32::MAX));
        }
    }
}
