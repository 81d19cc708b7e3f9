//! An object that comes in parts: ranges of it, by several lanes at once, each checked before it counts.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::{
    board::{Item, SMALL},
    ledger::Part,
};
use crate::{
    checksum::{self, Crc64, Expected, Hasher, S3Digest},
    snapshot::HeldRange,
    source::Listed,
    volume::Placing,
};

/// An object over this size comes in parts.
pub(super) const FROM: u64 = 32 << 20;
/// Of this size: long against the time to the first byte, short against what a crash costs.
const PART: u64 = 16 << 20;

/// The object.
pub(super) struct Large {
    pub item: Item,
    /// As it is now.
    pub object: Listed,
    pub placing: Placing,
    pub ranges: Vec<PartRange>,
    /// What was recorded of each range before.
    pub recorded: Vec<Option<PartSums>>,
    /// Where that is, if not in the file itself.
    pub old: Option<File>,
    expected: Option<Expected>,
    /// Whether its ranges are not all of it.
    in_part: bool,
    results: Mutex<Vec<Option<PartSums>>>,
    left: AtomicUsize,
    failed: AtomicBool,
}

/// A range of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartRange {
    pub offset: u64,
    pub length: u64,
    /// Which of the parts in which it was uploaded it lies in; where some columns are taken, which range of theirs.
    upload: usize,
}

/// The checksums of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartSums {
    pub crc64: Crc64,
    /// By the object's own algorithm, where that is another CRC.
    pub other: Option<Vec<u8>>,
}

/// Computes both as bytes pass.
pub(super) struct PartHasher {
    crc64: Hasher,
    other: Option<S3Digest>,
}

impl PartHasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.crc64.update(bytes);
        if let Some(other) = &mut self.other {
            other.update(bytes);
        }
    }

    pub(super) fn finish(self) -> PartSums {
        PartSums { crc64: self.crc64.finish(), other: self.other.map(S3Digest::finish) }
    }
}

/// GETs that fetching an object of this size takes, uploaded in one piece.
pub(super) fn requests(size: u64) -> u64 {
    if size > FROM { size.div_ceil(PART) } else { 1 }
}

/// Cuts an object that was uploaded in parts of these sizes into ranges, none of which lies in two.
pub(super) fn ranges(uploads: &[u64]) -> Vec<PartRange> {
    let mut ranges = Vec::new();
    let mut begin = 0;
    for (upload, size) in uploads.iter().enumerate() {
        let mut offset = begin;
        while offset < begin + size {
            let length = PART.min(begin + size - offset);
            ranges.push(PartRange { offset, length, upload });
            offset += length;
        }
        begin += size;
    }
    ranges
}

/// Cuts what is taken of an object, whose bytes from `end` on are there already: these are the last range.
pub(super) fn ranges_of_columns(taken: &[Range<u64>], end: u64) -> Vec<PartRange> {
    let mut ranges = Vec::new();
    for (upload, taken) in taken.iter().enumerate() {
        let mut offset = taken.start;
        while offset < taken.end {
            let stop = if offset < end { taken.end.min(end) } else { taken.end };
            let length = if offset < end { PART.min(stop - offset) } else { stop - offset };
            ranges.push(PartRange { offset, length, upload });
            offset += length;
        }
    }
    ranges
}

impl Large {
    pub(super) fn new(
        item: Item,
        object: Listed,
        expected: Option<Expected>,
        uploads: &[u64],
        placing: Placing,
        records: &[Part],
        old: Option<File>,
    ) -> Self {
        Self::with(item, object, expected, (ranges(uploads), false), placing, records, old)
    }

    /// An object of which nothing is taken but these ranges. The source knows no checksum of them.
    pub(super) fn of_columns(
        item: Item,
        object: Listed,
        ranges: Vec<PartRange>,
        placing: Placing,
        records: &[Part],
        old: Option<File>,
    ) -> Self {
        Self::with(item, object, None, (ranges, true), placing, records, old)
    }

    fn with(
        item: Item,
        object: Listed,
        expected: Option<Expected>,
        (ranges, in_part): (Vec<PartRange>, bool),
        placing: Placing,
        records: &[Part],
        old: Option<File>,
    ) -> Self {
        let recorded = ranges.iter().map(|range| {
            let fits = |record: &&Part| {
                (record.offset, record.length, &record.etag) == (range.offset, range.length, &object.etag)
            };
            let record = records.iter().find(fits)?;
            Some(PartSums { crc64: record.crc64, other: record.other.clone() })
        });
        let recorded = recorded.collect();
        let (results, left) = (Mutex::new(vec![None; ranges.len()]), AtomicUsize::new(ranges.len()));
        let failed = AtomicBool::new(false);
        Self { item, object, placing, ranges, recorded, old, expected, in_part, results, left, failed }
    }

    /// For the bytes of a part.
    pub(super) fn hasher(&self) -> PartHasher {
        let other = self.expected.as_ref().map(|expected| expected.algorithm);
        let other = other.filter(|algorithm| algorithm.combines() && *algorithm != checksum::Algorithm::Crc64Nvme);
        PartHasher { crc64: Hasher::default(), other: other.map(S3Digest::new) }
    }

    /// Whether a part needs no more memory than a small object.
    pub(super) fn is_short(&self, part: usize) -> bool {
        self.ranges[part].length <= SMALL
    }

    /// All parts, by number.
    pub(super) fn numbers(&self) -> VecDeque<usize> {
        (0..self.ranges.len()).collect()
    }

    /// A part is written; true if it was the last that was missing.
    pub(super) fn written(&self, part: usize, sums: PartSums) -> bool {
        self.results.lock().expect("no holder panics")[part] = Some(sums);
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// A part has failed; true if it is the first that has, so that one lane tells.
    pub(super) fn fail(&self) -> bool {
        !self.failed.swap(true, Ordering::Relaxed)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// The checksum of the whole, if it is what the source says; else the algorithm that tells that it is not.
    pub(super) fn verify(&self) -> io::Result<Result<Crc64, checksum::Algorithm>> {
        let results = self.results.lock().expect("no holder panics");
        let sums: Vec<_> = results.iter().map(|sums| sums.as_ref().expect("every part is written")).collect();
        let whole = self.ranges.iter().zip(&sums).fold(None, |whole: Option<Crc64>, (range, sums)| {
            Some(whole.map_or(sums.crc64, |whole| whole.followed_by(sums.crc64, range.length)))
        });
        let whole = whole.unwrap_or_else(|| Crc64::of(b""));
        let Some(expected) = &self.expected else { return Ok(Ok(whole)) };
        let algorithm = expected.algorithm;
        let found = match (algorithm.combines(), expected.parts) {
            (true, None) if algorithm == checksum::Algorithm::Crc64Nvme => whole.0.to_be_bytes().to_vec(),
            (true, None) => self.combined(algorithm, &sums, |_| true),
            (true, Some(_)) => {
                let uploads = self.ranges.last().map_or(0, |range| range.upload + 1);
                let each: Vec<_> = (0..uploads)
                    .map(|upload| self.combined(algorithm, &sums, |range| range.upload == upload))
                    .collect();
                checksum::composite(algorithm, each.iter().map(Vec::as_slice))
            }
            // These follow from nothing but all bytes in order.
            (false, None) => digest_of(self.placing.file(), algorithm, 0, self.object.size)?,
            (false, Some(_)) => {
                let mut each: Vec<(u64, u64)> = Vec::new();
                for range in &self.ranges {
                    match each.get_mut(range.upload) {
                        Some((_, length)) => *length += range.length,
                        None => each.push((range.offset, range.length)),
                    }
                }
                let each =
                    each.iter().map(|(offset, length)| digest_of(self.placing.file(), algorithm, *offset, *length));
                let each = each.collect::<io::Result<Vec<_>>>()?;
                checksum::composite(algorithm, each.iter().map(Vec::as_slice))
            }
        };
        Ok(if found == expected.value { Ok(whole) } else { Err(algorithm) })
    }

    /// What is taken of an object of which not all is, once every part is written.
    pub(super) fn held(&self) -> Option<Vec<HeldRange>> {
        let results = self.results.lock().expect("no holder panics");
        let mut held: Vec<HeldRange> = Vec::new();
        for (range, sums) in self.ranges.iter().zip(results.iter()).filter(|_| self.in_part) {
            let checksum = sums.as_ref().expect("every part is written").crc64;
            let PartRange { offset, length, upload } = *range;
            match held.get_mut(upload) {
                Some(before) => {
                    before.checksum = before.checksum.followed_by(checksum, length);
                    before.length += length;
                }
                None => held.push(HeldRange { offset, length, checksum }),
            }
        }
        self.in_part.then_some(held)
    }

    fn combined(
        &self,
        algorithm: checksum::Algorithm,
        sums: &[&PartSums],
        takes: impl Fn(&PartRange) -> bool,
    ) -> Vec<u8> {
        let own = |sums: &PartSums| match algorithm {
            checksum::Algorithm::Crc64Nvme => sums.crc64.0.to_be_bytes().to_vec(),
            _ => sums.other.clone().unwrap_or_default(),
        };
        let parts = self.ranges.iter().zip(sums).filter(|(range, _)| takes(range));
        let whole = parts.fold(None, |whole: Option<Vec<u8>>, (range, sums)| {
            Some(match whole {
                None => own(sums),
                Some(whole) => checksum::followed_by(algorithm, &whole, &own(sums), range.length),
            })
        });
        whole.unwrap_or_default()
    }
}

/// Of bytes that are in a file.
pub(super) fn digest_of(file: &File, algorithm: checksum::Algorithm, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut digest = S3Digest::new(algorithm);
    read_range(file, offset, length, &mut vec![0; 1 << 20], |bytes| digest.update(bytes))?;
    Ok(digest.finish())
}

/// Gives every byte of a range of a file.
pub(super) fn read_range(
    file: &File,
    offset: u64,
    length: u64,
    buffer: &mut [u8],
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let room = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..room], offset + done)?;
        take(&buffer[..room]);
        done += room as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        checksum::Algorithm,
        stage::{board::Chunk, crew::Before, rows::Row},
    };

    fn of(algorithm: Algorithm, bytes: &[u8]) -> Vec<u8> {
        let mut digest = S3Digest::new(algorithm);
        digest.update(bytes);
        digest.finish()
    }

    #[test]
    fn ranges_cover_every_byte_once_and_lie_in_one_upload_each() {
        for uploads in [vec![1], vec![PART], vec![PART + 1, 5, 3 * PART], vec![5 << 20; 7]] {
            let ranges = ranges(&uploads);
            let mut end = 0;
            for range in &ranges {
                assert_eq!(range.offset, end);
                assert!(range.length <= PART && range.length > 0);
                end += range.length;
                let before: u64 = uploads[..range.upload].iter().sum();
                assert!(range.offset >= before && end <= before + uploads[range.upload]);
            }
            assert_eq!(end, uploads.iter().sum::<u64>());
        }
    }

    #[test]
    fn ranges_of_columns_cover_what_is_taken_and_the_end_is_one_of_its_own() {
        let cut = |taken: &[Range<u64>], end| {
            let ranges = ranges_of_columns(taken, end);
            ranges.iter().map(|range| (range.offset, range.length, range.upload)).collect::<Vec<_>>()
        };
        assert_eq!(cut(&[5..9, 20..30], 25), [(5, 4, 0), (20, 5, 1), (25, 5, 1)]);
        assert_eq!(cut(std::slice::from_ref(&(20..30)), 10), [(20, 10, 0)]);
        let long = 3 * PART;
        assert_eq!(
            cut(&[1..2, 7..long], long - 1),
            [(1, 1, 0), (7, PART, 1), (7 + PART, PART, 1), (7 + 2 * PART, PART - 8, 1), (long - 1, 1, 1)]
        );
    }

    #[test]
    fn every_kind_of_checksum_is_compared_with_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..40_000).map(|i| (i / 3) as u8).collect();
        let uploads = [15_000, 15_000, 10_000];
        let algorithms = Algorithm::OF_HEADERS.map(|(algorithm, _)| algorithm);
        for algorithm in algorithms.into_iter().chain([Algorithm::Md5]) {
            for composite in [false, true] {
                for right in [true, false] {
                    let each: Vec<_> =
                        [0..15_000, 15_000..30_000, 30_000..40_000].map(|r| of(algorithm, &bytes[r])).into();
                    let mut value = match composite {
                        true => checksum::composite(algorithm, each.iter().map(Vec::as_slice)),
                        false => of(algorithm, &bytes),
                    };
                    value[0] ^= u8::from(!right);
                    let expected = Expected { algorithm, value, parts: composite.then_some(3) };
                    let size = bytes.len() as u64;
                    let object = Listed { key: "k".to_owned(), size, etag: None, version_id: None };
                    let row = Row { path: "k".to_owned(), object: object.clone(), shared: None };
                    let chunk = Arc::new(Chunk::new(0, vec![row], Before::Nobody));
                    let item = Item { chunk, row: 0, tries: 0, now: None };
                    let placing = Placing::create(dir.path(), "k", size, false).unwrap();
                    placing.write_at(&bytes, 0).unwrap();
                    let large = Large::new(item, object, Some(expected), &uploads, placing, &[], None);
                    let mut last = false;
                    for (number, range) in large.ranges.iter().enumerate() {
                        let mut hasher = large.hasher();
                        hasher.update(&bytes[range.offset as usize..(range.offset + range.length) as usize]);
                        last = large.written(number, hasher.finish());
                    }
                    assert!(last);
                    let verified = large.verify().unwrap();
                    let wanted = if right { Ok(Crc64::of(&bytes)) } else { Err(algorithm) };
                    assert_eq!(verified, wanted, "{algorithm} composite {composite}");
                }
            }
        }
    }
}
