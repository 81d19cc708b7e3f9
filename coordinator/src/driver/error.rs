//! Why a coordinator stops.

use forebay_datasets::{output::OutputError, stage::StageError, volume::VolumeError};
use forebay_jobs::{host::Unfit, id::RunId, kinds::TaskError, plan::PlanError};

use super::LinkError;
use crate::{commit::CommitError, journal::JournalError, lease::LeaseError, rundir::RunDirError, server::ServerError};

/// Why a coordinator stopped before the run's end. All but [`Self::NeverBegan`] leave a run that can be resumed.
#[derive(Debug, thiserror::Error)]
pub enum CoordinateError {
    /// Another coordinator has the run.
    #[error("run has a coordinator already: {holder}")]
    Held {
        /// Who.
        holder: String,
    },
    /// Another coordinator took the run over, or the lease could not be renewed in time.
    #[error("the run was taken over by another coordinator, or its volume did not answer for too long")]
    Deposed,
    /// It was to stop.
    #[error("interrupted")]
    Interrupted,
    /// The run's first coordinator failed before there was a plan. Nothing of the run is left.
    #[error("the run never began")]
    NeverBegan(#[source] Box<CoordinateError>),
    /// The job can never run over what is staged: a table without objects, a column that is not there.
    #[error("{0}")]
    NoPlan(String),
    /// The lease could not be taken or given back.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The run's directory failed.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Staging failed.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The plan could not be read or written.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// What is staged could not be looked at.
    #[error("what is staged could not be checked")]
    Check(#[source] TaskError),
    /// The snapshot that the run reads was removed: nobody had held it for a week, or nobody could.
    #[error("snapshot {id} of `{name}`, which run `{run}` reads, is gone")]
    SnapshotGone {
        /// The dataset.
        name: String,
        /// The snapshot.
        id: String,
        /// The run.
        run: RunId,
    },
    /// The output could not be published.
    #[error("the output could not be published")]
    Publish(#[source] CommitError),
    /// The published output could not be copied.
    #[error("the output is published, and could not be copied")]
    Export(#[source] OutputError),
    /// The published output could not be read.
    #[error("the published output cannot be read")]
    Published(#[source] OutputError),
    /// No worker could ever hold a task.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// No worker can be started.
    #[error("no worker can be started: {0}")]
    Fleet(String),
    /// Workers cannot reach the coordinator.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Another coordinator cannot be reached.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Work beside the loop did not come to an end.
    #[error("a part of the coordinator failed")]
    Task(#[from] tokio::task::JoinError),
}
