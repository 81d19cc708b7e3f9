//! The search of earlier runs for what they have made of a phase's tasks, beside the loop.

use std::{collections::BTreeMap, mem, sync::Arc};

use forebay_datasets::{results, volume::Volume};
use forebay_jobs::{
    id::{AttemptId, Epoch, RunId},
    identity::WorkIdentity,
    plan::Plan,
    task::OutputFile,
};

use crate::{
    commit::chain,
    reuse::{self, Earlier, Inputs, ReuseError},
    run::{Input, Reused, Run},
    rundir::RunDir,
};

/// Tasks that are journaled together: what a group commit holds is bounded.
const TOGETHER: usize = 4096;

/// What is searched for.
pub(super) struct Search {
    volume: Volume,
    run: RunDir,
    epoch: Epoch,
    phase: u32,
    plan: Arc<Plan>,
    snapshot: Option<String>,
    work: Option<WorkIdentity>,
    attempts: Vec<AttemptId>,
    partitions: BTreeMap<u32, Vec<OutputFile>>,
}

/// What a search has found.
#[derive(Default)]
pub(super) struct Found {
    phase: u32,
    work: Option<WorkIdentity>,
    among: Vec<RunId>,
    reused: Vec<Reused>,
}

impl Search {
    /// For the tasks of a phase of which nothing has begun; `work`, where that is known already.
    pub(super) fn new(
        (volume, run): (&Volume, &RunDir),
        epoch: Epoch,
        plan: &Arc<Plan>,
        machine: &Run,
        phase: u32,
        work: Option<&WorkIdentity>,
    ) -> Self {
        Self {
            volume: volume.clone(),
            run: run.clone(),
            epoch,
            phase,
            plan: Arc::clone(plan),
            snapshot: machine.snapshot().map(str::to_owned),
            work: machine.work().or(work).cloned(),
            attempts: machine.unbegun_attempts(phase),
            partitions: machine.partitions_before(phase),
        }
    }

    /// Searches. A run needs nothing of what is found: where the search fails, all is done.
    pub(super) fn run(mut self) -> Found {
        let (phase, work) = (self.phase, self.work.take());
        let work = match work.map_or_else(|| reuse::work_of(&self.run), Ok) {
            Ok(work) => work,
            Err(error) => {
                tracing::warn!(run = %self.run.id(), error = chain(&error), "nothing is reused");
                return Found { phase, ..Found::default() };
            }
        };
        let (among, reused) = self.search(&work).unwrap_or_else(|error| {
            tracing::warn!(run = %self.run.id(), error = chain(&error), "nothing is reused");
            Default::default()
        });
        Found { phase, work: Some(work), among, reused }
    }

    fn search(&self, work: &WorkIdentity) -> Result<(Vec<RunId>, Vec<Reused>), ReuseError> {
        if !results::are_there(&self.volume) {
            return Ok(Default::default());
        }
        let earlier = Earlier::of_work(&self.volume, work)?;
        let (among, none) = (earlier.among(), Vec::new());
        if among.is_empty() {
            return Ok(Default::default());
        }
        let wanted = match (self.phase, &self.snapshot) {
            (0, Some(id)) => {
                let snapshot = reuse::snapshot_of(&self.volume, &self.run, id)?;
                let inputs = Inputs::new(work, &self.plan, &snapshot);
                let wanted = |attempt: &AttemptId| Some((*attempt, inputs.of_split(attempt.task.index)?));
                self.attempts.iter().filter_map(wanted).collect()
            }
            (phase, _) => {
                let wanted = |attempt: &AttemptId| {
                    let partition = attempt.task.index;
                    let files = self.partitions.get(&partition).unwrap_or(&none);
                    (*attempt, work.of_partition(phase, partition, files))
                };
                self.attempts.iter().map(wanted).collect()
            }
        };
        Ok((among, earlier.take(&self.volume, &self.run, self.epoch, wanted)?))
    }
}

impl Found {
    /// The next that the machine is told, and whether it is the last.
    pub(super) fn next(&mut self) -> (Input, bool) {
        if self.reused.is_empty() {
            let (work, among) = (self.work.take(), mem::take(&mut self.among));
            return (Input::Sought { phase: self.phase, work, among }, true);
        }
        let rest = self.reused.split_off(self.reused.len().min(TOGETHER));
        (Input::Reused { tasks: mem::replace(&mut self.reused, rest) }, false)
    }
}
