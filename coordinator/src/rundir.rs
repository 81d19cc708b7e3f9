//! The directory of a run: what was asked for, what came of it, and where everything between is.
//!
//! A run's directory appears by one rename, complete with its job and the files that it ships, so that two who create
//! the same run at the same moment agree on one. What a coordinator adds later goes through its epoch's directory,
//! and does not arrive once that is sealed.

mod create;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use forebay_datasets::volume::{self, Volume, VolumeError};
use forebay_jobs::{id::RunId, kept::RESULT, spec::JobSpec};
use serde::{Serialize, de::DeserializeOwned};

pub use self::create::{create, fresh_id};
use crate::{
    driver::{RunResult, StagedFigures},
    lease,
};

/// Where attempts write.
pub(crate) const ATTEMPTS: &str = "attempts";
/// Where attempts write what goes with them.
pub(crate) const SLOTS: &str = "slots";
/// Where tasks find their inputs that start before all of them are staged.
pub(crate) const INPUTS: &str = "inputs";
/// What the job ships.
const FILES: &str = "files";
const JOB_TEXT: &str = "job.toml";
const JOB: &str = "job.json";
const STAGED: &str = "staged.json";

/// Why a run's directory could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// There is no such run.
    #[error("there is no run `{run}` on this volume")]
    NotFound {
        /// Its id.
        run: RunId,
    },
    /// A run of this id is there, and it is another one.
    #[error("there is a run `{run}` already, and it is another one: {what}")]
    Conflict {
        /// Its id.
        run: RunId,
        /// What differs.
        what: String,
    },
    /// A file that the job ships cannot be read.
    #[error("the job ships {}, which cannot be read", path.display())]
    Ship {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A shipped file's name leads out of the run.
    #[error("no shipped file can be named `{name}`")]
    BadName {
        /// The name.
        name: String,
    },
    /// A file of the run cannot be understood.
    #[error("{} is not what forebay writes", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// A run on its volume.
#[derive(Clone, Debug)]
pub struct RunDir {
    id: RunId,
    dir: PathBuf,
    job: JobSpec,
}

/// What creating a run came to.
#[derive(Clone, Debug)]
pub enum Created {
    /// It is new.
    New(RunDir),
    /// The same run was there already.
    Exists(RunDir),
}

impl Created {
    /// The run, new or not.
    pub fn into_run(self) -> RunDir {
        let (Self::New(run) | Self::Exists(run)) = self;
        run
    }
}

impl RunDir {
    /// The plan's name.
    pub(crate) const PLAN: &str = "plan.ndjson";

    /// The run's id.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// The directory itself, on this host.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The job, every default resolved.
    pub fn job(&self) -> &JobSpec {
        &self.job
    }

    /// Where the output appears, in one step.
    pub fn output_dir(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// Where workers write their logs.
    pub fn logs_dir(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Where the files are that the job ships.
    pub fn files_dir(&self) -> PathBuf {
        self.dir.join(FILES)
    }

    /// The plan; there once the run is planned.
    pub fn plan_path(&self) -> PathBuf {
        self.dir.join(Self::PLAN)
    }

    /// When the run was created, by the file server's clock.
    pub fn created(&self) -> Option<SystemTime> {
        fs::metadata(self.dir.join(JOB)).and_then(|meta| meta.modified()).ok()
    }

    /// The result, once the run has ended.
    pub fn result(&self) -> Result<Option<RunResult>, RunDirError> {
        // Opening the directory makes a network file system look for new names in it.
        fs::read_dir(&self.dir).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => RunDirError::NotFound { run: self.id.clone() },
            _ => VolumeError::io("open", &self.dir, error).into(),
        })?;
        let mut result: Option<RunResult> = read_json(&self.dir.join(RESULT))?;
        // Hosts mount the volume at different places.
        if let Some(output) = result.as_mut().and_then(|result| result.output.as_mut()) {
            output.path = self.output_dir().display().to_string();
        }
        Ok(result)
    }

    /// What staging took, once the run is planned.
    pub fn staged(&self) -> Result<Option<StagedFigures>, RunDirError> {
        read_json(&self.dir.join(STAGED))
    }

    pub(crate) fn write_result(&self, epoch_dir: &Path, result: &RunResult) -> Result<(), RunDirError> {
        self.write_json(epoch_dir, RESULT, result)
    }

    pub(crate) fn write_staged(&self, epoch_dir: &Path, staged: &StagedFigures) -> Result<(), RunDirError> {
        self.write_json(epoch_dir, STAGED, staged)
    }

    fn write_json(&self, epoch_dir: &Path, name: &str, value: &impl Serialize) -> Result<(), RunDirError> {
        let path = epoch_dir.join(name);
        let text = serde_json::to_vec_pretty(value).map_err(|source| RunDirError::Malformed { path, source })?;
        self.install(epoch_dir, name, |path| volume::hand_over(path, &text))?;
        Ok(())
    }

    /// Gives a file its place in the run, through the epoch's directory.
    ///
    /// The file is written and synced there, and renamed from there. Whoever takes the run over renames that directory
    /// first, so that a coordinator that was deposed without knowing it finds neither its directory nor its file.
    pub(crate) fn install<E: From<VolumeError>>(
        &self,
        epoch_dir: &Path,
        name: &str,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let prepared = epoch_dir.join(name);
        write(&prepared)?;
        lease::fence(epoch_dir)?;
        volume::rename_over(&prepared, &self.dir.join(name))?;
        Ok(())
    }
}

/// Opens a run that is there.
pub fn open(volume: &Volume, run: &RunId) -> Result<RunDir, RunDirError> {
    let dir = volume.run_dir(run.as_str());
    let job = read_json(&dir.join(JOB))?.ok_or_else(|| RunDirError::NotFound { run: run.clone() })?;
    Ok(RunDir { id: run.clone(), dir, job })
}

/// All runs of a volume, newest first.
pub fn list(volume: &Volume) -> Result<Vec<RunDir>, RunDirError> {
    let runs = volume.runs_dir();
    let entries = match fs::read_dir(&runs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(VolumeError::io("list", &runs, error).into()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| VolumeError::io("list", &runs, error))?;
        // Runs being created begin with a dot, which no id does.
        let Some(Ok(id)) = entry.file_name().to_str().map(str::parse::<RunId>) else { continue };
        match open(volume, &id) {
            Ok(run) => found.push((run.created(), run)),
            Err(RunDirError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_by(|(a_time, a), (b_time, b)| (b_time, &b.id).cmp(&(a_time, &a.id)));
    Ok(found.into_iter().map(|(_, run)| run).collect())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RunDirError> {
    match volume::looking_again(path, |path| fs::read(path)) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(value) => Ok(Some(value)),
            Err(source) => Err(RunDirError::Malformed { path: path.to_owned(), source }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(VolumeError::io("read", path, error).into()),
    }
}
