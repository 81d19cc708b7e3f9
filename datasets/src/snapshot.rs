//! A snapshot: one immutable, verified, staged copy of a source.
//!
//! The manifest says what exists; a directory listing never does. The commit record, `snapshot.json`, is written last.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, RecordBatch, StringArray, UInt64Array},
    datatypes::{DataType, Field, Schema},
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    checksum::Crc64,
    volume::{self, NewFile, Volume, VolumeError},
};

/// The digest of a manifest: the first 32 hexadecimal digits of a SHA-256 over its keys, sizes and checksums.
///
/// Equal content has equal ids, wherever and whenever it was staged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub String);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

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
    /// Of the whole object.
    pub checksum: Crc64,
}

/// What a snapshot holds, ordered by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The objects, ordered by key, no key twice.
    pub objects: Vec<Object>,
}

/// Why a manifest or a snapshot could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No such dataset on the volume.
    #[error("there is no dataset `{name}` on this volume")]
    NoDataset {
        /// Its name.
        name: String,
    },
    /// No such snapshot of it.
    #[error("the dataset `{name}` has no snapshot `{id}`")]
    NoSnapshot {
        /// The dataset.
        name: String,
        /// The id, or its beginning.
        id: String,
    },
    /// The beginning of an id fits several.
    #[error("`{id}` begins the ids of several snapshots of `{name}`")]
    Ambiguous {
        /// The dataset.
        name: String,
        /// The beginning.
        id: String,
    },
    /// A name that is no dataset's.
    #[error(
        "`{name}` is no dataset name: it takes 1 to 100 letters, digits, `.`, `_` or `-`, beginning with a letter or digit"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// The commit record cannot be understood.
    #[error("{} is not a snapshot's record", path.display())]
    BadRecord {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The manifest cannot be understood.
    #[error("{} is not a manifest", path.display())]
    BadManifest {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// The manifest is well formed and yet not what the record, or its own format, says.
    #[error("{}: {what}", path.display())]
    Inconsistent {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl Manifest {
    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.size).sum()
    }

    /// The digest of the content.
    pub fn id(&self) -> SnapshotId {
        let mut digest = Sha256::new();
        for object in &self.objects {
            // Lengths go first, so that no two manifests have the same bytes.
            digest.update((object.key.len() as u64).to_le_bytes());
            digest.update(object.key.as_bytes());
            digest.update(object.size.to_le_bytes());
            digest.update(object.checksum.0.to_le_bytes());
        }
        SnapshotId(hex(&digest.finalize()[..16]))
    }

    /// Writes the manifest as a new, synced Parquet file.
    pub fn write(&self, path: &Path) -> Result<(), SnapshotError> {
        let bad = |source| SnapshotError::BadManifest { path: path.to_owned(), source };
        let column = |of: fn(&Object) -> Option<&str>| {
            Arc::new(self.objects.iter().map(of).collect::<StringArray>()) as Arc<dyn Array>
        };
        let number = |of: fn(&Object) -> u64| {
            Arc::new(UInt64Array::from_iter_values(self.objects.iter().map(of))) as Arc<dyn Array>
        };
        let batch = RecordBatch::try_new(
            schema(),
            vec![
                column(|object| Some(&object.key)),
                column(|object| Some(&object.path)),
                number(|object| object.size),
                column(|object| object.etag.as_deref()),
                column(|object| object.version_id.as_deref()),
                number(|object| object.checksum.0),
            ],
        )
        .map_err(|error| bad(error.into()))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a level")))
            .build();
        let mut writer = ArrowWriter::try_new(NewFile::create(path)?, schema(), Some(properties)).map_err(bad)?;
        writer.write(&batch).map_err(bad)?;
        writer.into_inner().map_err(bad)?.finish()?;
        Ok(())
    }

    /// Reads a manifest. Its paths are checked when they are used, by [`Volume::resolve`].
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
            objects.extend((0..batch.num_rows()).map(|row| Object {
                key: keys.value(row).to_owned(),
                path: paths.value(row).to_owned(),
                size: sizes.value(row),
                etag: optional(etags, row),
                version_id: optional(versions, row),
                checksum: Crc64(checksums.value(row)),
            }));
        }
        if !objects.is_sorted_by(|a, b| a.key < b.key) {
            let what = "its keys are not in order".to_owned();
            return Err(SnapshotError::Inconsistent { path: path.to_owned(), what });
        }
        Ok(Self { objects })
    }
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("path", DataType::Utf8, false),
        Field::new("size", DataType::UInt64, false),
        Field::new("etag", DataType::Utf8, true),
        Field::new("version_id", DataType::Utf8, true),
        Field::new("checksum", DataType::UInt64, false),
    ]))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `snapshot.json`: the commit record. Where there is none, there is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Of this record's format.
    pub version: u32,
    /// The snapshot's id.
    pub id: SnapshotId,
    /// The dataset's name.
    pub name: String,
    /// Where it was staged from.
    pub source: String,
    /// Digest of the listing that it was staged by: key, size, ETag and version of every object, and the selection.
    pub listing: String,
    /// How many objects it has.
    pub objects: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// When it was committed, RFC 3339.
    pub created: String,
}

/// A committed snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its commit record.
    pub record: SnapshotRecord,
    /// What it holds.
    pub manifest: Manifest,
    /// Its directory on this host.
    pub dir: PathBuf,
}

impl Snapshot {
    /// Where this host finds an object.
    ///
    /// # Errors
    /// [`VolumeError::Escapes`] if the manifest's path leads out of the snapshot.
    pub fn data_path(&self, volume: &Volume, object: &Object) -> Result<PathBuf, VolumeError> {
        volume.resolve(&object.path)?;
        Ok(self.dir.join("data").join(&object.path))
    }

    /// An object's path relative to the volume's root.
    pub fn volume_path(&self, object: &Object) -> String {
        format!("datasets/{}/snapshots/{}/data/{}", self.record.name, self.record.id, object.path)
    }
}

/// The directory of a dataset, its name checked.
pub fn dataset_dir(volume: &Volume, name: &str) -> Result<PathBuf, SnapshotError> {
    let fits = (1..=100).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if fits { Ok(volume.datasets_dir().join(name)) } else { Err(SnapshotError::BadName { name: name.to_owned() }) }
}

/// Opens a snapshot: the latest, or the one whose id is, or begins with, `id`.
pub fn open(volume: &Volume, name: &str, id: Option<&str>) -> Result<Snapshot, SnapshotError> {
    let dir = dataset_dir(volume, name)?;
    let no_dataset = || SnapshotError::NoDataset { name: name.to_owned() };
    let wanted = match id {
        Some(id) => id.to_owned(),
        None => fs::read_to_string(dir.join("refs/latest")).map_err(|_| no_dataset())?.trim().to_owned(),
    };
    let records = records(volume, name)?;
    let mut fitting = records.into_iter().filter(|record| !wanted.is_empty() && record.id.0.starts_with(&wanted));
    match (fitting.next(), fitting.next()) {
        (Some(record), None) => load(&dir, record),
        (Some(_), Some(_)) => Err(SnapshotError::Ambiguous { name: name.to_owned(), id: wanted }),
        (None, _) if !dir.exists() => Err(no_dataset()),
        (None, _) => Err(SnapshotError::NoSnapshot { name: name.to_owned(), id: wanted }),
    }
}

/// Opens the snapshot of a record.
pub(crate) fn load(dataset_dir: &Path, record: SnapshotRecord) -> Result<Snapshot, SnapshotError> {
    let dir = dataset_dir.join("snapshots").join(&record.id.0);
    let path = dir.join("manifest.parquet");
    let manifest = Manifest::read(&path)?;
    if manifest.id() != record.id {
        let what = format!("it is not the manifest of snapshot {}", record.id);
        return Err(SnapshotError::Inconsistent { path, what });
    }
    Ok(Snapshot { record, manifest, dir })
}

/// The commit records of a dataset, oldest first; none for a dataset that is not there.
pub fn records(volume: &Volume, name: &str) -> Result<Vec<SnapshotRecord>, SnapshotError> {
    let dir = dataset_dir(volume, name)?.join("snapshots");
    let mut records = Vec::new();
    for id in names(&dir)? {
        let path = dir.join(id).join("snapshot.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(VolumeError::io("read", &path, error).into()),
        };
        let record: SnapshotRecord =
            serde_json::from_slice(&text).map_err(|source| SnapshotError::BadRecord { path, source })?;
        records.push(record);
    }
    records.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    Ok(records)
}

/// The datasets of a volume with their latest snapshots, by name.
pub fn list(volume: &Volume) -> Result<Vec<SnapshotRecord>, SnapshotError> {
    let mut latest = Vec::new();
    for name in names(&volume.datasets_dir())? {
        let reference = volume.datasets_dir().join(&name).join("refs/latest");
        let Ok(id) = fs::read_to_string(reference) else { continue };
        latest.extend(records(volume, &name)?.into_iter().find(|record| record.id.0 == id.trim()));
    }
    Ok(latest)
}

/// Points `refs/latest` at a snapshot.
pub(crate) fn set_latest(dataset_dir: &Path, id: &SnapshotId) -> Result<(), VolumeError> {
    let refs = dataset_dir.join("refs");
    fs::create_dir_all(&refs).map_err(|error| VolumeError::io("create", &refs, error))?;
    volume::replace(&refs.join("latest"), id.0.as_bytes())
}

/// The names in a directory, in order; none if it is not there. Hidden ones are temporary and left out.
fn names(dir: &Path) -> Result<Vec<String>, VolumeError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(VolumeError::io("list", dir, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| VolumeError::io("list", dir, error))?;
        names.extend(entry.file_name().into_string().ok().filter(|name| !name.starts_with('.')));
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str, checksum: u64) -> Object {
        let (key, path) = (key.to_owned(), key.to_owned());
        Object { key, path, size: 3, etag: Some("e".into()), version_id: None, checksum: Crc64(checksum) }
    }

    #[test]
    fn a_manifest_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = Manifest { objects: vec![object("a", u64::MAX), object("b", 0)] };
        manifest.write(&dir.path().join("m")).unwrap();
        assert_eq!(Manifest::read(&dir.path().join("m")).unwrap(), manifest);
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
