//! A manifest: the list of a snapshot's objects, or of an output's files, as a Parquet file.

pub(crate) mod held;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, RecordBatch, StringArray, UInt64Array},
    datatypes::{DataType, Field, Schema},
    error::ArrowError,
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
};
use sha2::{Digest, Sha256};

pub use self::held::HeldRange;
use super::{SnapshotError, SnapshotId, hex};
use crate::{
    checksum::Crc64,
    volume::{NewFile, VolumeError},
};

/// Rows made into columns at once. An Arrow text column ends at 2 GiB, and a key has up to 1 KiB.
const BATCH: usize = 4 << 10;
/// Rows of a row group: what a reader and a writer hold in memory.
const GROUP: usize = 64 << 10;
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
        self.objects.iter().for_each(|object| digest_object(&mut digest, object));
        id_of(digest)
    }

    /// Writes the manifest as a new, synced Parquet file.
    pub fn write(&self, path: &Path) -> Result<(), SnapshotError> {
        let mut writer = ManifestWriter::create(path)?;
        self.objects.iter().try_for_each(|object| writer.push(object.clone()))?;
        writer.finish().map(drop)
    }

    /// Reads a manifest. Its paths are checked when they are used, by [`Volume::resolve`](crate::volume::Volume::resolve).
    pub fn read(path: &Path) -> Result<Self, SnapshotError> {
        Ok(Self { objects: objects(path)?.collect::<Result<_, _>>()? })
    }
}

/// The objects of a manifest, read as they are asked for.
pub(crate) fn objects(
    path: &Path,
) -> Result<impl Iterator<Item = Result<Object, SnapshotError>> + use<>, SnapshotError> {
    let bad = |source| SnapshotError::BadManifest { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(|error| VolumeError::io("open", path, error))?;
    let batches = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build()).map_err(bad)?;
    let path = path.to_owned();
    let mut last: Option<String> = None;
    let batches = batches.map(move |batch| {
        let bad = |source| SnapshotError::BadManifest { path: path.clone(), source };
        let inconsistent = |what| SnapshotError::Inconsistent { path: path.clone(), what };
        let objects = objects_of(&batch.map_err(|error| bad(error.into()))?).map_err(inconsistent)?;
        for object in &objects {
            if last.as_ref().is_some_and(|last| *last >= object.key) {
                return Err(inconsistent("its keys are not in order".to_owned()));
            }
            if !object.is_sound() {
                let what = format!("what is held of `{}` is not in order, or lies outside of it", object.key);
                return Err(inconsistent(what));
            }
            last = Some(object.key.clone());
        }
        Ok(objects)
    });
    Ok(batches.flat_map(|objects| match objects {
        Ok(objects) => objects.into_iter().map(Ok).collect::<Vec<_>>(),
        Err(error) => vec![Err(error)],
    }))
}

/// The digest of the content of a manifest, read piece by piece.
pub(super) fn id_in(path: &Path) -> Result<SnapshotId, SnapshotError> {
    let mut digest = Sha256::new();
    for object in objects(path)? {
        digest_object(&mut digest, &object?);
    }
    Ok(id_of(digest))
}

/// The objects of a batch, or what is wrong with it.
fn objects_of(batch: &RecordBatch) -> Result<Vec<Object>, String> {
    let missing = |name: &str| format!("it has no column `{name}` of the right type");
    let text = |name: &str| {
        let column = batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref::<StringArray>());
        column.ok_or_else(|| missing(name))
    };
    let number = |name: &str| {
        let column = batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref::<UInt64Array>());
        column.ok_or_else(|| missing(name))
    };
    let optional = |column: &StringArray, row| column.is_valid(row).then(|| column.value(row).to_owned());
    let (keys, paths, sizes) = (text("key")?, text("path")?, number("size")?);
    let (etags, versions, checksums) = (text("etag")?, text("version_id")?, number("checksum")?);
    let held = held::ranges_of(batch).ok_or_else(|| missing("held"))?;
    let object = |(row, held)| Object {
        key: keys.value(row).to_owned(),
        path: paths.value(row).to_owned(),
        size: sizes.value(row),
        etag: optional(etags, row),
        version_id: optional(versions, row),
        checksum: Crc64(checksums.value(row)),
        held,
    };
    Ok((0..batch.num_rows()).zip(held).map(object).collect())
}

/// An error of the file under Parquet is the volume's.
fn failed(path: &Path) -> impl Fn(ParquetError) -> SnapshotError + use<'_> {
    |source| match source {
        ParquetError::External(error) if error.is::<io::Error>() => {
            let error = *error.downcast::<io::Error>().expect("just looked at");
            VolumeError::io("write", path, error).into()
        }
        source => SnapshotError::BadManifest { path: path.to_owned(), source },
    }
}

/// Writes a manifest object by object, ordered by key, and computes its id.
pub(crate) struct ManifestWriter {
    path: PathBuf,
    writer: ArrowWriter<NewFile>,
    rows: Vec<Object>,
    digest: Sha256,
    objects: u64,
    bytes: u64,
    held_bytes: u64,
    partial: bool,
}

/// What a manifest came to.
pub(crate) struct Written {
    pub id: SnapshotId,
    pub objects: u64,
    pub bytes: u64,
    /// Bytes that are held, if of any object only a part is.
    pub held_bytes: Option<u64>,
}

impl ManifestWriter {
    pub(crate) fn create(path: &Path) -> Result<Self, SnapshotError> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a level")))
            .set_max_row_group_row_count(Some(GROUP))
            .build();
        let writer = ArrowWriter::try_new(NewFile::create(path)?, schema(), Some(properties)).map_err(failed(path))?;
        let (rows, digest) = (Vec::new(), Sha256::new());
        Ok(Self { path: path.to_owned(), writer, rows, digest, objects: 0, bytes: 0, held_bytes: 0, partial: false })
    }

    pub(crate) fn push(&mut self, object: Object) -> Result<(), SnapshotError> {
        digest_object(&mut self.digest, &object);
        self.objects += 1;
        self.bytes += object.size;
        self.held_bytes += object.held_bytes();
        self.partial |= object.held.is_some();
        self.rows.push(object);
        if self.rows.len() == BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), SnapshotError> {
        let batch = batch(&self.rows).map_err(|error| failed(&self.path)(error.into()))?;
        self.writer.write(&batch).map_err(failed(&self.path))?;
        self.rows.clear();
        Ok(())
    }

    /// Syncs the file and gives it its name.
    pub(crate) fn finish(mut self) -> Result<Written, SnapshotError> {
        self.flush()?;
        let Self { path, writer, digest, objects, bytes, held_bytes, partial, .. } = self;
        let file = writer.into_inner().map_err(failed(&path))?;
        file.finish()?;
        Ok(Written { id: id_of(digest), objects, bytes, held_bytes: partial.then_some(held_bytes) })
    }
}

fn digest_object(digest: &mut Sha256, object: &Object) {
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

fn id_of(digest: Sha256) -> SnapshotId {
    SnapshotId(hex(&digest.finalize()[..16]))
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
        Arc::new(held::column(rows.iter().map(|object| object.held.as_ref()))?),
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
        held::field(),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str, checksum: u64) -> Object {
        let (key, path) = (key.to_owned(), key.to_owned());
        Object { key, path, size: 3, etag: Some("e".into()), version_id: None, checksum: Crc64(checksum), held: None }
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
