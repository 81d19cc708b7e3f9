//! A directory for what is on its way: of one process's own, and gone with it.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::StageError;
use crate::volume::{self, Holder, Volume, VolumeError};

/// How a spool's name begins; its process follows.
const NEW: &str = ".new-";

/// The directory.
pub(crate) struct Spool {
    /// None: it is not on a volume.
    volume: Option<Volume>,
    dir: PathBuf,
}

impl Spool {
    /// `staging/.new-<process>.<nonce>/` of a dataset. What a killed process leaves of it the next one clears away.
    pub(crate) fn new(volume: &Volume, dataset: &Path) -> Result<Self, StageError> {
        let all = dataset.join("staging");
        let dir = all.join(format!("{NEW}{}.{}", Holder::this_process().to_name(), volume::nonce()));
        volume::create_dirs(&all)?;
        // Not synced: a crash may take it away.
        fs::create_dir(&dir).map_err(|error| VolumeError::io("create", &dir, error))?;
        clear_orphans(volume, &all);
        Ok(Self { volume: Some(volume.clone()), dir })
    }

    /// Among this host's temporary files, for what must leave a volume as it is.
    pub(crate) fn on_host() -> Result<Self, StageError> {
        let dir = std::env::temp_dir().join(format!("forebay-{}", volume::nonce()));
        let made = DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(|error| VolumeError::io("create", &dir, error))?;
        Ok(Self { volume: None, dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Clears away the spools of processes that are seen to be gone.
fn clear_orphans(volume: &Volume, all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let holder = name.to_str().and_then(|name| Holder::from_name(name.strip_prefix(NEW)?));
        if holder.is_some_and(|holder| holder.is_gone()) {
            let _ = volume.trash(&entry.path());
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let removed = match &self.volume {
            Some(volume) => volume.trash(&self.dir).map(drop),
            None => fs::remove_dir_all(&self.dir),
        };
        if let Err(error) = removed {
            tracing::warn!(path = %self.dir.display(), %error, "could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_had_only_just_made_is_cleared_away_and_what_is_in_use_is_not() {
        let place = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(place.path()).unwrap();
        let dataset = volume.datasets_dir().join("data");
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let of_child = Holder::of(rustix::process::Pid::from_child(&child)).to_name();
        let [killed, strange] =
            [of_child, "strange".to_owned()].map(|name| dataset.join("staging").join(NEW.to_owned() + &name));
        for dir in [&killed, &strange] {
            fs::create_dir_all(dir).unwrap();
        }
        let first = Spool::new(&volume, &dataset).unwrap();
        assert!(killed.exists());
        child.kill().unwrap();
        child.wait().unwrap();
        let second = Spool::new(&volume, &dataset).unwrap();
        let dirs = [killed, strange, first.dir.clone(), second.dir.clone()];
        assert_eq!(dirs.each_ref().map(|dir| dir.exists()), [false, true, true, true]);
        drop((first, second));
        assert_eq!(dirs.each_ref().map(|dir| dir.exists()), [false, true, false, false]);
    }
}
