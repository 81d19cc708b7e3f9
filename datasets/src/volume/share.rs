//! Giving the bytes of a durable, immutable file a second place: as a reflink, else as a hard link, else as a copy.
//!
//! A reflink is a file of its own that shares blocks: damage through one name does not reach the other, and no number of
//! them runs out. A hard link costs least, and runs out (EFS allows 177 a file, ext4 65,000). The copy is made by
//! `copy_file_range`, which file servers that can do it do without sending the bytes here.

use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::{
    fs::{SeekFrom, ioctl_ficlone, seek},
    io::Errno,
};

use super::{NewFile, Volume, VolumeError, durable::is_same};

/// How a file came to its second place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// As another file of the same blocks.
    Reflink,
    /// As another name of the same file.
    Link,
    /// As a copy.
    Copy,
}

impl Volume {
    /// Gives a file of the volume a second place, whose directory has no other writer. What is new is synced; the name
    /// itself is durable only after its directory is synced.
    ///
    /// # Errors
    /// [`VolumeError::AlreadyExists`] if something else stands there.
    pub fn share(&self, from: &Path, to: &Path) -> Result<Shared, VolumeError> {
        if self.mount().reflink && !is_there(to)? && reflink(from, to)? {
            return Ok(Shared::Reflink);
        }
        link_or_copy(from, to)
    }
}

fn is_there(path: &Path) -> Result<bool, VolumeError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(VolumeError::io("inspect", path, error)),
    }
}

/// False where the mount refuses, as it may between its parts, or on a host with another kernel.
fn reflink(from: &Path, to: &Path) -> Result<bool, VolumeError> {
    let source = File::open(from).map_err(|error| VolumeError::io("open", from, error))?;
    let clone = NewFile::create(to)?;
    match ioctl_ficlone(clone.file(), &source).map_err(io::Error::from) {
        Ok(()) => clone.finish_in_tree().map(|_| true),
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            Err(VolumeError::io("clone", to, error))
        }
        Err(error) => {
            tracing::debug!(path = %to.display(), %error, "not reflinked");
            Ok(false)
        }
    }
}

/// Gives a durable, immutable file a second name: a hard link, or a synced copy where links run out or are not known.
/// The name itself is durable only after its directory is synced.
///
/// # Errors
/// [`VolumeError::AlreadyExists`] if something else stands there.
pub fn link_or_copy(from: &Path, to: &Path) -> Result<Shared, VolumeError> {
    let linked = match fs::hard_link(from, to) {
        Ok(()) => return Ok(Shared::Link),
        Err(error) => error,
    };
    let held = fs::metadata(from).map_err(|error| VolumeError::io("link", from, error))?;
    match linked.kind() {
        // The link was made, and the reply was lost.
        io::ErrorKind::AlreadyExists if is_same(&held, to) => return Ok(Shared::Link),
        io::ErrorKind::AlreadyExists => return Err(VolumeError::AlreadyExists { path: to.to_owned() }),
        _ => {}
    }
    let mut source = File::open(from).map_err(|error| VolumeError::io("open", from, error))?;
    let copy = NewFile::create(to)?;
    let copied = match held.blocks() * 512 < held.len() {
        true => copy_with_holes(&source, copy.file(), held.len()),
        // From file to file the standard library copies by `copy_file_range`.
        false => io::copy(&mut source, &mut copy.file()),
    };
    let copied = copied.map_err(|error| VolumeError::io("copy", to, error))?;
    if copied != held.len() {
        let short = io::Error::new(io::ErrorKind::UnexpectedEof, format!("{copied} of {} bytes", held.len()));
        return Err(VolumeError::io("copy", from, short));
    }
    copy.finish_in_tree().map(|_| Shared::Copy)
}

/// Copies what a file holds, and leaves holes where it has some; returns its length. A file system that does not know
/// its holes has none.
fn copy_with_holes(mut from: &File, mut to: &File, length: u64) -> io::Result<u64> {
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        let begin = match seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            begin => begin?,
        };
        let end = match seek(from, SeekFrom::Hole(begin)) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) => length,
            end => end?,
        };
        from.seek(io::SeekFrom::Start(begin))?;
        to.seek(io::SeekFrom::Start(begin))?;
        let copied = io::copy(&mut from.take(end - begin), &mut to)?;
        if copied != end - begin {
            return Ok(begin + copied);
        }
        at = end;
    }
    Ok(length.min(from.metadata()?.len()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Beyond the 65,000 of ext4.
    const MANY: u32 = 70_000;

    #[test]
    fn a_copy_has_the_holes_of_what_it_copies() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let file = File::create(path("from")).unwrap();
        file.set_len(10 << 20).unwrap();
        for (offset, text) in [(5, "begin"), (4 << 20, "middle"), ((10 << 20) - 3, "end")] {
            file.write_all_at(text.as_bytes(), offset).unwrap();
        }
        let whole = fs::read(path("from")).unwrap();
        let copy = |length| {
            let to = File::create(path("to")).unwrap();
            copy_with_holes(&File::open(path("from")).unwrap(), &to, length).unwrap()
        };
        assert_eq!(copy(10 << 20), 10 << 20);
        assert_eq!(fs::read(path("to")).unwrap(), whole);
        let blocks = |name: &str| fs::metadata(path(name)).unwrap().blocks();
        assert!(blocks("to") <= blocks("from").max(64), "{} {}", blocks("to"), blocks("from"));
        file.set_len(3 << 20).unwrap();
        assert_ne!(copy(10 << 20), 10 << 20, "it has become shorter");
    }

    #[test]
    fn linking_twice_is_harmless_and_linking_another_file_is_not_done() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, to) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("to"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        link_or_copy(&a, &to).unwrap();
        link_or_copy(&a, &to).unwrap();
        assert!(matches!(link_or_copy(&b, &to), Err(VolumeError::AlreadyExists { .. })));
        assert!(link_or_copy(&dir.path().join("absent"), &dir.path().join("new")).is_err());
        assert_eq!(fs::read(&to).unwrap(), b"a");
    }

    #[test]
    fn sharing_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        let (a, to) = (dir.path().join("a"), dir.path().join("to"));
        fs::write(&a, "a").unwrap();
        fs::write(&to, "other").unwrap();
        assert!(matches!(volume.share(&a, &to), Err(VolumeError::AlreadyExists { .. })));
        assert_eq!(fs::read(&to).unwrap(), b"other");
        let shared = volume.share(&a, &dir.path().join("new")).unwrap();
        assert_eq!(shared, if volume.mount().reflink { Shared::Reflink } else { Shared::Link });
    }

    #[test]
    fn a_file_that_can_have_no_more_names_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::write(&from, "content").unwrap();
        for n in 0..MANY {
            let to = dir.path().join(n.to_string());
            match link_or_copy(&from, &to).unwrap() {
                Shared::Link => continue,
                shared => assert_eq!(shared, Shared::Copy),
            }
            let (one, two) = (fs::metadata(&from).unwrap(), fs::metadata(&to).unwrap());
            assert!(one.ino() != two.ino() && fs::read(&to).unwrap() == b"content");
            return;
        }
        let kind = crate::volume::MountKind::of(dir.path());
        assert_ne!(kind.file_system, "ext4", "ext4 allows 65,000");
        eprintln!("SKIPPED: {} allows more than {MANY} links a file", kind.file_system);
    }
}
