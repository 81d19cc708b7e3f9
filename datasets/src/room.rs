//! Room: what a volume has, what staging may fill it with, and what its snapshots take.
//!
//! Before the first byte is fetched, [`check`] compares what is to come with the free bytes and inodes of the file
//! system, and with the volume's quota. Both are looked at, not reserved: two stagings that begin at the same moment may
//! each fit, and not both. Who runs out of room later gets the system's error, and publishes nothing.
//!
//! What snapshots take is counted from their manifests, without a look at their files: objects of a dataset that have
//! key, size, checksum and ETag in common count once, since staging shares such ones. That is exact where they were
//! shared. It is too little where they had to be copied (a file that can have no more links and a mount without
//! reflinks), or were fetched anew because the snapshot between them had another version; and it leaves out what a file
//! system adds to a file: the rest of its last block, its inode.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    gc, results,
    snapshot::{self, Manifest, Object, SnapshotError, SnapshotId},
    volume::{self, Volume, VolumeError},
};

/// Part of a file system that is left free: manifests, journals and outputs need room too.
const RESERVE_PART: u64 = 100;
/// No more than this is left free, however large the file system.
const RESERVE_BYTES: u64 = 1 << 30;
/// No more than this many inodes are left free.
const RESERVE_INODES: u64 = 10_000;
/// Network file systems state the size of their transfers in place of a block's.
const LARGEST_BLOCK: u64 = 4096;

/// Why something will not fit.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// Not enough bytes.
    #[error(
        "{needed} bytes are needed, and the volume's file system has {free} free, of which {reserve} are kept back"
    )]
    Bytes {
        /// Bytes that are to come, each file's last block counted by half.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Bytes that are not used for datasets.
        reserve: u64,
    },
    /// Not enough inodes.
    #[error(
        "{needed} files are to come, and the volume's file system has inodes for {free}, of which {reserve} are kept back"
    )]
    Inodes {
        /// Files that are to come.
        needed: u64,
        /// Inodes free.
        free: u64,
        /// Inodes that are not used for datasets.
        reserve: u64,
    },
    /// The volume's quota would be passed.
    #[error(
        "{needed} bytes are to come, and the volume's datasets take {used} of its quota of {quota}; \
         snapshots of {reclaimable} bytes could be removed"
    )]
    Quota {
        /// Bytes that are to come.
        needed: u64,
        /// Bytes that snapshots take.
        used: u64,
        /// The quota.
        quota: u64,
        /// Bytes that come free if all snapshots that nobody holds are removed.
        reclaimable: u64,
    },
    /// A snapshot could not be counted.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl RoomError {
    /// What a user can do.
    pub fn remedy(&self) -> String {
        match self {
            Self::Quota { reclaimable: 0, .. } => {
                "raise it with `forebay volume set --quota`; every snapshot that there is is the latest, pinned or read"
                    .to_owned()
            }
            Self::Quota { reclaimable, .. } => format!(
                "`forebay dataset gc --keep-last 1` frees up to {reclaimable} bytes, `forebay volume set --quota` raises it"
            ),
            Self::Inodes { .. } => {
                "remove files, or name another volume with --volume; nothing was published".to_owned()
            }
            _ => "free some space, or name another volume with --volume; nothing was published".to_owned(),
        }
    }
}

/// What a file system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that an ordinary user may still write.
    pub free_bytes: u64,
    /// Inodes in all; none where they are not limited, or not told.
    pub inodes: Option<u64>,
    /// Inodes that are free.
    pub free_inodes: Option<u64>,
    /// Bytes of a block.
    pub block: u64,
}

impl Space {
    /// What a volume's file system has now.
    pub fn of(volume: &Volume) -> Result<Self, VolumeError> {
        Self::at(volume.root())
    }

    /// What the file system of a directory has now.
    pub fn at(dir: &Path) -> Result<Self, VolumeError> {
        let stat = rustix::fs::statvfs(dir).map_err(|error| VolumeError::io("inspect", dir, error.into()))?;
        let limited = stat.f_files > 0;
        Ok(Self {
            bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes: limited.then_some(stat.f_files),
            free_inodes: limited.then_some(stat.f_favail),
            block: stat.f_frsize,
        })
    }

    /// Bytes that so many bytes in so many files take: on average a file leaves half of its last block unused.
    pub(crate) fn taken_by(&self, bytes: u64, files: u64) -> u64 {
        bytes.saturating_add(files.saturating_mul(self.block.min(LARGEST_BLOCK) / 2))
    }

    pub(crate) fn fits(&self, bytes: u64, files: u64) -> Result<(), RoomError> {
        let needed = self.taken_by(bytes, files);
        let reserve = (self.bytes / RESERVE_PART).min(RESERVE_BYTES);
        if needed > self.free_bytes.saturating_sub(reserve) {
            return Err(RoomError::Bytes { needed, free: self.free_bytes, reserve });
        }
        if let (Some(inodes), Some(free)) = (self.inodes, self.free_inodes) {
            let reserve = (inodes / RESERVE_PART).min(RESERVE_INODES);
            if files > free.saturating_sub(reserve) {
                return Err(RoomError::Inodes { needed: files, free, reserve });
            }
        }
        Ok(())
    }
}

/// Whether so many bytes in so many new files will fit. Results give way to them ([`make_room`]). Files that are shared with another snapshot by a hard link are
/// not new, and those that are reflinks are files without bytes.
pub fn check(volume: &Volume, bytes: u64, files: u64) -> Result<(), RoomError> {
    Space::of(volume)?.fits(bytes, files)?;
    let Some(quota) = volume.quota() else { return Ok(()) };
    let used = used(volume)?.bytes;
    if used.saturating_add(bytes) > quota {
        let reclaimable = gc::reclaimable(volume)?;
        return Err(RoomError::Quota { needed: bytes, used, quota, reclaimable });
    }
    Ok(())
}

/// Lets results go, the oldest first, until so many bytes and all snapshots are within the quota.
pub fn make_room(volume: &Volume, bytes: u64) -> Result<(), RoomError> {
    let Some(quota) = volume.quota().filter(|_| results::are_there(volume)) else { return Ok(()) };
    results::fit(volume, quota.saturating_sub(used(volume)?.bytes).saturating_sub(bytes))?;
    Ok(())
}

/// Room for what staging learns only while it is at work: bytes of columns, whose places the footers tell.
pub(crate) struct Allowance {
    volume: Volume,
    space: Space,
    /// The quota, if there is one, and what of it is used.
    quota: Option<(u64, u64)>,
    taken: AtomicU64,
}

impl Allowance {
    /// What there is now.
    pub(crate) fn of(volume: &Volume) -> Result<Self, RoomError> {
        let quota = volume.quota().map(|quota| Ok::<_, SnapshotError>((quota, used(volume)?.bytes))).transpose()?;
        Ok(Self { volume: volume.clone(), space: Space::of(volume)?, quota, taken: AtomicU64::new(0) })
    }

    /// Takes so many bytes of it, if they fit beside all that were taken before.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), RoomError> {
        let needed = self.taken.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.space.fits(needed, 0)?;
        match self.quota {
            Some((quota, used)) if used.saturating_add(needed) > quota => {
                Err(RoomError::Quota { needed, used, quota, reclaimable: gc::reclaimable(&self.volume)? })
            }
            _ => Ok(()),
        }
    }
}

/// What the snapshots of a volume take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Datasets.
    pub datasets: u64,
    /// Their snapshots.
    pub snapshots: u64,
    /// Objects, those that snapshots share counted once.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Counts what the snapshots of a volume take.
pub fn used(volume: &Volume) -> Result<Used, SnapshotError> {
    let mut used = Used::default();
    for name in volume::names(&volume.datasets_dir())? {
        let records = snapshot::records(volume, &name)?;
        let mut shares = Shares::default();
        for record in &records {
            shares.add(volume, &name, &record.id)?;
        }
        used.datasets += u64::from(!records.is_empty());
        used.snapshots += records.len() as u64;
        used.objects += shares.0.len() as u64;
        used.bytes += shares.bytes();
    }
    Ok(used)
}

/// The objects of a dataset, with how many snapshots have each.
#[derive(Debug, Default)]
pub(crate) struct Shares(HashMap<u64, (u32, u64)>);

impl Shares {
    /// Counts a snapshot in. A snapshot that was removed in this moment has nothing.
    pub(crate) fn add(&mut self, volume: &Volume, name: &str, id: &SnapshotId) -> Result<(), SnapshotError> {
        for object in objects(volume, name, id)? {
            self.0.entry(identity(&object)).or_insert((0, object.held_bytes())).0 += 1;
        }
        Ok(())
    }

    /// Counts a snapshot out. Returns the bytes that no other has.
    pub(crate) fn remove(&mut self, volume: &Volume, name: &str, id: &SnapshotId) -> Result<u64, SnapshotError> {
        let mut freed = 0;
        for object in objects(volume, name, id)? {
            let identity = identity(&object);
            let Some((count, size)) = self.0.get_mut(&identity) else { continue };
            *count -= 1;
            if *count == 0 {
                freed += *size;
                self.0.remove(&identity);
            }
        }
        Ok(freed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.values().map(|(_, size)| size).sum()
    }
}

fn objects(volume: &Volume, name: &str, id: &SnapshotId) -> Result<Vec<Object>, SnapshotError> {
    let dir = snapshot::dataset_dir(volume, name)?.join("snapshots").join(&id.0);
    let path = dir.join(snapshot::MANIFEST);
    match path.try_exists() {
        Ok(false) => Ok(Vec::new()),
        Ok(true) => Ok(Manifest::read(&path)?.objects),
        Err(error) => Err(VolumeError::io("inspect", &path, error).into()),
    }
}

/// 64 bits tell a million objects apart with an error of one in 30 million; here an error costs a figure, and no data.
fn identity(object: &Object) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&object.key, &object.etag, object.size, object.checksum.0).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
