//! A file that is filled at positions, in a tree that nobody reads before it is published as a whole.
//!
//! The name is given at once, where it is free: the record of what is done says whether the file is whole, not its name.
//! Where the name is taken, by what one that died or stalled has left, the file is made beside it and renamed over it,
//! so that nobody else's open file is ever written to.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{FallocateFlags, OFlags},
    io::Errno,
};

use super::{
    VolumeError, create_dirs_below,
    durable::{link, rename_over},
    nonce,
};

/// Files of at least this size have their room set aside at once.
const SET_ASIDE: u64 = 1 << 20;
/// What direct writes are aligned to.
pub(crate) const ALIGNED: usize = 4096;

/// The file.
#[derive(Debug)]
pub(crate) struct Placing {
    file: File,
    /// The same, for writes past the page cache.
    direct: Option<File>,
    /// Whether the mount took such a write back.
    refuses_direct: AtomicBool,
    path: PathBuf,
    temporary: Mutex<Option<PathBuf>>,
}

impl Placing {
    /// Makes the file `name` below `root`, and the directories between. A root that is not there is not made anew:
    /// others have taken it away. `direct` asks for writes past the page cache.
    pub(crate) fn create(root: &Path, name: &str, size: u64, direct: bool) -> Result<Self, VolumeError> {
        let path = &root.join(name);
        let new = || OpenOptions::new().read(true).write(true).create_new(true).to_owned();
        let failed = |error| VolumeError::io("create", path, error);
        let (file, temporary) = match new().open(path) {
            Ok(file) => (file, None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_dirs_below(root, Path::new(name))?;
                (new().open(path).map_err(failed)?, None)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let temporary = path.with_file_name(format!(".tmp-{}", nonce()));
                (new().open(&temporary).map_err(failed)?, Some(temporary))
            }
            Err(error) => return Err(failed(error)),
        };
        let placing = Self::new(file, path, temporary, direct);
        if size >= SET_ASIDE {
            match rustix::fs::fallocate(&placing.file, FallocateFlags::empty(), 0, size) {
                // Not every file system can; those that cannot show a full disk later.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(error) => return Err(VolumeError::io("set room aside for", path, error.into())),
            }
        }
        Ok(placing)
    }

    /// Goes on with a file of one that is surely gone; none if there is none.
    pub(crate) fn adopt(path: &Path, direct: bool) -> Result<Option<Self>, VolumeError> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(Self::new(file, path, None, direct))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(VolumeError::io("open", path, error)),
        }
    }

    fn new(file: File, path: &Path, temporary: Option<PathBuf>, direct: bool) -> Self {
        let name = temporary.as_deref().unwrap_or(path);
        let flags = i32::try_from(OFlags::DIRECT.bits()).expect("flags are small");
        // A mount that takes no such writes says so here, or at the first of them.
        let direct = direct.then(|| OpenOptions::new().write(true).custom_flags(flags).open(name).ok()).flatten();
        Self {
            file,
            direct,
            refuses_direct: AtomicBool::new(false),
            path: path.to_owned(),
            temporary: Mutex::new(temporary),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, to be read.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Writes at a position, past the page cache where bytes and position are aligned and the mount takes it.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), VolumeError> {
        let failed = |error| VolumeError::io("write", &self.path, error);
        let aligned = offset.is_multiple_of(ALIGNED as u64) && (bytes.as_ptr() as usize).is_multiple_of(ALIGNED);
        let whole = bytes.len() / ALIGNED * ALIGNED;
        let direct =
            self.direct.as_ref().filter(|_| aligned && whole > 0 && !self.refuses_direct.load(Ordering::Relaxed));
        let Some(direct) = direct else { return self.file.write_all_at(bytes, offset).map_err(failed) };
        match direct.write_all_at(&bytes[..whole], offset) {
            Ok(()) => self.file.write_all_at(&bytes[whole..], offset + whole as u64).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.refuses_direct.store(true, Ordering::Relaxed);
                self.file.write_all_at(bytes, offset).map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Gives the file its size and its name, `synced` before it.
    pub(crate) fn finish(&self, size: u64, synced: bool) -> Result<(), VolumeError> {
        let length = self.file.metadata().map_err(|error| VolumeError::io("inspect", &self.path, error))?.len();
        if length != size {
            self.file.set_len(size).map_err(|error| VolumeError::io("write", &self.path, error))?;
        }
        if synced {
            self.file.sync_all().map_err(|error| VolumeError::io("sync", &self.path, error))?;
        }
        let mut temporary = self.temporary.lock().expect("no holder panics");
        if let Some(name) = &*temporary {
            fs::rename(name, &self.path).map_err(|error| VolumeError::io("name", &self.path, error))?;
            *temporary = None;
        }
        Ok(())
    }
}

/// Makes a small file in a directory that only the caller uses, and links it to its place below `root`.
///
/// An NFS client holds the lock of a directory for as long as the server takes to create a file in it: one round trip, a
/// second to create one that must not be there, a third where the server has delegated the file. All that create files
/// in one directory wait for each other so. A link takes one round trip, and has one winner.
pub(crate) fn place_by_link(
    own: &Path,
    root: &Path,
    name: &str,
    bytes: &[u8],
    synced: bool,
) -> Result<(), VolumeError> {
    let (path, made) = (root.join(name), own.join(nonce()));
    let mut file = File::create(&made).map_err(|error| VolumeError::io("create", &path, error))?;
    let written = file.write_all(bytes).map_err(|error| VolumeError::io("write", &path, error));
    let whole = written.and_then(|()| match synced {
        true => file.sync_all().map_err(|error| VolumeError::io("sync", &path, error)),
        false => Ok(()),
    });
    drop(file);
    let placed = whole.and_then(|()| match link_below(&made, root, name) {
        // What one that died or stalled has left gives way.
        Err(VolumeError::AlreadyExists { .. }) => rename_over(&made, &path),
        linked => linked,
    });
    // It has its name, or is of no use; what cannot be removed goes with the directory.
    let _ = fs::remove_file(&made);
    placed
}

fn link_below(made: &Path, root: &Path, name: &str) -> Result<(), VolumeError> {
    let path = root.join(name);
    let linked = match link(made, &path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_dirs_below(root, Path::new(name))?;
            link(made, &path)
        }
        linked => linked,
    };
    linked.map_err(|error| VolumeError::io("name", &path, error))
}

impl Drop for Placing {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.lock().expect("no holder panics").take() {
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_name_that_is_taken_is_replaced_and_the_file_of_the_other_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let create = || Placing::create(dir.path(), "a/b", 0, false).unwrap();
        let (stalled, second) = (create(), create());
        second.write_at(b"right", 0).unwrap();
        second.finish(5, true).unwrap();
        stalled.write_at(b"wrong and long", 0).unwrap();
        stalled.finish(14, true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"right");
        drop(create());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_others_have_taken_away_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (own, root) = (dir.path().join("own"), dir.path().join("gone"));
        fs::create_dir(&own).unwrap();
        assert!(Placing::create(&root, "a/b", 0, false).is_err());
        assert!(place_by_link(&own, &root, "a/b", b"x", true).is_err());
        assert!(!root.exists() && fs::read_dir(own).unwrap().next().is_none());
    }

    #[test]
    fn a_file_that_is_linked_to_its_place_replaces_and_does_not_write_to_what_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (own, root) = (dir.path().join("own"), dir.path().join("root"));
        fs::create_dir(&own).unwrap();
        fs::create_dir(&root).unwrap();
        place_by_link(&own, &root, "a/b", b"first", true).unwrap();
        let first = File::open(root.join("a/b")).unwrap();
        place_by_link(&own, &root, "a/b", b"second", false).unwrap();
        assert_eq!(fs::read(root.join("a/b")).unwrap(), b"second");
        assert_eq!(io::read_to_string(&first).unwrap(), "first");
        assert_eq!(fs::metadata(root.join("a/b")).unwrap().nlink(), 1);
        assert!(fs::read_dir(own).unwrap().next().is_none());
    }

    #[test]
    fn bytes_are_the_same_past_the_page_cache_and_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut map = memmap2::MmapMut::map_anon(3 * ALIGNED).unwrap();
        map.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 7) as u8);
        for direct in [false, true] {
            let path = dir.path().join(direct.to_string());
            let placing = Placing::create(dir.path(), &direct.to_string(), 2 << 20, direct).unwrap();
            let size = 2 * ALIGNED + 100;
            placing.write_at(&map[..size], 0).unwrap();
            placing.write_at(&map[1..100], size as u64).unwrap();
            placing.finish(size as u64 + 99, true).unwrap();
            assert_eq!(fs::read(&path).unwrap(), [&map[..size], &map[1..100]].concat(), "{direct}");
            let adopted = Placing::adopt(&path, direct).unwrap().unwrap();
            adopted.finish(10, false).unwrap();
            assert_eq!(fs::read(&path).unwrap().len(), 10);
        }
        assert!(Placing::adopt(&dir.path().join("absent"), true).unwrap().is_none());
    }
}
