//! A volume: a directory on a shared file system, and the only code that creates, syncs, renames and links on it.
//!
//! Shared file systems punish the careless, so that everything here follows three rules. A file is written under a
//! temporary name in its own directory, synced, and only then given its name; nothing is ever overwritten except by
//! rename. A full disk or a broken server shows at `sync_all`, which is therefore never skipped. A reply to a rename
//! or a link may be lost although it happened, so that an error is believed only after looking at the target.

mod description;
mod durable;
mod holder;
mod look;
mod mount;
mod place;
mod probe;
mod share;
mod time;
mod trash;

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

pub(crate) use self::place::{ALIGNED, Placing, place_by_link};
use self::{description::Description, probe::Depth};
pub use self::{
    durable::{
        NewFile, create_dir, create_dirs, create_dirs_below, hand_over, publish_dir, publish_tree, rename_over,
        replace, sync_dir, sync_tree, write_new,
    },
    holder::Holder,
    look::looking_again,
    mount::{Mount, MountKind},
    share::{Shared, link_or_copy},
    time::{server_time, touch},
    trash::Removed,
};

/// The version of the volume's format.
pub const FORMAT: u32 = 1;

/// Why a volume, or a file on it, could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The directory is no volume, or not there.
    #[error("there is no volume at {}", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// `volume.json` cannot be understood.
    #[error("{} is not the description of a volume", path.display())]
    Malformed {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A later forebay wrote it.
    #[error("the volume at {} has format {found}, and this forebay knows only {FORMAT}", path.display())]
    TooNew {
        /// The volume.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A path in a manifest, a journal or a message leads out of the volume.
    #[error("the path `{path}` leads out of the volume")]
    Escapes {
        /// The path.
        path: String,
    },
    /// What was to be created is there already.
    #[error("{} is there already", path.display())]
    AlreadyExists {
        /// The path.
        path: PathBuf,
    },
    /// The file system has no room left, or the user's quota is used up.
    #[error("no room left on the volume's file system for {}", path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file system is mounted read-only, or the directory is not writable.
    #[error("cannot write {}: the volume is read-only here", path.display())]
    ReadOnly {
        /// What was to be written.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// There, and not to be read by this user.
    #[error("no permission to {action} {}", path.display())]
    Denied {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl VolumeError {
    /// Sorts a system error into what a user can act on.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        let reads = matches!(action, "read" | "open" | "list" | "inspect" | "resolve");
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, source },
            io::ErrorKind::PermissionDenied if reads => Self::Denied { action, path, source },
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Self::ReadOnly { path, source },
            io::ErrorKind::AlreadyExists => Self::AlreadyExists { path },
            _ => Self::Io { action, path, source },
        }
    }
}

/// A directory that every host mounts, not always at the same path.
#[derive(Clone, Debug)]
pub struct Volume {
    root: PathBuf,
    id: String,
    quota: Option<u64>,
    mount: Arc<Mount>,
}

impl Volume {
    /// Opens the volume, making the directory one if it is none yet. What else it holds is left alone. At the first use
    /// through a kind of mount, finds out what that mount does.
    pub fn open_or_create(root: &Path) -> Result<Self, VolumeError> {
        match Self::open(root) {
            Err(VolumeError::Missing { .. }) => {}
            Ok(volume) if volume.mount.is_probed() => return Ok(volume),
            Ok(volume) => return Ok(volume.at_first_use()),
            Err(error) => return Err(error),
        }
        create_dirs(root)?;
        let mount = probe::probe(root, MountKind::of(root), Depth::FirstUse)?;
        warn(root, &mount);
        let description = Description::new(nonce(), mount);
        match write_new(&Description::path(root), &description.text()) {
            // Another host was first: its description counts.
            Ok(()) | Err(VolumeError::AlreadyExists { .. }) => Ok(Self::open(root)?.at_first_use()),
            Err(error) => Err(error),
        }
    }

    /// Opens a volume that is there.
    pub fn open(root: &Path) -> Result<Self, VolumeError> {
        let description = Description::read(root)?;
        let root = fs::canonicalize(root).map_err(|error| VolumeError::io("resolve", root, error))?;
        let kind = MountKind::of(&root);
        let known = description.mounts.into_iter().rfind(|mount| mount.kind == kind && mount.is_probed());
        let mount = Arc::new(known.unwrap_or_else(|| Mount::assumed(kind)));
        Ok(Self { root, id: description.id, quota: description.quota, mount })
    }

    /// Finds out what the mount does, if nobody has who mounts the volume in the same way. Where nothing can be written,
    /// what is safe is assumed.
    fn at_first_use(self) -> Self {
        if self.mount.is_probed() {
            return self;
        }
        let found = probe::probe(&self.root, MountKind::of(&self.root), Depth::FirstUse).and_then(|found| {
            warn(&self.root, &found);
            Description::update(&self.root, |description| description.keep(&found))?;
            Ok(found)
        });
        match found {
            Ok(mount) => Self { mount: Arc::new(mount), ..self },
            Err(error) => {
                tracing::debug!(root = %self.root.display(), %error, "the mount could not be probed");
                self
            }
        }
    }

    /// Makes the experiments anew, and all of them. Returns what was known before and what is found now, which the
    /// volume's description holds from now on.
    ///
    /// # Errors
    /// That nothing can be written on the volume.
    pub fn check(&mut self) -> Result<(Mount, &Mount), VolumeError> {
        let found = probe::probe(&self.root, MountKind::of(&self.root), Depth::Check)?;
        // What cannot publish cannot keep what was found either, and is all the more to be told.
        if let Err(error) = Description::update(&self.root, |description| description.keep(&found))
            && found.lacks().is_empty()
        {
            return Err(error);
        }
        let before = Arc::unwrap_or_clone(std::mem::replace(&mut self.mount, Arc::new(found)));
        Ok((before, &self.mount))
    }

    /// What the mount through which this host uses the volume was found to do; what is safe to assume, where it was
    /// never used for writing.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// Every kind of mount through which the volume was used, in the order in which they were last probed.
    pub fn known_mounts(&self) -> Result<Vec<Mount>, VolumeError> {
        Ok(Description::read(&self.root)?.mounts)
    }

    /// Bytes of snapshots that staging may fill the volume with.
    pub fn quota(&self) -> Option<u64> {
        self.quota
    }

    /// Sets or lifts the quota.
    pub fn set_quota(&mut self, quota: Option<u64>) -> Result<(), VolumeError> {
        Description::update(&self.root, |description| description.quota = quota)?;
        // Somebody may have replaced the description in the same moment.
        if Description::read(&self.root)?.quota != quota {
            Description::update(&self.root, |description| description.quota = quota)?;
        }
        self.quota = quota;
        Ok(())
    }

    /// Where this host mounts it: absolute, without symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The volume's own id, by which hosts know that they mount the same one.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The path on this host of a path relative to the volume's root.
    ///
    /// # Errors
    /// [`VolumeError::Escapes`] for anything but plain names: such paths come from files and from the network.
    pub fn resolve(&self, relative: &str) -> Result<PathBuf, VolumeError> {
        let plain = !relative.is_empty()
            && !relative.contains('\0')
            && Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)));
        if plain { Ok(self.root.join(relative)) } else { Err(VolumeError::Escapes { path: relative.to_owned() }) }
    }

    /// The path below the volume's root of a path on this host; none if it is not on the volume.
    pub fn relative(&self, path: &Path) -> Option<String> {
        path.strip_prefix(&self.root).ok()?.to_str().map(str::to_owned)
    }

    /// Holds a directory a dataset.
    pub fn datasets_dir(&self) -> PathBuf {
        self.root.join("datasets")
    }

    /// Holds a directory a run.
    pub fn runs_dir(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// The directory of one run.
    pub fn run_dir(&self, run: &str) -> PathBuf {
        self.runs_dir().join(run)
    }

    /// Bytes that an ordinary user may still write.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// The names in a directory, in order; none if it is not there. Hidden ones are temporary and left out.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, VolumeError> {
    let entries = match looking_again(dir, |dir| fs::read_dir(dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(VolumeError::io("list", dir, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| VolumeError::io("list", dir, error))?;
        names.extend(entry.file_name().into_string().ok().filter(|name| !name.starts_with('.')));
    }
    names.sort();
    Ok(names)
}

fn warn(root: &Path, mount: &Mount) {
    for what in mount.lacks() {
        tracing::warn!(volume = %root.display(), file_system = mount.kind.file_system, "{what}");
    }
}

/// 16 random hexadecimal digits: a name that no other host chooses.
pub fn nonce() -> String {
    format!("{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let made = Volume::open_or_create(&dir.path().join("a/b")).unwrap();
        assert_eq!(made.id(), Volume::open_or_create(&dir.path().join("a/b")).unwrap().id());
        assert_eq!(fs::read_dir(made.root()).unwrap().count(), 1, "its description and nothing else");
    }

    #[test]
    fn two_that_make_a_volume_at_once_make_one() {
        let dir = tempfile::tempdir().unwrap();
        let make = || Volume::open_or_create(dir.path()).unwrap().id().to_owned();
        let ids = std::thread::scope(|scope| [(); 4].map(|()| scope.spawn(make)).map(|made| made.join().unwrap()));
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn what_a_mount_does_is_found_out_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let made = Volume::open_or_create(dir.path()).unwrap();
        assert!(made.mount().is_probed() && made.mount().link);
        assert_eq!(Volume::open(dir.path()).unwrap().mount(), made.mount());
        assert_eq!(Volume::open_or_create(dir.path()).unwrap().mount(), made.mount(), "not made again");
    }

    #[test]
    fn a_volume_of_an_earlier_version_is_probed_when_it_is_used_and_keeps_what_else_it_says() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("volume.json"), r#"{"version":1,"id":"x","later":true}"#).unwrap();
        let read = Volume::open(dir.path()).unwrap();
        assert!(!read.mount().is_probed() && read.mount().lacks().is_empty());
        let mut used = Volume::open_or_create(dir.path()).unwrap();
        assert!(used.mount().is_probed());
        used.set_quota(Some(7)).unwrap();
        let (before, after) = used.check().unwrap();
        assert!(before.is_probed() && after.is_probed());
        let again = Volume::open(dir.path()).unwrap();
        assert_eq!((again.id(), again.quota(), again.mount()), ("x", Some(7), used.mount()));
        assert!(fs::read_to_string(dir.path().join("volume.json")).unwrap().contains("later"));
    }

    #[test]
    fn a_later_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("volume.json"), r#"{"version":2,"id":"x"}"#).unwrap();
        assert!(matches!(Volume::open_or_create(dir.path()), Err(VolumeError::TooNew { found: 2, .. })));
    }

    #[test]
    fn no_path_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        for path in ["", "/etc/passwd", "../x", "a/../../x", "./a", "a\0b"] {
            assert!(volume.resolve(path).is_err(), "{path:?}");
        }
        assert_eq!(volume.relative(&volume.resolve("a/b").unwrap()).unwrap(), "a/b");
    }

    #[test]
    fn each_system_error_has_the_remedy_that_fits() {
        let sort = |action, kind| VolumeError::io(action, Path::new("x"), io::Error::from(kind));
        assert!(matches!(sort("write", io::ErrorKind::StorageFull), VolumeError::Full { .. }));
        assert!(matches!(sort("write", io::ErrorKind::QuotaExceeded), VolumeError::Full { .. }));
        assert!(matches!(sort("write", io::ErrorKind::PermissionDenied), VolumeError::ReadOnly { .. }));
        assert!(matches!(sort("create", io::ErrorKind::ReadOnlyFilesystem), VolumeError::ReadOnly { .. }));
        assert!(matches!(sort("read", io::ErrorKind::PermissionDenied), VolumeError::Denied { .. }));
    }
}
