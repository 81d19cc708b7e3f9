//! A directory for what is on its way: of one process's own, and gone with it.

use std::path::{Path, PathBuf};

use super::StageError;
use crate::volume::{self, Volume};

/// `staging/.new-<nonce>/` of a dataset. What a killed process leaves of it is cleared away with other leftovers.
pub(crate) struct Spool {
    volume: Volume,
    dir: PathBuf,
}

impl Spool {
    pub(crate) fn new(volume: &Volume, dataset: &Path) -> Result<Self, StageError> {
        let dir = dataset.join("staging").join(format!(".new-{}", volume::nonce()));
        volume::create_dirs(&dir)?;
        Ok(Self { volume: volume.clone(), dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = self.volume.trash(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "could not be removed");
        }
    }
}
