//! Empty directories that attempts have left, for the attempts after them.
//!
//! Most attempts need their directories only because they might have something to leave. To give one the name that the
//! next attempt's has costs a fraction of making, and removing, one for each (see `scratch`).

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

use forebay_datasets::volume::{self, VolumeError};

use crate::process::held;

/// Directories of one parent. Nobody may be at work in one that is taken.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    dirs: Mutex<Vec<PathBuf>>,
    /// The mode and the owner of a directory that was just made.
    as_made: OnceLock<(u32, u32, u32)>,
}

impl Spares {
    /// Makes a directory.
    pub(super) fn give(&self, dir: &Path) -> Result<(), VolumeError> {
        let spare = held(&self.dirs).pop();
        // The reply to a rename can be lost; then what is made is there already.
        if spare.is_some_and(|spare| fs::rename(spare, dir).is_ok()) {
            return Ok(());
        }
        volume::create_dir(dir)?;
        if let (None, Some(as_made)) = (self.as_made.get(), looks(dir)) {
            // Another slot was quicker.
            let _ = self.as_made.set(as_made);
        }
        Ok(())
    }

    /// Takes a directory if it is as it was made: otherwise it stays, and this says so.
    pub(super) fn take(&self, dir: &Path) -> bool {
        let is_empty = || fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
        let is_spare = self.as_made.get().is_some_and(|as_made| looks(dir).as_ref() == Some(as_made)) && is_empty();
        if is_spare {
            held(&self.dirs).push(dir.to_owned());
        }
        is_spare
    }
}

fn looks(dir: &Path) -> Option<(u32, u32, u32)> {
    let meta = fs::symlink_metadata(dir).ok().filter(fs::Metadata::is_dir)?;
    Some((meta.mode(), meta.uid(), meta.gid()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_a_directory_that_is_as_it_was_made_gets_another_name() {
        let place = tempfile::tempdir().unwrap();
        let dir = |name: &str| place.path().join(name);
        let spares = Spares::default();
        for name in ["untouched", "full", "closed", "led-away"] {
            spares.give(&dir(name)).unwrap();
        }
        let untouched = fs::metadata(dir("untouched")).unwrap().ino();
        fs::write(dir("full").join("file"), "").unwrap();
        fs::set_permissions(dir("closed"), fs::Permissions::from_mode(0o500)).unwrap();
        fs::remove_dir(dir("led-away")).unwrap();
        fs::create_dir(dir("elsewhere")).unwrap();
        symlink(dir("elsewhere"), dir("led-away")).unwrap();
        for (name, taken) in [("untouched", true), ("full", false), ("closed", false), ("led-away", false)] {
            assert_eq!(spares.take(&dir(name)), taken, "{name}");
        }
        spares.give(&dir("next")).unwrap();
        assert_eq!(fs::metadata(dir("next")).unwrap().ino(), untouched);
        assert!(!dir("untouched").exists(), "who knows only the old name finds nothing");
        spares.give(&dir("another")).unwrap();
        assert_eq!(fs::read_dir(dir("another")).unwrap().count(), 0);
        assert!(dir("full").join("file").exists());
    }

    #[test]
    fn one_that_is_gone_is_made_anew() {
        let place = tempfile::tempdir().unwrap();
        let spares = Spares::default();
        let [first, second] = ["first", "second"].map(|name| place.path().join(name));
        spares.give(&first).unwrap();
        assert!(spares.take(&first));
        fs::remove_dir(&first).unwrap();
        spares.give(&second).unwrap();
        assert!(second.is_dir());
    }
}
