//! What those who watch a run are told.

use std::sync::Arc;

use forebay_datasets::stage::StageProgress;
use forebay_jobs::{
    id::{AttemptId, Epoch, WorkerId},
    task::Failure,
};

use super::{PhaseFigures, StagedFigures};

/// What a run does, for those who watch it.
#[derive(Clone, Debug)]
pub enum RunProgress {
    /// This process coordinates the run now.
    Coordinating {
        /// Its epoch; beyond the first one, the run is resumed.
        epoch: Epoch,
    },
    /// Another process coordinates the run; this one waits for it.
    Attached {
        /// Who.
        holder: String,
    },
    /// The dataset is being staged.
    Staging(StageProgress),
    /// The dataset is staged.
    Staged {
        /// Its snapshot.
        snapshot: String,
        /// What that took.
        figures: StagedFigures,
    },
    /// How far the tasks are.
    Tasks {
        /// Each phase.
        phases: Vec<PhaseFigures>,
        /// Workers now.
        workers: u32,
    },
    /// A worker said hello.
    Joined {
        /// Which.
        worker: WorkerId,
    },
    /// A worker left.
    Left {
        /// Which.
        worker: WorkerId,
    },
    /// An attempt failed; whether the task has another, its phase's figures tell.
    AttemptFailed {
        /// Which.
        attempt: AttemptId,
        /// Why.
        failure: Failure,
    },
    /// The output is being published.
    Publishing,
    /// The output is being copied.
    Exporting,
}

/// Is told what a run does. It is called from the loop, and must not block.
pub type Tell = Arc<dyn Fn(RunProgress) + Send + Sync>;
