//! Text files, a chunk of whole records at a time.
//!
//! A record of NDJSON ends with its line. One of CSV may hold newlines between quotes; a quote opens where a field
//! begins and nowhere else, as the decoder has it. A range of a file has the records that begin in it.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
};

use memchr::{memchr, memchr2, memrchr};

use super::TextFormat;
use crate::spec::table::CsvSpec;

/// How much is read at once.
pub(super) const READ: usize = 1 << 20;
/// No record is longer: one that is was opened by a quote that nobody closed.
const LONGEST: usize = 64 << 20;

/// Whole records.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Where in the file they begin.
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// Why there is no chunk.
#[derive(Debug)]
pub(super) enum ChunkError {
    Io(io::Error),
    /// The record that begins at this byte has no end.
    Endless(u64),
}

impl From<io::Error> for ChunkError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads a file, or a range of one.
#[derive(Debug)]
pub(super) struct Chunks {
    file: File,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    offset: u64,
    /// Records that begin here or later are another's.
    end: u64,
    /// Of CSV whose quotes may hold newlines.
    quoted: Option<Quoted>,
    is_at_end: bool,
}

impl Chunks {
    pub(super) fn open(path: &Path, range: Option<Range<u64>>, format: &TextFormat) -> io::Result<Self> {
        let file = File::open(path)?;
        let range = range.unwrap_or(0..u64::MAX);
        let quoted = format.quoted().map(Quoted::new);
        let mut chunks =
            Self { file, buffer: Vec::new(), offset: range.start, end: range.end, quoted, is_at_end: false };
        if range.start > 0 {
            // Where the byte before ends a record, one begins here.
            chunks.offset = chunks.file.seek(SeekFrom::Start(range.start - 1))?;
            chunks.skip_line()?;
        }
        Ok(chunks)
    }

    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            if let Some(at) = memchr(b'\n', &self.buffer) {
                self.buffer.drain(..=at);
                self.offset += at as u64 + 1;
                return Ok(());
            }
            self.offset += self.buffer.len() as u64;
            self.buffer.clear();
            if self.offset >= self.end || !self.fill()? {
                return Ok(());
            }
        }
    }

    /// Whether there was more.
    fn fill(&mut self) -> io::Result<bool> {
        let read = (&mut self.file).take(READ as u64).read_to_end(&mut self.buffer)?;
        self.is_at_end = read == 0;
        Ok(read > 0)
    }

    /// The next records, of about a mebibyte.
    pub(super) fn next(&mut self) -> Result<Option<Chunk>, ChunkError> {
        loop {
            let limit = self.end.saturating_sub(self.offset);
            if limit == 0 {
                return Ok(None);
            }
            let whole = self.whole(usize::try_from(limit).unwrap_or(usize::MAX));
            match whole {
                Some(length) => return Ok(Some(self.cut(length))),
                None if self.is_at_end && self.buffer.is_empty() => return Ok(None),
                // The last line need not have an end; a quote does.
                None if self.is_at_end
                    && let Some(Quoted { is_open: true, whole, .. }) = self.quoted =>
                {
                    return match whole {
                        0 => Err(ChunkError::Endless(self.offset)),
                        whole => Ok(Some(self.cut(whole))),
                    };
                }
                None if self.is_at_end => return Ok(Some(self.cut(self.buffer.len()))),
                None if self.buffer.len() > LONGEST => return Err(ChunkError::Endless(self.offset)),
                None => self.fill()?,
            };
        }
    }

    /// How many bytes of the buffer are whole records that begin before `limit`, once there are enough.
    fn whole(&mut self, limit: usize) -> Option<usize> {
        if let Some(quoted) = &mut self.quoted {
            quoted.scan(&self.buffer, &mut |_| {});
            return (quoted.whole > 0 && self.buffer.len() >= READ).then_some(quoted.whole);
        }
        if limit <= self.buffer.len() {
            return memchr(b'\n', &self.buffer[limit - 1..]).map(|at| limit + at);
        }
        match self.buffer.len() >= READ {
            true => memrchr(b'\n', &self.buffer).map(|at| at + 1),
            false => None,
        }
    }

    fn cut(&mut self, length: usize) -> Chunk {
        let rest = self.buffer.split_off(length);
        let chunk = Chunk { offset: self.offset, bytes: std::mem::replace(&mut self.buffer, rest) };
        self.offset += length as u64;
        if let Some(quoted) = &mut self.quoted {
            quoted.restart();
        }
        chunk
    }
}

/// Where each record of whole ones lies.
pub(super) fn records(bytes: &[u8], format: &TextFormat) -> Vec<Range<usize>> {
    let mut ends = Vec::new();
    match format.quoted() {
        Some(csv) => Quoted::new(csv).scan(bytes, &mut |end| ends.push(end)),
        None => ends.extend(memchr::memchr_iter(b'\n', bytes).map(|at| at + 1)),
    }
    if ends.last() != Some(&bytes.len()) && !bytes.is_empty() {
        ends.push(bytes.len());
    }
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(&ends).map(|(start, end)| start..*end).collect()
}

/// Where the records of CSV end, as far as was looked.
#[derive(Debug)]
struct Quoted {
    csv: CsvSpec,
    /// Bytes that were looked at.
    seen: usize,
    /// The end of the last whole record.
    whole: usize,
    is_open: bool,
}

impl Quoted {
    fn new(csv: &CsvSpec) -> Self {
        Self { csv: csv.clone(), seen: 0, whole: 0, is_open: false }
    }

    fn restart(&mut self) {
        (self.seen, self.whole, self.is_open) = (0, 0, false);
    }

    /// Looks at what was added to the bytes, and tells the end of each record.
    fn scan(&mut self, bytes: &[u8], end: &mut dyn FnMut(usize)) {
        let CsvSpec { quote, delimiter, escape, comment, .. } = self.csv;
        while self.seen < bytes.len() {
            let rest = &bytes[self.seen..];
            if self.is_open {
                let Some(at) = memchr2(quote, escape.unwrap_or(quote), rest) else {
                    self.seen = bytes.len();
                    return;
                };
                // What follows may not have come yet.
                let Some(next) = rest.get(at + 1) else {
                    self.seen += at;
                    return;
                };
                let is_escape = Some(rest[at]) == escape && escape != Some(quote);
                self.is_open = is_escape || *next == quote;
                self.seen += if self.is_open { at + 2 } else { at + 1 };
                continue;
            }
            if self.seen == self.whole && Some(rest[0]) == comment {
                let Some(at) = memchr(b'\n', rest) else { return };
                self.seen += at + 1;
                self.whole = self.seen;
                end(self.whole);
                continue;
            }
            let Some(at) = memchr2(b'\n', quote, rest) else {
                self.seen = bytes.len();
                return;
            };
            let place = self.seen + at;
            self.seen = place + 1;
            if bytes[place] == b'\n' {
                self.whole = self.seen;
                end(self.whole);
            } else {
                // Elsewhere in a field a quote is a character like any other.
                self.is_open = place == self.whole || [delimiter, b'\r'].contains(&bytes[place - 1]);
            }
        }
    }
}
