//! What coordinator and worker say to each other: one bidirectional gRPC stream a worker, JSON messages, in batches.

use serde::{Deserialize, Serialize};

use crate::{
    id::{AttemptId, Epoch, RunId, WorkerId},
    spec::JobSpec,
    task::{AttemptReport, TaskSpec},
};

/// From the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToWorker {
    /// Answers [`FromWorker::Hello`].
    Welcome {
        /// The coordinator's epoch.
        epoch: Epoch,
        /// The run's job, as resolved.
        job: Box<JobSpec>,
    },
    /// Attempts to execute, in this order; those beyond the worker's slots wait in it.
    Assign(Vec<Assignment>),
    /// Attempts to end, started or not. Each is reported, as `Failed(Cancelled)` if it had not ended by itself.
    Kill(Vec<AttemptId>),
    /// Nothing more will come: end.
    Shutdown,
}

/// One attempt to execute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Its id.
    pub attempt: AttemptId,
    /// What it is to do.
    pub spec: TaskSpec,
}

/// From a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromWorker {
    /// The first message of a stream.
    Hello {
        /// The run it wants to work for.
        run: RunId,
        /// Itself.
        worker: WorkerId,
        /// How many attempts it executes at once.
        slots: u32,
        /// Name of its host.
        host: String,
        /// Its process id there.
        pid: u32,
        /// Version of forebay; coordinator and worker must agree.
        version: String,
        /// The volume's id, as the worker reads it from `volume.json`.
        volume: String,
    },
    /// These attempts are in slots now.
    Started(Vec<AttemptId>),
    /// These attempts ended.
    Reports(Vec<AttemptReport>),
    /// Still there.
    Heartbeat,
}

/// Asks a run's coordinator to end it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// Which run.
    pub run: RunId,
}

/// The coordinator took note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelReply {}

/// `link.json`: how a coordinator is reached. It lies in a directory that only the run's user can read; who cannot
/// read it cannot join the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFile {
    /// Version of this file's format.
    pub version: u32,
    /// The coordinator's epoch.
    pub epoch: Epoch,
    /// `https://host:port`
    pub address: String,
    /// The only certificate that a worker trusts, made for this epoch; its name is [`SERVER_NAME`].
    pub certificate: String,
    /// Shown by every worker in each call.
    pub token: String,
}

/// The name in the coordinator's certificate.
pub const SERVER_NAME: &str = "forebay";
