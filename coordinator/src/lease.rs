//! The lease on a run: who coordinates it, and since when nobody else does.
//!
//! A run's epochs are directories `epochs/<n>`. Epoch n+1 is claimed by one rename of a prepared directory to that
//! name, which has exactly one winner, since no directory is renamed onto one that is not empty. The winner then
//! *seals* every epoch before: `epochs/<n>` becomes `epochs/<n>.sealed`. That is the fence. A coordinator that was
//! stopped and wakes up finds its paths gone when it renews or publishes, so that nothing it does can arrive; what it
//! still appends to its open journal counts for nobody, since its successor has noted the journal's length.
//!
//! A holder renews by giving `lease.json` the file server's present as its time of change. Who observes it creates a
//! file beside it and compares the two times, both the server's: no host's clock is asked. An observer on the holder's
//! own host need not wait, because it sees whether the holder's process is there.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use forebay_datasets::volume::{self, Holder, VolumeError};
use forebay_jobs::{id::Epoch, mail::LEASE};
use serde::{Deserialize, Serialize};

/// A lease that was not renewed for so long is dead. Its holder must have stopped by then.
pub const EXPIRES_AFTER: Duration = Duration::from_secs(15);

const SEALED: &str = "sealed";
const VERSION: u32 = 1;

/// Why a lease could not be taken, kept or observed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another coordinator has the run.
    #[error("the run is coordinated by {holder}")]
    Held {
        /// Who.
        holder: Holder,
    },
    /// Another coordinator took the run over.
    #[error("epoch {epoch} of the run was taken over by another coordinator")]
    Lost {
        /// The epoch that is over.
        epoch: Epoch,
    },
    /// A lease cannot be understood.
    #[error("{} is no lease", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A later forebay wrote it.
    #[error("the lease {} has version {found}, and this forebay knows only {VERSION}", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// There is no epoch left to claim.
    #[error("the run has used up all of its epochs")]
    Exhausted,
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// Who coordinates a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Nobody ever did.
    None,
    /// Somebody does.
    Live {
        /// In which epoch.
        epoch: Epoch,
        /// Who.
        holder: Holder,
    },
    /// Nobody does any more: the lease was given back, has expired, or its holder's process is gone.
    Dead {
        /// The last epoch.
        epoch: Epoch,
    },
}

/// A lease that this process holds. Dropped without [`release`](Self::release), it lasts until it expires or until
/// this process ends.
#[derive(Debug)]
pub struct Claim {
    /// Its epoch.
    pub epoch: Epoch,
    /// The epoch's directory, which nobody else writes to.
    pub dir: PathBuf,
    nonce: String,
}

/// `lease.json`
#[derive(Debug, Serialize, Deserialize)]
struct Lease {
    version: u32,
    /// Tells the winner of a rename whose reply was lost.
    nonce: String,
    #[serde(flatten)]
    holder: Holder,
}

/// An epoch's directory as it was listed.
#[derive(Debug)]
struct Found {
    epoch: Epoch,
    path: PathBuf,
    sealed: bool,
}

/// Takes the lease on the run in this directory, and seals every epoch before.
///
/// # Errors
/// [`LeaseError::Held`] if somebody alive has it, be it that they were faster by a moment.
pub fn claim(run_dir: &Path) -> Result<Claim, LeaseError> {
    let epochs = run_dir.join("epochs");
    match DirBuilder::new().mode(0o700).create(&epochs) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(VolumeError::io("create", &epochs, error).into());
        }
        _ => {}
    }
    // Each further round was lost to somebody who has died or given the lease back since.
    loop {
        // The successor of exactly the epoch that was seen dead: a newer one may be alive by now.
        let newest = match observe(run_dir)? {
            LeaseState::Live { holder, .. } => return Err(LeaseError::Held { holder }),
            LeaseState::Dead { epoch } => epoch.0,
            LeaseState::None => 0,
        };
        let epoch = Epoch(newest.checked_add(1).ok_or(LeaseError::Exhausted)?);
        let prepared = Prepared::new(&epochs)?;
        if let Some(claim) = prepared.take(&epochs, epoch)? {
            return match seal_before(&epochs, epoch) {
                Ok(()) => Ok(claim),
                Err(error) => {
                    // Who cannot fence off the one before must not go on; nor shall others wait for it to expire.
                    let _ = seal(&claim.dir);
                    Err(error)
                }
            };
        }
    }
}

/// Who coordinates the run in this directory.
pub fn observe(run_dir: &Path) -> Result<LeaseState, LeaseError> {
    let epochs = run_dir.join("epochs");
    // Between listing an epoch and looking into it, it may be sealed; then there is a newer one, or it was given back.
    loop {
        let Some(newest) = list(&epochs)?.into_iter().max_by_key(|found| (found.epoch, found.sealed)) else {
            return Ok(LeaseState::None);
        };
        let epoch = newest.epoch;
        if newest.sealed {
            return Ok(LeaseState::Dead { epoch });
        }
        let Some((lease, renewed)) = read(&newest.path)? else { continue };
        if lease.holder.is_gone() {
            return Ok(LeaseState::Dead { epoch });
        }
        let Some(now) = volume::server_time(&newest.path)? else { continue };
        let age = now.duration_since(renewed).unwrap_or_default();
        return Ok(match age > EXPIRES_AFTER {
            true => LeaseState::Dead { epoch },
            false => LeaseState::Live { epoch, holder: lease.holder },
        });
    }
}

/// Whether an epoch is still its holder's, as far as the file server knows it now.
///
/// A network client may go on finding a directory by a name that it no longer has. Asked right before a rename out of
/// the epoch's directory, this narrows the time in which that could be taken for holding the lease to an instant.
///
/// # Errors
/// That the epoch was taken over, or that it cannot be told.
pub(crate) fn fence(epoch_dir: &Path) -> Result<(), VolumeError> {
    epoch_dir.parent().map_or(Ok(()), |epochs| opened(epochs).map(drop))?;
    let lost = |error: &str| VolumeError::io("hold", epoch_dir, io::Error::other(error));
    match read(epoch_dir) {
        Ok(Some((lease, _))) if lease.holder == Holder::this_process() => Ok(()),
        Ok(_) => Err(lost("the run was taken over")),
        Err(LeaseError::Volume(error)) => Err(error),
        Err(error) => Err(lost(&error.to_string())),
    }
}

impl Claim {
    /// Shows that the holder is alive, and learns whether the lease is still its own.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] once somebody has taken the run over. Any other error may pass; a holder that sees only
    /// such for 10 seconds must stop.
    pub fn renew(&self) -> Result<(), LeaseError> {
        let lost = LeaseError::Lost { epoch: self.epoch };
        // Opening the directory makes a network file system look its names up again.
        self.dir.parent().map_or(Ok(()), |epochs| opened(epochs).map(drop))?;
        match read(&self.dir)? {
            Some((lease, _)) if lease.nonce == self.nonce => {}
            _ => return Err(lost),
        }
        if volume::touch(&self.dir.join(LEASE))? { Ok(()) } else { Err(lost) }
    }

    /// Gives the lease back, by sealing its own epoch: whoever comes next need not wait until it expires.
    /// To give back what is lost already is no error.
    pub fn release(&self) -> Result<(), LeaseError> {
        match self.renew() {
            Err(LeaseError::Lost { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => seal(&self.dir),
        }
    }
}

/// A directory that is to become an epoch's; removed if it does not.
#[derive(Debug)]
struct Prepared {
    dir: PathBuf,
    nonce: String,
}

impl Prepared {
    fn new(epochs: &Path) -> Result<Self, LeaseError> {
        let nonce = volume::nonce();
        let dir = epochs.join(format!(".claim-{nonce}"));
        DirBuilder::new().mode(0o700).create(&dir).map_err(|error| VolumeError::io("create", &dir, error))?;
        let prepared = Self { dir, nonce };
        let lease = Lease { version: VERSION, nonce: prepared.nonce.clone(), holder: Holder::this_process() };
        let text = serde_json::to_vec(&lease).expect("a lease is made of plain fields");
        volume::write_new(&prepared.dir.join(LEASE), &text)?;
        Ok(prepared)
    }

    /// Makes it the epoch's directory. None if somebody else was first.
    fn take(self, epochs: &Path, epoch: Epoch) -> Result<Option<Claim>, LeaseError> {
        let dir = epochs.join(epoch.to_string());
        let renamed = fs::rename(&self.dir, &dir);
        let claim = Claim { epoch, dir, nonce: self.nonce.clone() };
        if let Err(error) = renamed {
            // The reply may have been lost: the nonce tells who won.
            match read(&claim.dir)? {
                Some((lease, _)) if lease.nonce == claim.nonce => {}
                Some(_) => return Ok(None),
                None if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                    return Ok(None);
                }
                None => return Err(VolumeError::io("claim", &claim.dir, error).into()),
            }
        }
        volume::sync_dir(epochs)?;
        // The name was free because its epoch was sealed since we looked: somebody is further already.
        let late = |found: &Found| found.epoch > epoch || (found.epoch == epoch && found.sealed);
        if list(epochs)?.iter().any(late) {
            set_aside(&claim.dir)?;
            return Ok(None);
        }
        Ok(Some(claim))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // Gone if it became an epoch; else at worst an empty name stays that nobody reads.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn seal_before(epochs: &Path, epoch: Epoch) -> Result<(), LeaseError> {
    let mut before = list(epochs)?.into_iter().filter(|found| found.epoch < epoch && !found.sealed);
    before.try_for_each(|found| seal(&found.path))
}

/// Takes an epoch's directory away from its holder.
fn seal(dir: &Path) -> Result<(), LeaseError> {
    let sealed = dir.with_extension(SEALED);
    match fs::rename(dir, &sealed) {
        Ok(()) => {}
        // Somebody else has sealed it, or the reply was lost.
        Err(error) if error.kind() == io::ErrorKind::NotFound && sealed.exists() => {}
        // What died in the middle of a claim that came too late: its epoch had ended before.
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
            return set_aside(dir);
        }
        Err(error) => return Err(VolumeError::io("seal", dir, error).into()),
    }
    Ok(dir.parent().map_or(Ok(()), volume::sync_dir)?)
}

/// Gets a directory that is no epoch out of the way, in one step, and then removes it.
fn set_aside(dir: &Path) -> Result<(), LeaseError> {
    let aside = dir.with_file_name(format!(".late-{}", volume::nonce()));
    match fs::rename(dir, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(VolumeError::io("set aside", dir, error).into()),
    }
    // A name that stays behind is harmless.
    let _ = fs::remove_dir_all(&aside);
    Ok(())
}

/// The epochs of a run; none if it has none yet.
fn list(epochs: &Path) -> Result<Vec<Found>, LeaseError> {
    let failed = |error| VolumeError::io("list", epochs, error);
    let entries = match fs::read_dir(epochs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let sealed = path.extension().is_some_and(|extension| extension == SEALED);
        let name = if sealed { path.file_stem() } else { path.file_name() };
        if let Some(epoch) = name.and_then(|name| name.to_str()?.parse().ok()).map(Epoch) {
            found.push(Found { epoch, path, sealed });
        }
    }
    Ok(found)
}

/// The lease in an epoch's directory, and when it was last renewed; none if the directory is gone.
fn read(dir: &Path) -> Result<Option<(Lease, SystemTime)>, LeaseError> {
    let path = dir.join(LEASE);
    let failed = |error| VolumeError::io("read", &path, error);
    // Opened first: a network file system asks its server for the times of what it opens.
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let renewed = file.metadata().and_then(|meta| meta.modified()).map_err(failed)?;
    let text = io::read_to_string(&file).map_err(failed)?;
    let malformed = |source| LeaseError::Malformed { path: path.clone(), source };
    let versioned: Versioned = serde_json::from_str(&text).map_err(malformed)?;
    if versioned.version != VERSION {
        return Err(LeaseError::TooNew { path, found: versioned.version });
    }
    Ok(Some((serde_json::from_str(&text).map_err(malformed)?, renewed)))
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn opened(dir: &Path) -> Result<File, VolumeError> {
    File::open(dir).map_err(|error| VolumeError::io("open", dir, error))
}

#[cfg(test)]
mod tests;
