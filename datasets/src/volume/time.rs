//! Times by the file server's clock: no host's own clock is asked how old something is.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::SystemTime,
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};

use super::{VolumeError, nonce};

/// What the file server's clock says, by a new file's time of change; none if the directory is gone.
///
/// The new file also makes a network file system's client forget what it knew of the directory: what is looked up or
/// listed in it afterwards is asked of the server.
pub fn server_time(dir: &Path) -> Result<Option<SystemTime>, VolumeError> {
    let path = dir.join(format!(".probe-{}", nonce()));
    let failed = |error| VolumeError::io("create", &path, error);
    let probe = match File::create_new(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        probe => probe.map_err(failed)?,
    };
    let now = probe.metadata().and_then(|meta| meta.modified());
    let removed = fs::remove_file(&path);
    let now = now.map_err(failed)?;
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", &path, error)),
        // The directory was renamed in between: the probe went with it, and is no harm there.
        _ => Ok(Some(now)),
    }
}

/// Gives a file the server's present as its time of change. False if it is not there.
pub fn touch(path: &Path) -> Result<bool, VolumeError> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
    };
    match utimensat(CWD, path, &times, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(VolumeError::io("renew", path, error.into())),
    }
}
