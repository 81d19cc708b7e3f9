//! `volume.json`: the volume's format and id, its quota, and what its mounts do.
//!
//! It is replaced by rename, so that it is never seen half written. Who changes it looks again right before the rename
//! whether it is still what the change was made to, and makes the change anew if not. Of two changes within the same
//! moment one can be lost; findings are then made again, and `volume set` looks whether its own is there.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{FORMAT, NewFile, VolumeError, looking_again, mount::Mount};

/// Kinds of mounts that are remembered; beyond that the first ones found are forgotten.
const MOUNTS: usize = 16;
/// Others can change it between two looks; more often than this they do not.
const TRIES: usize = 32;

/// What `volume.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Description {
    version: u32,
    pub(super) id: String,
    /// Bytes of snapshots that staging may fill it with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) quota: Option<u64>,
    /// One of each kind, in the order in which they were found.
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    /// What later versions of this format may add.
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Description {
    pub(super) fn new(id: String, mount: Mount) -> Self {
        Self { version: FORMAT, id, quota: None, mounts: vec![mount], others: Map::new() }
    }

    pub(super) fn path(root: &Path) -> PathBuf {
        root.join("volume.json")
    }

    /// Reads a volume's description.
    pub(super) fn read(root: &Path) -> Result<Self, VolumeError> {
        Self::parse(root, &text(root)?)
    }

    fn parse(root: &Path, text: &[u8]) -> Result<Self, VolumeError> {
        let malformed = |source| VolumeError::Malformed { path: Self::path(root), source };
        let description: Self = serde_json::from_slice(text).map_err(malformed)?;
        match description.version > FORMAT {
            true => Err(VolumeError::TooNew { path: root.to_owned(), found: description.version }),
            false => Ok(description),
        }
    }

    /// Changes a volume's description.
    pub(super) fn update(root: &Path, change: impl Fn(&mut Self)) -> Result<Self, VolumeError> {
        let path = Self::path(root);
        for _ in 0..TRIES {
            let found = text(root)?;
            let mut description = Self::parse(root, &found)?;
            change(&mut description);
            let mut file = NewFile::create(&path)?;
            file.write_all(&description.text()).map_err(|error| VolumeError::io("write", &path, error))?;
            file.file().sync_all().map_err(|error| VolumeError::io("sync", &path, error))?;
            if text(root)? == found {
                file.finish()?;
                return Ok(description);
            }
        }
        let busy = io::Error::new(io::ErrorKind::ResourceBusy, "others change it all the time");
        Err(VolumeError::io("change", &path, busy))
    }

    pub(super) fn text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain fields serialise");
        text.push(b'\n');
        text
    }

    /// Keeps what was found of a mount in place of what was known of its kind.
    pub(super) fn keep(&mut self, mount: &Mount) {
        self.mounts.retain(|known| known.kind != mount.kind);
        self.mounts.push(mount.clone());
        let forgotten = self.mounts.len().saturating_sub(MOUNTS);
        self.mounts.drain(..forgotten);
    }
}

fn text(root: &Path) -> Result<Vec<u8>, VolumeError> {
    let path = Description::path(root);
    match looking_again(&path, |path| fs::read(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(VolumeError::Missing { path: root.to_owned() }),
        text => text.map_err(|error| VolumeError::io("read", &path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Volume;

    #[test]
    fn changes_by_many_at_once_do_not_lose_each_other() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(Description::path(dir.path()), r#"{"version":1,"id":"x","later":[1]}"#).unwrap();
        let kind = |n: usize| {
            let mut mount = Mount::default();
            mount.kind.source = n.to_string();
            mount
        };
        std::thread::scope(|scope| {
            for n in 0..4 {
                let (root, found) = (dir.path(), kind(n));
                scope.spawn(move || Description::update(root, |description| description.keep(&found)).unwrap());
            }
        });
        // A change may be lost within a moment, and never the whole.
        let found = Description::read(dir.path()).unwrap();
        assert!((1..=4).contains(&found.mounts.len()) && found.id == "x" && found.others["later"][0] == 1, "{found:?}");
    }

    #[test]
    fn of_each_kind_the_last_findings_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        let mut found = Description::read(volume.root()).unwrap();
        let again = Mount { latency_us: 77, ..found.mounts[0].clone() };
        found.keep(&again);
        assert_eq!(found.mounts, std::slice::from_ref(&again));
        for n in 0..MOUNTS {
            let mut other = again.clone();
            other.kind.source = n.to_string();
            found.keep(&other);
        }
        assert_eq!((found.mounts.len(), found.mounts[0].kind.source.as_str()), (MOUNTS, "0"));
    }
}
