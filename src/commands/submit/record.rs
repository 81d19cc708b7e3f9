//! What was submitted from this host: a file a run, so that later commands know whom to ask.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use forebay_coordinator::submit::Submission;
use forebay_jobs::id::RunId;
use serde::{Deserialize, Serialize};

use crate::error::{CliError, Exit};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    submission: Submission,
}

/// `$XDG_STATE_HOME/forebay/submitted`: <https://specifications.freedesktop.org/basedir-spec/latest/>.
fn dir() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("forebay/submitted"))
}

/// Remembers a run; one of the same name that was submitted before is forgotten.
pub(super) fn keep(submission: &Submission) -> Result<(), CliError> {
    let Some(dir) = dir() else { return Ok(()) };
    let write = || {
        fs::create_dir_all(&dir)?;
        let mut file = tempfile::NamedTempFile::new_in(&dir)?;
        let record = Record { version: VERSION, submission: submission.clone() };
        file.write_all(&serde_json::to_vec(&record).map_err(io::Error::from)?)?;
        file.persist(dir.join(format!("{}.json", submission.run))).map_err(|error| error.error)
    };
    let failed = |error: io::Error| {
        CliError::new(Exit::OutOfReach, format!("cannot note in {} what is submitted: {error}", dir.display()))
            .help("nothing was submitted; XDG_STATE_HOME says where else that can be noted")
    };
    write().map(drop).map_err(failed)
}

/// Forgets a run that was not submitted after all.
pub(super) fn forget(run: &RunId) -> Result<(), CliError> {
    let Some(path) = dir().map(|dir| dir.join(format!("{run}.json"))) else { return Ok(()) };
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CliError::new(Exit::OutOfReach, format!("cannot remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// A run that was submitted from here to such a volume, or, if none is named, the one that was submitted last.
pub(in crate::commands) fn find(volume: &Path, run: Option<&RunId>) -> Result<Option<Submission>, CliError> {
    let Some(dir) = dir() else { return Ok(None) };
    match run {
        Some(run) => read(&dir.join(format!("{run}.json"))),
        None => {
            let volume = std::path::absolute(volume).map_err(CliError::runtime)?;
            let files = fs::read_dir(&dir).into_iter().flatten().flatten();
            let mut files: Vec<_> =
                files.filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path()))).collect();
            files.sort_unstable();
            let all = files.into_iter().rev().map(|(_, path)| read(&path));
            let mut of_volume = all.filter_map(|read| read.ok().flatten()).filter(|read| read.volume == volume);
            Ok(of_volume.next())
        }
    }
}

fn read(path: &Path) -> Result<Option<Submission>, CliError> {
    let unreadable = |why: String| CliError::new(Exit::OutOfReach, format!("cannot read {}: {why}", path.display()));
    match fs::read(path) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(Record { version: VERSION, submission }) => Ok(Some(submission)),
            Ok(Record { version, .. }) => Err(unreadable(format!("it has version {version}"))),
            Err(error) => Err(unreadable(error.to_string())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(error.to_string())),
    }
}
