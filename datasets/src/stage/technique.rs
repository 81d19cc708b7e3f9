//! How files are written and made durable on this mount.

use std::fs::File;

use crate::volume::{ALIGNED, Volume, VolumeError};

/// When what was written is durable.
#[derive(Debug)]
enum Durable {
    /// Each file is synced before it counts: what network file systems need, where a full disk or a lost server shows at
    /// that moment, and each host's lanes wait for the server side by side.
    EachFile,
    /// One `syncfs` for all that many small files have left in the page cache. It reports the errors of all writes
    /// since the directory was opened (Linux 5.8, syncfs(2)).
    FileSystem(File),
    /// Never: only for measuring what it costs.
    Never,
}

/// The technique.
#[derive(Debug)]
pub(super) struct Technique {
    durable: Durable,
    direct: bool,
    links: bool,
    names: bool,
}

impl Technique {
    /// By what the mount was found to do.
    pub(super) fn of(volume: &Volume, durable: bool) -> Result<Self, VolumeError> {
        let mount = volume.mount();
        let durable = match (durable, mount.syncfs) {
            (false, _) => Durable::Never,
            (true, false) => Durable::EachFile,
            (true, true) => {
                let root = File::open(volume.root());
                Durable::FileSystem(root.map_err(|error| VolumeError::io("open", volume.root(), error))?)
            }
        };
        let aligned = mount.direct_io.is_some_and(|alignment| ALIGNED.is_multiple_of(alignment as usize));
        // Measured on disks and on NFS, where it saves the client's copy and costs no time; others were not tried.
        let direct = aligned && (mount.is_nfs() || !mount.is_network());
        let names = matches!(durable, Durable::EachFile) && !mount.is_nfs();
        Ok(Self { durable, direct, links: mount.is_network() && mount.link, names })
    }

    /// Whether each file is synced before it counts.
    pub(super) fn syncs_files(&self) -> bool {
        matches!(self.durable, Durable::EachFile)
    }

    /// Whether names, too, have to be synced. An NFS server answers only once a name is durable (RFC 8881, 18.4 and 18.9;
    /// Linux's `nfs_fsync_dir` does nothing), and looking at every directory is a round trip or two for each.
    pub(super) fn syncs_names(&self) -> bool {
        self.names
    }

    /// Whether larger writes go past the page cache.
    pub(super) fn writes_directly(&self) -> bool {
        self.direct
    }

    /// Whether small files are made in a directory of each lane's own, and linked to their places.
    pub(super) fn links_small_files(&self) -> bool {
        self.links
    }

    /// Makes durable what was written so far, if files were not synced one by one.
    pub(super) fn sync(&self, volume: &Volume) -> Result<(), VolumeError> {
        match &self.durable {
            Durable::FileSystem(root) => {
                rustix::fs::syncfs(root).map_err(|error| VolumeError::io("sync", volume.root(), error.into()))
            }
            Durable::EachFile | Durable::Never => Ok(()),
        }
    }
}
