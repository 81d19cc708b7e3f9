//! A manifest: the list of a snapshot's objects, or of an output's files, as a Parquet file.

use std::{fs, ops::Range, path::Path, sync::Arc};

use arrow::{
    array::{Array, ListArray, RecordBatch, StringArray, StructArray, UInt64Array},
    buffer::{NullBuffer, OffsetBuffer},
    datatypes::{DataType, Field, Fields, Schema},
    error::ArrowError,
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{SnapshotError, SnapshotId, hex};
use crate::{
    checksum::Crc64,
    volume::{NewFile, VolumeError},
};

/// Rows made into columns at once. An Arrow text column ends at 2 GiB, and a key has up to 1 KiB.
const BATCH: usize = 64 << 10;
/// Marks an object that is held in part where its digest begins; no key is so long.
const PARTIAL: u64 = 1 << 63;

/// One object of a snapshot, or one file of a published output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its key below the source's prefix.
    pub key: String,
    /// Its path below the snapshot's `data/`; the key itself, unless the key is no usable path.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// As the source gave it; for files, from size and modification time.
    pub etag: Option<String>,
    /// Where the bucket is versioned.
    pub version_id: Option<String>,
    /// Of the whole object; of one that is held in part, of the bytes that are held, one after the other.
    pub checksum: Crc64,
    /// The ranges that the file holds, in order and disjoint, where it does not hold all: holes elsewhere.
    pub held: Option<Vec<HeldRange>>,
}

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
    fn is_sound(&self) -> bool {
        let held = self.held.as_deref().unwrap_or_default();
        held.iter().all(|range| range.length > 0 && range.end() <= self.size)
            && held.is_sorted_by(|a, b| a.end() <= b.offset)
    }
}

/// What a snapshot holds, ordered by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The objects, ordered by key, no key twice.
    pub objects: Vec<Object>,
}

impl Manifest {
    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.size).sum()
    }

    /// Bytes that are held of all objects.
    pub fn held_bytes(&self) -> u64 {
        self.objects.iter().map(Object::held_bytes).sum()
    }

    /// Whether of any object only a part is held.
    pub fn is_partial(&self) -> bool {
        self.objects.iter().any(|object| object.held.is_some())
    }

    /// The digest of the content, of what is held.
    pub fn id(&self) -> SnapshotId {
        let mut digest = Sha256::new();
        for object in &self.objects {
            // Lengths go first, so that no two manifests have the same bytes.
            let partial = if object.held.is_some() { PARTIAL } else { 0 };
            digest.update((object.key.len() as u64 | partial).to_le_bytes());
            digest.update(object.key.as_bytes());
            digest.update(object.size.to_le_bytes());
            digest.update(object.checksum.0.to_le_bytes());
            if let Some(held) = &object.held {
                digest.update((held.len() as u64).to_le_bytes());
                for number in held.iter().flat_map(|range| [range.offset, range.length, range.checksum.0]) {
                    digest.update(number.to_le_bytes());
                }
            }
        }
        SnapshotId(hex(&digest.finalize()[..16]))
    }

    /// Writes the manifest as a new, synced Parquet file.
    pub fn write(&self, path: &Path) -> Result<(), SnapshotError> {
        let bad = |source| SnapshotError::BadManifest { path: path.to_owned(), source };
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a level")))
            .build();
        let mut writer = ArrowWriter::try_new(NewFile::create(path)?, schema(), Some(properties)).map_err(bad)?;
        for rows in self.objects.chunks(BATCH) {
            writer.write(&batch(rows).map_err(|error| bad(error.into()))?).map_err(bad)?;
        }
        writer.into_inner().map_err(bad)?.finish()?;
        Ok(())
    }

    /// Reads a manifest. Its paths are checked when they are used, by [`Volume::resolve`](crate::volume::Volume::resolve).
    pub fn read(path: &Path) -> Result<Self, SnapshotError> {
        let bad = |source| SnapshotError::BadManifest { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(|error| VolumeError::io("open", path, error))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(bad)?;
        let mut objects = Vec::new();
        for batch in builder.build().map_err(bad)? {
            let batch = batch.map_err(|error| bad(error.into()))?;
            let missing = |name: &str| SnapshotError::Inconsistent {
                path: path.to_owned(),
                what: format!("it has no column `{name}` of the right type"),
            };
            let text = |name: &str| {
                let column =
                    batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref::<StringArray>());
                column.ok_or_else(|| missing(name))
            };
            let number = |name: &str| {
                let column =
                    batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref::<UInt64Array>());
                column.ok_or_else(|| missing(name))
            };
            let optional = |column: &StringArray, row| column.is_valid(row).then(|| column.value(row).to_owned());
            let (keys, paths, sizes) = (text("key")?, text("path")?, number("size")?);
            let (etags, versions, checksums) = (text("etag")?, text("version_id")?, number("checksum")?);
            let held = held_of(&batch).ok_or_else(|| missing("held"))?;
            objects.extend((0..batch.num_rows()).zip(held).map(|(row, held)| Object {
                key: keys.value(row).to_owned(),
                path: paths.value(row).to_owned(),
                size: sizes.value(row),
                etag: optional(etags, row),
                version_id: optional(versions, row),
                checksum: Crc64(checksums.value(row)),
                held,
            }));
        }
        if !objects.is_sorted_by(|a, b| a.key < b.key) {
            let what = "its keys are not in order".to_owned();
            return Err(SnapshotError::Inconsistent { path: path.to_owned(), what });
        }
        if let Some(object) = objects.iter().find(|object| !object.is_sound()) {
            let what = format!("what is held of `{}` is not in order, or lies outside of it", object.key);
            return Err(SnapshotError::Inconsistent { path: path.to_owned(), what });
        }
        Ok(Self { objects })
    }
}

/// What is held of each object; of all of them everything in a manifest that is older than the column. None if the
/// column has another type.
fn held_of(batch: &RecordBatch) -> Option<Vec<Option<Vec<HeldRange>>>> {
    let Some(column) = batch.column_by_name("held") else { return Some(vec![None; batch.num_rows()]) };
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

fn held_column(rows: &[Object]) -> Result<ListArray, ArrowError> {
    let ranges = || rows.iter().flat_map(|object| object.held.iter().flatten());
    let number =
        |of: fn(&HeldRange) -> u64| Arc::new(UInt64Array::from_iter_values(ranges().map(of))) as Arc<dyn Array>;
    let columns = vec![number(|r| r.offset), number(|r| r.length), number(|r| r.checksum.0)];
    let ranges = StructArray::try_new(range_fields(), columns, None)?;
    let lengths = OffsetBuffer::from_lengths(rows.iter().map(|object| object.held.as_ref().map_or(0, Vec::len)));
    let partial = NullBuffer::from_iter(rows.iter().map(|object| object.held.is_some()));
    ListArray::try_new(Arc::new(range_field()), lengths, Arc::new(ranges), Some(partial))
}

fn range_field() -> Field {
    Field::new("item", DataType::Struct(range_fields()), false)
}

fn range_fields() -> Fields {
    ["offset", "length", "checksum"].map(|name| Field::new(name, DataType::UInt64, false)).to_vec().into()
}

fn batch(rows: &[Object]) -> Result<RecordBatch, ArrowError> {
    let text =
        |of: fn(&Object) -> Option<&str>| Arc::new(rows.iter().map(of).collect::<StringArray>()) as Arc<dyn Array>;
    let number =
        |of: fn(&Object) -> u64| Arc::new(UInt64Array::from_iter_values(rows.iter().map(of))) as Arc<dyn Array>;
    let columns = vec![
        text(|object| Some(&object.key)),
        text(|object| Some(&object.path)),
        number(|object| object.size),
        text(|object| object.etag.as_deref()),
        text(|object| object.version_id.as_deref()),
        number(|object| object.checksum.0),
        Arc::new(held_column(rows)?),
    ];
    RecordBatch::try_new(schema(), columns)
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("path", DataType::Utf8, false),
        Field::new("size", DataType::UInt64, false),
        Field::new("etag", DataType::Utf8, true),
        Field::new("version_id", DataType::Utf8, true),
        Field::new("checksum", DataType::UInt64, false),
        Field::new("held", DataType::List(Arc::new(range_field())), true),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str, checksum: u64) -> Object {
        let (key, path) = (key.to_owned(), key.to_owned());
        Object { key, path, size: 3, etag: Some("e".into()), version_id: None, checksum: Crc64(checksum), held: None }
    }

    fn partial(key: &str, held: &[(u64, u64)]) -> Object {
        let range = |&(offset, length): &(u64, u64)| HeldRange { offset, length, checksum: Crc64(offset) };
        Object { held: Some(held.iter().map(range).collect()), size: 100, ..object(key, 1) }
    }

    #[test]
    fn a_manifest_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = Manifest { objects: vec![object("a", u64::MAX), object("b", 0)] };
        manifest.write(&dir.path().join("m")).unwrap();
        assert_eq!(Manifest::read(&dir.path().join("m")).unwrap(), manifest);
    }

    #[test]
    fn a_manifest_may_be_empty_or_longer_than_a_batch() {
        let dir = tempfile::tempdir().unwrap();
        for count in [0, BATCH + 1] {
            let objects = (0..count).map(|i| object(&format!("{i:08}"), i as u64)).collect();
            let (manifest, path) = (Manifest { objects }, dir.path().join(format!("{count}")));
            manifest.write(&path).unwrap();
            assert!(Manifest::read(&path).unwrap() == manifest, "{count}");
        }
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

    #[test]
    fn the_id_tells_contents_apart() {
        let id = |objects| Manifest { objects }.id();
        assert_ne!(id(vec![object("a", 1)]), id(vec![object("a", 2)]));
        assert_ne!(id(vec![object("a", 1)]), id(vec![object("b", 1)]));
        assert_eq!(id(vec![]).0.len(), 32);
    }

    #[test]
    fn keys_out_of_order_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        Manifest { objects: vec![object("b", 1), object("a", 1)] }.write(&dir.path().join("m")).unwrap();
        assert!(matches!(Manifest::read(&dir.path().join("m")), Err(SnapshotError::Inconsistent { .. })));
    }
}
