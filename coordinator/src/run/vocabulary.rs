//! What the machine is told, what it decides, and what it wants.

// The fields are named by their types and their variants' docs; a sentence for each would say the same again.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use forebay_datasets::{split::Split, volume::Holder};
use forebay_jobs::{
    id::{AttemptId, Epoch, RunId, WorkerId},
    identity::WorkIdentity,
    task::{Failure, OutputFile},
};
use serde::{Deserialize, Serialize};

use super::tasks::{Finished, Reused};

/// Milliseconds since the Unix epoch, as the driver read them from its clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

/// What the machine is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A coordinator took the run over. Workers are absent until it hears of them; what they hold stays theirs.
    Opened { epoch: Epoch },
    /// The plan is durable. Without a snapshot the dataset is still being staged, and each task of the first phase waits
    /// for its inputs.
    Planned { snapshot: Option<String>, phases: Vec<u32> },
    /// The inputs of these tasks of the first phase are durable.
    InputsStaged { tasks: Vec<u32> },
    /// All of the dataset is.
    Staged { snapshot: String },
    /// Earlier runs have done some tasks of a phase, and what they made has second names in this run.
    Reused { tasks: Vec<Reused> },
    /// These earlier runs were searched for what they have done of a phase.
    Sought { phase: u32, work: Option<WorkIdentity>, among: Vec<RunId> },
    /// Staging or planning failed for good, or the source changed under a plan that was made ahead of the snapshot.
    PlanFailed { error: String },
    /// A worker said hello, and what it holds of what it was given before, or has to report of it.
    /// `left`: milliseconds until it has to end.
    Joined { worker: WorkerId, slots: u32, holds: BTreeSet<AttemptId>, process: Option<Holder>, left: Option<u64> },
    /// A worker is about to end, and takes nothing more.
    Draining { worker: WorkerId },
    /// A worker's stream ended, or it was silent for too long. Its process may be at work, and come back.
    Silent { worker: WorkerId },
    /// A worker's process has ended.
    Gone { worker: WorkerId },
    /// Attempts entered slots.
    Started { worker: WorkerId, attempts: Vec<AttemptId> },
    /// An attempt ended, and its outputs were checked on the volume.
    Done(Done),
    /// An attempt failed.
    Failed { worker: WorkerId, attempt: AttemptId, failure: Failure },
    /// An attempt asks to be run again.
    GivenBack { worker: WorkerId, attempt: AttemptId },
    /// Someone asked for the run's end.
    Cancel,
    /// Time went by. Attempts that were reported, and whose outputs are being looked at, are not overdue.
    Tick { reported: BTreeSet<AttemptId> },
    /// The output stands in its place.
    Published { files: u64, bytes: u64, rows: Option<u64> },
    /// Publishing failed for good.
    PublishFailed { error: String },
    /// The output was copied to where `[output] to` says.
    Exported,
    /// Copying failed; the published output stands.
    ExportFailed { error: String },
}

/// An attempt that its worker says is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    pub worker: WorkerId,
    pub attempt: AttemptId,
    pub outputs: Vec<OutputFile>,
    pub metrics: BTreeMap<String, f64>,
    /// What it took, in microseconds.
    pub micros: u64,
    /// What it left unread, cut into the splits of other tasks.
    pub rest: Vec<Split>,
}

/// What happened: the journal's records. Serialised as JSON; a field may be added, never renamed or removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    Opened {
        epoch: Epoch,
        at: Millis,
    },
    Planned {
        snapshot: Option<String>,
        phases: Vec<u32>,
        at: Millis,
    },
    InputsStaged {
        tasks: Vec<u32>,
    },
    Staged {
        snapshot: String,
        at: Millis,
    },
    Reused {
        tasks: Vec<Reused>,
        at: Millis,
    },
    /// What of a phase is not reused by now is to be done.
    Sought {
        phase: u32,
        /// What the work was when they were searched, where that could be told.
        work: Option<WorkIdentity>,
        among: Vec<RunId>,
        at: Millis,
    },
    /// It came, or came back with what it held.
    WorkerJoined {
        worker: WorkerId,
        slots: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<Holder>,
        /// When it has to end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Millis>,
        at: Millis,
    },
    /// It takes nothing more.
    WorkerDrains {
        worker: WorkerId,
    },
    /// Nothing is heard of it; what it holds it may finish.
    WorkerAbsent {
        worker: WorkerId,
        at: Millis,
    },
    WorkerLeft {
        worker: WorkerId,
    },
    Assigned {
        worker: WorkerId,
        attempts: Vec<AttemptId>,
        at: Millis,
    },
    Started {
        attempts: Vec<AttemptId>,
        at: Millis,
    },
    Committed {
        attempt: AttemptId,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        outputs: Vec<OutputFile>,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        metrics: BTreeMap<String, f64>,
        /// What it took, in microseconds.
        #[serde(default)]
        micros: u64,
        /// What it left unread: a task each, behind all others of its phase.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        rest: Vec<Split>,
        at: Millis,
    },
    /// An attempt that takes long is to leave what it has not read to others.
    Yields {
        attempt: AttemptId,
        at: Millis,
    },
    /// A member of a gang is done; it counts once all are.
    Finished {
        finished: Finished,
        at: Millis,
    },
    /// A member of a gang ended otherwise: all others are ended too.
    GangBroke,
    /// None of a broken gang is held any more: all are ready again.
    GangReady,
    /// `retry_at`: none if the task has no try left and failed for good.
    AttemptFailed {
        attempt: AttemptId,
        failure: Failure,
        retry_at: Option<Millis>,
        at: Millis,
    },
    /// Ended without using up a try: given back, drained, killed, taken back from a worker that did not come to it, or
    /// `lost` with its worker after it had started.
    AttemptReturned {
        attempt: AttemptId,
        retry_at: Millis,
        lost: bool,
    },
    CancelRequested {
        at: Millis,
    },
    /// The run failed before or beside its tasks.
    Aborted {
        error: String,
        at: Millis,
    },
    Published {
        files: u64,
        bytes: u64,
        rows: Option<u64>,
        at: Millis,
    },
    Exported {
        at: Millis,
    },
    Ended {
        state: EndState,
        at: Millis,
    },
}

/// What one worker should hold.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    /// Another number whenever the attempts are others.
    pub version: u64,
    /// The attempts, in order. What it holds beyond them is to be killed.
    pub held: &'a BTreeSet<AttemptId>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndState {
    Succeeded,
    Failed,
    Cancelled,
}

/// What the world should look like, derived from the state alone. Doing it again changes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Workers that should exist.
    pub workers: u32,
    /// Earlier runs are to be searched for tasks of this phase, which begins after that.
    pub seek: Option<u32>,
    /// The committed attempt of every task of the last phase is to be published.
    pub publish: bool,
    /// The published output is to be copied.
    pub export: bool,
    /// The run has ended.
    pub ended: Option<EndState>,
    /// When `Input::Tick` can change something.
    pub wake_at: Option<Millis>,
}
