//! Starts a run's coordinator where its workers will be, from a host that has no part of the volume; and has commands
//! executed there that need it.
//!
//! Nothing of what is submitted is decided here: the coordinator creates the run, or finds it, as `forebay run` would. So two
//! that were started for one run by mistake are one that works and one that waits.

mod slurm;

use std::{ffi::OsString, path::PathBuf, process::ExitStatus};

use forebay_jobs::{
    id::RunId,
    parcel::ParcelError,
    spec::{FleetKind, JobSpec},
};
use serde::{Deserialize, Serialize};

use crate::fleet::engine::EngineError;

/// A run that was submitted, or is to be: what it takes to start its coordinator, and to find it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// The run's id.
    pub run: RunId,
    /// The job, as it was read where it was submitted.
    pub job: JobSpec,
    /// The volume, as the fleet's hosts have it.
    pub volume: PathBuf,
    /// The program, as the fleet's hosts have it, unless the job says otherwise.
    pub program: PathBuf,
}

/// What came of submitting a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// What coordinates it, in its engine's words.
    pub coordinator: String,
    /// Whether it was there already.
    pub is_old: bool,
}

/// What becomes of a coordinator that was submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has not begun: why.
    Waits(String),
    /// It is at work.
    Works,
    /// Its engine has none: it has ended, or never was.
    Gone,
}

/// Why nothing was submitted, or nobody could be asked.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The fleet starts no coordinators.
    #[error("the fleet `{0}` starts no coordinator")]
    NoFleet(&'static str),
    /// The job cannot travel.
    #[error(transparent)]
    Parcel(#[from] ParcelError),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Submission {
    /// Has the run coordinated by the job's fleet. The text is the job's, sealed. One that is there already is not started again.
    ///
    /// # Errors
    /// The fleet starts none, or its engine refused: nothing was started, unless no answer came.
    pub async fn submit(&self, parcel: &str) -> Result<Submitted, SubmitError> {
        match self.job.workers.fleet {
            FleetKind::Slurm => Ok(slurm::submit(self, parcel).await?),
            fleet => Err(SubmitError::NoFleet(fleet.name())),
        }
    }

    /// Asks the engine for the coordinator.
    ///
    /// # Errors
    /// It does not say.
    pub async fn standing(&self) -> Result<Standing, SubmitError> {
        match self.job.workers.fleet {
            FleetKind::Slurm => Ok(slurm::standing(self).await?),
            fleet => Err(SubmitError::NoFleet(fleet.name())),
        }
    }

    /// Executes a command of forebay's over the volume, on one of the fleet's hosts, and hands on what it prints.
    ///
    /// # Errors
    /// It could not be started.
    pub async fn execute(&self, arguments: &[OsString]) -> Result<ExitStatus, SubmitError> {
        match self.job.workers.fleet {
            FleetKind::Slurm => Ok(slurm::execute(self, arguments).await?),
            fleet => Err(SubmitError::NoFleet(fleet.name())),
        }
    }
}
