//! Objects that come in one request through a buffer.

use super::{Lane, TRIES, compare};
use crate::{
    checksum::{self, Crc64, Hasher, S3Digest},
    source::{About, Listed, SourceError},
    stage::{
        StageError,
        board::{Buffer, Item},
        large,
    },
    volume::{Placing, VolumeError},
};

impl Lane<'_> {
    /// Stages an object in one request through a buffer.
    pub(super) fn whole(&mut self, item: &Item, buffer: &mut Buffer) -> Result<(), StageError> {
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
}
