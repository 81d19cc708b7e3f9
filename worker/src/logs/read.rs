//! Reads packed logs, while they are being written too.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use forebay_jobs::id::{AttemptId, Epoch, TaskId};

use super::{ATTEMPT, FRAME_HEADER, INDEX_MAGIC, INDEX_RECORD, Kind, LOG_MAGIC, Stream, TAIL, checksum};

/// No frame is longer; what says so is none.
const LONGEST: usize = TAIL + (64 << 10);

/// A piece of what a program printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Whose program it was.
    pub attempt: AttemptId,
    /// The worker on which it ran.
    pub worker: &'a str,
    /// Where it printed.
    pub stream: Stream,
    /// What.
    pub content: Content<'a>,
}

/// What a program printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// These bytes, wherever a line may end.
    Bytes(&'a [u8]),
    /// So many bytes that were not kept.
    Dropped(u64),
}

/// Why logs could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no log.
    #[error("{} is not a worker's log", path.display())]
    NoLog {
        /// Which.
        path: PathBuf,
    },
    /// A frame is not what was written.
    #[error("{} is damaged at byte {offset}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
    /// Whoever takes the entries has failed.
    #[error("cannot hand over what was logged")]
    Taker(#[source] io::Error),
}

/// Reads what the programs of a run, or of one of its tasks, have printed: attempt by attempt, in the order in which
/// it was printed.
pub fn read(
    run_dir: &Path,
    task: Option<TaskId>,
    take: impl FnMut(Entry<'_>) -> io::Result<()>,
) -> Result<(), LogError> {
    Reader::new(run_dir, task).next(take).map(drop)
}

/// Reads logs that are still being written.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    task: Option<TaskId>,
    positions: BTreeMap<PathBuf, Position>,
}

/// How far a worker's files were read.
#[derive(Clone, Copy, Debug)]
struct Position {
    log: u64,
    index: u64,
}

/// Where a frame is.
struct Place {
    attempt: AttemptId,
    file: usize,
    offset: u64,
    length: usize,
}

impl Reader {
    /// Begins at the beginning.
    pub fn new(run_dir: &Path, task: Option<TaskId>) -> Self {
        Self { dir: run_dir.join("logs"), task, positions: BTreeMap::new() }
    }

    /// Hands over what has come since the last call. Returns how many entries there were.
    pub fn next(&mut self, mut take: impl FnMut(Entry<'_>) -> io::Result<()>) -> Result<usize, LogError> {
        let (mut files, mut places) = (Vec::new(), Vec::new());
        for path in self.logs()? {
            let file = File::open(&path).map_err(|source| LogError::Io { path: path.clone(), source })?;
            let start = Position { log: LOG_MAGIC.len() as u64, index: INDEX_MAGIC.len() as u64 };
            let mut position = self.positions.get(&path).copied().unwrap_or(start);
            let found = find(&path, &file, &mut position)?;
            let of_task = |(attempt, ..): &(AttemptId, u64, usize)| self.task.is_none_or(|task| task == attempt.task);
            let place = |(attempt, offset, length)| Place { attempt, file: files.len(), offset, length };
            places.extend(found.into_iter().filter(of_task).map(place));
            self.positions.insert(path.clone(), position);
            files.push((path, file));
        }
        places.sort_by_key(|place| place.attempt);
        let count = places.len();
        for place in places {
            let (path, file) = &files[place.file];
            let frame = frame(path, file, &place)?;
            let damaged = || LogError::Damaged { path: path.clone(), offset: place.offset };
            let payload = &frame[FRAME_HEADER..];
            let kind = Kind::from_byte(payload[0]).ok_or_else(damaged)?;
            let bytes = &payload[1 + ATTEMPT..];
            let content = match kind.dropped {
                true => Content::Dropped(u64::from_le_bytes(bytes.try_into().map_err(|_| damaged())?)),
                false => Content::Bytes(bytes),
            };
            let worker = worker_of(path);
            take(Entry { attempt: place.attempt, worker, stream: kind.stream, content }).map_err(LogError::Taker)?;
        }
        Ok(count)
    }

    /// The logs there are, in the order of their names.
    fn logs(&self) -> Result<Vec<PathBuf>, LogError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(LogError::Io { path: self.dir.clone(), source }),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| LogError::Io { path: self.dir.clone(), source })?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }
}

/// `local-1-2~3.log` was written by the third worker that was named `local-1-2`.
fn worker_of(path: &Path) -> &str {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.split_once('~').map_or(stem, |(worker, _)| worker)
}

/// The whole frames after a position: by the index as far as it goes, then by the log itself.
fn find(path: &Path, log: &File, position: &mut Position) -> Result<Vec<(AttemptId, u64, usize)>, LogError> {
    let failed = |source| LogError::Io { path: path.to_owned(), source };
    let size = log.metadata().map_err(failed)?.len();
    let mut magic = [0; LOG_MAGIC.len()];
    match log.read_exact_at(&mut magic, 0) {
        Ok(()) if &magic == LOG_MAGIC => {}
        // Just created.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
        Ok(()) => return Err(LogError::NoLog { path: path.to_owned() }),
    }
    let mut found = Vec::new();
    for record in index_records(&path.with_extension("idx"), position) {
        let (_, offset, length) = record;
        // What the log itself has shown before comes again here.
        if offset < position.log {
            continue;
        }
        // An index that does not fit is not believed.
        if offset != position.log || length <= FRAME_HEADER + ATTEMPT || offset + length as u64 > size {
            break;
        }
        found.push(record);
        position.log += length as u64;
    }
    while let Some((attempt, length)) = whole_frame(log, position.log, size).map_err(failed)? {
        found.push((attempt, position.log, length));
        position.log += length as u64;
    }
    Ok(found)
}

/// The index's records after a position; none if it cannot be read.
fn index_records(path: &Path, position: &mut Position) -> Vec<(AttemptId, u64, usize)> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let mut magic = [0; INDEX_MAGIC.len()];
        file.read_exact(&mut magic)?;
        if &magic != INDEX_MAGIC {
            return Ok(Vec::new());
        }
        file.seek(SeekFrom::Start(position.index))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let records = bytes.chunks_exact(INDEX_RECORD);
    position.index += (bytes.len() - records.remainder().len()) as u64;
    let record = |record: &[u8]| {
        (
            attempt(record),
            u64::from(u32_at(record, 16)) | u64::from(u32_at(record, 20)) << 32,
            u32_at(record, 24) as usize,
        )
    };
    records.map(record).collect()
}

/// The frame at an offset, if all of it is there.
fn whole_frame(log: &File, offset: u64, size: u64) -> io::Result<Option<(AttemptId, usize)>> {
    let left = size.saturating_sub(offset);
    let mut header = [0; FRAME_HEADER];
    if left < FRAME_HEADER as u64 {
        return Ok(None);
    }
    log.read_exact_at(&mut header, offset)?;
    let length = u32_at(&header, 0) as usize;
    if length <= ATTEMPT || length > LONGEST || ((FRAME_HEADER + length) as u64) > left {
        return Ok(None);
    }
    let mut payload = vec![0; length];
    log.read_exact_at(&mut payload, offset + FRAME_HEADER as u64)?;
    Ok((checksum(&payload).to_le_bytes() == header[4..]).then(|| (attempt(&payload[1..]), FRAME_HEADER + length)))
}

/// A frame whose place is known.
fn frame(path: &Path, log: &File, place: &Place) -> Result<Vec<u8>, LogError> {
    let damaged = || LogError::Damaged { path: path.to_owned(), offset: place.offset };
    if place.length > FRAME_HEADER + LONGEST {
        return Err(damaged());
    }
    let mut frame = vec![0; place.length];
    log.read_exact_at(&mut frame, place.offset).map_err(|source| LogError::Io { path: path.to_owned(), source })?;
    let payload = &frame[FRAME_HEADER..];
    let whole = u32_at(&frame, 0) as usize == payload.len()
        && checksum(payload).to_le_bytes() == frame[4..FRAME_HEADER]
        && attempt(&payload[1..]) == place.attempt;
    if whole { Ok(frame) } else { Err(damaged()) }
}

fn attempt(bytes: &[u8]) -> AttemptId {
    let task = TaskId { phase: u32_at(bytes, 0), index: u32_at(bytes, 4) };
    AttemptId { task, number: u32_at(bytes, 8), epoch: Epoch(u32_at(bytes, 12)) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use super::*;
    use crate::logs::{HEAD, Logs};

    fn attempt_of(index: u32, number: u32) -> AttemptId {
        AttemptId { task: TaskId { phase: 0, index }, number, epoch: Epoch(1) }
    }

    fn logs(dir: &Path) -> Arc<Logs> {
        Logs::create(&dir.join("logs"), &"w-1".parse().unwrap()).unwrap()
    }

    fn text(reader: &mut Reader) -> String {
        let mut text = String::new();
        let take = |entry: Entry<'_>| {
            let stream = if entry.stream == Stream::Stdout { "out" } else { "err" };
            match entry.content {
                Content::Bytes(bytes) => {
                    text += &format!("{} {stream} {}\n", entry.attempt, String::from_utf8_lossy(bytes));
                }
                Content::Dropped(bytes) => text += &format!("{} {stream} -{bytes}\n", entry.attempt),
            }
            Ok(())
        };
        reader.next(take).unwrap();
        text
    }

    #[test]
    fn one_task_is_read_in_the_order_of_its_attempts() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (logs(dir.path()), logs(dir.path()));
        second.sink(attempt_of(7, 2), Stream::Stdout).write_all(b"c").unwrap();
        first.sink(attempt_of(8, 1), Stream::Stdout).write_all(b"x").unwrap();
        first.sink(attempt_of(7, 1), Stream::Stdout).write_all(b"a").unwrap();
        first.sink(attempt_of(7, 1), Stream::Stderr).write_all(b"b").unwrap();
        let mut reader = Reader::new(dir.path(), Some(TaskId { phase: 0, index: 7 }));
        assert_eq!(text(&mut reader), "0-7.1.1 out a\n0-7.1.1 err b\n0-7.2.1 out c\n");
        assert_eq!(text(&mut reader), "");
        first.sink(attempt_of(7, 3), Stream::Stdout).write_all(b"d").unwrap();
        assert_eq!(text(&mut reader), "0-7.3.1 out d\n");
        let mut workers = Vec::new();
        let take = |entry: Entry<'_>| {
            workers.push(entry.worker.to_owned());
            Ok(())
        };
        read(dir.path(), None, take).unwrap();
        assert_eq!(workers, ["w-1"; 5]);
    }

    #[test]
    fn a_log_and_its_index_cut_at_any_byte_give_the_whole_frames() {
        let dir = tempfile::tempdir().unwrap();
        let written = logs(dir.path());
        for part in ["one", "two", "three"] {
            written.sink(attempt_of(1, 1), Stream::Stdout).write_all(part.as_bytes()).unwrap();
        }
        let (log, index) = (dir.path().join("logs/w-1.log"), dir.path().join("logs/w-1.idx"));
        let (whole_log, whole_index) = (fs::read(&log).unwrap(), fs::read(&index).unwrap());
        let ends = [8 + 32, 8 + 64, 8 + 98];
        for cut in 0..=whole_log.len() {
            for index_cut in [0, 5, 8, 8 + 31, 8 + 32, whole_index.len()] {
                fs::write(&log, &whole_log[..cut]).unwrap();
                fs::write(&index, &whole_index[..index_cut]).unwrap();
                let mut reader = Reader::new(dir.path(), None);
                let whole = ends.iter().filter(|end| cut >= **end).count();
                assert_eq!(text(&mut reader).lines().count(), whole, "{cut} {index_cut}");
                // The writer goes on: nothing comes twice, nothing is lost.
                fs::write(&log, &whole_log).unwrap();
                fs::write(&index, &whole_index).unwrap();
                assert_eq!(text(&mut reader).lines().count(), 3 - whole, "{cut} {index_cut}");
            }
        }
    }

    #[test]
    fn a_flipped_byte_is_told_and_a_log_of_something_else_too() {
        let dir = tempfile::tempdir().unwrap();
        logs(dir.path()).sink(attempt_of(1, 1), Stream::Stdout).write_all(b"one").unwrap();
        let log = dir.path().join("logs/w-1.log");
        let mut bytes = fs::read(&log).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&log, &bytes).unwrap();
        let damaged = read(dir.path(), None, |_| Ok(()));
        assert!(matches!(damaged, Err(LogError::Damaged { offset: 8, .. })), "{damaged:?}");
        fs::write(&log, "something else").unwrap();
        assert!(matches!(read(dir.path(), None, |_| Ok(())), Err(LogError::NoLog { .. })));
    }

    #[test]
    fn of_a_long_stream_both_ends_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let written = logs(dir.path());
        let mut sink = written.sink(attempt_of(1, 1), Stream::Stderr);
        let block = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            sink.write_all(&block).unwrap();
        }
        sink.write_all(b"\nthe end\n").unwrap();
        assert_eq!(sink.finish().to_text(), "the end");
        let (mut kept, mut dropped, mut last) = (0, 0, Vec::new());
        let take = |entry: Entry<'_>| {
            match entry.content {
                Content::Bytes(bytes) => {
                    kept += bytes.len() as u64;
                    last = bytes.to_vec();
                }
                Content::Dropped(bytes) => dropped = bytes,
            }
            Ok(())
        };
        read(dir.path(), None, take).unwrap();
        assert_eq!((kept, kept + dropped), (HEAD + TAIL as u64, (20 << 20) + 9));
        assert!(last.ends_with(b"the end\n"));
    }

    #[test]
    fn a_run_without_logs_has_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Reader::new(dir.path(), None).next(|_| Ok(())).unwrap(), 0);
    }
}
