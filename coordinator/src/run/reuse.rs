//! Tasks that earlier runs have done.
//!
//! A phase begins once earlier runs were searched for what they made of the same input by the same work; what was found
//! is committed as if an attempt had made it. Which that is, and where it lies, is the driver's to know.

use forebay_jobs::id::{AttemptId, TaskId};

use super::{Event, Millis, Reused, Run, TaskState};

impl Run {
    /// The phase that begins once earlier runs were searched for its tasks.
    pub(super) fn seeks(&self) -> Option<u32> {
        self.tasks.phase().filter(|phase| self.is_to_be_sought(*phase))
    }

    pub(super) fn is_to_be_sought(&self, phase: u32) -> bool {
        self.config.reuse && self.planned && phase >= self.sought
    }

    /// Whether a task begins only after earlier runs were searched for it.
    pub fn awaits_search(&self, task: TaskId) -> bool {
        self.is_to_be_sought(task.phase) && self.is_unbegun(task)
    }

    /// The phase whose tasks can be given out.
    pub(super) fn phase_at_work(&self) -> Option<u32> {
        self.tasks.phase().filter(|phase| !self.is_to_be_sought(*phase))
    }

    /// The attempt that a task would be given next.
    pub fn next_attempt(&self, task: TaskId) -> AttemptId {
        let number = self.task(task).map_or(0, |task| task.attempts) + 1;
        AttemptId { task, number, epoch: self.epoch }
    }

    /// The attempts that the tasks of a phase would be given next of which nothing is begun.
    pub fn unbegun_attempts(&self, phase: u32) -> Vec<AttemptId> {
        self.tasks.idle_in(phase).into_iter().map(|task| self.next_attempt(task)).collect()
    }

    /// Those tasks count of which nobody has begun anything.
    pub(super) fn reused(&self, tasks: &[Reused], at: Millis) -> Vec<Event> {
        let is_next = |reused: &&Reused| {
            let task = reused.attempt.task;
            self.is_to_be_sought(task.phase) && self.is_unbegun(task) && reused.attempt == self.next_attempt(task)
        };
        let tasks: Vec<_> = tasks.iter().filter(is_next).cloned().collect();
        if tasks.is_empty() { Vec::new() } else { vec![Event::Reused { tasks, at }] }
    }

    fn is_unbegun(&self, task: TaskId) -> bool {
        self.task(task).is_some_and(|task| matches!(task.state, TaskState::Ready(_)))
    }

    pub(super) fn reuse(&mut self, reused: &Reused) {
        let Reused { attempt, outputs, .. } = reused;
        if self.is_unbegun(attempt.task) {
            self.tasks.count(attempt.task, |task| task.attempts = attempt.number);
            self.put(attempt.task, TaskState::Committed { attempt: *attempt, outputs: outputs.clone() });
        }
    }
}
