//! What of a staging is done: the sum of what its stagers have recorded, a line each, in a log of their own.
//!
//! A log is only a claim. What a dead stager recorded of objects and parts is read again and compared with the checksum
//! before it counts; only chunks that were synced as a whole count by their record.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{checksum::Crc64, snapshot::HeldRange};

/// A row of the plan: its chunk, and its place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct At(pub u32, pub u32);

/// A line of a stager's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// An object is written and verified.
    Object {
        at: At,
        crc64: Crc64,
        #[serde(flatten)]
        news: News,
    },
    /// A range of a large object is written.
    Part {
        at: At,
        #[serde(flatten)]
        part: Part,
    },
    /// Every object of the chunk is written, verified and durable.
    Chunk { chunk: u32 },
}

/// What the listing did not say of an object, or what has changed since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct News {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// Size and ETag of the object that was there when it was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<(u64, Option<String>)>,
    /// If not all of it was fetched: what was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Vec<HeldRange>>,
}

/// A range that is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub offset: u64,
    pub length: u64,
    pub crc64: Crc64,
    /// By the algorithm of the object's own checksum, where that is another CRC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<Vec<u8>>,
    /// Of the object that the range is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// All records together. An object takes 8 bytes, and more only if there are [`News`] of it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By chunk; grown as records come.
    objects: Vec<Checksums>,
    news: BTreeMap<At, News>,
    parts: BTreeMap<At, Vec<Part>>,
    chunks: BTreeSet<u32>,
}

#[derive(Debug, Default)]
struct Checksums {
    values: Vec<u64>,
    known: Vec<bool>,
}

impl Ledger {
    pub(super) fn add(&mut self, record: Record) {
        match record {
            Record::Object { at, crc64, news } => {
                let (chunk, row) = (at.0 as usize, at.1 as usize);
                if self.objects.len() <= chunk {
                    self.objects.resize_with(chunk + 1, Checksums::default);
                }
                let checksums = &mut self.objects[chunk];
                if checksums.values.len() <= row {
                    checksums.values.resize(row + 1, 0);
                    checksums.known.resize(row + 1, false);
                }
                (checksums.values[row], checksums.known[row]) = (crc64.0, true);
                match news == News::default() {
                    true => drop(self.news.remove(&at)),
                    false => drop(self.news.insert(at, news)),
                }
                self.parts.remove(&at);
            }
            Record::Part { at, part } => {
                let parts = self.parts.entry(at).or_default();
                parts.retain(|held| held.offset != part.offset);
                parts.push(part);
            }
            Record::Chunk { chunk } => drop(self.chunks.insert(chunk)),
        }
    }

    /// The checksum of an object that is done, and what is new of it.
    pub(super) fn object(&self, at: At) -> Option<(Crc64, News)> {
        let checksums = self.objects.get(at.0 as usize)?;
        checksums.known.get(at.1 as usize).filter(|known| **known)?;
        let news = self.news.get(&at).cloned().unwrap_or_default();
        Some((Crc64(checksums.values[at.1 as usize]), news))
    }

    pub(super) fn parts(&self, at: At) -> &[Part] {
        self.parts.get(&at).map_or(&[], Vec::as_slice)
    }

    pub(super) fn forget_parts(&mut self, at: At) {
        self.parts.remove(&at);
    }

    pub(super) fn has_chunk(&self, chunk: u32) -> bool {
        self.chunks.contains(&chunk)
    }

    /// The chunks that are durable and not among these.
    pub(super) fn chunks_besides<'a>(&'a self, known: &'a BTreeSet<u32>) -> impl Iterator<Item = u32> + 'a {
        self.chunks.difference(known).copied()
    }

    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_their_lines_and_add_up() {
        let part = |offset, crc| Part { offset, length: 5, crc64: Crc64(crc), other: Some(vec![1]), etag: None };
        let held = Some(vec![HeldRange { offset: 1, length: 2, checksum: Crc64(3) }]);
        let news = News { version_id: Some("v".to_owned()), changed: Some((3, Some("e".to_owned()))), held };
        let records = [
            Record::Part { at: At(2, 7), part: part(0, 1) },
            Record::Part { at: At(2, 7), part: part(5, 2) },
            Record::Part { at: At(2, 7), part: part(0, 3) },
            Record::Object { at: At(0, 1), crc64: Crc64(9), news: news.clone() },
            Record::Chunk { chunk: 0 },
        ];
        let mut ledger = Ledger::default();
        for record in records {
            let line = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record, "{line}");
            ledger.add(record);
        }
        assert_eq!(ledger.parts(At(2, 7)), [part(5, 2), part(0, 3)], "the last record of a range counts");
        assert_eq!(ledger.object(At(0, 1)), Some((Crc64(9), news)));
        assert_eq!((ledger.object(At(0, 0)), ledger.object(At(0, 2)), ledger.object(At(5, 0))), (None, None, None));
        assert!(ledger.has_chunk(0) && !ledger.has_chunk(2));
        ledger.add(Record::Object { at: At(2, 7), crc64: Crc64(4), news: News::default() });
        assert_eq!(ledger.parts(At(2, 7)), []);
    }
}
