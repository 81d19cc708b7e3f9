//! Gangs: tasks that only work together, such as the ranks of one training.
//!
//! All are given out at once, or none is. What they make counts once all have made it, in one step. If one of them ends
//! otherwise than done, the gang is *broken*: all others are ended too, and once none is held any more all are ready
//! again, as the gang's next try. A try is used up by the failure that broke a gang, and by none that follows from it.

use forebay_jobs::id::{AttemptId, TaskId, WorkerId};

use super::{Event, Finished, Millis, Run, TaskState};

/// The phase of a gang: a job with one has no other.
const PHASE: u32 = 0;

impl Run {
    /// What follows from where the members are.
    pub(super) fn of_gang(&self, at: Millis) -> Vec<Event> {
        if !self.config.gang || self.stopping().is_some() || self.ended.is_some() {
            return Vec::new();
        }
        let (all, held) = (self.size_of_gang(), self.workers.held());
        let at_work = held + self.tasks.finished() as usize;
        if self.gang_is_broken {
            return if held == 0 { vec![Event::GangReady] } else { Vec::new() };
        }
        match at_work {
            0 => self.never_enough_slots().map(|error| Event::Aborted { error, at }).into_iter().collect(),
            _ if at_work < all => vec![Event::GangBroke],
            _ if held > 0 => Vec::new(),
            _ => self.finished().map(|(_, finished)| finished.clone().committed(at)).collect(),
        }
    }

    /// Who is given which member, once all of them can be given: ranks in order, to each worker its share by its slots.
    pub(super) fn muster(&self, now: Millis) -> Vec<(WorkerId, AttemptId)> {
        let goes_on = self.config.gang && self.stopping().is_none() && self.ended.is_none();
        if !goes_on || !self.is_idle() || self.tasks.ready_after(now).is_some() {
            return Vec::new();
        }
        let (all, usual) = (self.size_of_gang(), self.usual_in(PHASE).unwrap_or(0) / 1000);
        let workers: Vec<_> = self.workers.with_time(usual, now).collect();
        let slots: usize = workers.iter().map(|(_, slots)| slots).sum();
        if slots < all {
            return Vec::new();
        }
        let mut members = Vec::with_capacity(all);
        let mut before = 0;
        for (worker, own) in workers {
            let share = before * all / slots..(before + own) * all / slots;
            before += own;
            let index = |index| TaskId { phase: PHASE, index: u32::try_from(index).unwrap_or(u32::MAX) };
            members.extend(share.map(index).map(|task| (worker.clone(), self.next_attempt(task))));
        }
        members
    }

    /// Failures that used up a try of a task, or of the gang that it is of.
    pub(super) fn failures(&self, task: TaskId) -> u32 {
        match self.config.gang {
            true => self.tasks.iter().map(|(_, task)| task.failures).sum(),
            false => self.task(task).map_or(0, |task| task.failures),
        }
    }

    /// A member is done, and its gang goes on.
    pub(super) fn finish(&mut self, finished: &Finished) {
        self.put(finished.attempt.task, TaskState::Finished(Box::new(finished.clone())));
    }

    /// All members are ready again.
    pub(super) fn regroup(&mut self) {
        self.gang_is_broken = false;
        let finished: Vec<_> = self.finished().map(|(task, _)| task).collect();
        finished.into_iter().for_each(|task| self.put(task, TaskState::Ready(Millis(0))));
    }

    fn size_of_gang(&self) -> usize {
        self.tasks.count_in(PHASE) as usize
    }

    fn finished(&self) -> impl Iterator<Item = (TaskId, &Finished)> {
        self.tasks().filter_map(|(id, task)| match &task.state {
            TaskState::Finished(finished) => Some((id, &**finished)),
            _ => None,
        })
    }

    /// Whether all members are ready, now or later.
    fn is_idle(&self) -> bool {
        let any_at_work = self.workers.held() > 0 || self.tasks.finished() > 0 || self.tasks.failed() > 0;
        !any_at_work && self.size_of_gang() > 0 && self.tasks.idle_in(PHASE).len() == self.size_of_gang()
    }

    /// Why the gang will never begin, if all workers are there that may be.
    fn never_enough_slots(&self) -> Option<String> {
        let (all, workers, slots) = (self.size_of_gang(), self.workers.open(), self.workers.slots());
        let all_there = workers >= (self.config.workers as usize).min(all);
        (self.is_idle() && all_there && slots < all).then(|| {
            format!(
                "the job's {all} tasks are a gang and run at once, and its {workers} workers have {slots} slots: give \
[workers] more, or cut the dataset into fewer splits"
            )
        })
    }
}
