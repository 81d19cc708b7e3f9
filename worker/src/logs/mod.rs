//! What programs print, packed: one log and one index a worker, never a file a task.
//!
//! A log is eight bytes of magic, then frames: length (u32), CRC64NVME of the payload (u64), payload; the payload is the kind
//! (one byte), the attempt (four u32), and bytes. Numbers are little-endian. The index holds 32 bytes a frame, so that
//! one task's output is found without reading everybody's; it is a help and no more: whatever a crash has kept out of
//! it is found in the log itself, up to the last whole frame.
//!
//! Of each stream of an attempt the first [`HEAD`] bytes and the last [`TAIL`] bytes are kept, with a frame between
//! them that says how many were dropped. So a program may print without end, and costs bounded memory and space.

mod read;

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use forebay_datasets::{
    checksum::Hasher,
    volume::{self, VolumeError},
};
use forebay_jobs::id::{AttemptId, WorkerId};

pub use read::{Content, Entry, LogError, Reader, read};

use crate::process::held;

/// Bytes kept from a stream's beginning.
pub const HEAD: u64 = 8 << 20;
/// Bytes kept from a stream's end.
pub const TAIL: usize = 1 << 20;

const LOG_MAGIC: &[u8; 8] = b"FBYLOGS1";
const INDEX_MAGIC: &[u8; 8] = b"FBYLIDX1";
const FRAME_HEADER: usize = 12;
const ATTEMPT: usize = 16;
const INDEX_RECORD: usize = 32;
/// What an attempt's failure quotes of its standard error.
const QUOTED_BYTES: usize = 4 << 10;
const QUOTED_LINES: usize = 20;

/// One of a program's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A frame's kind: bytes of a stream, or the number of those that are missing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    stream: Stream,
    dropped: bool,
}

impl Kind {
    fn to_byte(self) -> u8 {
        u8::from(self.stream == Stream::Stderr) | u8::from(self.dropped) << 1
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let stream = if byte & 1 == 0 { Stream::Stdout } else { Stream::Stderr };
        (byte < 4).then_some(Self { stream, dropped: byte & 2 != 0 })
    }
}

fn attempt_bytes(attempt: AttemptId) -> [u8; ATTEMPT] {
    let numbers = [attempt.task.phase, attempt.task.index, attempt.number, attempt.epoch.0];
    let mut bytes = [0; ATTEMPT];
    for (place, number) in bytes.chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// A worker's log, open for writing.
#[derive(Debug)]
pub(crate) struct Logs {
    files: Mutex<Files>,
}

#[derive(Debug)]
struct Files {
    log: File,
    index: File,
    offset: u64,
    /// A write has failed: nothing is written after what may be half a frame.
    broken: bool,
}

impl Logs {
    /// Creates a worker's log. A worker of the same name may have been there before; its log stays.
    pub(crate) fn create(logs_dir: &Path, worker: &WorkerId) -> Result<Arc<Self>, VolumeError> {
        volume::create_dir(logs_dir)?;
        // `~` is in no worker's name.
        let names = std::iter::once(worker.to_string()).chain((2_u32..).map(|turn| format!("{worker}~{turn}")));
        let mut last = None;
        for name in names.take(10_000) {
            let path = logs_dir.join(format!("{name}.log"));
            match create_with(&path, LOG_MAGIC) {
                Ok(log) => {
                    let path = path.with_extension("idx");
                    // An index that lost its log is worth nothing.
                    let _ = fs::remove_file(&path);
                    let index = create_with(&path, INDEX_MAGIC)?;
                    let files = Files { log, index, offset: LOG_MAGIC.len() as u64, broken: false };
                    return Ok(Arc::new(Self { files: Mutex::new(files) }));
                }
                Err(error @ VolumeError::AlreadyExists { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or(VolumeError::AlreadyExists { path: logs_dir.to_owned() }))
    }

    /// The log of one stream of an attempt.
    pub(crate) fn sink(self: &Arc<Self>, attempt: AttemptId, stream: Stream) -> Sink {
        Sink {
            logs: Arc::clone(self),
            attempt,
            stream,
            head_left: HEAD,
            ring: VecDeque::new(),
            dropped: 0,
            quoted: VecDeque::new(),
            quoted_from_start: true,
        }
    }

    fn append(&self, attempt: AttemptId, kind: Kind, bytes: &[u8]) {
        let mut files = held(&self.files);
        if files.broken {
            return;
        }
        if let Err(error) = files.append(attempt, kind, bytes) {
            files.broken = true;
            tracing::warn!(%error, "the worker's log cannot be written; what programs print is lost from here on");
        }
    }
}

impl Files {
    fn append(&mut self, attempt: AttemptId, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        let attempt = attempt_bytes(attempt);
        let length = (1 + ATTEMPT + bytes.len()) as u32;
        let mut frame = Vec::with_capacity(FRAME_HEADER + length as usize);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&[0; 8]);
        frame.push(kind.to_byte());
        frame.extend_from_slice(&attempt);
        frame.extend_from_slice(bytes);
        let checksum = checksum(&frame[FRAME_HEADER..]);
        frame[4..FRAME_HEADER].copy_from_slice(&checksum.to_le_bytes());
        self.log.write_all(&frame)?;

        let mut record = Vec::with_capacity(INDEX_RECORD);
        record.extend_from_slice(&attempt);
        record.extend_from_slice(&self.offset.to_le_bytes());
        record.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        record.extend_from_slice(&[kind.to_byte(), 0, 0, 0]);
        self.index.write_all(&record)?;
        self.offset += frame.len() as u64;
        Ok(())
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = Hasher::default();
    hasher.update(bytes);
    hasher.finish().0
}

fn create_with(path: &PathBuf, magic: &[u8]) -> Result<File, VolumeError> {
    let created = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = created.map_err(|error| VolumeError::io("create", path, error))?;
    file.write_all(magic).map_err(|error| VolumeError::io("write", path, error))?;
    Ok(file)
}

/// Takes one stream of an attempt. What is held back for the end is written when this is finished or dropped.
#[derive(Debug)]
pub(crate) struct Sink {
    logs: Arc<Logs>,
    attempt: AttemptId,
    stream: Stream,
    head_left: u64,
    /// The last bytes after the head.
    ring: VecDeque<u8>,
    /// Bytes that fell out of the ring.
    dropped: u64,
    quoted: VecDeque<u8>,
    quoted_from_start: bool,
}

impl Sink {
    /// Ends the stream. Returns its last lines.
    pub(crate) fn finish(mut self) -> Tail {
        Tail { bytes: std::mem::take(&mut self.quoted).into(), from_start: self.quoted_from_start }
    }

    fn append(&self, dropped: bool, bytes: &[u8]) {
        self.logs.append(self.attempt, Kind { stream: self.stream, dropped }, bytes);
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.quoted_from_start &= keep_last(&mut self.quoted, bytes, QUOTED_BYTES) == 0;
        let head = usize::try_from(self.head_left).unwrap_or(usize::MAX).min(bytes.len());
        let (head, rest) = bytes.split_at(head);
        if !head.is_empty() {
            self.append(false, head);
            self.head_left -= head.len() as u64;
        }
        self.dropped += keep_last(&mut self.ring, rest, TAIL);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if self.dropped > 0 {
            self.append(true, &self.dropped.to_le_bytes());
        }
        let held: Vec<u8> = std::mem::take(&mut self.ring).into();
        if !held.is_empty() {
            self.append(false, &held);
        }
    }
}

/// Adds bytes, and drops from the front what is more than `most`. Returns how many.
fn keep_last(ring: &mut VecDeque<u8>, bytes: &[u8], most: usize) -> u64 {
    let skipped = bytes.len().saturating_sub(most);
    let bytes = &bytes[skipped..];
    let surplus = (ring.len() + bytes.len()).saturating_sub(most);
    ring.drain(..surplus);
    ring.extend(bytes);
    (skipped + surplus) as u64
}

/// The end of a stream.
#[derive(Debug)]
pub(crate) struct Tail {
    bytes: Vec<u8>,
    from_start: bool,
}

impl Tail {
    /// Its last whole lines, for people.
    pub(crate) fn to_text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let lines: Vec<&str> = text.lines().collect();
        let cut = usize::from(!self.from_start && lines.len() > 1);
        let first = cut.max(lines.len().saturating_sub(QUOTED_LINES));
        lines[first..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_and_the_others_counted() {
        let mut ring = VecDeque::new();
        assert_eq!(keep_last(&mut ring, b"abc", 4), 0);
        assert_eq!(keep_last(&mut ring, b"de", 4), 1);
        assert_eq!(ring, b"bcde");
        assert_eq!(keep_last(&mut ring, b"0123456789", 4), 10);
        assert_eq!(ring, b"6789");
    }

    #[test]
    fn a_failure_quotes_whole_lines() {
        let tail = |bytes: &[u8], from_start| Tail { bytes: bytes.to_vec(), from_start }.to_text();
        assert_eq!(tail(b"one\ntwo\n", true), "one\ntwo");
        assert_eq!(tail(b"ne\ntwo\n", false), "two");
        assert_eq!(tail(b"all of one line", false), "all of one line");
        assert_eq!(tail(b"", true), "");
        let many = (0..30).map(|line| format!("{line}\n")).collect::<String>();
        assert!(tail(many.as_bytes(), true).starts_with("10\n"));
    }
}
