//! Starts a run's coordinator where its workers will be, from a host that has no part of the volume; and has commands
//! executed there that need it.
//!
//! Nothing of what is submitted is decided here: the coordinator creates the run, or finds it, as `forebay run` would. So two
//! that were started for one run by mistake are one that works and one that waits.

use std::path::PathBuf;

use forebay_jobs::{
    id::RunId,
    parcel::ParcelError,
    spec::{FleetKind, JobSpec},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::fleet::{ecs::submit as ecs, engine::EngineError, kubernetes::submit as kubernetes, slurm::submit as slurm};

/// The environment variable that holds a parcel where no file does.
pub const PARCEL: &str = "FOREBAY_PARCEL";

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
    /// The run's name is another job's.
    #[error("{coordinator} coordinates another job as run `{run}`")]
    Conflict {
        /// The run.
        run: RunId,
        /// What coordinates it.
        coordinator: String,
    },
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What tells one job from another, as short as a label may be.
pub(crate) fn digest(parcel: &str) -> String {
    Sha256::digest(parcel.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl Submission {
    /// Has the run coordinated by the job's fleet. The text is the job's, sealed. One that is there already is not started again.
    ///
    /// # Errors
    /// The fleet starts none, or its engine refused: nothing was started, unless no answer came.
    pub async fn submit(&self, parcel: &str) -> Result<Submitted, SubmitError> {
        match self.job.workers.fleet {
            FleetKind::Ecs => ecs::submit(self, parcel).await,
            FleetKind::Kubernetes => kubernetes::submit(self, parcel).await,
            FleetKind::Slurm => slurm::submit(self, parcel).await,
            fleet => Err(SubmitError::NoFleet(fleet.name())),
        }
    }

    /// What is there already, if it is of this job.
    pub(crate) fn there(&self, coordinator: String, is_same: bool) -> Result<Submitted, SubmitError> {
        match is_same {
            true => Ok(Submitted { coordinator, is_old: true }),
            false => Err(SubmitError::Conflict { run: self.run.clone(), coordinator }),
        }
    }

    /// Asks the engine for the coordinator.
    ///
    /// # Errors
    /// It does not say.
    pub async fn standing(&self) -> Result<Standing, SubmitError> {
        match self.job.workers.fleet {
            FleetKind::Ecs => Ok(ecs::standing(self).await?),
            FleetKind::Kubernetes => Ok(kubernetes::standing(self).await?),
            FleetKind::Slurm => Ok(slurm::standing(self).await?),
            fleet => Err(SubmitError::NoFleet(fleet.name())),
        }
    }

    /// Executes a command of forebay's over the volume, on one of the fleet's hosts, hands on what it prints, and gives its
    /// exit code.
    ///
    /// # Errors
    /// It could not be started.
    pub async fn execute(&self, arguments: &[String]) -> Result<i32, SubmitError> {
        match self.job.workers.fleet {
            FleetKind::Ecs => Ok(ecs::execute(self, arguments).await?),
            FleetKind::Kubernetes => Ok(kubernetes::execute(self, arguments).await?),
            FleetKind::Slurm => Ok(slurm::execute(self, arguments).await?),
            fleet => Err(SubmitError::NoFleet(fleet.name())),
        }
    }
}
