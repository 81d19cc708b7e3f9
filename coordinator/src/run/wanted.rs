//! What the world should look like, by the state of a run: how many workers, what each holds, what comes next.

use std::collections::BTreeSet;

use forebay_jobs::id::{AttemptId, WorkerId};

use super::{
    EndState, Millis, Run, Share, Wanted,
    decide::{ABSENT, TIMEOUT_GRACE},
};

impl Run {
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

    /// Whether the dataset, or a part of it, is still to be staged for a run that goes on.
    pub fn wants_staging(&self) -> bool {
        self.snapshot.is_none() && self.stopping().is_none() && self.ended.is_none()
    }

    /// Whether the run only waits for what its workers still hold.
    pub fn is_stopping(&self) -> bool {
        self.stopping().is_some() && self.ended.is_none()
    }

    /// Whether nothing is to be held any more, be it for good or until a gang begins again.
    pub fn recalls_all(&self) -> bool {
        self.is_stopping() || self.gang_is_broken
    }

    /// How the run will end, once nothing is held any more.
    pub(super) fn stopping(&self) -> Option<EndState> {
        match (&self.error, self.cancelled) {
            (Some(_), _) => Some(EndState::Failed),
            (None, true) => Some(EndState::Cancelled),
            (None, false) => (self.tasks.failed() > self.config.max_failures).then_some(EndState::Failed),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.snapshot.is_some() && self.tasks.open() == 0
    }
}
