//! What killed processes leave: files that never got their names, and directories of work that nobody goes on with.
//!
//! They are looked for where they are made, not in all of the volume: beside `volume.json`, in the datasets' own
//! directories, in those of runs and in those of results. None is younger than a day by the file server's clock, so that what is still being
//! written is let alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::{
    stage,
    volume::{self, Volume, VolumeError},
};

/// Beginnings of the names that are temporary: of files being written, runs being created, probes of a mount or of the
/// server's clock, epochs being claimed or set aside, removals being announced.
const TEMPORARY: [&str; 6] = [".tmp-", ".new-", ".probe-", ".claim-", ".late-", ".going-"];
/// What is younger may be somebody's.
const AGE: Duration = Duration::from_secs(24 * 3600);

pub(super) fn find(volume: &Volume) -> Result<Vec<PathBuf>, VolumeError> {
    let Some(now) = volume::server_time(volume.root())? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut look_in = vec![volume.root().to_owned(), volume.runs_dir(), volume.root().join("demo")];
    for dataset in children(&volume.datasets_dir())? {
        let parts = ["refs", "pins", "leases", "snapshots"].map(|part| dataset.join(part));
        let staging = children(&dataset.join("staging"))?;
        found.extend(staging.into_iter().filter(|dir| stage::is_abandoned(dir, now, AGE)));
        look_in.push(dataset);
        look_in.extend(parts);
    }
    look_in.extend(children(&volume.root().join("reuse"))?);
    for run in children(&volume.runs_dir())? {
        let epochs = run.join("epochs");
        look_in.extend(children(&epochs)?);
        look_in.extend([epochs, run]);
    }
    for dir in look_in {
        let is_temporary = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            TEMPORARY.iter().any(|beginning| name.starts_with(beginning))
        };
        found.extend(children(&dir)?.into_iter().filter(is_temporary).filter(|path| is_old(path, now)));
    }
    found.sort();
    Ok(found)
}

/// In doubt, nothing is old.
fn is_old(path: &Path, now: SystemTime) -> bool {
    let changed = fs::symlink_metadata(path).and_then(|meta| meta.modified());
    changed.is_ok_and(|changed| now.duration_since(changed).is_ok_and(|age| age > AGE))
}

/// What stands in a directory; nothing if it is not there, is no directory, or is another user's.
fn children(dir: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | PermissionDenied) => Ok(Vec::new()),
        Err(error) => Err(VolumeError::io("list", dir, error)),
    }
}
