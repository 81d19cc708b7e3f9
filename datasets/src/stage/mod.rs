//! Staging: a source becomes an immutable, verified snapshot on the volume.
//!
//! 1. The source is listed. If a snapshot of exactly this listing is there, that is the result.
//! 2. `plan` says for each object whether it is fetched, or shared with the latest snapshot.
//! 3. `fetch` brings it into `staging/<nonce>/data/`: checksums verified, temporary names, every file synced.
//! 4. The manifest is written, then the commit record, then the directories are synced, and one rename makes
//!    `staging/<nonce>` the snapshot. Whoever stages the same content at the same time arrives at the same id, and the
//!    second one throws its copy away.
//!
//! An object without a checksum of S3's and without an MD5 as its ETag (a multipart or KMS-encrypted upload made
//! without checksums) is checked by length and ETag only; what TLS and TCP guarantee must do for the rest.

mod fetch;
mod plan;
pub(crate) mod retry;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use futures::{StreamExt, TryStreamExt, stream};

use self::{fetch::Fetcher, plan::Copy};
use crate::{
    columns::Columns,
    snapshot::{self, Manifest, Object, Snapshot, SnapshotError, SnapshotRecord},
    source::{ErrorKind, Source, SourceError, SourceOptions, SourceUrl},
    volume::{self, Volume, VolumeError},
};

/// Copies in flight; each holds a file open.
const COPIES: usize = 128;
/// What a stager leaves behind when it is killed is cleared away after this many seconds.
const LEFTOVER_AGE: i64 = 24 * 3600;

/// What is to be staged.
#[derive(Clone, Debug)]
pub struct StageRequest {
    /// The dataset's name on the volume.
    pub name: String,
    /// Where it comes from.
    pub url: SourceUrl,
    /// How it is reached, and what of it is taken.
    pub options: SourceOptions,
    /// The columns of its Parquet objects that are taken; none: all.
    pub columns: Option<Columns>,
}

/// How far a staging is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageProgress {
    /// So many objects have been listed.
    Listed {
        /// Objects so far.
        objects: u64,
    },
    /// The plan is made.
    Planned {
        /// Objects of the dataset.
        objects: u64,
        /// Bytes of the dataset.
        bytes: u64,
        /// Objects to be fetched.
        fetch_objects: u64,
        /// Bytes to be fetched.
        fetch_bytes: u64,
    },
    /// So much more has been fetched.
    Fetched {
        /// Objects that are complete now.
        objects: u64,
        /// Bytes that arrived.
        bytes: u64,
    },
}

/// A staged snapshot, and what staging it took.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Objects that had to be fetched.
    pub fetched_objects: u64,
    /// Bytes that had to be fetched.
    pub fetched_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Why staging failed. Nothing was published then, and nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A snapshot on the volume is broken.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Not enough room, found before the first byte.
    #[error("{needed} bytes are to be fetched, and the volume has room for {free}")]
    NoRoom {
        /// Bytes to be fetched.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// Columns are chosen, and this version fetches whole objects only.
    #[error("staging the columns {columns} alone is not supported by this version")]
    ColumnsUnsupported {
        /// Which.
        columns: Columns,
    },
    /// An unchanged object of the snapshot before is damaged on the volume.
    #[error("`{key}` of snapshot {id} is damaged on the volume: `forebay dataset verify` tells more")]
    Damaged {
        /// Its key.
        key: String,
        /// The snapshot.
        id: String,
    },
}

impl StageError {
    /// What a user can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Source(error) => error.kind(),
            Self::Snapshot(SnapshotError::BadName { .. }) | Self::ColumnsUnsupported { .. } => ErrorKind::Usage,
            _ => ErrorKind::Storage,
        }
    }
}

/// Stages a source. What is staged already is not fetched again.
pub async fn stage(
    volume: &Volume,
    request: &StageRequest,
    progress: &(dyn Fn(StageProgress) + Send + Sync),
) -> Result<Staged, StageError> {
    let started = Instant::now();
    if let Some(columns) = request.columns.clone() {
        return Err(StageError::ColumnsUnsupported { columns });
    }
    let dataset = snapshot::dataset_dir(volume, &request.name)?;
    let source = Source::connect(&request.url, &request.options).await?;
    let listing = source.list(&|objects| progress(StageProgress::Listed { objects })).await?;
    let digest = plan::digest(listing.iter().map(|object| (&*object.key, object.size, object.etag.as_deref())));
    let done = |snapshot: Snapshot, fetched_objects, fetched_bytes| {
        let seconds = started.elapsed().as_secs_f64();
        Staged { snapshot, fetched_objects, fetched_bytes, seconds }
    };

    let url = request.url.to_string();
    let tells_changes = listing.iter().all(|object| object.etag.is_some());
    let mut records = snapshot::records(volume, &request.name)?;
    let same = records.iter().rposition(|record| record.source == url && record.serves(&digest, None) && tells_changes);
    if let Some(same) = same {
        let snapshot = snapshot::load(&dataset, records.swap_remove(same))?;
        snapshot::set_latest(&dataset, &snapshot.record.id)?;
        return Ok(done(snapshot, 0, 0));
    }

    let latest = records.pop().filter(|record| record.source == url);
    let latest = latest.map(|record| snapshot::load(&dataset, record)).transpose()?;
    let none = Manifest::default();
    let copies = plan::copies(&listing, latest.as_ref().map_or(&none, |latest| &latest.manifest));
    let to_fetch = copies.iter().filter_map(|copy| match copy {
        Copy::Fetch { object, .. } => Some(object.size),
        Copy::Share { .. } => None,
    });
    let (fetch_objects, fetch_bytes) = to_fetch.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size));
    progress(StageProgress::Planned {
        objects: listing.len() as u64,
        bytes: listing.iter().map(|object| object.size).sum(),
        fetch_objects,
        fetch_bytes,
    });
    let free = volume.free_bytes().map_err(|error| VolumeError::io("inspect", volume.root(), error))?;
    if fetch_bytes > free {
        return Err(StageError::NoRoom { needed: fetch_bytes, free });
    }

    let staging = Staging::begin(volume, &dataset)?;
    let manifest = copy_all(volume, &source, &copies, latest.as_ref(), &staging.dir, progress).await?;
    let listing = manifest.objects.iter().map(|object| (&*object.key, object.size, object.etag.as_deref()));
    let record = SnapshotRecord {
        version: 1,
        id: manifest.id(),
        name: request.name.clone(),
        source: url,
        listing: plan::digest(listing),
        objects: manifest.objects.len() as u64,
        bytes: manifest.bytes(),
        created: jiff::Timestamp::now().to_string(),
        columns: None,
        held_bytes: None,
    };
    let snapshot = staging.commit(&dataset, record, manifest)?;
    Ok(done(snapshot, fetch_objects, fetch_bytes))
}

/// Executes the plan; the manifest is what is on the volume then.
async fn copy_all<'a>(
    volume: &Volume,
    source: &Source,
    copies: &'a [Copy],
    latest: Option<&Snapshot>,
    staging: &Path,
    progress: &(dyn Fn(StageProgress) + Send + Sync),
) -> Result<Manifest, StageError> {
    let data = staging.join("data");
    for copy in copies {
        let (Copy::Fetch { path, .. } | Copy::Share { path, .. }) = copy;
        let parent = data.join(path).parent().map_or_else(|| data.clone(), Path::to_owned);
        fs::create_dir_all(&parent).map_err(|error| VolumeError::io("create", &parent, error))?;
    }
    let fetcher = Fetcher::new(source, progress);
    let (fetcher, data) = (&fetcher, &data);
    let copy = |copy: &'a Copy| async move {
        match (copy, latest) {
            (Copy::Fetch { object, path }, _) => fetcher.fetch(object, path.clone(), data.join(path)).await,
            (Copy::Share { from, path }, Some(latest)) => share(volume, latest, from, path, &data.join(path)),
            (Copy::Share { .. }, None) => unreachable!("only a snapshot before can be shared with"),
        }
    };
    let mut objects: Vec<_> = stream::iter(copies).map(copy).buffer_unordered(COPIES).try_collect().await?;
    objects.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Manifest { objects })
}

fn share(volume: &Volume, latest: &Snapshot, from: &Object, path: &str, to: &Path) -> Result<Object, StageError> {
    let held = latest.data_path(volume, from)?;
    let damaged = || StageError::Damaged { key: from.key.clone(), id: latest.record.id.to_string() };
    if fs::metadata(&held).map(|meta| meta.len()).ok() != Some(from.size) {
        return Err(damaged());
    }
    volume::link_or_copy(&held, to)?;
    Ok(Object { path: path.to_owned(), ..from.clone() })
}

/// A staging directory; trashed unless it is committed.
struct Staging<'a> {
    volume: &'a Volume,
    dir: PathBuf,
}

impl<'a> Staging<'a> {
    fn begin(volume: &'a Volume, dataset: &Path) -> Result<Self, VolumeError> {
        let all = dataset.join("staging");
        let dir = all.join(volume::nonce());
        fs::create_dir_all(dir.join("data")).map_err(|error| VolumeError::io("create", &dir, error))?;
        clear_leftovers(volume, &all, &dir);
        Ok(Self { volume, dir })
    }

    fn commit(self, dataset: &Path, record: SnapshotRecord, manifest: Manifest) -> Result<Snapshot, StageError> {
        manifest.write(&self.dir.join("manifest.parquet"))?;
        volume::sync_tree(&self.dir)?;
        let text = serde_json::to_vec_pretty(&record).expect("plain fields serialise");
        volume::write_new(&self.dir.join("snapshot.json"), &text)?;
        let snapshots = dataset.join("snapshots");
        fs::create_dir_all(&snapshots).map_err(|error| VolumeError::io("create", &snapshots, error))?;
        let dir = snapshots.join(&record.id.0);
        match volume::publish_dir(&self.dir, &dir) {
            // The same content, committed by someone else or from another listing: theirs is as good.
            Ok(()) | Err(VolumeError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        snapshot::set_latest(dataset, &record.id)?;
        Ok(snapshot::load(dataset, record)?)
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.volume.trash(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "could not be removed");
        }
    }
}

/// Ages are compared in the file server's own times: that of the directory just made is now.
fn clear_leftovers(volume: &Volume, all: &Path, new: &Path) {
    let age = |path: &Path| fs::metadata(path).map(|meta| std::os::unix::fs::MetadataExt::mtime(&meta));
    let (Ok(now), Ok(entries)) = (age(new), fs::read_dir(all)) else { return };
    for entry in entries.flatten() {
        if age(&entry.path().join("data")).is_ok_and(|then| now - then > LEFTOVER_AGE) {
            let _ = volume.trash(&entry.path());
        }
    }
}
