//! Objects that are held whole in memory, and objects that are there already.

use std::{fs, io, path::Path};

use super::{Lane, TRIES, compare};
use crate::{
    checksum::{self, Crc64, S3Digest, file_checksum},
    columns,
    snapshot::HeldRange,
    source::{About, Listed, SourceError},
    stage::{
        StageError,
        board::{Item, SMALL},
        crew::Before,
        rows::Shared,
    },
    volume::{self, VolumeError},
};

impl Lane<'_> {
    /// Stages a small or an unchanged object; gives it back if it is neither, after all.
    pub(super) fn small(&mut self, item: Item) -> Result<Option<Item>, StageError> {
        let row = item.row();
        if let Some(shared) = &row.shared
            && self.share(&item, shared)?
        {
            return Ok(None);
        }
        if row.object.size > SMALL {
            return Ok(Some(item));
        }
        if self.is_there(&item)? {
            return Ok(None);
        }
        let mut object = row.object.clone();
        let mut tries = 0;
        let (about, crc64) = loop {
            match self.patiently(|lane| lane.read_small(&object)) {
                Err(StageError::Source(SourceError::Changed { .. })) if tries < TRIES => {
                    tries += 1;
                    object = self.look_again(&object.key)?;
                    if object.size > SMALL {
                        // It has grown beyond what a lane holds in memory.
                        return Ok(Some(Item { now: Some(object), ..item }));
                    }
                }
                read => break read?,
            }
        };
        self.place_small(&item, &self.memory[..usize::try_from(object.size).expect("at most SMALL")])?;
        self.record(&item, &object, &about, crc64)?;
        self.arrived(object.size);
        Ok(None)
    }

    fn place_small(&self, item: &Item, bytes: &[u8]) -> Result<(), StageError> {
        let (data, technique) = (&self.floor.data, self.floor.technique);
        if technique.links_small_files() {
            let place = || volume::place_by_link(&self.bench, data, &item.row().path, bytes, technique.syncs_files());
            return match place() {
                Err(VolumeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    volume::create_dir(&self.bench)?;
                    Ok(place()?)
                }
                placed => Ok(placed?),
            };
        }
        let placing = self.place(item, bytes.len() as u64, false)?;
        placing.write_at(bytes, 0)?;
        Ok(placing.finish(bytes.len() as u64, technique.syncs_files())?)
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
            Err(VolumeError::AlreadyExists { .. })
                if is_as_recorded(&to, size, shared.checksum, shared.held.as_ref()) => {}
            Err(VolumeError::AlreadyExists { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        self.found(shared.held.as_ref().map_or(size, |held| held.iter().map(|range| range.length).sum()));
        Ok(true)
    }

    /// Whether one that died has written and recorded it, and its bytes are what the record says.
    pub(super) fn is_there(&self, item: &Item) -> Result<bool, StageError> {
        if item.chunk.before == Before::Nobody {
            return Ok(false);
        }
        let Some((crc64, news)) = self.floor.crew.ledger().object(item.at()) else { return Ok(false) };
        let size = news.changed.map_or(item.row().object.size, |(size, _)| size);
        let there = is_as_recorded(&self.path(item), size, crc64, news.held.as_ref());
        if there {
            self.found(news.held.map_or(size, |held| held.iter().map(|range| range.length).sum()));
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
}

/// Whether a file has the bytes that were recorded of it: all of them, or these ranges.
fn is_as_recorded(path: &Path, size: u64, checksum: Crc64, held: Option<&Vec<HeldRange>>) -> bool {
    match held {
        Some(held) => columns::is_intact(path, size, held),
        None => file_checksum(path).is_ok_and(|found| found == (size, checksum)),
    }
}

fn digest(algorithm: checksum::Algorithm, bytes: &[u8]) -> Vec<u8> {
    let mut digest = S3Digest::new(algorithm);
    digest.update(bytes);
    digest.finish()
}
