//! A piece part by part, each of whole records, through one buffer.
//!
//! The buffer is read into by `pread` on every mount. With the data in ext4's page cache that takes three quarters of the
//! CPU time of a mapping, whose pages fault one group after the other, and on a network file system a mapping is worse.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf};

use super::{LOOK_AHEAD, ReadError, open, whole_path};
use crate::{
    split::{Part, Piece},
    volume::Volume,
};

/// What is read beyond a part along with it: the end of its last record is mostly there.
const BEYOND: u64 = 4 << 10;

/// A piece that is open for reading from its first record to its last.
#[derive(Debug)]
pub struct Parts<'a> {
    piece: &'a Piece,
    path: PathBuf,
    file: File,
    /// Where the next part begins: records that start before are given out, or another piece's.
    at: u64,
    end: u64,
    /// Where the first record starts that was not given out.
    record: u64,
    /// Of the file from `base` on, `held` bytes are in the buffer.
    buffer: Vec<u8>,
    base: u64,
    held: usize,
    begun: bool,
}

/// Whole records that follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a> {
    /// Where in the object they begin.
    pub offset: u64,
    /// They, with their ends; the last one of an object may lack its own.
    pub bytes: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Opens a piece.
    ///
    /// # Errors
    /// [`ReadError::Partial`] of an object that is not held whole, as for [`super::piece_bytes`].
    pub fn open(volume: &Volume, piece: &'a Piece) -> Result<Self, ReadError> {
        let path = whole_path(volume, piece)?;
        let file = match open(&path, piece) {
            Err(ReadError::Io { source, .. }) if is_stale(&source) => open(&path, piece),
            file => file,
        }?;
        let (at, end) = match piece.part {
            Part::Bytes { offset, length } => {
                let end = offset.saturating_add(length).min(piece.size);
                (offset.min(end), end)
            }
            Part::Whole | Part::RowGroups { .. } => (0, piece.size),
        };
        let base = at.saturating_sub(1);
        let mut parts =
            Self { piece, path, file, at, end, record: at, buffer: Vec::new(), base, held: 0, begun: false };
        parts.record = parts.record_start(at)?;
        Ok(parts)
    }

    /// The records that start in the next so many bytes of the piece; none once there are no more of these. Of a piece
    /// without bytes one part is given out.
    pub fn next(&mut self, most: u64) -> Result<Option<Records<'_>>, ReadError> {
        if self.at >= self.end && self.begun {
            return Ok(None);
        }
        self.begun = true;
        let (start, end) = (self.record, self.at.saturating_add(most.max(1)).min(self.end));
        self.at = end;
        if start >= end {
            // It all belongs to a record that starts before.
            return Ok(Some(Records { offset: start, bytes: &[] }));
        }
        self.forget_before(start);
        self.hold(end.saturating_add(BEYOND))?;
        self.record = self.record_start(end)?;
        let bytes = &self.buffer[..(self.record - start) as usize];
        Ok(Some(Records { offset: start, bytes }))
    }

    /// What was not given out, as a piece of its own; none if there is nothing, or if the piece cannot be cut here.
    pub fn left(&self) -> Option<Piece> {
        if self.begun && self.at >= self.end { None } else { self.piece.from(self.at) }
    }

    /// The start of the first record at or after `at`, which is no more than a byte before what is in the buffer.
    fn record_start(&mut self, at: u64) -> Result<u64, ReadError> {
        if at == 0 || at >= self.piece.size {
            return Ok(at.min(self.piece.size));
        }
        // A record starts at `at` itself if a newline stands right before it.
        let mut from = (at - 1 - self.base) as usize;
        loop {
            if let Some(newline) = memchr::memchr(b'\n', self.buffer[..self.held].get(from..).unwrap_or_default()) {
                return Ok(self.base + (from + newline) as u64 + 1);
            }
            from = from.max(self.held);
            let until = self.base + from as u64 + LOOK_AHEAD;
            if !self.hold(until)? {
                return Ok(self.piece.size);
            }
        }
    }

    fn forget_before(&mut self, at: u64) {
        let gone = ((at - self.base) as usize).min(self.held);
        self.buffer.copy_within(gone..self.held, 0);
        (self.base, self.held) = (at, self.held - gone);
    }

    /// Reads up to a place, or to the object's end; whether there was anything to read.
    fn hold(&mut self, until: u64) -> Result<bool, ReadError> {
        let wanted = (until.min(self.piece.size) - self.base) as usize;
        if wanted <= self.held {
            return Ok(false);
        }
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        let (into, from) = (&mut self.buffer[self.held..wanted], self.base + self.held as u64);
        let failed = |source| ReadError::Io { path: self.path.clone(), source };
        match self.file.read_exact_at(into, from) {
            // The server forgot the handle, as it does when it restarts; the file itself never changes.
            Err(error) if is_stale(&error) => {
                self.file = open(&self.path, self.piece)?;
                self.file.read_exact_at(into, from).map_err(failed)?;
            }
            read => read.map_err(failed)?,
        }
        self.held = wanted;
        Ok(true)
    }
}

fn is_stale(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StaleNetworkFileHandle
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        read::piece_bytes,
        split::{Cut, Cuttable, Size, Split, split},
    };

    fn volume() -> (tempfile::TempDir, Volume) {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        (dir, volume)
    }

    #[test]
    fn an_object_without_bytes_has_one_part_and_one_with_holes_none() {
        let (dir, volume) = volume();
        std::fs::write(dir.path().join("x"), "").unwrap();
        let piece = Piece { key: "x".into(), path: "x".into(), size: 0, partial: false, part: Part::Whole };
        let mut parts = Parts::open(&volume, &piece).unwrap();
        assert!(parts.next(7).unwrap().is_some_and(|records| records.bytes.is_empty()));
        assert!(parts.next(7).unwrap().is_none() && parts.left().is_none());
        let piece = Piece { partial: true, ..piece };
        assert!(matches!(Parts::open(&volume, &piece), Err(ReadError::Partial { .. })));
        let piece = Piece { partial: false, size: 1, ..piece };
        assert!(matches!(Parts::open(&volume, &piece), Err(ReadError::WrongSize { found: 0, .. })));
    }

    #[test]
    fn records_longer_than_what_is_read_at_once_are_whole_and_the_buffer_stays_small() {
        let (dir, volume) = volume();
        let long = "x".repeat(3 * LOOK_AHEAD as usize);
        let text = format!("{long}\n{}{long}", "short\n".repeat(100_000));
        std::fs::write(dir.path().join("x"), &text).unwrap();
        let piece =
            Piece { key: "x".into(), path: "x".into(), size: text.len() as u64, partial: false, part: Part::Whole };
        let mut parts = Parts::open(&volume, &piece).unwrap();
        let mut joined = Vec::new();
        while let Some(records) = parts.next(10_000).unwrap() {
            assert_eq!(records.offset, joined.len() as u64);
            joined.extend_from_slice(records.bytes);
        }
        assert!(joined == text.as_bytes());
        assert!(parts.buffer.len() < long.len() + 2 * LOOK_AHEAD as usize, "{}", parts.buffer.len());
    }

    proptest! {
        #[test]
        fn parts_are_a_pieces_records_and_what_is_left_is_read_by_others(
            text in "[ab\n\r]{0,60}", size in 1u64..20, most in 1u64..12, stop in 0usize..8,
        ) {
            let (dir, volume) = volume();
            std::fs::write(dir.path().join("x"), &text).unwrap();
            let (key, path, size_of_all) = ("x".into(), "x".into(), text.len() as u64);
            let object = Cuttable { key, path, size: size_of_all, partial: false, lines: true, row_groups: None };
            let mut joined = Vec::new();
            for split in split(&[object], Cut::Bytes, Size::Bytes(size)) {
                for piece in &split.pieces {
                    let mut parts = Parts::open(&volume, piece).unwrap();
                    let (mut read, mut left) = (Vec::new(), parts.left());
                    for _ in 0..stop {
                        let Some(records) = parts.next(most).unwrap() else { break };
                        prop_assert!(records.bytes.is_empty() || records.offset == (joined.len() + read.len()) as u64);
                        read.extend_from_slice(records.bytes);
                        left = parts.left();
                    }
                    if let Some(left) = left {
                        let rest = Split { pieces: vec![left.clone()] };
                        prop_assert!(split.has_tail(&rest));
                        read.extend_from_slice(&piece_bytes(&volume, &left).unwrap());
                    }
                    prop_assert_eq!(&read, &*piece_bytes(&volume, piece).unwrap());
                    joined.extend_from_slice(&read);
                }
            }
            prop_assert_eq!(joined, text.into_bytes());
        }
    }
}
