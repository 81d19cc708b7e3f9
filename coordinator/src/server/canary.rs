//! Whether a worker sees the very file system that the coordinator writes to: a volume's id alone does not say so, since a
//! copy has the same.

use std::{
    fs,
    path::{Path, PathBuf},
};

use forebay_datasets::volume::{self, Holder, Volume, VolumeError};
use forebay_jobs::mail::LINK;

/// A file for one worker to read. Its name was never looked for, so that no client knows from before that it is not
/// there. Gone when this is dropped.
#[derive(Debug)]
pub(super) struct Canary {
    path: PathBuf,
    /// By its place on the volume.
    pub(super) place: String,
    text: String,
}

impl Canary {
    /// Writes one into the directory of an epoch, which is gone if that is over.
    pub(super) fn write(volume: &Volume, epoch_dir: &Path) -> Result<Self, VolumeError> {
        let path = epoch_dir.join(LINK).join(format!("canary-{}", volume::nonce()));
        let place = volume.relative(&path).unwrap_or_default();
        let canary = Self { path, place, text: volume::nonce() };
        volume::hand_over(&canary.path, canary.text.as_bytes())?;
        Ok(canary)
    }

    pub(super) fn is(&self, seen: Option<&str>) -> bool {
        seen == Some(&self.text)
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        // It may have gone with its directory.
        let _ = fs::remove_file(&self.path);
    }
}

/// Who says hello, as far as it is of use to whoever has to mend a mount.
pub(super) struct Caller<'a> {
    pub(super) worker: &'a str,
    pub(super) process: &'a Holder,
    /// The id of its volume.
    pub(super) volume: &'a str,
    /// Where it has that.
    pub(super) root: &'a str,
}

impl Caller<'_> {
    /// It has a volume of another id.
    pub(super) fn has_another(&self, ours: &Volume) -> String {
        let Self { worker, process, volume, root } = self;
        format!(
            "worker `{worker}` has another volume: {volume}, at {root} on {}; the run is on volume {}, which its \
             coordinator has at {} on {}. Mount that one there, or start the worker with the --volume that leads to it",
            process.host,
            ours.id(),
            ours.root().display(),
            Holder::this_process().host
        )
    }

    /// It has one of the same id, in which something is missing.
    pub(super) fn has_a_copy(&self, ours: &Volume, canary: &Canary) -> String {
        let Self { worker, process, root, .. } = self;
        format!(
            "worker `{worker}` does not see what the coordinator has just written to {}: both have volume {}, and the \
             worker's, at {root} on {}, is a copy of it, or shows an earlier state; the coordinator has it at {} on {}. \
             Mount the file system itself there, not a copy, a snapshot or a replica of it, or start the worker with the \
             --volume that leads to it",
            canary.place,
            ours.id(),
            process.host,
            ours.root().display(),
            Holder::this_process().host
        )
    }
}
