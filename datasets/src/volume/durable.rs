//! Creating, naming and linking so that what has a name is whole, and stays after a crash.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{VolumeError, nonce};
use crate::checksum::{Crc64, Hasher};

/// Makes a directory and the missing ones above it, their names durable.
pub fn create_dirs(path: &Path) -> Result<(), VolumeError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dirs(parent)?;
    match fs::create_dir(path) {
        // Another host was first.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(VolumeError::io("create", path, error)),
        Ok(()) => sync_dir(parent),
    }
}

/// Makes a directory in one that is there; what has been taken away is not made anew. That the directory is there
/// already is no error: so answers a file server whose first reply was lost.
pub fn create_dir(path: &Path) -> Result<(), VolumeError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(VolumeError::io("create", path, error)),
        Ok(()) => Ok(()),
    }
}

/// Makes the directories that lead to a name below a directory that is there.
pub fn create_dirs_below(dir: &Path, name: &Path) -> Result<(), VolumeError> {
    let mut path = dir.to_owned();
    for part in name.parent().into_iter().flat_map(Path::components) {
        path.push(part);
        create_dir(&path)?;
    }
    Ok(())
}

/// Writes a new file whole: temporary name, sync, link. Never overwrites.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), VolumeError> {
    let mut file = NewFile::create(path)?;
    file.write_all(bytes).map_err(|error| VolumeError::io("write", path, error))?;
    file.finish_new().map(drop)
}

/// Writes a file whole: temporary name, sync, rename. A crash may take it away until its directory is synced: for what
/// is to be renamed anyway, and for what is only read by who is there.
pub fn hand_over(path: &Path, bytes: &[u8]) -> Result<(), VolumeError> {
    let mut file = NewFile::create(path)?;
    file.write_all(bytes).map_err(|error| VolumeError::io("write", path, error))?;
    file.finish_in_tree().map(drop)
}

/// Writes a file whole in place of what was there: temporary name, sync, rename.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), VolumeError> {
    hand_over(path, bytes)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Puts a file that is whole and synced in place of what stands at `to`, and makes that durable. Both are on one volume.
pub fn rename_over(from: &Path, to: &Path) -> Result<(), VolumeError> {
    let moved = fs::metadata(from).map_err(|error| VolumeError::io("inspect", from, error))?;
    if let Err(error) = fs::rename(from, to)
        && (from.exists() || !is_same(&moved, to))
    {
        return Err(VolumeError::io("replace", to, error));
    }
    to.parent().map_or(Ok(()), sync_dir)
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> Result<(), VolumeError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| VolumeError::io("sync", path, error))
}

/// Syncs every directory below and including `path`, deepest first; the files in them are synced already. One that is
/// empty has nothing but its name, which is in the directory above it.
pub fn sync_tree(path: &Path) -> Result<(), VolumeError> {
    sync_below(path)?;
    sync_dir(path)
}

/// Syncs the directories below one; whether anything is in it.
fn sync_below(path: &Path) -> Result<bool, VolumeError> {
    let mut holds_any = false;
    for entry in fs::read_dir(path).map_err(|error| VolumeError::io("list", path, error))? {
        let entry = entry.map_err(|error| VolumeError::io("list", path, error))?;
        holds_any = true;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && sync_below(&entry.path())? {
            sync_dir(&entry.path())?;
        }
    }
    Ok(holds_any)
}

/// Like [`publish_dir`], for a tree whose directories are still to be synced, the files in them being synced already.
pub fn publish_tree(from: &Path, to: &Path) -> Result<(), VolumeError> {
    sync_below(from)?;
    publish_dir(from, to)
}

/// Gives a directory, whole and synced but for its own names, its final name in one step.
///
/// # Errors
/// [`VolumeError::AlreadyExists`] if something stands there that is not it.
pub fn publish_dir(from: &Path, to: &Path) -> Result<(), VolumeError> {
    sync_dir(from)?;
    let moved = fs::metadata(from).map_err(|error| VolumeError::io("inspect", from, error))?;
    if let Err(error) = fs::rename(from, to)
        && (from.exists() || !is_same(&moved, to))
    {
        let taken = matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists);
        return Err(match taken {
            true => VolumeError::AlreadyExists { path: to.to_owned() },
            false => VolumeError::io("publish", to, error),
        });
    }
    to.parent().map_or(Ok(()), sync_dir)
}

/// Gives a file another name. An error is believed only if that does not name it.
pub(super) fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to).or_else(|error| match fs::metadata(from) {
        Ok(known) if is_same(&known, to) => Ok(()),
        _ => Err(error),
    })
}

/// Whether a path names the very file or directory that was looked at before.
pub(super) fn is_same(known: &fs::Metadata, path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (known.dev(), known.ino()))
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

    /// Size and checksum of what was written so far.
    pub(crate) fn written(&self) -> (u64, Crc64) {
        (self.size, self.hasher.finish())
    }

    /// Syncs the file and gives it its name, in place of what stands there. Returns its size and checksum.
    pub fn finish(self) -> Result<(u64, Crc64), VolumeError> {
        let target = self.target.clone();
        let finished = self.finish_in_tree()?;
        target.parent().map_or(Ok(()), sync_dir)?;
        Ok(finished)
    }

    /// Like [`finish`](Self::finish), for one of many files of a tree that [`sync_tree`] makes durable when it is
    /// whole: the name may not survive a crash before that.
    pub fn finish_in_tree(mut self) -> Result<(u64, Crc64), VolumeError> {
        let written = self.sync()?;
        if let Err(error) = fs::rename(&self.temporary, &self.target)
            && !is_same(&written, &self.target)
        {
            return Err(VolumeError::io("name", &self.target, error));
        }
        self.file = None;
        Ok((self.size, self.hasher.finish()))
    }

    /// Like [`finish`](Self::finish), for what need not outlive a crash of the host.
    pub fn finish_unsynced(mut self) -> Result<(), VolumeError> {
        let written = self.file().metadata().map_err(|error| VolumeError::io("inspect", &self.target, error))?;
        if let Err(error) = fs::rename(&self.temporary, &self.target)
            && !is_same(&written, &self.target)
        {
            return Err(VolumeError::io("name", &self.target, error));
        }
        self.file = None;
        Ok(())
    }

    /// Like [`finish`](Self::finish), but never overwrites: the name is given by a link, which has one winner.
    pub fn finish_new(mut self) -> Result<(u64, Crc64), VolumeError> {
        self.sync()?;
        link(&self.temporary, &self.target).map_err(|error| VolumeError::io("name", &self.target, error))?;
        let _ = fs::remove_file(&self.temporary);
        self.file = None;
        self.target.parent().map_or(Ok(()), sync_dir)?;
        Ok((self.size, self.hasher.finish()))
    }

    /// A full disk and a broken server show here, if not before.
    fn sync(&self) -> Result<fs::Metadata, VolumeError> {
        let synced = self.file().sync_all().and_then(|()| self.file().metadata());
        synced.map_err(|error| VolumeError::io("sync", &self.target, error))
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
    fn a_file_that_cannot_get_its_name_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("x/y")).unwrap();
        assert!(replace(&dir.path().join("x"), b"one").is_err());
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn the_count_and_the_checksum_are_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut file = NewFile::create(&path).unwrap();
        file.write_all(b"12345").unwrap();
        file.write_all(b"6789").unwrap();
        assert_eq!(file.finish().unwrap(), crate::checksum::file_checksum(&path).unwrap());
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

    #[test]
    fn missing_directories_are_made_and_a_file_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        create_dirs(&dir.path().join("a/b/c")).unwrap();
        create_dirs(&dir.path().join("a/b/c")).unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        assert!(create_dirs(&dir.path().join("f/g")).is_err());
    }
}
