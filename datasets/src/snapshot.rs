//! A snapshot: one immutable, verified, staged copy of a source.
//!
//! The manifest says what exists; a directory listing never does. The commit record, `snapshot.json`, is written last.

mod manifest;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::manifest::{HeldRange, Manifest, Object};
pub(crate) use self::manifest::{ManifestWriter, held, objects};
use crate::{
    columns::Columns,
    hold,
    volume::{self, Volume, VolumeError},
};

pub(crate) const MANIFEST: &str = "manifest.parquet";
/// The version of the commit record's format.
pub(crate) const FORMAT: u32 = 2;
/// That of a snapshot which is held whole, as any forebay reads it.
pub(crate) const FORMAT_OF_WHOLES: u32 = 1;

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
    /// Nothing was staged before it.
    #[error("the dataset `{name}` has no snapshot before {id}")]
    NoneBefore {
        /// The dataset.
        name: String,
        /// The snapshot.
        id: SnapshotId,
    },
    /// A name that is no dataset's.
    #[error(
        "`{name}` is no dataset name: it takes 1 to 100 letters, digits, `.`, `_` or `-`, beginning with a letter or digit"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// A label that no pin can have.
    #[error(
        "`{label}` is no label: it takes 1 to 100 letters, digits, `.`, `_` or `-`, beginning with a letter or digit"
    )]
    BadLabel {
        /// The label.
        label: String,
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
    /// A later forebay wrote it.
    #[error("{} has format {found}, and this forebay knows only {FORMAT}", path.display())]
    TooNew {
        /// Its path.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The manifest or the record is well formed and yet not what the record, or its own format, says.
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

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `snapshot.json`: the commit record. Where there is none, there is no snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Of this record's format.
    pub version: u32,
    /// The snapshot's id.
    pub id: SnapshotId,
    /// The dataset's name.
    pub name: String,
    /// Where it was staged from.
    pub source: String,
    /// Digest of the listing that it was staged by: key, size and ETag of every selected object.
    pub listing: String,
    /// How many objects it has.
    pub objects: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// When it was committed, RFC 3339.
    pub created: String,
    /// If of any object only a part is held: the columns that it was staged for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// If of any object only a part is held: how many bytes are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_bytes: Option<u64>,
    /// What had to be fetched for it, and how long that took whoever committed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<Fetched>,
}

/// How a staging went.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fetched {
    /// Objects that were fetched.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long it took, with listing and planning.
    pub seconds: f64,
}

impl SnapshotRecord {
    /// Whether this snapshot is what staging a listing would give, or holds more: `whole` is the digest of the listing,
    /// and `wanted` the columns that are to be staged, of none all. A whole snapshot serves any columns, and one of
    /// some columns serves fewer; it never serves as a whole.
    pub fn serves(&self, whole: &str, wanted: Option<&Columns>) -> bool {
        match (&self.columns, wanted) {
            (None, _) => self.listing == whole,
            (Some(held), Some(wanted)) => held.contain_all(wanted) && self.listing == held.listing(whole),
            (Some(_), None) => false,
        }
    }
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

    /// An object's path relative to the volume's root; [`of_volume_path`] is the way back.
    pub fn volume_path(&self, object: &Object) -> String {
        self.record.volume_path(object)
    }
}

impl SnapshotRecord {
    /// Its directory on this host.
    ///
    /// # Errors
    /// [`SnapshotError::BadName`] of a record that no staging has written.
    pub fn dir(&self, volume: &Volume) -> Result<PathBuf, SnapshotError> {
        Ok(dataset_dir(volume, &self.name)?.join("snapshots").join(&self.id.0))
    }

    /// The path of one of its objects relative to the volume's root.
    pub(crate) fn volume_path(&self, object: &Object) -> String {
        format!("datasets/{}/snapshots/{}/data/{}", self.name, self.id, object.path)
    }
}

/// The directory of a dataset, its name checked.
pub fn dataset_dir(volume: &Volume, name: &str) -> Result<PathBuf, SnapshotError> {
    match is_name(name) {
        true => Ok(volume.datasets_dir().join(name)),
        false => Err(SnapshotError::BadName { name: name.to_owned() }),
    }
}

/// Whether a text can name a dataset or a pin.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

/// Opens a snapshot: the latest, or the one whose id is, or begins with, `id`.
pub fn open(volume: &Volume, name: &str, id: Option<&str>) -> Result<Snapshot, SnapshotError> {
    load(volume, find(volume, name, id)?)
}

/// The record of the latest snapshot, or of the one whose id is, or begins with, `id`.
pub fn find(volume: &Volume, name: &str, id: Option<&str>) -> Result<SnapshotRecord, SnapshotError> {
    let dir = dataset_dir(volume, name)?;
    let no_dataset = || SnapshotError::NoDataset { name: name.to_owned() };
    let wanted = match id {
        Some(id) => id.to_owned(),
        None => latest(&dir)?.ok_or_else(no_dataset)?.0,
    };
    let records = records(volume, name)?;
    let mut fitting = records.into_iter().filter(|record| !wanted.is_empty() && record.id.0.starts_with(&wanted));
    match (fitting.next(), fitting.next()) {
        (Some(record), None) => Ok(record),
        (Some(_), Some(_)) => Err(SnapshotError::Ambiguous { name: name.to_owned(), id: wanted }),
        (None, _) if !dir.exists() => Err(no_dataset()),
        (None, _) => Err(SnapshotError::NoSnapshot { name: name.to_owned(), id: wanted }),
    }
}

/// Opens the snapshot that an object's path relative to the volume's root leads into.
///
/// # Errors
/// [`VolumeError::Escapes`] if it leads into none.
pub fn of_volume_path(volume: &Volume, path: &str) -> Result<Snapshot, SnapshotError> {
    match path.split('/').collect::<Vec<_>>()[..] {
        ["datasets", name, "snapshots", id, "data", _, ..] => open(volume, name, Some(id)),
        _ => Err(VolumeError::Escapes { path: path.to_owned() }.into()),
    }
}

/// Opens the snapshot of a record.
pub fn load(volume: &Volume, record: SnapshotRecord) -> Result<Snapshot, SnapshotError> {
    let dir = record.dir(volume)?;
    let path = dir.join(MANIFEST);
    let manifest = Manifest::read(&path)?;
    if manifest.id() != record.id {
        return Err(not_of(path, &record));
    }
    Ok(Snapshot { record, manifest, dir })
}

/// Whether a snapshot's manifest is there and the one of its record, without holding it in memory.
pub(crate) fn check_manifest(volume: &Volume, record: &SnapshotRecord) -> Result<(), SnapshotError> {
    let path = record.dir(volume)?.join(MANIFEST);
    match manifest::id_in(&path)? == record.id {
        true => Ok(()),
        false => Err(not_of(path, record)),
    }
}

fn not_of(path: PathBuf, record: &SnapshotRecord) -> SnapshotError {
    SnapshotError::Inconsistent { path, what: format!("it is not the manifest of snapshot {}", record.id) }
}

/// The commit records of a dataset, oldest first; none for a dataset that is not there.
pub fn records(volume: &Volume, name: &str) -> Result<Vec<SnapshotRecord>, SnapshotError> {
    let dir = dataset_dir(volume, name)?.join("snapshots");
    let mut records = Vec::new();
    for id in volume::names(&dir)? {
        let path = dir.join(&id).join("snapshot.json");
        let text = match volume::looking_again(&path, |path| fs::read(path)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(VolumeError::io("read", &path, error).into()),
        };
        let record: SnapshotRecord =
            serde_json::from_slice(&text).map_err(|source| SnapshotError::BadRecord { path: path.clone(), source })?;
        if record.version > FORMAT {
            return Err(SnapshotError::TooNew { path, found: record.version });
        }
        // Paths are made of both, so that they are not taken on trust.
        if record.id.0 != id || record.name != name {
            let what = format!("it is the record of snapshot `{}` of `{}`", record.id, record.name);
            return Err(SnapshotError::Inconsistent { path, what });
        }
        records.push(record);
    }
    records.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    Ok(records)
}

/// The datasets of a volume with their latest snapshots, by name.
pub fn list(volume: &Volume) -> Result<Vec<SnapshotRecord>, SnapshotError> {
    let mut found = Vec::new();
    for name in volume::names(&volume.datasets_dir())? {
        let Some(id) = self::latest(&volume.datasets_dir().join(&name))? else { continue };
        found.extend(records(volume, &name)?.into_iter().find(|record| record.id == id));
    }
    Ok(found)
}

/// What `refs/latest` points at; none in a dataset that was never staged.
pub(crate) fn latest(dataset_dir: &Path) -> Result<Option<SnapshotId>, VolumeError> {
    let path = dataset_dir.join("refs/latest");
    match volume::looking_again(&path, |path| fs::read_to_string(path)) {
        Ok(id) => Ok(Some(SnapshotId(id.trim().to_owned()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(VolumeError::io("read", &path, error)),
    }
}

/// Points `refs/latest` at a snapshot.
///
/// # Errors
/// [`SnapshotError::NoSnapshot`] if it was removed in this very moment; the reference is then as it was.
pub(crate) fn set_latest(dataset_dir: &Path, id: &SnapshotId) -> Result<(), SnapshotError> {
    let refs = dataset_dir.join("refs");
    let before = latest(dataset_dir)?;
    if before.as_ref() == Some(id) {
        return hold::secure(dataset_dir, id);
    }
    volume::create_dirs(&refs)?;
    volume::replace(&refs.join("latest"), id.0.as_bytes())?;
    let secured = hold::secure(dataset_dir, id);
    if let (Err(_), Some(before)) = (&secured, before) {
        volume::replace(&refs.join("latest"), before.0.as_bytes())?;
    }
    secured
}

#[cfg(test)]
mod tests;
