//! A lane: a thread with a connection of its own that fetches, verifies and writes, one job after the other.
//!
//! Everything blocks, on purpose: a slow volume slows its lanes, and with them the requests, without any queue between
//! that could grow. A small object is held whole and verified before its file is made. A larger one is written as it
//! comes, and counts only once its checksum is right.

use std::{
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    StageError,
    board::{Board, Buffer, Chunk, Item, Job, SMALL},
    crew::{Before, Claim, Crew},
    large::{self, Large},
    ledger::{News, Part, Record},
    rows::{RowFile, Shared},
    technique::Technique,
};
use crate::{
    checksum::{self, Crc64, Expected, Hasher, S3Digest, file_checksum},
    source::{About, Listed, Reader, Readers, SourceError, retry::Schedule},
    volume::{self, Placing, Volume, VolumeError},
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
    pub counts: &'a Counts,
    pub plan: Mutex<RowFile>,
    /// The next chunk to look at.
    pub cursor: Mutex<u32>,
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
}

struct Lane<'a> {
    floor: &'a Floor<'a>,
    reader: Reader,
    memory: Vec<u8>,
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
    let mut lane = Lane { floor, reader: floor.readers.reader(), memory: Vec::new() };
    while let Some(job) = floor.board.next(number) {
        let buffer = lane.perform(job);
        floor.board.done(buffer);
    }
}

impl Lane<'_> {
    /// Does a job and gives its buffer back.
    fn perform(&mut self, job: Job) -> Option<Buffer> {
        match job {
            Job::Small(chunk, rows) => {
                for row in rows.take_while(|_| !self.floor.board.is_stopped()) {
                    let item = Item { chunk: Arc::clone(&chunk), row, tries: 0, now: None };
                    match self.small(&item) {
                        Ok(true) => self.floor.board.finished(&item),
                        Ok(false) => self.floor.board.is_large(item),
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
                if !large.has_failed()
                    && let Err(error) = self.part(&large, part, &mut buffer)
                    && large.fail()
                {
                    self.begin_anew(&large.item, error);
                }
                Some(buffer)
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
            let index = {
                let mut cursor = self.floor.cursor.lock().expect("no holder panics");
                *cursor += 1;
                *cursor - 1
            };
            let mut plan = self.floor.plan.lock().expect("no holder panics");
            if index as usize >= plan.chunks() {
                return Ok(None);
            }
            if let Claim::Mine { before } = self.floor.crew.claim(index)? {
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
        let listed = &item.row().object;
        let changed = ((object.size, &object.etag) != (listed.size, &listed.etag)
            || about.etag.is_some() && about.etag != listed.etag)
            .then(|| (object.size, about.etag.clone().or_else(|| object.etag.clone())));
        let version_id = about.version_id.clone().or_else(|| object.version_id.clone());
        self.floor.crew.record(Record::Object { at: item.at(), crc64, news: News { version_id, changed } })?;
        self.floor.counts.fetched_objects.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn arrived(&self, bytes: u64) {
        self.floor.counts.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Stages a small or an unchanged object; false if it is neither, after all.
    fn small(&mut self, item: &Item) -> Result<bool, StageError> {
        let row = item.row();
        if let Some(shared) = &row.shared
            && self.share(item, shared)?
        {
            return Ok(true);
        }
        if row.object.size > SMALL {
            return Ok(false);
        }
        if self.is_there(item)? {
            return Ok(true);
        }
        let mut object = row.object.clone();
        let mut tries = 0;
        let (about, crc64) = loop {
            match self.patiently(|lane| lane.read_small(&object)) {
                Err(StageError::Source(SourceError::Changed { .. })) if tries < TRIES => {
                    tries += 1;
                    object = self.look_again(&object.key)?;
                }
                read => break read?,
            }
        };
        let placing = self.place(item, object.size, false)?;
        placing.write_at(&self.memory[..usize::try_from(object.size).expect("it is small")], 0)?;
        placing.finish(object.size, self.floor.technique.syncs_files())?;
        self.record(item, &object, &about, crc64)?;
        self.arrived(object.size);
        Ok(true)
    }

    /// Gives an unchanged object its place in this snapshot; false if it has to be fetched after all.
    fn share(&self, item: &Item, shared: &Shared) -> Result<bool, StageError> {
        let (size, key) = (item.row().object.size, &item.row().object.key);
        let (from, to) = (self.floor.volume.resolve(&shared.from)?, self.path(item));
        if fs::metadata(&from).map(|meta| meta.len()).ok() != Some(size) {
            tracing::warn!(key, path = %from.display(), "is damaged on the volume; fetching it anew");
            return Ok(false);
        }
        volume::create_dirs_below(&self.floor.data, Path::new(&item.row().path))?;
        match self.floor.volume.share(&from, &to) {
            Ok(_) => {}
            // What one that died has left.
            Err(VolumeError::AlreadyExists { .. }) => match file_checksum(&to) {
                Ok(found) if found == (size, shared.checksum) => {}
                _ => return Ok(false),
            },
            Err(error) => return Err(error.into()),
        }
        self.found(size);
        Ok(true)
    }

    fn found(&self, bytes: u64) {
        self.floor.counts.found_objects.fetch_add(1, Ordering::Relaxed);
        self.floor.counts.found_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether one that died has written and recorded it, and its bytes are what the record says.
    fn is_there(&self, item: &Item) -> Result<bool, StageError> {
        if item.chunk.before == Before::Nobody {
            return Ok(false);
        }
        let Some((crc64, news)) = self.floor.crew.ledger().object(item.at()) else { return Ok(false) };
        let size = news.changed.map_or(item.row().object.size, |(size, _)| size);
        let there = file_checksum(&self.path(item)).is_ok_and(|found| found == (size, crc64));
        if there {
            self.found(size);
        }
        Ok(there)
    }

    /// Reads an object into the lane's memory and compares it.
    fn read_small(&mut self, object: &Listed) -> Result<(About, Crc64), StageError> {
        let size = usize::try_from(object.size).unwrap_or(usize::MAX);
        self.memory.resize(self.memory.len().max(size), 0);
        let about = self.reader.get(object, None)?;
        let received = self.reader.read(&mut self.memory[..size])?;
        self.check_end(object, received as u64)?;
        let crc64 = Crc64::of(&self.memory[..size]);
        if let Some(expected) = &about.expected {
            let found = match (expected.algorithm, expected.parts) {
                (checksum::Algorithm::Crc64Nvme, None) => crc64.0.to_be_bytes().to_vec(),
                (algorithm, None) => digest(algorithm, &self.memory[..size]),
                (algorithm, Some(count)) => {
                    let parts = self.reader.parts(object, count)?;
                    let mut offset = 0;
                    let each: Vec<_> = parts
                        .iter()
                        .map(|part| {
                            let begin = offset;
                            offset = size.min(offset + usize::try_from(*part).unwrap_or(size));
                            digest(algorithm, &self.memory[begin..offset])
                        })
                        .collect();
                    checksum::composite(algorithm, each.iter().map(Vec::as_slice))
                }
            };
            compare(object, expected, &found)?;
        }
        self.floor.board.succeeded(object.size);
        Ok((about, crc64))
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

    /// Stages an object in one request through a buffer.
    fn whole(&mut self, item: &Item, buffer: &mut Buffer) -> Result<(), StageError> {
        if self.is_there(item)? {
            return Ok(());
        }
        let mut object = item.object().clone();
        let placing = self.place(item, object.size, self.floor.technique.writes_directly())?;
        let mut tries = 0;
        let (about, crc64) = loop {
            match self.patiently(|lane| lane.stream(&object, &placing, buffer)) {
                Err(StageError::Source(SourceError::Changed { .. })) if tries < TRIES => {
                    tries += 1;
                    object = self.look_again(&object.key)?;
                }
                streamed => break streamed?,
            }
        };
        placing.finish(object.size, self.floor.technique.syncs_files())?;
        self.record(item, &object, &about, crc64)
    }

    fn stream(
        &mut self,
        object: &Listed,
        placing: &Placing,
        buffer: &mut Buffer,
    ) -> Result<(About, Crc64), StageError> {
        let about = self.reader.get(object, None)?;
        let simple = about
            .expected
            .as_ref()
            .filter(|expected| expected.parts.is_none() && expected.algorithm != checksum::Algorithm::Crc64Nvme);
        let mut other = simple.map(|expected| S3Digest::new(expected.algorithm));
        let mut hasher = Hasher::default();
        let received = self.pour(0, object.size, placing, buffer, |bytes| {
            hasher.update(bytes);
            if let Some(other) = &mut other {
                other.update(bytes);
            }
        })?;
        self.check_end(object, received)?;
        let crc64 = hasher.finish();
        if let Some(expected) = &about.expected {
            let found = match (other, expected.parts) {
                (Some(other), _) => other.finish(),
                (None, None) => crc64.0.to_be_bytes().to_vec(),
                (None, Some(count)) => {
                    let parts = self.reader.parts(object, count)?;
                    let unread = |error| VolumeError::io("read", placing.path(), error);
                    let mut offset = 0;
                    let mut each = Vec::new();
                    for part in parts {
                        each.push(large::digest_of(placing.file(), expected.algorithm, offset, part).map_err(unread)?);
                        offset += part;
                    }
                    checksum::composite(expected.algorithm, each.iter().map(Vec::as_slice))
                }
            };
            compare(object, expected, &found)?;
        }
        self.floor.board.succeeded(object.size);
        Ok((about, crc64))
    }

    /// Writes what the answer brings, a buffer at a time; returns how much that was, at most `length`.
    fn pour(
        &mut self,
        offset: u64,
        length: u64,
        placing: &Placing,
        buffer: &mut Buffer,
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

    /// Looks at a large object and hands its parts out.
    fn open(&mut self, item: Item) -> Result<(), StageError> {
        if self.is_there(&item)? {
            self.floor.board.closed(None);
            self.floor.board.finished(&item);
            return Ok(());
        }
        let key = item.object().key.clone();
        let (object, expected) = self.patiently(|lane| Ok(lane.reader.head(&key)?))?;
        let uploads = match expected.as_ref().and_then(|expected| expected.parts) {
            Some(count) => self.patiently(|lane| Ok(lane.reader.parts(&object, count)?))?,
            None => vec![object.size],
        };
        if uploads.iter().sum::<u64>() != object.size {
            let message = "its parts are not as long as the whole".to_owned();
            return Err(SourceError::S3 { key: object.key, message }.into());
        }
        let (path, direct) = (self.path(&item), self.floor.technique.writes_directly());
        let records = self.floor.crew.ledger().parts(item.at()).to_vec();
        let adopted = match item.chunk.before {
            Before::Gone if !records.is_empty() => Placing::adopt(&path, direct)?,
            _ => None,
        };
        // What one that may wake up has written is copied, so that it writes to a file that is nobody's.
        let old = match item.chunk.before {
            Before::Silent if !records.is_empty() => File::open(&path).ok(),
            _ => None,
        };
        let goes_on = adopted.is_some() || old.is_some();
        let placing = match adopted {
            Some(placing) => placing,
            None => self.place(&item, object.size, direct)?,
        };
        let records = if goes_on { records } else { Vec::new() };
        let large = Arc::new(Large::new(item, object, expected, &uploads, placing, &records, old));
        let parts = large.numbers();
        match parts.is_empty() {
            // It has become empty.
            true => self.close(&large)?,
            false => self.floor.board.opened(large, parts),
        }
        Ok(())
    }

    fn part(&mut self, large: &Large, number: usize, buffer: &mut Buffer) -> Result<(), StageError> {
        let range = large.ranges[number];
        let last = match self.recorded(large, number, buffer)? {
            Some(sums) => large.written(number, sums),
            None => {
                let wanted = range.offset..range.offset + range.length;
                let sums = self.patiently(|lane| lane.fetch_part(large, &wanted, buffer))?;
                let part = Part {
                    offset: range.offset,
                    length: range.length,
                    crc64: sums.crc64,
                    other: sums.other.clone(),
                    etag: large.object.etag.clone(),
                };
                self.floor.crew.record(Record::Part { at: large.item.at(), part })?;
                large.written(number, sums)
            }
        };
        if last { self.close(large) } else { Ok(()) }
    }

    /// A part that was written before, if its bytes are still what the record says.
    fn recorded(
        &self,
        large: &Large,
        number: usize,
        buffer: &mut Buffer,
    ) -> Result<Option<large::PartSums>, StageError> {
        let Some(recorded) = &large.recorded[number] else { return Ok(None) };
        let range = large.ranges[number];
        let (mut hasher, mut offset, mut failed) = (large.hasher(), range.offset, None);
        let file = large.old.as_ref().unwrap_or_else(|| large.placing.file());
        let read = large::read_range(file, range.offset, range.length, buffer, |bytes| {
            hasher.update(bytes);
            if large.old.is_some() && failed.is_none() {
                failed = large.placing.write_at(bytes, offset).err();
            }
            offset += bytes.len() as u64;
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        let right = read.is_ok() && hasher.finish() == *recorded;
        if right {
            self.floor.counts.found_bytes.fetch_add(range.length, Ordering::Relaxed);
        }
        Ok(right.then(|| recorded.clone()))
    }

    fn fetch_part(
        &mut self,
        large: &Large,
        wanted: &Range<u64>,
        buffer: &mut Buffer,
    ) -> Result<large::PartSums, StageError> {
        let length = wanted.end - wanted.start;
        self.reader.get(&large.object, Some(wanted))?;
        let mut hasher = large.hasher();
        let received = self.pour(wanted.start, length, &large.placing, buffer, |bytes| hasher.update(bytes))?;
        if received != length {
            let key = large.object.key.clone();
            return Err(SourceError::WrongLength { key, expected: length, received }.into());
        }
        self.floor.board.succeeded(length);
        Ok(hasher.finish())
    }

    /// Every part is written: compares the whole, and gives it its name.
    fn close(&self, large: &Large) -> Result<(), StageError> {
        let unread = |error| VolumeError::io("read", large.placing.path(), error);
        let crc64 = match large.verify().map_err(unread)? {
            Ok(crc64) => crc64,
            Err(algorithm) => {
                self.floor.crew.ledger().forget_parts(large.item.at());
                return Err(SourceError::Corrupt { key: large.object.key.clone(), algorithm }.into());
            }
        };
        large.placing.finish(large.object.size, self.floor.technique.syncs_files())?;
        let about = About { etag: large.object.etag.clone(), ..About::default() };
        self.record(&large.item, &large.object, &about, crc64)?;
        self.floor.board.closed(None);
        self.floor.board.finished(&large.item);
        Ok(())
    }

    /// A large object that has changed, or was wrong as a whole, is begun anew, some times.
    fn begin_anew(&mut self, item: &Item, error: StageError) {
        let anew = match &error {
            StageError::Source(SourceError::Changed { key }) if item.tries < TRIES => {
                self.look_again(key).ok().map(Some)
            }
            StageError::Source(SourceError::Corrupt { .. }) if item.tries < TRIES => Some(item.now.clone()),
            _ => None,
        };
        match anew {
            Some(now) => {
                self.floor.board.closed(Some(Item { tries: item.tries + 1, now, ..item.clone() }));
            }
            None => {
                self.floor.board.closed(None);
                self.failed(item, error);
            }
        }
    }
}

fn digest(algorithm: checksum::Algorithm, bytes: &[u8]) -> Vec<u8> {
    let mut digest = S3Digest::new(algorithm);
    digest.update(bytes);
    digest.finish()
}

fn compare(object: &Listed, expected: &Expected, found: &[u8]) -> Result<(), SourceError> {
    match expected.value == found {
        true => Ok(()),
        false => Err(SourceError::Corrupt { key: object.key.clone(), algorithm: expected.algorithm }),
    }
}
