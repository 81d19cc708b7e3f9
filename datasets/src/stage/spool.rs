//! A directory for what is on its way: of one process's own, and gone with it.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::StageError;
use crate::volume::{self, Holder, Volume, VolumeError};

/// How a spool's name begins; who its process is stands in it.
const NEW: &str = ".new-";
const HOLDER: &str = "holder.json";

/// The directory.
pub(crate) struct Spool {
    /// None: it is not on a volume.
    volume: Option<Volume>,
    dir: PathBuf,
}

impl Spool {
    /// `staging/.new-<nonce>/` of a dataset. What a killed process leaves of it is cleared away with other leftovers.
    pub(crate) fn new(volume: &Volume, dataset: &Path) -> Result<Self, StageError> {
        let all = dataset.join("staging");
        let dir = all.join(format!("{NEW}{}", volume::nonce()));
        volume::create_dirs(&all)?;
        // Not synced: a crash may take it away.
        fs::create_dir(&dir).map_err(|error| VolumeError::io("create", &dir, error))?;
        let spool = Self { volume: Some(volume.clone()), dir };
        let (holder, path) = (serde_json::to_vec(&Holder::this_process()), spool.dir.join(HOLDER));
        let holder = holder.expect("plain fields serialise");
        fs::write(&path, holder).map_err(|error| VolumeError::io("write", &path, error))?;
        clear_orphans(volume, &all);
        Ok(spool)
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
        let is_new = entry.file_name().to_str().is_some_and(|name| name.starts_with(NEW));
        let holder = is_new.then(|| fs::read(entry.path().join(HOLDER)).ok()).flatten();
        let holder = holder.and_then(|text| serde_json::from_slice::<Holder>(&text).ok());
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
