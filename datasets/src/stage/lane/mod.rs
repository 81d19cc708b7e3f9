//! A lane: a thread with a connection of its own that fetches, verifies and writes, one job after the other.
//!
//! Everything blocks, on purpose: a slow volume slows its lanes, and with them the requests, without any queue between
//! that could grow. A small object is held whole and verified before its file is made. A larger one is written as it
//! comes, and counts only once its checksum is right.

mod columns;
mod parts;
mod small;
mod whole;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    StageError,
    board::{Board, Buffer, Chunk, Item, Job, SMALL},
    crew::{Claim, Crew},
    ledger::{News, Record},
    rows::RowFile,
    technique::Technique,
};
use crate::{
    checksum::{Crc64, Expected},
    columns::Columns,
    room::Allowance,
    snapshot::HeldRange,
    source::{About, Listed, Reader, Readers, SourceError, retry::Schedule},
    volume::{Placing, Volume, VolumeError},
};

/// How often an object that keeps changing, or keeps being wrong, is begun anew.
const TRIES: u32 = 3;

/// What all lanes of a staging work with.
pub(super) struct Floor<'a> {
    pub volume: &'a Volume,
    /// Where objects go.
    pub data: PathBuf,
    pub crew: &'a Crew,
    pub board: Board,
    pub readers: &'a Readers,
    pub technique: &'a Technique,
    /// The columns of Parquet objects that are taken, and the room for them; none: all.
    pub columns: Option<(&'a Columns, &'a Allowance)>,
    pub counts: &'a Counts,
    pub plan: Mutex<RowFile>,
    /// All chunks, in the order in which they are wanted.
    pub order: &'a [u32],
    /// The place in it of the next chunk to look at.
    pub cursor: Mutex<usize>,
}

/// What has been done so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Objects that this stager has fetched, and their bytes.
    pub fetched_objects: AtomicU64,
    pub fetched_bytes: AtomicU64,
    /// Objects and bytes that were found to be there already.
    pub found_objects: AtomicU64,
    pub found_bytes: AtomicU64,
    /// Bytes of columns that are to be here in the end, as far as they have been found.
    pub column_bytes: AtomicU64,
}

struct Lane<'a> {
    floor: &'a Floor<'a>,
    reader: Reader,
    memory: Vec<u8>,
    /// Where it makes small files, where these are linked to their places.
    bench: PathBuf,
}

/// A lane that panics would leave the others waiting.
struct StopOnPanic<'a>(&'a Board);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(None);
        }
    }
}

/// Works until there is nothing left to do.
pub(super) fn work(floor: &Floor<'_>, number: usize) {
    let _guard = StopOnPanic(&floor.board);
    let bench = floor.crew.own_dir().join(format!("lane-{number}"));
    let mut lane = Lane { floor, reader: floor.readers.reader(), memory: Vec::new(), bench };
    while let Some(job) = floor.board.next(number) {
        let buffer = lane.perform(job);
        floor.board.done(buffer);
    }
    // It is empty, and there only if it was needed. All lanes remove theirs at once; whoever clears up would go from one
    // to the next.
    let _ = fs::remove_dir(&lane.bench);
}

impl Lane<'_> {
    /// Does a job and gives its buffer back.
    fn perform(&mut self, job: Job) -> Option<Buffer> {
        match job {
            Job::Small(chunk, rows) => {
                for row in rows.take_while(|_| !self.floor.board.is_stopped()) {
                    let item = Item { chunk: Arc::clone(&chunk), row, tries: 0, now: None };
                    match self.small(item.clone()) {
                        Ok(None) => self.floor.board.finished(&item),
                        Ok(Some(large)) => self.floor.board.is_large(large),
                        Err(error) => self.failed(&item, error),
                    }
                }
                None
            }
            Job::Whole(item, mut buffer) => {
                match self.whole(&item, &mut buffer) {
                    Ok(()) => self.floor.board.finished(&item),
                    Err(error) => self.failed(&item, error),
                }
                Some(buffer)
            }
            Job::Open(item) => {
                if let Err(error) = self.open(item.clone()) {
                    self.floor.board.closed(None);
                    self.failed(&item, error);
                }
                None
            }
            Job::Part(large, part, mut buffer) => {
                let mut own = std::mem::take(&mut self.memory);
                let memory: &mut [u8] = match &mut buffer {
                    Some(buffer) => buffer,
                    None => {
                        own.resize(own.len().max(SMALL as usize), 0);
                        &mut own
                    }
                };
                if !large.has_failed()
                    && let Err(error) = self.part(&large, part, memory)
                    && large.fail()
                {
                    self.begin_anew(&large.item, error);
                }
                self.memory = own;
                buffer
            }
            Job::Claim => {
                match self.claim() {
                    Ok(chunk) => self.floor.board.claimed(chunk.map(Arc::new)),
                    Err(error) => self.floor.board.stop(Some(error)),
                }
                None
            }
        }
    }

    /// An error of one object is that object's; any other ends the staging.
    fn failed(&self, item: &Item, error: StageError) {
        match error {
            // What was broken off is no failure.
            StageError::Source(_) if self.floor.board.is_stopped() => {}
            StageError::Source(error) => self.floor.board.failed(item, error),
            error => self.floor.board.stop(Some(error)),
        }
    }

    fn claim(&self) -> Result<Option<Chunk>, StageError> {
        loop {
            let next = {
                let mut cursor = self.floor.cursor.lock().expect("no holder panics");
                *cursor += 1;
                *cursor - 1
            };
            let Some(index) = self.floor.order.get(next).copied() else { return Ok(None) };
            if let Claim::Mine { before } = self.floor.crew.claim(index)? {
                let mut plan = self.floor.plan.lock().expect("no holder panics");
                return Ok(Some(Chunk::new(index, plan.chunk(index as usize)?, before)));
            }
        }
    }

    /// Repeats what may succeed a little later.
    fn patiently<T>(&mut self, mut request: impl FnMut(&mut Self) -> Result<T, StageError>) -> Result<T, StageError> {
        let mut schedule = Schedule::default();
        loop {
            let error = match request(self) {
                Err(StageError::Source(error)) => error,
                outcome => return outcome,
            };
            if error.is_overload() {
                self.floor.board.overloaded();
            }
            match schedule.next(&error) {
                Some(wait) if !self.floor.board.is_stopped() => self.floor.board.pause(wait),
                _ => return Err(error.into()),
            }
        }
    }

    /// An object as it is now.
    fn look_again(&mut self, key: &str) -> Result<Listed, StageError> {
        tracing::warn!(key, "changed while it was fetched; fetching it anew");
        self.patiently(|lane| Ok(lane.reader.head(key)?.0))
    }

    fn path(&self, item: &Item) -> PathBuf {
        self.floor.data.join(&item.row().path)
    }

    fn place(&self, item: &Item, size: u64, direct: bool) -> Result<Placing, VolumeError> {
        Placing::create(&self.floor.data, &item.row().path, size, direct)
    }

    fn record(&self, item: &Item, object: &Listed, about: &About, crc64: Crc64) -> Result<(), StageError> {
        self.record_held(item, object, about, crc64, None)
    }

    /// The same of an object of which not all is held.
    fn record_held(
        &self,
        item: &Item,
        object: &Listed,
        about: &About,
        crc64: Crc64,
        held: Option<Vec<HeldRange>>,
    ) -> Result<(), StageError> {
        let listed = &item.row().object;
        let changed = ((object.size, &object.etag) != (listed.size, &listed.etag)
            || about.etag.is_some() && about.etag != listed.etag)
            .then(|| (object.size, about.etag.clone().or_else(|| object.etag.clone())));
        let version_id = about.version_id.clone().or_else(|| object.version_id.clone());
        let news = News { version_id, changed, held };
        self.floor.crew.record(Record::Object { at: item.at(), crc64, news })?;
        self.floor.counts.fetched_objects.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn arrived(&self, bytes: u64) {
        self.floor.counts.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn found(&self, bytes: u64) {
        self.floor.counts.found_objects.fetch_add(1, Ordering::Relaxed);
        self.floor.counts.found_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// An answer has to end where the object does.
    fn check_end(&mut self, object: &Listed, received: u64) -> Result<(), SourceError> {
        let more = if received == object.size { self.reader.read(&mut [0])? as u64 } else { 0 };
        match received + more == object.size {
            true => Ok(()),
            false => {
                let (key, expected) = (object.key.clone(), object.size);
                Err(SourceError::WrongLength { key, expected, received: received + more })
            }
        }
    }

    /// Writes what the answer brings, a buffer at a time; returns how much that was, at most `length`.
    fn pour(
        &mut self,
        offset: u64,
        length: u64,
        placing: &Placing,
        buffer: &mut [u8],
        mut take: impl FnMut(&[u8]),
    ) -> Result<u64, StageError> {
        let mut done = 0;
        while done < length && !self.floor.board.is_stopped() {
            let room = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
            let read = self.reader.read(&mut buffer[..room])?;
            if read == 0 {
                break;
            }
            take(&buffer[..read]);
            placing.write_at(&buffer[..read], offset + done)?;
            done += read as u64;
            self.arrived(read as u64);
        }
        Ok(done)
    }
}

fn compare(object: &Listed, expected: &Expected, found: &[u8]) -> Result<(), SourceError> {
    match expected.value == found {
        true => Ok(()),
        false => Err(SourceError::Corrupt { key: object.key.clone(), algorithm: expected.algorithm }),
    }
}
