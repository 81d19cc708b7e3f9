//! Workers of which nothing is heard: whether they are there at all, what they have kept for a coordinator, and who is
//! started in their place.
//!
//! Each second, beside the loop, their processes are looked for, where that can be seen, and the files of reports that
//! each may have written since. Nothing is listed: the next file's name is known.

use std::{collections::BTreeSet, time::Duration};

use forebay_datasets::volume::Holder;
use forebay_jobs::{id::WorkerId, kept, task::AttemptReport};
use tokio::time::Instant;

use super::work::{Finished, Work};
use crate::{fleet::Fleet, run::Input};

/// Between two looks after absent workers.
const LOOK: Duration = Duration::from_secs(1);
/// In place of a worker that is absent for so many milliseconds the fleet starts another one.
const MISSED: u64 = 5_000;

/// What was found of an absent worker.
pub(super) struct Seen {
    worker: WorkerId,
    /// What it kept for a coordinator.
    reports: Vec<AttemptReport>,
    /// How many of its files that are.
    files: u32,
    /// Whether its process had ended before they were read.
    ended: bool,
}

impl Work<'_> {
    /// What nothing more will be heard of is given up.
    pub(super) fn take_gone(&mut self) {
        let gone: Vec<_> = self.workers.gone().into_iter().map(|worker| Input::Gone { worker }).collect();
        if !gone.is_empty() {
            self.session.take_all(&gone);
        }
    }

    /// Workers that this fleet did not start, and that are there or may still come back.
    pub(super) fn adopted(&self, fleet: &dyn Fleet) -> u32 {
        let machine = &self.session.machine;
        let now = self.session.now();
        let missed = machine.absent().filter(|(_, since, _)| now.0.saturating_sub(since.0) > MISSED);
        let missed: BTreeSet<_> = missed.map(|(worker, ..)| worker).collect();
        let adopted = machine.workers().filter(|worker| !fleet.started(worker) && !missed.contains(worker)).count();
        u32::try_from(adopted).unwrap_or(u32::MAX)
    }

    /// Something may have changed about an absent worker.
    pub(super) fn look_soon(&mut self) {
        self.look_at = self.look_at.map(|_| Instant::now());
    }

    /// Looks, beside the loop, at what absent workers have kept for a coordinator, and whether they are there at all.
    pub(super) fn look_after_absent(&mut self) {
        let absent = self.session.machine.absent();
        if self.look_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let absent: Vec<_> = absent
            .map(|(worker, _, process)| (worker.clone(), process.cloned(), self.workers.absent(worker)))
            .collect();
        if absent.is_empty() {
            return;
        }
        self.look_at = None;
        let dir = self.run.path().to_owned();
        self.tasks.spawn_blocking(move || {
            let look = |(worker, process, (files, ended)): (WorkerId, Option<Holder>, (u32, bool))| {
                // In this order: what it kept before it ended is read.
                let ended = ended || process.is_some_and(|process| process.is_gone());
                let (mut reports, mut read) = (Vec::new(), files);
                let complete = loop {
                    match kept::read(&dir, &worker, read + 1) {
                        Ok(Some(more)) => {
                            reports.extend(more);
                            read += 1;
                        }
                        Ok(None) => break true,
                        Err(error) => {
                            tracing::warn!(%worker, %error, "what it reported cannot be read");
                            break false;
                        }
                    }
                };
                Seen { worker, reports, files: read, ended: ended && complete }
            };
            Finished::Looked(absent.into_iter().map(look).collect())
        });
    }

    /// What was found of them counts, and those that are gone are given up.
    pub(super) fn looked(&mut self, seen: Vec<Seen>) {
        self.look_at = Some(Instant::now() + LOOK);
        let mut inputs = Vec::new();
        for Seen { worker, reports, files, ended } in seen {
            self.workers.read(&worker, files, ended);
            inputs.extend(reports.into_iter().filter_map(|report| self.report(&worker, report)));
        }
        self.session.take_all(&inputs);
        self.take_gone();
    }
}
