//! Objects of which the chunks of some columns are taken.
//!
//! The end of the object is read first, and its footer tells the ranges; they come in parts as those of a large object
//! do, each by a GET with the ETag of the first, into a file with holes. What was read to find the footer is written, and
//! not fetched twice.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{Arc, atomic::Ordering},
};

use super::{Lane, TRIES, parts::Begun};
use crate::{
    checksum::Crc64,
    columns::{self, Columns, ColumnsError, Footer, Found, Held, remote::End},
    source::{About, Listed, SourceError},
    stage::{
        StageError,
        board::Item,
        crew::Before,
        large::{self, Large, PartSums},
        ledger::{Part, Record},
    },
};

/// The end of an object, and what of the object is to be fetched.
struct Looked {
    end: End,
    held: Held,
    /// One that died has written and recorded the end.
    recorded: bool,
}

impl Lane<'_> {
    /// Hands out the ranges of an object's columns; false if all of the object is to be fetched, by another way.
    pub(super) fn open_columns(&mut self, item: &mut Item) -> Result<bool, StageError> {
        let mut tries = 0;
        let (object, looked) = loop {
            let wanted = self.floor.columns.map(|(wanted, _)| wanted);
            let Some(wanted) = columns::taken_of(wanted, item.object()) else { return Ok(false) };
            let object = item.object().clone();
            match self.look(item, &object, wanted) {
                Err(StageError::Source(SourceError::Changed { key })) if tries < TRIES => {
                    item.now = Some(self.look_again(&key)?);
                }
                // Bits may have flipped on the way, and nothing but the footer itself can tell.
                Err(StageError::Source(SourceError::NoFooter { .. })) if tries < TRIES => {}
                looked => break (object, looked?),
            }
            tries += 1;
        };
        let Some((_, allowance)) = self.floor.columns else { return Ok(false) };
        let Held::Ranges(taken) = looked.held else {
            allowance.take(object.size)?;
            self.floor.counts.column_bytes.fetch_add(object.size, Ordering::Relaxed);
            return Ok(false);
        };
        let ranges = large::ranges_of_columns(&taken, looked.end.from);
        let (bytes, end) = (ranges.iter().map(|range| range.length).sum(), ranges[ranges.len() - 1]);
        self.floor.counts.column_bytes.fetch_add(bytes, Ordering::Relaxed);

        // No room is set aside, which would fill the holes.
        let Begun { placing, records, old } = self.go_on(item, &object, 0, false)?;
        let version_id = looked.end.about.version_id.or(object.version_id);
        let object = Listed { version_id, ..object };
        let large = Arc::new(Large::of_columns(item.clone(), object, ranges, placing, &records, old));
        let missing = large.ranges.iter().zip(&large.recorded).filter(|(_, recorded)| recorded.is_none());
        allowance.take(missing.map(|(range, _)| range.length).sum())?;

        let from = usize::try_from(end.offset - looked.end.from).expect("it is in memory");
        let bytes = &looked.end.bytes[from..];
        large.placing.write_at(bytes, end.offset)?;
        let sums = PartSums { crc64: Crc64::of(bytes), other: None };
        if !looked.recorded {
            let (offset, length, crc64) = (end.offset, end.length, sums.crc64);
            let part = Part { offset, length, crc64, other: None, etag: large.object.etag.clone() };
            self.floor.crew.record(Record::Part { at: item.at(), part })?;
        }
        let mut parts = large.numbers();
        let number = parts.pop_back().expect("the end is a part");
        match large.written(number, sums) {
            true => self.close(&large)?,
            false => self.floor.board.opened(large, parts),
        }
        Ok(true)
    }

    /// Reads the end of an object, from what one that died has left if it is there.
    fn look(&mut self, item: &Item, object: &Listed, wanted: &Columns) -> Result<Looked, StageError> {
        let no_footer = |source| SourceError::NoFooter { key: object.key.clone(), source };
        if let Some(mut end) = self.recorded_end(item, object) {
            let (now, _) = self.patiently(|lane| Ok(lane.reader.head(&object.key)?))?;
            if (now.size, &now.etag) != (object.size, &object.etag) {
                return Err(SourceError::Changed { key: object.key.clone() }.into());
            }
            end.about.version_id = now.version_id;
            let held = end.footer.held(wanted).map_err(no_footer)?;
            self.floor.counts.found_bytes.fetch_add(end.bytes.len() as u64, Ordering::Relaxed);
            return Ok(Looked { end, held, recorded: true });
        }
        let end = self.patiently(|lane| match End::read(&mut lane.reader, object) {
            Err(ColumnsError::Read(error)) => Err(error.into()),
            Err(ColumnsError::Footer(source)) => Err(no_footer(source).into()),
            Ok(end) => Ok(end),
        })?;
        self.arrived(end.received);
        self.floor.board.succeeded(end.received);
        let held = end.footer.held(wanted).map_err(no_footer)?;
        Ok(Looked { end, held, recorded: false })
    }

    /// The end of an object as one that died has written and recorded it, if its bytes are what the record says.
    fn recorded_end(&self, item: &Item, object: &Listed) -> Option<End> {
        if item.chunk.before == Before::Nobody {
            return None;
        }
        let ends = |part: &&Part| part.etag == object.etag && part.offset + part.length == object.size;
        let part = self.floor.crew.ledger().parts(item.at()).iter().find(ends)?.clone();
        let mut bytes = vec![0; usize::try_from(part.length).ok()?];
        File::open(self.path(item)).ok()?.read_exact_at(&mut bytes, part.offset).ok()?;
        match Footer::find(object.size, &bytes).ok()? {
            Found::Footer(footer) if Crc64::of(&bytes) == part.crc64 => {
                let about = About { etag: object.etag.clone(), ..About::default() };
                Some(End { about, from: part.offset, bytes, footer: *footer, received: 0 })
            }
            _ => None,
        }
    }
}
