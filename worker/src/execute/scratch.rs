//! Where an attempt may write what goes with it: a directory of its slot, emptied after each attempt and used again.
//!
//! Making and removing directories and files for each attempt would cost more than a short program does: ext4 looks at
//! every inode that was freed within the last seconds before it gives one out (`recently_deleted` in fs/ext4/ialloc.c).
//! So the few that every program has stay, and are written over.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use forebay_datasets::volume::{self, VolumeError};

use crate::process::held;

/// A program's working directory, below its slot's.
pub(super) const WORK: &str = "work";
/// What `command::environment` writes for each program.
const KEPT: [&str; 2] = ["inputs.txt", "split.json"];

/// The slots whose directories this process has made.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Mutex<BTreeSet<PathBuf>>);

impl Scratch {
    /// Makes the directory of a slot. What another process of this worker's name has left there goes.
    pub(super) fn prepare(&self, dir: &Path) -> Result<(), VolumeError> {
        if !held(&self.0).insert(dir.to_owned()) {
            return Ok(());
        }
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(VolumeError::io("clear", dir, error));
            }
            _ => {}
        }
        volume::create_dir(dir)?;
        volume::create_dir(&dir.join(WORK))
    }
}

/// Removes what an attempt has left, whose programs have ended.
pub(super) fn clear(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // What has another name, as in an output, or leads elsewhere must not be written over.
        let is_own = || entry.metadata().is_ok_and(|meta| meta.is_file() && meta.nlink() == 1);
        if name == WORK && is_dir {
            clear(&path);
        } else if !(KEPT.iter().any(|kept| name == *kept) && is_own()) {
            remove(&path, is_dir);
        }
    }
}

fn remove(path: &Path, is_dir: bool) {
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = removed {
        tracing::debug!(path = %path.display(), %error, "could not be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_empty_for_the_next_attempt_and_its_directories_are_the_same() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("w.0");
        fs::create_dir_all(dir.join("work/of-another-process")).unwrap();
        let scratch = Scratch::default();
        let names = |dir: &Path| {
            let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<BTreeSet<_>>()
        };
        for _ in 0..2 {
            scratch.prepare(&dir).unwrap();
            assert!(names(&dir.join(WORK)).is_empty());
            fs::create_dir_all(dir.join("work/deep/er")).unwrap();
            std::os::unix::fs::symlink("/", dir.join("work/deep/root")).unwrap();
            for name in ["inputs.txt", "split.json", "work/file", "spill"] {
                fs::write(dir.join(name), "x").unwrap();
            }
            let elsewhere = place.path().join("output");
            let _ = fs::remove_file(&elsewhere);
            fs::hard_link(dir.join("split.json"), &elsewhere).unwrap();
            clear(&dir);
            assert!(elsewhere.exists());
            assert_eq!(names(&dir), ["inputs.txt", "work"].map(str::to_owned).into());
            assert!(names(&dir.join(WORK)).is_empty() && Path::new("/").exists());
        }
    }
}
