//! Reading pieces of staged objects.
//!
//! A record belongs to the piece in which its first byte lies; so a piece that begins inside a record leaves it to the
//! piece before, and the last record of a piece is read to its end, however far beyond the piece that is.
//!
//! [`Parts`] reads a piece front to back, a part at a time. [`piece_bytes`] is for who needs it as a whole: on local file
//! systems it is mapped into memory; on network file systems, where a mapping reads page by page and a file that goes away
//! is a SIGBUS, it is read by a large `pread`.

mod parts;

use std::{
    fs::File,
    io,
    ops::{Deref, Range},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use memmap2::{Advice, Mmap};

pub use self::parts::{Parts, Records};
use crate::{
    split::{Part, Piece},
    volume::{Volume, VolumeError},
};

/// How much is read at once in search of a record's end.
const LOOK_AHEAD: u64 = 64 << 10;

/// Why a piece could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its path leads out of the volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Only a part of the object is staged, and more is to be read.
    #[error("`{key}` is staged in part only, for some of its columns: stage the dataset whole")]
    Partial {
        /// Its key.
        key: String,
    },
    /// A staged object is not what the manifest says.
    #[error("{} has {found} bytes, and the manifest says {expected}: verify the dataset", path.display())]
    WrongSize {
        /// Which file.
        path: PathBuf,
        /// Bytes in the manifest.
        expected: u64,
        /// Bytes on the volume.
        found: u64,
    },
}

/// The whole records of a piece.
#[derive(Debug)]
pub struct PieceBytes {
    bytes: Bytes,
    /// Where in the object they begin.
    pub offset: u64,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap, Range<usize>),
    Owned(Vec<u8>),
}

impl AsRef<[u8]> for PieceBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for PieceBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map, range) => &map[range.clone()],
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// Reads the records of a piece: those that start in its byte range, or all bytes of a whole object.
///
/// # Errors
/// [`ReadError::Partial`] of an object that is not held whole, even if the piece were: records know no columns.
pub fn piece_bytes(volume: &Volume, piece: &Piece) -> Result<PieceBytes, ReadError> {
    let path = whole_path(volume, piece)?;
    match read(&path, piece) {
        // The server forgot the handle, as it does when it restarts; the file itself never changes.
        Err(ReadError::Io { source, .. }) if source.kind() == io::ErrorKind::StaleNetworkFileHandle => {
            read(&path, piece)
        }
        outcome => outcome,
    }
}

/// The file of a piece whose reader looks at all bytes.
///
/// # Errors
/// [`ReadError::Partial`] if the file has holes: they would be read as zeros.
pub fn whole_path(volume: &Volume, piece: &Piece) -> Result<PathBuf, ReadError> {
    match piece.partial {
        true => Err(ReadError::Partial { key: piece.key.clone() }),
        false => Ok(volume.resolve(&piece.path)?),
    }
}

/// Opens a piece's file, which is what the manifest says.
fn open(path: &PathBuf, piece: &Piece) -> Result<File, ReadError> {
    let failed = |source| ReadError::Io { path: path.clone(), source };
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?.len();
    match found == piece.size {
        true => Ok(file),
        false => Err(ReadError::WrongSize { path: path.clone(), expected: piece.size, found }),
    }
}

/// A piece's file, and where in it the records are that [`piece_bytes`] gives.
///
/// # Errors
/// As of [`piece_bytes`].
pub fn piece_range(volume: &Volume, piece: &Piece) -> Result<(File, Range<u64>), ReadError> {
    let path = whole_path(volume, piece)?;
    match range(&path, piece) {
        Err(ReadError::Io { source, .. }) if source.kind() == io::ErrorKind::StaleNetworkFileHandle => {
            range(&path, piece)
        }
        outcome => outcome,
    }
}

fn range(path: &PathBuf, piece: &Piece) -> Result<(File, Range<u64>), ReadError> {
    let failed = |source| ReadError::Io { path: path.clone(), source };
    let file = open(path, piece)?;
    let range = match piece.part {
        Part::Bytes { offset, length } => {
            let end = offset.saturating_add(length).min(piece.size);
            let start = record_start(&file, offset.min(end), piece.size).map_err(failed)?;
            start..record_start(&file, end, piece.size).map_err(failed)?.max(start)
        }
        Part::Whole | Part::RowGroups { .. } => 0..piece.size,
    };
    Ok((file, range))
}

fn read(path: &PathBuf, piece: &Piece) -> Result<PieceBytes, ReadError> {
    let failed = |source| ReadError::Io { path: path.clone(), source };
    let (file, range) = range(path, piece)?;
    let offset = range.start;
    if range.is_empty() {
        return Ok(PieceBytes { bytes: Bytes::Owned(Vec::new()), offset });
    }
    let bytes = match is_network(&file) {
        true => {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
            Bytes::Owned(bytes)
        }
        false => {
            // SAFETY: a staged object is never written to again and never truncated: it is removed by unlinking, which
            // keeps the mapped pages. Nothing else maps it writable.
            let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
            let _ = map.advise(Advice::Sequential);
            Bytes::Mapped(map, range.start as usize..range.end as usize)
        }
    };
    Ok(PieceBytes { bytes, offset })
}

/// The start of the first record at or after `at`.
fn record_start(file: &File, at: u64, size: u64) -> io::Result<u64> {
    if at == 0 || at >= size {
        return Ok(at.min(size));
    }
    // A record starts at `at` itself if a newline stands right before it.
    let mut position = at - 1;
    let mut buffer = vec![0; LOOK_AHEAD.min(size - position) as usize];
    while position < size {
        let length = (buffer.len() as u64).min(size - position) as usize;
        file.read_exact_at(&mut buffer[..length], position)?;
        if let Some(newline) = memchr::memchr(b'\n', &buffer[..length]) {
            return Ok(position + newline as u64 + 1);
        }
        position += length as u64;
    }
    Ok(size)
}

/// Whether the file lies on a file system of another host, by the magic numbers of statfs(2).
fn is_network(file: &File) -> bool {
    const NFS: u64 = 0x6969;
    const SMB2: u64 = 0xfe53_4d42;
    const LUSTRE: u64 = 0x0bd0_0bd0;
    const FUSE: u64 = 0x6573_5546;
    const CEPH: u64 = 0x00c3_6400;
    const V9FS: u64 = 0x0102_1997;
    rustix::fs::fstatfs(file).map_or(true, |stat| {
        matches!(u64::try_from(stat.f_type).unwrap_or(0), NFS | SMB2 | LUSTRE | FUSE | CEPH | V9FS)
    })
}

/// The lines of a text without their ends, `\n` or `\r\n`, each with its offset. The last one may lack an end.
pub fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = text.get(start..).filter(|rest| !rest.is_empty())?;
        let length = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let line = rest[..length].strip_suffix(b"\r").unwrap_or(&rest[..length]);
        let offset = start;
        start += length + 1;
        Some((offset, line))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::split::{Cut, Cuttable, Size, split};

    #[test]
    fn lines_lose_their_ends() {
        let found: Vec<_> = lines(b"a\r\n\nb").collect();
        assert_eq!(found, [(0, &b"a"[..]), (3, b""), (4, b"b")]);
        assert_eq!(lines(b"").count(), 0);
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        std::fs::write(dir.path().join("x"), "ab").unwrap();
        let piece = Piece { key: "x".into(), path: "x".into(), size: 3, partial: false, part: Part::Whole };
        assert!(matches!(piece_bytes(&volume, &piece), Err(ReadError::WrongSize { found: 2, .. })));
    }

    #[test]
    fn an_object_with_holes_is_not_read_as_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        std::fs::write(dir.path().join("x"), "a\0c").unwrap();
        for part in [Part::Whole, Part::Bytes { offset: 0, length: 1 }, Part::RowGroups { first: 0, count: 1 }] {
            let piece = Piece { key: "k".into(), path: "x".into(), size: 3, partial: true, part };
            assert!(matches!(piece_bytes(&volume, &piece), Err(ReadError::Partial { key }) if key == "k"));
            assert_eq!(piece_bytes(&volume, &Piece { partial: false, ..piece }).unwrap().len(), 3);
        }
    }

    proptest! {
        #[test]
        fn every_record_is_in_exactly_one_piece_whole(text in "[ab\n\r]{0,60}", size in 1u64..20) {
            let dir = tempfile::tempdir().unwrap();
            let volume = Volume::open_or_create(dir.path()).unwrap();
            std::fs::write(dir.path().join("x"), &text).unwrap();
            let (key, path, size_of_all) = ("x".into(), "x".into(), text.len() as u64);
            let object = Cuttable { key, path, size: size_of_all, partial: false, lines: true, row_groups: None };
            let mut joined = Vec::new();
            for split in split(&[object], Cut::Bytes, Size::Bytes(size)) {
                for piece in &split.pieces {
                    let bytes = piece_bytes(&volume, piece).unwrap();
                    let (_, range) = piece_range(&volume, piece).unwrap();
                    prop_assert_eq!(range, bytes.offset..bytes.offset + bytes.len() as u64);
                    prop_assert!(bytes.is_empty() || bytes.offset == joined.len() as u64);
                    prop_assert!(bytes.is_empty() || bytes.offset == 0 || text.as_bytes()[bytes.offset as usize - 1] == b'\n');
                    joined.extend_from_slice(&bytes);
                }
            }
            prop_assert_eq!(joined, text.into_bytes());
        }
    }
}
