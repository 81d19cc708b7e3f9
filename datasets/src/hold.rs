//! What keeps a snapshot: `refs/latest`, a pin, or a reader's lease; and how nobody's snapshot is removed under them.
//!
//! Who is to hold a snapshot and who is to remove one may be on different hosts, and no lock works everywhere. So both
//! take two steps, in opposite order. Who holds a snapshot first writes what shows it, a small file, and then looks
//! whether the snapshot is there. Who removes one first renames it to a name that no reader uses,
//! `snapshots/.gone-<id>-<nonce>`, and then looks whether anything shows that it is held; if so it gives the name back.
//! Whichever way the steps fall, one of the two sees the other: if the holder found the snapshot there, that was before
//! the rename, so that its file was there before the remover looked.
//!
//! A holder that finds the snapshot under the other name gives the old one back itself. The remover takes it to the
//! trash by a second rename: of these two renames one finds nothing any more, and who made it knows that it came too
//! late. No such name is used twice, so that nobody takes away what another remover, or stager, has put there since. A
//! remover that is killed in between leaves the name, and the next one looks who holds it and goes on from there.
//!
//! On a network file system each look is preceded by the creation of a file in the directory, without which the host
//! could answer from what it remembers.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    lease,
    snapshot::{self, SnapshotError, SnapshotId},
    volume::{self, Removed, Volume, VolumeError},
};

const GONE: &str = ".gone-";

/// What keeps a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// It is the one that is opened if no other is named.
    Latest,
    /// Somebody pinned it.
    Pin {
        /// Under this label.
        label: String,
    },
    /// Somebody reads it, or may go on reading it.
    Reader {
        /// Who.
        reader: String,
    },
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Pin { label } => write!(f, "pinned as {label}"),
            Self::Reader { reader } => write!(f, "read by {reader}"),
        }
    }
}

/// A pin: it keeps a snapshot until it is taken away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pin {
    /// Its label, once in a dataset.
    pub label: String,
    /// The snapshot.
    pub snapshot: SnapshotId,
}

/// Everything that keeps a dataset's snapshots now.
pub fn holds(volume: &Volume, name: &str) -> Result<Vec<(SnapshotId, Hold)>, SnapshotError> {
    let dataset = snapshot::dataset_dir(volume, name)?;
    let mut found: Vec<_> = snapshot::latest(&dataset)?.into_iter().map(|id| (id, Hold::Latest)).collect();
    found.extend(pins(volume, name)?.into_iter().map(|pin| (pin.snapshot, Hold::Pin { label: pin.label })));
    let leases = lease::leases(volume, name)?.into_iter().filter(|lease| lease.is_live());
    found.extend(leases.map(|lease| (lease.snapshot, Hold::Reader { reader: lease.reader })));
    Ok(found)
}

/// Pins a snapshot under a label, in place of what had it. Returns the snapshot's id.
///
/// # Errors
/// [`SnapshotError::NoSnapshot`] if it is not there, or was removed in this very moment.
pub fn pin(volume: &Volume, name: &str, id: Option<&str>, label: &str) -> Result<SnapshotId, SnapshotError> {
    let dataset = snapshot::dataset_dir(volume, name)?;
    let id = snapshot::find(volume, name, id)?.id;
    let path = pin_path(&dataset, label)?;
    let before = fs::read(&path).ok();
    volume::create_dirs(&dataset.join("pins"))?;
    volume::replace(&path, id.0.as_bytes())?;
    if let Err(error) = secure(&dataset, &id) {
        // As it was: a pin on nothing helps nobody.
        match before {
            Some(before) => volume::replace(&path, &before)?,
            None => fs::remove_file(&path).map_err(|error| VolumeError::io("remove", &path, error))?,
        }
        return Err(error);
    }
    Ok(id)
}

/// Takes a pin away. Says which snapshot it kept; none if there is no such pin.
pub fn unpin(volume: &Volume, name: &str, label: &str) -> Result<Option<SnapshotId>, SnapshotError> {
    let dataset = snapshot::dataset_dir(volume, name)?;
    let path = pin_path(&dataset, label)?;
    let pin = pins(volume, name)?.into_iter().find(|pin| pin.label == label);
    match fs::remove_file(&path) {
        Ok(()) => volume::sync_dir(&dataset.join("pins"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(VolumeError::io("remove", &path, error).into()),
    }
    Ok(pin.map(|pin| pin.snapshot))
}

/// The pins of a dataset, by label.
pub fn pins(volume: &Volume, name: &str) -> Result<Vec<Pin>, SnapshotError> {
    let dir = snapshot::dataset_dir(volume, name)?.join("pins");
    let mut pins = Vec::new();
    for label in volume::names(&dir)? {
        let path = dir.join(&label);
        match fs::read_to_string(&path) {
            Ok(id) => pins.push(Pin { label, snapshot: SnapshotId(id.trim().to_owned()) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(VolumeError::io("read", &path, error).into()),
        }
    }
    Ok(pins)
}

fn pin_path(dataset: &Path, label: &str) -> Result<PathBuf, SnapshotError> {
    match snapshot::is_name(label) {
        true => Ok(dataset.join("pins").join(label)),
        false => Err(SnapshotError::BadLabel { label: label.to_owned() }),
    }
}

/// What a holder does after it has shown that it holds a snapshot: makes sure that it is there, and will stay.
///
/// # Errors
/// [`SnapshotError::NoSnapshot`] if it was removed before.
pub(crate) fn secure(dataset: &Path, id: &SnapshotId) -> Result<(), SnapshotError> {
    let snapshots = dataset.join("snapshots");
    let there = snapshots.join(&id.0);
    let missing = || {
        let name = dataset.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        SnapshotError::NoSnapshot { name, id: id.to_string() }
    };
    volume::server_time(&snapshots)?.ok_or_else(missing)?;
    for (gone, of) in removals(&snapshots)? {
        if of == *id {
            restore(&gone, &there)?;
        }
    }
    match there.join("snapshot.json").try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(missing()),
        Err(error) => Err(VolumeError::io("inspect", &there, error).into()),
    }
}

fn restore(gone: &Path, there: &Path) -> Result<(), VolumeError> {
    match fs::rename(gone, there) {
        Ok(()) => there.parent().map_or(Ok(()), volume::sync_dir),
        // Somebody else has restored it, or staged it anew; or it is in the trash by now.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(VolumeError::io("restore", there, error)),
    }
}

/// What became of a snapshot that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is gone.
    Done(Removed),
    /// Somebody came to hold it in the meantime.
    Held(Vec<Hold>),
    /// Somebody else removed it.
    Gone,
}

/// Removes a snapshot that nobody holds.
pub(crate) fn remove(volume: &Volume, name: &str, id: &SnapshotId) -> Result<Removal, SnapshotError> {
    let snapshots = snapshot::dataset_dir(volume, name)?.join("snapshots");
    let there = snapshots.join(&id.0);
    let held = of(volume, name, id)?;
    if !held.is_empty() {
        return Ok(Removal::Held(held));
    }
    let gone = snapshots.join(format!("{GONE}{id}-{}", volume::nonce()));
    match fs::rename(&there, &gone) {
        Ok(()) => {}
        // Removed by somebody else; or by this process, and the reply was lost.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(VolumeError::io("remove", &there, error).into()),
    }
    finish(volume, name, id, &gone)
}

/// The second half of a removal.
fn finish(volume: &Volume, name: &str, id: &SnapshotId, gone: &Path) -> Result<Removal, SnapshotError> {
    let held = of(volume, name, id)?;
    if !held.is_empty() {
        restore(gone, &gone.with_file_name(&id.0))?;
        return Ok(Removal::Held(held));
    }
    if !gone.exists() {
        return Ok(Removal::Gone);
    }
    let removed = volume.trash(gone).map_err(|error| VolumeError::io("remove", gone, error))?;
    Ok(Removal::Done(removed))
}

/// Ends the removals that killed removers have begun.
pub(crate) fn finish_removals(volume: &Volume, name: &str) -> Result<Removed, SnapshotError> {
    let snapshots = snapshot::dataset_dir(volume, name)?.join("snapshots");
    let mut removed = Removed::default();
    for (gone, id) in removals(&snapshots)? {
        if let Removal::Done(more) = finish(volume, name, &id, &gone)? {
            removed = removed.and(more);
        }
    }
    Ok(removed)
}

/// The snapshots that are being removed.
fn removals(snapshots: &Path) -> Result<Vec<(PathBuf, SnapshotId)>, VolumeError> {
    let entries = match fs::read_dir(snapshots) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| VolumeError::io("list", snapshots, error))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| VolumeError::io("list", snapshots, error))?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| Some(name.strip_prefix(GONE)?.split_once('-')?.0));
        found.extend(id.map(|id| (entry.path(), SnapshotId(id.to_owned()))));
    }
    Ok(found)
}

/// What holds one snapshot, asked of the server.
fn of(volume: &Volume, name: &str, id: &SnapshotId) -> Result<Vec<Hold>, SnapshotError> {
    let dataset = snapshot::dataset_dir(volume, name)?;
    for dir in ["refs", "pins", "leases"] {
        volume::server_time(&dataset.join(dir))?;
    }
    Ok(holds(volume, name)?.into_iter().filter(|(held, _)| held == id).map(|(_, hold)| hold).collect())
}

#[cfg(test)]
mod tests;
