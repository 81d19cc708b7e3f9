//! Objects that come in parts.

use std::{
    fs::File,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use super::{Lane, TRIES};
use crate::{
    source::{About, Listed, SourceError},
    stage::{
        StageError,
        board::Item,
        crew::Before,
        large::{self, Large},
        ledger::{Part, Record},
    },
    volume::{Placing, VolumeError},
};

/// The file of an object that comes in parts, and what was recorded of it before.
pub(super) struct Begun {
    pub placing: Placing,
    pub records: Vec<Part>,
    /// Where that is, if not in the file itself.
    pub old: Option<File>,
}

impl Lane<'_> {
    /// Looks at a large object, or one of which some columns are taken, and hands its parts out.
    pub(super) fn open(&mut self, mut item: Item) -> Result<(), StageError> {
        if self.is_there(&item)? {
            self.floor.board.closed(None);
            self.floor.board.finished(&item);
            return Ok(());
        }
        if self.open_columns(&mut item)? {
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
        let begun = self.go_on(&item, &object, object.size, self.floor.technique.writes_directly())?;
        let Begun { placing, records, old } = begun;
        let large = Arc::new(Large::new(item, object, expected, &uploads, placing, &records, old));
        let parts = large.numbers();
        match parts.is_empty() {
            // It has become empty.
            true => self.close(&large)?,
            false => self.floor.board.opened(large, parts),
        }
        Ok(())
    }

    /// Makes the object's file, or goes on with that of one that died; `room` is set aside for a new one.
    pub(super) fn go_on(&self, item: &Item, object: &Listed, room: u64, direct: bool) -> Result<Begun, StageError> {
        let path = self.path(item);
        let mut records = self.floor.crew.ledger().parts(item.at()).to_vec();
        records.retain(|record| record.etag == object.etag);
        let adopted = match item.chunk.before {
            Before::Gone if !records.is_empty() => Placing::adopt(&path, direct)?,
            _ => None,
        };
        // What one that may wake up has written is copied, so that it writes to a file that is nobody's.
        let old = match item.chunk.before {
            Before::Silent if !records.is_empty() => File::open(&path).ok(),
            _ => None,
        };
        if adopted.is_none() && old.is_none() {
            records.clear();
        }
        let placing = match adopted {
            Some(placing) => placing,
            None => self.place(item, room, direct)?,
        };
        Ok(Begun { placing, records, old })
    }

    pub(super) fn part(&mut self, large: &Large, number: usize, buffer: &mut [u8]) -> Result<(), StageError> {
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
    fn recorded(&self, large: &Large, number: usize, buffer: &mut [u8]) -> Result<Option<large::PartSums>, StageError> {
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
        buffer: &mut [u8],
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
    pub(super) fn close(&self, large: &Large) -> Result<(), StageError> {
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
        self.record_held(&large.item, &large.object, &about, crc64, large.held())?;
        self.floor.board.closed(None);
        self.floor.board.finished(&large.item);
        Ok(())
    }

    /// A large object that has changed, or was wrong as a whole, is begun anew, some times.
    pub(super) fn begin_anew(&mut self, item: &Item, error: StageError) {
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
