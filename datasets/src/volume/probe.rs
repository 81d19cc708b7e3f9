//! The mount probe: experiments in a directory of their own that tell what a volume's mount does.
//!
//! They are made at a volume's first use through a kind of mount, and by `forebay volume check`. A step that the mount
//! refuses is a finding. A disk that is full, failing, or read-only tells nothing, and is an error.
//!
//! At first use nobody waits for long: one file and one directory are synced, and `syncfs`, which would first write
//! what everybody else on the host has written to the same disk, is believed by the file system's type and the
//! kernel's version. A check calls it.

mod bytes;
mod locks;
mod names;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::{
    VolumeError,
    mount::{Mount, MountKind, PROBE},
    nonce,
};

/// Names of the directories of the experiments begin so.
pub(super) const PREFIX: &str = ".probe-";
/// Replacements, and openings beside them, that show whether renames are atomic.
const ROUNDS: usize = 16;
/// Kernels stamp files with a clock that ticks every 1 to 10 ms; a smaller skew is none.
const TICK: Duration = Duration::from_millis(10);
/// How long openings are waited for once the replacements are done.
const OPENINGS: Duration = Duration::from_millis(5);

/// How much an experiment may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Some milliseconds.
    FirstUse,
    /// As long as the disk takes.
    Check,
}

/// Makes the experiments in a directory of the mount.
///
/// # Errors
/// That nothing can be written there now.
pub(super) fn probe(root: &Path, kind: MountKind, depth: Depth) -> Result<Mount, VolumeError> {
    let place = Place::new(root)?;
    let uname = rustix::system::uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    let mut mount = Mount {
        probe: PROBE,
        probed: jiff::Timestamp::now().to_string(),
        host: text(uname.nodename()),
        kernel: text(uname.release()),
        ..Mount::assumed(kind)
    };
    publishing(&place, &mut mount)?;
    mount.rename_replaces = place.works("rename", rename_replaces(&place))?;
    mount.rename_atomic = mount.rename_replaces && place.works("rename", rename_is_atomic(&place))?;
    mount.link = place.works("link", links(&place))?;
    mount.create_exclusive = place.works("create", creates_exclusively(&place))?;
    names::find(&place, &mut mount)?;
    (mount.flock, mount.record_locks) = locks::find(&place)?;
    bytes::find(&place, &mut mount)?;
    mount.syncfs = mount.kind.keeps_syncfs(&mount.kernel);
    if depth == Depth::Check {
        let synced = File::open(&place.dir).and_then(|dir| Ok(rustix::fs::syncfs(dir)?)).map(|()| true);
        mount.syncfs &= place.works("sync", synced)?;
    }
    Ok(mount)
}

/// The directory of the experiments, which goes with them.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn new(root: &Path) -> Result<Self, VolumeError> {
        let dir = root.join(format!("{PREFIX}{}", nonce()));
        fs::create_dir(&dir).map_err(|error| VolumeError::io("create", &dir, error))?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn file(&self, name: &str, content: &[u8]) -> io::Result<File> {
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(self.path(name))?;
        file.write_all(content)?;
        Ok(file)
    }

    /// Whether an experiment succeeded. What keeps anybody from writing anything is no finding.
    fn works(&self, action: &'static str, tried: io::Result<bool>) -> Result<bool, VolumeError> {
        use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        match tried {
            Ok(found) => Ok(found),
            Err(error)
                if matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
                    || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) =>
            {
                Err(VolumeError::io(action, &self.dir, error))
            }
            Err(error) => {
                tracing::debug!(action, %error, "refused by the mount");
                Ok(false)
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::debug!(path = %self.dir.display(), %error, "left behind, for `forebay dataset gc` to clear away");
        }
    }
}

/// What everything that is published goes through, with the time it takes and the server's clock.
fn publishing(place: &Place, mount: &mut Mount) -> Result<(), VolumeError> {
    let failed = |error| VolumeError::io("write", &place.dir, error);
    let begun = Instant::now();
    let before = SystemTime::now();
    let file = place.file("new", &[0x5A; 4096]).map_err(failed)?;
    let after = SystemTime::now();
    mount.sync_file = place.works("sync", file.sync_all().map(|()| true))?;
    fs::rename(place.path("new"), place.path("published")).map_err(failed)?;
    mount.latency_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let server = file.metadata().and_then(|meta| meta.modified()).map_err(failed)?;
    mount.clock_skew_ms = skew(before, server, after);
    mount.sync_dir = place.works("sync", File::open(&place.dir).and_then(|dir| dir.sync_all()).map(|()| true))?;
    Ok(())
}

/// By how much a time lies outside of the span in which it was taken.
fn skew(before: SystemTime, server: SystemTime, after: SystemTime) -> i64 {
    let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    match (server.duration_since(after), before.duration_since(server)) {
        (Ok(ahead), _) if ahead > TICK => millis(ahead),
        (_, Ok(behind)) if behind > TICK => -millis(behind),
        _ => 0,
    }
}

fn rename_replaces(place: &Place) -> io::Result<bool> {
    place.file("old", b"old")?;
    place.file("next", b"next")?;
    let mut held = File::open(place.path("old"))?;
    fs::rename(place.path("next"), place.path("old"))?;
    let mut seen = String::new();
    held.read_to_string(&mut seen)?;
    let replaced = fs::read(place.path("old"))? == b"next" && !place.path("next").try_exists()?;
    Ok(replaced && seen == "old")
}

fn rename_is_atomic(place: &Place) -> io::Result<bool> {
    let target = place.path("target");
    place.file("target", b"")?;
    let (done, opened, missing) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicBool::new(false));
    let replaced = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                match File::open(&target) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => missing.store(true, Ordering::Relaxed),
                    _ => {
                        opened.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        let begun = Instant::now();
        let replace = || {
            for round in 0.. {
                let late = opened.load(Ordering::Relaxed) >= ROUNDS || begun.elapsed() > OPENINGS;
                if round >= ROUNDS && late {
                    break;
                }
                place.file("source", b"")?;
                fs::rename(place.path("source"), &target)?;
            }
            io::Result::Ok(())
        };
        let replaced = replace();
        done.store(true, Ordering::Relaxed);
        replaced
    });
    replaced.map(|()| !missing.into_inner())
}

fn links(place: &Place) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    place.file("linked", b"one")?;
    place.file("other", b"other")?;
    fs::hard_link(place.path("linked"), place.path("link"))?;
    let (one, two) = (fs::metadata(place.path("linked"))?, fs::metadata(place.path("link"))?);
    let again = fs::hard_link(place.path("other"), place.path("link"));
    let refused = again.is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists);
    Ok(one.ino() == two.ino() && refused && fs::read(place.path("link"))? == b"one")
}

fn creates_exclusively(place: &Place) -> io::Result<bool> {
    place.file("exclusive", b"kept")?;
    let again = File::create_new(place.path("exclusive"));
    let refused = again.is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists);
    Ok(refused && fs::read(place.path("exclusive"))? == b"kept")
}

#[cfg(test)]
mod tests;
