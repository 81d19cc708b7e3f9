//! What inputs, and time, mean for a run: events, and no change yet.

use std::collections::BTreeSet;

use forebay_jobs::{
    id::{AttemptId, TaskId, WorkerId},
    task::Failure,
};

use super::{Done, EndState, Event, Finished, Input, Millis, Run};

/// A task whose workers are lost so often is what loses them.
pub const MAX_WORKER_LOSSES: u32 = 8;
/// Beyond its time-out, an attempt whose worker does not end it is given up after this many milliseconds.
pub(super) const TIMEOUT_GRACE: u64 = 30_000;
/// A worker that is absent for so many milliseconds is given up, and with it what it held.
pub(super) const ABSENT: u64 = 30_000;

impl Run {
    /// What an input means by itself.
    pub(super) fn decide(&self, input: &Input, at: Millis) -> Vec<Event> {
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
    pub(super) fn given_up(&self, at: Millis) -> Vec<Event> {
        let long = |since: Millis| at.0 >= since.0.saturating_add(ABSENT);
        let idle = |id: &WorkerId| self.workers.get(id).is_some_and(|worker| worker.held.is_empty());
        let absent = self.workers.absent().filter(|(since, id)| long(*since) || idle(id));
        absent.flat_map(|(_, id)| self.left(id, at)).collect()
    }

    /// The run's end, if this is it.
    pub(super) fn end(&self, at: Millis) -> Option<Event> {
        if self.ended.is_some() {
            return None;
        }
        if let Some(state) = self.stopping() {
            return (self.workers.held() == 0).then_some(Event::Ended { state, at });
        }
        let succeeded = self.published && (self.exported || !self.config.export);
        succeeded.then_some(Event::Ended { state: EndState::Succeeded, at })
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
}

/// What it left would be nobody's.
fn left_something() -> Failure {
    Failure::BadOutput { message: "it left some of its input unread, which this job's tasks must not".to_owned() }
}
