//! A volume: a directory on a shared file system, and the only code that creates, syncs, renames and links on it.
//!
//! Shared file systems punish the careless, so that everything here follows three rules. A file is written under a
//! temporary name in its own directory, synced, and only then given its name; nothing is ever overwritten except by
//! rename. A full disk or a broken server shows at `sync_all`, which is therefore never skipped. A reply to a rename
//! or a link may be lost although it happened, so that an error is believed only after looking at the target.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::checksum::{Crc64, Hasher, file_checksum};

/// The version of the volume's format.
pub const FORMAT: u32 = 1;

/// Why a volume, or a file on it, could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The directory is no volume, or not there.
    #[error("there is no volume at {}", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// `volume.json` cannot be understood.
    #[error("{} is not the description of a volume", path.display())]
    Malformed {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A later forebay wrote it.
    #[error("the volume at {} has format {found}, and this forebay knows only {FORMAT}", path.display())]
    TooNew {
        /// The volume.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A path in a manifest, a journal or a message leads out of the volume.
    #[error("the path `{path}` leads out of the volume")]
    Escapes {
        /// The path.
        path: String,
    },
    /// What was to be created is there already.
    #[error("{} is there already", path.display())]
    AlreadyExists {
        /// The path.
        path: PathBuf,
    },
    /// The file system has no room left, or the user's quota is used up.
    #[error("no room left on the volume's file system for {}", path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file system is mounted read-only, or the directory is not writable.
    #[error("cannot write {}: the volume is read-only here", path.display())]
    ReadOnly {
        /// What was to be written.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl VolumeError {
    /// Sorts a system error into what a user can act on.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, source },
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Self::ReadOnly { path, source },
            io::ErrorKind::AlreadyExists => Self::AlreadyExists { path },
            _ => Self::Io { action, path, source },
        }
    }
}

/// A directory that every host mounts, not always at the same path.
#[derive(Clone, Debug)]
pub struct Volume {
    root: PathBuf,
    id: String,
}

/// `volume.json`
#[derive(Serialize, Deserialize)]
struct Description {
    version: u32,
    id: String,
}

impl Volume {
    /// Opens the volume, making the directory one if it is empty or absent.
    pub fn open_or_create(root: &Path) -> Result<Self, VolumeError> {
        match Self::open(root) {
            Err(VolumeError::Missing { .. }) => {}
            opened => return opened,
        }
        fs::create_dir_all(root).map_err(|error| VolumeError::io("create", root, error))?;
        let description = Description { version: FORMAT, id: nonce() };
        let text = serde_json::to_vec(&description).expect("two plain fields serialise");
        match write_new(&root.join("volume.json"), &text) {
            // Another host was first: its description counts.
            Ok(()) | Err(VolumeError::AlreadyExists { .. }) => Self::open(root),
            Err(error) => Err(error),
        }
    }

    /// Opens a volume that is there.
    pub fn open(root: &Path) -> Result<Self, VolumeError> {
        let path = root.join("volume.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(VolumeError::Missing { path: root.to_owned() });
            }
            Err(error) => return Err(VolumeError::io("read", &path, error)),
        };
        let description: Description =
            serde_json::from_slice(&text).map_err(|source| VolumeError::Malformed { path: path.clone(), source })?;
        if description.version > FORMAT {
            return Err(VolumeError::TooNew { path: root.to_owned(), found: description.version });
        }
        let root = fs::canonicalize(root).map_err(|error| VolumeError::io("resolve", root, error))?;
        Ok(Self { root, id: description.id })
    }

    /// Where this host mounts it: absolute, without symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The volume's own id, by which hosts know that they mount the same one.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The path on this host of a path relative to the volume's root.
    ///
    /// # Errors
    /// [`VolumeError::Escapes`] for anything but plain names: such paths come from files and from the network.
    pub fn resolve(&self, relative: &str) -> Result<PathBuf, VolumeError> {
        let plain = !relative.is_empty()
            && !relative.contains('\0')
            && Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)));
        if plain { Ok(self.root.join(relative)) } else { Err(VolumeError::Escapes { path: relative.to_owned() }) }
    }

    /// The path below the volume's root of a path on this host; none if it is not on the volume.
    pub fn relative(&self, path: &Path) -> Option<String> {
        path.strip_prefix(&self.root).ok()?.to_str().map(str::to_owned)
    }

    /// Holds a directory a dataset.
    pub fn datasets_dir(&self) -> PathBuf {
        self.root.join("datasets")
    }

    /// Holds a directory a run.
    pub fn runs_dir(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// The directory of one run.
    pub fn run_dir(&self, run: &str) -> PathBuf {
        self.runs_dir().join(run)
    }

    /// Moves a file or directory out of sight, then removes what can be removed.
    ///
    /// The rename is what counts: a directory in which another host still holds a file open cannot be removed on NFS
    /// (its `.nfs*` files stay), and is left in `trash/` then.
    pub fn trash(&self, path: &Path) -> io::Result<()> {
        let trash = self.root.join("trash");
        fs::create_dir_all(&trash)?;
        let gone = trash.join(nonce());
        match fs::rename(path, &gone) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        let removed = if gone.is_dir() { fs::remove_dir_all(&gone) } else { fs::remove_file(&gone) };
        if let Err(error) = removed {
            tracing::debug!(path = %gone.display(), %error, "left in the trash");
        }
        Ok(())
    }

    /// Bytes that an ordinary user may still write.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Writes a new file whole: temporary name, sync, link. Never overwrites.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), VolumeError> {
    let mut file = NewFile::create(path)?;
    file.write_all(bytes).map_err(|error| VolumeError::io("write", path, error))?;
    file.finish_new().map(drop)
}

/// Writes a file whole in place of what was there: temporary name, sync, rename.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), VolumeError> {
    let mut file = NewFile::create(path)?;
    file.write_all(bytes).map_err(|error| VolumeError::io("write", path, error))?;
    file.finish().map(drop)
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> Result<(), VolumeError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| VolumeError::io("sync", path, error))
}

/// Syncs every directory below and including `path`, deepest first; the files in them are synced already.
pub fn sync_tree(path: &Path) -> Result<(), VolumeError> {
    for entry in fs::read_dir(path).map_err(|error| VolumeError::io("list", path, error))? {
        let entry = entry.map_err(|error| VolumeError::io("list", path, error))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sync_tree(&entry.path())?;
        }
    }
    sync_dir(path)
}

/// Gives a directory, whole and synced, its final name in one step.
///
/// # Errors
/// [`VolumeError::AlreadyExists`] if something stands there that is not it.
pub fn publish_dir(from: &Path, to: &Path) -> Result<(), VolumeError> {
    sync_dir(from)?;
    let inode = fs::metadata(from).map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
    if let Err(error) = fs::rename(from, to) {
        let arrived = inode.is_ok_and(|inode| {
            fs::metadata(to).is_ok_and(|meta| std::os::unix::fs::MetadataExt::ino(&meta) == inode) && !from.exists()
        });
        if !arrived {
            let taken = matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists);
            return Err(match taken {
                true => VolumeError::AlreadyExists { path: to.to_owned() },
                false => VolumeError::io("publish", to, error),
            });
        }
    }
    to.parent().map_or(Ok(()), sync_dir)
}

/// Gives a durable, immutable file a second name: a hard link, or a synced copy where links run out (EFS allows 177
/// a file) or are not known.
pub fn link_or_copy(from: &Path, to: &Path) -> Result<(), VolumeError> {
    match fs::hard_link(from, to) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(VolumeError::AlreadyExists { path: to.to_owned() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(VolumeError::io("link", from, error)),
        Err(_) => {}
    }
    let mut source = File::open(from).map_err(|error| VolumeError::io("open", from, error))?;
    let mut copy = NewFile::create(to)?;
    io::copy(&mut source, &mut copy).map_err(|error| VolumeError::io("copy", to, error))?;
    copy.finish().map(drop)
}

/// A file on its way: a temporary name beside its final one, counted and checksummed as it is written.
/// Dropped without [`finish`](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct NewFile {
    file: Option<File>,
    temporary: PathBuf,
    target: PathBuf,
    hasher: Hasher,
    size: u64,
}

impl NewFile {
    /// Begins a file that is to be named `target`, in a directory that exists.
    pub fn create(target: &Path) -> Result<Self, VolumeError> {
        // The temporary name holds nothing of the target's, which may be 255 bytes long already.
        let temporary = target.with_file_name(format!(".tmp-{}", nonce()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|error| VolumeError::io("create", target, error))?;
        Ok(Self { file: Some(file), temporary, target: target.to_owned(), hasher: Hasher::default(), size: 0 })
    }

    /// The open file, for writes at positions; such bytes are not counted and not checksummed.
    pub fn file(&self) -> &File {
        self.file.as_ref().expect("only finishing takes the file")
    }

    /// The name that it is to get.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Syncs the file and gives it its name, in place of what stands there. Returns its size and checksum.
    pub fn finish(mut self) -> Result<(u64, Crc64), VolumeError> {
        self.sync()?;
        fs::rename(&self.temporary, &self.target).map_err(|error| VolumeError::io("name", &self.target, error))?;
        self.named()
    }

    /// Like [`finish`](Self::finish), but never overwrites: the name is given by a link, which has one winner.
    pub fn finish_new(mut self) -> Result<(u64, Crc64), VolumeError> {
        self.sync()?;
        let linked = fs::hard_link(&self.temporary, &self.target);
        if let Err(error) = linked {
            let ours = file_checksum(&self.temporary).ok();
            let lost_reply = fs::metadata(&self.temporary)
                .is_ok_and(|meta| std::os::unix::fs::MetadataExt::nlink(&meta) > 1)
                && ours == file_checksum(&self.target).ok();
            if !lost_reply {
                return Err(VolumeError::io("name", &self.target, error));
            }
        }
        let _ = fs::remove_file(&self.temporary);
        self.named()
    }

    fn sync(&mut self) -> Result<(), VolumeError> {
        self.file().sync_all().map_err(|error| VolumeError::io("sync", &self.target, error))
    }

    fn named(mut self) -> Result<(u64, Crc64), VolumeError> {
        self.file = None;
        self.target.parent().map_or(Ok(()), sync_dir)?;
        Ok((self.size, self.hasher.finish()))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.as_mut().expect("only finishing takes the file").write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// 16 random hexadecimal digits: a name that no other host chooses.
pub fn nonce() -> String {
    format!("{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_volume_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let made = Volume::open_or_create(dir.path()).unwrap();
        assert_eq!(made.id(), Volume::open_or_create(dir.path()).unwrap().id());
        assert_eq!(names(dir.path()), ["volume.json"]);
    }

    #[test]
    fn a_later_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("volume.json"), r#"{"version":2,"id":"x"}"#).unwrap();
        assert!(matches!(Volume::open_or_create(dir.path()), Err(VolumeError::TooNew { found: 2, .. })));
    }

    #[test]
    fn no_path_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        for path in ["", "/etc/passwd", "../x", "a/../../x", "./a", "a\0b"] {
            assert!(volume.resolve(path).is_err(), "{path:?}");
        }
        assert_eq!(volume.relative(&volume.resolve("a/b").unwrap()).unwrap(), "a/b");
    }

    #[test]
    fn a_new_file_never_overwrites_and_an_unfinished_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_new(&path, b"one").unwrap();
        assert!(matches!(write_new(&path, b"two"), Err(VolumeError::AlreadyExists { .. })));
        drop(NewFile::create(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        replace(&path, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn a_directory_is_published_once() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("f"), name).unwrap();
        }
        publish_dir(&dir.path().join("a"), &dir.path().join("to")).unwrap();
        let again = publish_dir(&dir.path().join("b"), &dir.path().join("to"));
        assert!(matches!(again, Err(VolumeError::AlreadyExists { .. })));
        assert_eq!(fs::read(dir.path().join("to/f")).unwrap(), b"a");
    }
}
