//! A reader's lease on a snapshot: as long as it lives, the snapshot is not removed.
//!
//! A lease is a file, `leases/<snapshot>.<key>.json` in the dataset's directory, that says who reads. Its reader renews
//! it by giving it the file server's present as its time of change, and removes it when it has done. Who looks at it
//! compares that time with the server's present: no host's clock is asked.
//!
//! A reader that does not renew for [`EXPIRES_AFTER`], or whose process is seen to be gone on the same host, reads no
//! longer. A reader that can go on later, as a run that was interrupted can be resumed, says for how long its lease lives
//! on without it. It also names the file with which it ends for good: once that is there, or the directory that was to
//! hold it is not, the lease has ended, whether or not its reader came to remove it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    hold,
    snapshot::{self, SnapshotError, SnapshotId},
    volume::{self, Holder, Volume, VolumeError},
};

/// Between two renewals.
pub const RENEWAL: Duration = Duration::from_secs(60);
/// A lease that was not renewed for so long has no reader, unless it says otherwise.
pub const EXPIRES_AFTER: Duration = Duration::from_secs(600);
/// How long the lease of a reader that can go on later lives without it.
pub const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

const VERSION: u32 = 1;

/// Who reads.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Tells it from all others; who comes back with the same key has the same lease.
    pub key: String,
    /// For people, such as `run x`.
    pub name: String,
    /// How long its lease lives without it.
    pub kept_for: Duration,
    /// A path below the volume's root that is there once it has ended for good.
    pub ends_with: Option<String>,
}

/// A lease that this process holds. Dropped without [`release`](Self::release), it lasts until it expires.
#[derive(Debug)]
pub struct Lease {
    dataset: PathBuf,
    id: SnapshotId,
    path: PathBuf,
    text: Vec<u8>,
}

/// A lease as others see it.
#[derive(Clone, Debug)]
pub struct FoundLease {
    /// What is read.
    pub snapshot: SnapshotId,
    /// By whom.
    pub reader: String,
    /// The reader's process; none if the lease cannot be understood.
    pub holder: Option<Holder>,
    /// Since it was last renewed.
    pub age: Duration,
    kept_for: Duration,
    ended: bool,
    path: PathBuf,
}

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    reader: String,
    holder: Holder,
    kept_for_seconds: u64,
    ends_with: Option<String>,
}

/// Takes a lease on a snapshot, which is there then, and stays.
///
/// # Errors
/// [`SnapshotError::NoSnapshot`] if it is not there.
pub fn take(volume: &Volume, name: &str, id: &SnapshotId, reader: &Reader) -> Result<Lease, SnapshotError> {
    let dataset = snapshot::dataset_dir(volume, name)?;
    let leases = dataset.join("leases");
    let content = Content {
        version: VERSION,
        reader: reader.name.clone(),
        holder: Holder::this_process(),
        kept_for_seconds: reader.kept_for.as_secs(),
        ends_with: reader.ends_with.clone(),
    };
    let text = serde_json::to_vec(&content).expect("plain fields serialise");
    let path = leases.join(format!("{id}.{}.json", reader.key));
    // Without a dataset there is nothing to read, and nothing is made.
    if !dataset.is_dir() {
        return Err(SnapshotError::NoSnapshot { name: name.to_owned(), id: id.to_string() });
    }
    volume::create_dir(&leases)?;
    let lease = Lease { dataset, id: id.clone(), path, text };
    lease.show()?;
    Ok(lease)
}

impl Lease {
    /// The snapshot.
    pub fn snapshot(&self) -> &SnapshotId {
        &self.id
    }

    fn show(&self) -> Result<(), SnapshotError> {
        volume::replace(&self.path, &self.text)?;
        hold::secure(&self.dataset, &self.id).inspect_err(|_| {
            // What is not there is not held.
            let _ = fs::remove_file(&self.path);
        })
    }

    /// Shows that the reader still reads.
    ///
    /// # Errors
    /// [`SnapshotError::NoSnapshot`] if the lease had expired, and the snapshot was removed. Any other may pass.
    pub fn renew(&self) -> Result<(), SnapshotError> {
        match volume::touch(&self.path)? {
            true => Ok(()),
            false => self.show(),
        }
    }

    /// Ends the lease.
    pub fn release(self) -> Result<(), VolumeError> {
        remove(&self.path)
    }
}

/// Ends the leases of a reader on a dataset's snapshots, whoever took them for it.
pub fn end(volume: &Volume, name: &str, key: &str) -> Result<(), SnapshotError> {
    let dir = snapshot::dataset_dir(volume, name)?.join("leases");
    for file in volume::names(&dir)? {
        if parse(&file).is_some_and(|(_, of)| of == key) {
            remove(&dir.join(file))?;
        }
    }
    Ok(())
}

/// The leases on a dataset's snapshots, live or not.
pub fn leases(volume: &Volume, name: &str) -> Result<Vec<FoundLease>, SnapshotError> {
    let dir = snapshot::dataset_dir(volume, name)?.join("leases");
    let files = volume::names(&dir)?;
    let now = match files.is_empty() {
        true => None,
        false => volume::server_time(&dir)?,
    };
    let Some(now) = now else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for file in files {
        let Some((id, _)) = parse(&file) else { continue };
        found.extend(read(volume, SnapshotId(id.to_owned()), dir.join(&file), now)?);
    }
    Ok(found)
}

/// None if it was ended in between.
fn read(
    volume: &Volume,
    snapshot: SnapshotId,
    path: PathBuf,
    now: SystemTime,
) -> Result<Option<FoundLease>, VolumeError> {
    let failed = |error| VolumeError::io("read", &path, error);
    // Opened first: a network file system asks its server for the times of what it opens.
    let file = match fs::File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let renewed = file.metadata().and_then(|meta| meta.modified()).map_err(failed)?;
    let age = now.duration_since(renewed).unwrap_or_default();
    let text = io::read_to_string(&file).map_err(failed)?;
    let content = serde_json::from_str::<Content>(&text).ok().filter(|content| content.version == VERSION);
    Ok(Some(match content {
        Some(content) => FoundLease {
            ended: content.ends_with.is_some_and(|path| has_ended(volume, &path)),
            snapshot,
            reader: content.reader,
            holder: Some(content.holder),
            age,
            kept_for: Duration::from_secs(content.kept_for_seconds),
            path,
        },
        // A later forebay's. It is believed as long as any lease could be.
        None => FoundLease {
            snapshot,
            reader: "somebody whose lease cannot be understood".to_owned(),
            holder: None,
            age,
            kept_for: KEPT_FOR,
            ended: false,
            path,
        },
    }))
}

/// In doubt, a reader has not ended.
fn has_ended(volume: &Volume, path: &str) -> bool {
    let Ok(path) = volume.resolve(path) else { return false };
    let Some(dir) = path.parent() else { return false };
    // So that the server is asked, and not this host's memory of a time before the reader came.
    let asked = dir.parent().map_or(Ok(None), volume::server_time);
    asked.is_ok() && (matches!(path.try_exists(), Ok(true)) || matches!(dir.try_exists(), Ok(false)))
}

impl FoundLease {
    /// Whether its snapshot is to be kept for its reader.
    pub fn is_live(&self) -> bool {
        let reads = self.age <= EXPIRES_AFTER && !self.holder.as_ref().is_some_and(Holder::is_gone);
        !self.ended && (reads || self.age < self.kept_for)
    }

    /// Removes what is left of a dead one.
    pub(crate) fn clear(&self) -> Result<(), VolumeError> {
        remove(&self.path)
    }
}

/// A snapshot's id holds no dot; a key may.
fn parse(file: &str) -> Option<(&str, &str)> {
    file.strip_suffix(".json")?.split_once('.')
}

fn remove(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
