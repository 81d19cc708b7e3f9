//! Reports that wait for a coordinator as files: what a worker ends while it has none is not lost, even if the worker is.
//!
//! Each is a file that is never written again, `reports/<worker>.<number>.json`, numbered from 1 without a gap, so that
//! a coordinator finds the next one by its exact name.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use forebay_datasets::volume::{NewFile, VolumeError};
use serde::{Deserialize, Serialize};

use crate::{id::WorkerId, task::AttemptReport};

/// The directory of these files in a run's.
pub const REPORTS: &str = "reports";
/// There in a run's directory once the run has ended: then nobody waits for a coordinator any more.
pub const RESULT: &str = "result.json";
/// The version of the files that is written and understood.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Kept<R> {
    version: u32,
    reports: R,
}

fn path(run_dir: &Path, worker: &WorkerId, number: u32) -> PathBuf {
    run_dir.join(REPORTS).join(format!("{worker}.{number}.json"))
}

/// Keeps reports as the first file from this number on that is not there, which is durable when its number is returned.
///
/// # Errors
/// The volume's.
pub fn keep(run_dir: &Path, worker: &WorkerId, from: u32, reports: &[AttemptReport]) -> Result<u32, VolumeError> {
    // An earlier worker may have had this name.
    let is_free = |number: &u32| !path(run_dir, worker, *number).exists();
    let number = (from..).find(is_free).unwrap_or(from);
    let path = path(run_dir, worker, number);
    let text = serde_json::to_vec(&Kept { version: VERSION, reports }).expect("reports serialise");
    let mut file = NewFile::create(&path)?;
    file.write_all(&text).map_err(|error| VolumeError::io("write", &path, error))?;
    file.finish_new()?;
    Ok(number)
}

/// Reads what a worker kept in the file of this number; none if it is not there. One that cannot be understood, as one
/// of a later version, says nothing.
///
/// # Errors
/// The volume's.
pub fn read(run_dir: &Path, worker: &WorkerId, number: u32) -> Result<Option<Vec<AttemptReport>>, VolumeError> {
    let path = path(run_dir, worker, number);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(VolumeError::io("read", &path, error)),
    };
    let kept = serde_json::from_slice::<Kept<serde_json::Value>>(&text).ok().filter(|kept| kept.version == VERSION);
    let reports = kept.and_then(|kept| serde_json::from_value(kept.reports).ok());
    if reports.is_none() {
        tracing::warn!(path = %path.display(), "these reports cannot be understood");
    }
    Ok(Some(reports.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::{AttemptId, Epoch, TaskId},
        task::Outcome,
    };

    #[test]
    fn what_is_kept_is_read_again_and_nothing_is_written_over() {
        let (dir, worker) = (tempfile::tempdir().unwrap(), "w".parse().unwrap());
        fs::create_dir(dir.path().join(REPORTS)).unwrap();
        let attempt = AttemptId { task: TaskId { phase: 0, index: 3 }, number: 1, epoch: Epoch(2) };
        let reports = vec![AttemptReport { attempt, outcome: Outcome::GivenBack, seconds: 0.5 }];
        let keep = |from, reports: &[AttemptReport]| keep(dir.path(), &worker, from, reports).unwrap();
        assert_eq!((keep(1, &reports), keep(1, &[]), keep(3, &[])), (1, 2, 3));
        let read = |number| read(dir.path(), &worker, number).unwrap();
        assert_eq!([1, 2, 3, 4].map(read), [Some(reports), Some(vec![]), Some(vec![]), None]);
        for (number, text) in
            [(2, "{"), (3, r#"{"version":2,"reports":"others"}"#), (4, r#"{"version":1,"reports":[1]}"#)]
        {
            fs::write(path(dir.path(), &worker, number), text).unwrap();
            assert_eq!(read(number), Some(vec![]), "{text}");
        }
    }
}
