//! Pins: `pins/<label>` in a dataset's directory holds the id of a snapshot, and keeps it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::secure;
use crate::{
    snapshot::{self, SnapshotError, SnapshotId},
    volume::{self, Volume, VolumeError},
};

/// A pin: it keeps a snapshot until it is taken away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pin {
    /// Its label, once in a dataset.
    pub label: String,
    /// The snapshot.
    pub snapshot: SnapshotId,
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
