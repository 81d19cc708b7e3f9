//! What of an object is held, where that is not all of it: ranges, in the manifest a list in each row.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{Array, ListArray, RecordBatch, StructArray, UInt64Array},
    buffer::{NullBuffer, OffsetBuffer},
    datatypes::{DataType, Field, Fields},
    error::ArrowError,
};
use serde::{Deserialize, Serialize};

use super::Object;
use crate::checksum::Crc64;

const COLUMN: &str = "held";

/// A range of an object that is staged in part, as far as that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRange {
    /// Its first byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// Of these bytes.
    pub checksum: Crc64,
}

impl HeldRange {
    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

impl Object {
    /// Bytes that its file holds.
    pub fn held_bytes(&self) -> u64 {
        self.held.as_ref().map_or(self.size, |held| held.iter().map(|range| range.length).sum())
    }

    /// Whether its file holds all bytes of a range. One that it does not hold would be read as zeros.
    pub fn holds(&self, range: &Range<u64>) -> bool {
        let Some(held) = &self.held else { return range.end <= self.size };
        let mut from = range.start;
        let first = held.partition_point(|held| held.end() <= from);
        for held in &held[first..] {
            if from >= range.end || held.offset > from {
                break;
            }
            from = held.end();
        }
        from >= range.end
    }

    /// Whether the ranges that are held can be such.
    pub(super) fn is_sound(&self) -> bool {
        let held = self.held.as_deref().unwrap_or_default();
        held.iter().all(|range| range.length > 0 && range.end() <= self.size)
            && held.is_sorted_by(|a, b| a.end() <= b.offset)
    }
}

/// What is held of each object; of all of them everything in a manifest that is older than the column. None if the
/// column has another type.
pub(crate) fn ranges_of(batch: &RecordBatch) -> Option<Vec<Option<Vec<HeldRange>>>> {
    let Some(column) = batch.column_by_name(COLUMN) else { return Some(vec![None; batch.num_rows()]) };
    let lists = column.as_any().downcast_ref::<ListArray>()?;
    let ranges = lists.values().as_any().downcast_ref::<StructArray>()?;
    let number = |name: &str| ranges.column_by_name(name)?.as_any().downcast_ref::<UInt64Array>();
    let (offsets, lengths, checksums) = (number("offset")?, number("length")?, number("checksum")?);
    let range = |at: usize| HeldRange {
        offset: offsets.value(at),
        length: lengths.value(at),
        checksum: Crc64(checksums.value(at)),
    };
    let of_row = |row: usize| {
        let ends = (lists.value_offsets()[row] as usize)..(lists.value_offsets()[row + 1] as usize);
        lists.is_valid(row).then(|| ends.map(range).collect())
    };
    Some((0..lists.len()).map(of_row).collect())
}

/// The column of so many rows.
pub(crate) fn column<'a>(
    rows: impl Iterator<Item = Option<&'a Vec<HeldRange>>> + Clone,
) -> Result<ListArray, ArrowError> {
    let ranges = || rows.clone().flat_map(|held| held.into_iter().flatten());
    let number =
        |of: fn(&HeldRange) -> u64| Arc::new(UInt64Array::from_iter_values(ranges().map(of))) as Arc<dyn Array>;
    let columns = vec![number(|r| r.offset), number(|r| r.length), number(|r| r.checksum.0)];
    let ranges = StructArray::try_new(range_fields(), columns, None)?;
    let lengths = OffsetBuffer::from_lengths(rows.clone().map(|held| held.map_or(0, Vec::len)));
    let partial = NullBuffer::from_iter(rows.map(|held| held.is_some()));
    ListArray::try_new(range_field(), lengths, Arc::new(ranges), Some(partial))
}

/// Named `held`, in a manifest and in a plan.
pub(crate) fn field() -> Field {
    Field::new(COLUMN, DataType::List(range_field()), true)
}

fn range_field() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(range_fields()), false))
}

fn range_fields() -> Fields {
    ["offset", "length", "checksum"].map(|name| Field::new(name, DataType::UInt64, false)).to_vec().into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use parquet::arrow::ArrowWriter;

    use super::{
        super::{Manifest, SnapshotError, batch},
        *,
    };

    fn object(key: &str, checksum: u64) -> Object {
        let (key, path) = (key.to_owned(), key.to_owned());
        Object { key, path, size: 3, etag: Some("e".into()), version_id: None, checksum: Crc64(checksum), held: None }
    }

    fn partial(key: &str, held: &[(u64, u64)]) -> Object {
        let range = |&(offset, length): &(u64, u64)| HeldRange { offset, length, checksum: Crc64(offset) };
        Object { held: Some(held.iter().map(range).collect()), size: 100, ..object(key, 1) }
    }

    #[test]
    fn what_is_held_survives_the_file_and_is_part_of_the_id() {
        let dir = tempfile::tempdir().unwrap();
        let whole = Object { size: 100, ..object("b", 1) };
        let all = [
            whole.clone(),
            partial("b", &[]),
            partial("b", &[(0, 100)]),
            partial("b", &[(0, 10), (40, 60)]),
            partial("b", &[(0, 10), (41, 59)]),
        ];
        let mut ids = std::collections::BTreeSet::new();
        for (index, object) in all.iter().enumerate() {
            let manifest = Manifest { objects: vec![self::object("a", 1), object.clone(), partial("c", &[(1, 2)])] };
            let path = dir.path().join(index.to_string());
            manifest.write(&path).unwrap();
            assert_eq!(Manifest::read(&path).unwrap(), manifest);
            assert!(ids.insert(manifest.id().0), "{object:?}");
        }
        let held = Manifest { objects: all.to_vec() };
        assert_eq!((held.bytes(), held.held_bytes(), held.is_partial()), (500, 339, true));
        // Wholes have the ids that they had before there were parts.
        let id = Manifest { objects: vec![whole] }.id();
        assert_eq!(id.0, "da0358b77d4a3cb66808ea9a05b8ff35");
    }

    #[test]
    fn a_range_is_held_if_all_of_its_bytes_are() {
        let object = partial("a", &[(10, 10), (20, 5), (40, 60)]);
        for (range, held) in [
            (10..20, true),
            (12..25, true),
            (10..26, false),
            (9..11, false),
            (24..41, false),
            (30..35, false),
            (40..100, true),
            (40..101, false),
            (30..30, true),
        ] {
            assert_eq!(object.holds(&range), held, "{range:?}");
        }
        let whole = Object { held: None, ..object };
        assert!(whole.holds(&(0..100)) && !whole.holds(&(0..101)));
    }

    #[test]
    fn a_manifest_from_before_there_were_parts_holds_wholes() {
        let dir = tempfile::tempdir().unwrap();
        let objects = vec![object("a", 1), object("b", 2)];
        let batch = batch(&objects).unwrap().project(&[0, 1, 2, 3, 4, 5]).unwrap();
        let file = fs::File::create(dir.path().join("m")).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        assert_eq!(Manifest::read(&dir.path().join("m")).unwrap().objects, objects);
    }

    #[test]
    fn held_ranges_that_cannot_be_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (index, held) in [&[(0, 101)][..], &[(40, 1), (0, 1)], &[(0, 5), (4, 2)], &[(0, 0)], &[(5, u64::MAX)]]
            .into_iter()
            .enumerate()
        {
            let path = dir.path().join(index.to_string());
            Manifest { objects: vec![partial("a", held)] }.write(&path).unwrap();
            let read = Manifest::read(&path);
            assert!(matches!(read, Err(SnapshotError::Inconsistent { .. })), "{held:?}");
        }
    }
}
