//! What keeps a snapshot: `refs/latest`, a pin, or a reader's lease; and how nobody's snapshot is removed under them.
//!
//! Who is to hold a snapshot and who is to remove one may be on different hosts, and no lock works everywhere. So both
//! first show what they are about to do, in a file, and then look for the other's:
//!
//! - A holder writes what shows its hold. Then it waits until no remover shows itself that may have looked before; and
//!   then it looks whether the snapshot is there.
//! - A remover shows itself, `snapshots/.going-<id>-<nonce>`. Then it looks who holds the snapshot. If nobody does, it
//!   renames it to a name that no reader uses, `.gone-<id>-<nonce>`, and looks again.
//!
//! Whichever way the steps fall, one of the two sees the other: a remover that the holder did not see showed itself later,
//! and so finds the hold. The second look is for a holder that lost patience with a remover that had stopped: it gives
//! the name back. So does a holder that finds the snapshot under the other name. A remover takes it from there to the
//! trash by a second rename: of two such renames one finds nothing any more, and who made it knows that it came too
//! late. No such name is used twice, so that nobody takes away what another remover, or stager, has put there since. A
//! remover that is killed leaves its names, and the next one looks who holds the snapshot and goes on from there.
//!
//! On a network file system each look is preceded by the creation of a file in the directory, without which the host
//! could answer from what it remembers.

mod pins;

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

pub use self::pins::{Pin, pin, pins, unpin};
use crate::{
    lease,
    snapshot::{self, SnapshotError, SnapshotId},
    volume::{self, Holder, Removed, Volume, VolumeError},
};

const GOING: &str = ".going-";
const GONE: &str = ".gone-";
/// How long a holder waits for removers that have shown themselves; they take some looks and a rename.
const PATIENCE: Duration = Duration::from_secs(30);
/// A remover that took longer than this to look looks again.
const IN_TIME: Duration = Duration::from_secs(10);
/// Between two looks for removers: no file server tells when a name goes.
const LOOK: Duration = Duration::from_millis(10);

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

/// Everything that keeps a dataset's snapshots now.
pub fn holds(volume: &Volume, name: &str) -> Result<Vec<(SnapshotId, Hold)>, SnapshotError> {
    let dataset = snapshot::dataset_dir(volume, name)?;
    let mut found: Vec<_> = snapshot::latest(&dataset)?.into_iter().map(|id| (id, Hold::Latest)).collect();
    found.extend(pins(volume, name)?.into_iter().map(|pin| (pin.snapshot, Hold::Pin { label: pin.label })));
    let leases = lease::leases(volume, name)?.into_iter().filter(|lease| lease.is_live());
    found.extend(leases.map(|lease| (lease.snapshot, Hold::Reader { reader: lease.reader })));
    Ok(found)
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
    if !await_removers(&snapshots, id, PATIENCE)? {
        tracing::warn!(path = %there.display(), "somebody was about to remove it and does not go on");
    }
    for (gone, of) in named(&snapshots, GONE)? {
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

/// Waits for the removers that show themselves now; whoever shows itself later finds the hold. False if that took too long.
fn await_removers(snapshots: &Path, id: &SnapshotId, patience: Duration) -> Result<bool, VolumeError> {
    let begun = Instant::now();
    let mut removers: Vec<_> = named(snapshots, GOING)?.into_iter().filter(|(_, of)| of == id).collect();
    loop {
        removers.retain(|(path, _)| is_at_work(path));
        if removers.is_empty() || begun.elapsed() > patience {
            return Ok(removers.is_empty());
        }
        // Removers on other hosts give no event.
        thread::sleep(LOOK);
        volume::server_time(snapshots)?;
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
    let gone = snapshots.join(format!("{GONE}{id}-{}", volume::nonce()));
    loop {
        let going = Going::announce(&snapshots, id)?;
        let held = of(volume, name, id)?;
        if !held.is_empty() {
            return Ok(Removal::Held(held));
        }
        if going.since.elapsed() > IN_TIME {
            continue;
        }
        match fs::rename(&there, &gone) {
            Ok(()) => {}
            // Removed by somebody else; or by this process, and the reply was lost.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(VolumeError::io("remove", &there, error).into()),
        }
        return finish(volume, name, id, &gone, Some(going));
    }
}

/// Shows that a snapshot may be on its way out.
struct Going {
    path: PathBuf,
    since: Instant,
}

impl Going {
    fn announce(snapshots: &Path, id: &SnapshotId) -> Result<Self, VolumeError> {
        let going = Self { path: snapshots.join(format!("{GOING}{id}-{}", volume::nonce())), since: Instant::now() };
        let holder = serde_json::to_vec(&Holder::this_process()).expect("plain fields serialise");
        volume::replace(&going.path, &holder)?;
        Ok(going)
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        // One that stays keeps holders waiting as long as this process lives, and no longer than their patience.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether the remover that shows itself here may be about to rename. In doubt it is.
fn is_at_work(going: &Path) -> bool {
    match fs::read(going) {
        Ok(text) => !serde_json::from_slice(&text).is_ok_and(|holder: Holder| holder.is_gone()),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// The second half of a removal. Holders wait no longer once it is decided.
fn finish(
    volume: &Volume,
    name: &str,
    id: &SnapshotId,
    gone: &Path,
    going: Option<Going>,
) -> Result<Removal, SnapshotError> {
    let held = of(volume, name, id)?;
    if !held.is_empty() {
        restore(gone, &gone.with_file_name(&id.0))?;
        return Ok(Removal::Held(held));
    }
    drop(going);
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
    for (gone, id) in named(&snapshots, GONE)? {
        if let Removal::Done(more) = finish(volume, name, &id, &gone, None)? {
            removed = removed.and(more);
        }
    }
    Ok(removed)
}

/// The names of removers that begin so, and of which snapshots they are.
fn named(snapshots: &Path, beginning: &str) -> Result<Vec<(PathBuf, SnapshotId)>, VolumeError> {
    let entries = match volume::looking_again(snapshots, |dir| fs::read_dir(dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| VolumeError::io("list", snapshots, error))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| VolumeError::io("list", snapshots, error))?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| Some(name.strip_prefix(beginning)?.split_once('-')?.0));
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
