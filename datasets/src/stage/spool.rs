//! A directory for what is on its way: of one process's own, and gone with it.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::StageError;
use crate::volume::{self, Volume, VolumeError};

/// The directory.
pub(crate) struct Spool {
    /// None: it is not on a volume.
    volume: Option<Volume>,
    dir: PathBuf,
}

impl Spool {
    /// `staging/.new-<nonce>/` of a dataset. What a killed process leaves of it is cleared away with other leftovers.
    pub(crate) fn new(volume: &Volume, dataset: &Path) -> Result<Self, StageError> {
        let dir = dataset.join("staging").join(format!(".new-{}", volume::nonce()));
        volume::create_dirs(&dir)?;
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
