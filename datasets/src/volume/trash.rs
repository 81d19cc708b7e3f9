//! Removal: first out of sight by one rename, then for good, be it by a later command on another host.
//!
//! A directory in which another host still holds a file open cannot be removed on NFS (its `.nfs*` files stay), and one
//! that two processes empty changes under their hands. Both are no errors: what is left is tried again.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use super::{Volume, nonce};

/// What a removal came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Files that are gone.
    pub files: u64,
    /// Bytes of those that had no other name: so many came free.
    pub bytes: u64,
    /// Something could not be removed, and is in the trash.
    pub left: bool,
}

impl Removed {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self { files: self.files + other.files, bytes: self.bytes + other.bytes, left: self.left || other.left }
    }
}

impl Volume {
    /// Moves a file or directory out of sight, then removes what can be removed. The rename is what counts.
    ///
    /// # Errors
    /// That it could not be moved. What is not there is gone already.
    pub fn trash(&self, path: &Path) -> io::Result<Removed> {
        let trash = self.root.join("trash");
        fs::create_dir_all(&trash)?;
        let gone = trash.join(nonce());
        match fs::rename(path, &gone) {
            Ok(()) => Ok(remove(&gone, None)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Removed::default()),
            Err(error) => Err(error),
        }
    }

    /// Removes what earlier removals had to leave, as far as that is possible now, and within a time if one is given.
    pub fn empty_trash(&self, within: Option<Duration>) -> Removed {
        let until = within.map(|within| Instant::now() + within);
        let entries = fs::read_dir(self.root.join("trash")).into_iter().flatten().flatten();
        entries.fold(Removed::default(), |removed, entry| removed.and(remove(&entry.path(), until)))
    }
}

/// Removes a file, or a directory with all that is in it.
fn remove(path: &Path, until: Option<Instant>) -> Removed {
    let mut removed = Removed::default();
    if until.is_some_and(|until| until <= Instant::now()) {
        return Removed { left: true, ..removed };
    }
    let Ok(meta) = fs::symlink_metadata(path) else { return removed };
    let result = match meta.is_dir() {
        true => {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                removed = removed.and(remove(&entry.path(), until));
            }
            fs::remove_dir(path)
        }
        false => fs::remove_file(path),
    };
    match result {
        Ok(()) if !meta.is_dir() => {
            removed.files += 1;
            // A file of some columns has holes.
            removed.bytes += if meta.nlink() == 1 { meta.len().min(meta.blocks() * 512) } else { 0 };
        }
        Ok(()) => {}
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "left in the trash");
            removed.left = true;
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_trashed_is_gone_and_trashing_it_again_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        let path = dir.path().join("d");
        fs::create_dir(&path).unwrap();
        volume.trash(&path).unwrap();
        volume.trash(&path).unwrap();
        fs::create_dir(dir.path().join("trash/left")).unwrap();
        volume.empty_trash(None);
        assert_eq!(fs::read_dir(dir.path().join("trash")).unwrap().count(), 0);
        assert!(!path.exists());
    }

    #[test]
    fn bytes_come_free_with_their_last_name() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        fs::create_dir_all(dir.path().join("d/e")).unwrap();
        fs::write(dir.path().join("d/e/shared"), [0; 100]).unwrap();
        fs::hard_link(dir.path().join("d/e/shared"), dir.path().join("kept")).unwrap();
        fs::write(dir.path().join("d/own"), [0; 10]).unwrap();
        assert_eq!(volume.trash(&dir.path().join("d")).unwrap(), Removed { files: 2, bytes: 10, left: false });
        let kept = volume.trash(&dir.path().join("kept")).unwrap();
        assert_eq!(kept, Removed { files: 1, bytes: 100, left: false });
    }

    #[test]
    fn what_cannot_be_removed_yet_is_removed_later() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        let left = dir.path().join("trash/x");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("f"), "1").unwrap();
        assert!(volume.empty_trash(Some(Duration::ZERO)).left && left.exists());
        assert!(!volume.empty_trash(None).left && !left.exists());
    }
}
