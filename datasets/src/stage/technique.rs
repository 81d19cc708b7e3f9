//! How files are written and made durable on this mount.

use std::{
    fs::File,
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::volume::{Volume, VolumeError};

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
    direct: AtomicBool,
}

impl Technique {
    /// By what the mount is.
    pub(super) fn of(volume: &Volume, durable: bool) -> Result<Self, VolumeError> {
        let failed = |error: io::Error| VolumeError::io("inspect", volume.root(), error);
        let network = is_network(volume).map_err(failed)?;
        let durable = match (durable, network || !syncfs_reports_errors()) {
            (false, _) => Durable::Never,
            (true, true) => Durable::EachFile,
            (true, false) => Durable::FileSystem(File::open(volume.root()).map_err(failed)?),
        };
        Ok(Self { durable, direct: AtomicBool::new(!network) })
    }

    /// Whether each file is synced before it counts.
    pub(super) fn syncs_files(&self) -> bool {
        matches!(self.durable, Durable::EachFile)
    }

    /// Whether larger writes go past the page cache.
    pub(super) fn writes_directly(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
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

fn is_network(volume: &Volume) -> io::Result<bool> {
    /// From `linux/magic.h` and the file systems' own sources: NFS, CIFS, SMB2, Ceph, Lustre, GPFS, BeeGFS, AFS, 9P,
    /// FUSE.
    const NETWORK: [u32; 10] = [
        0x6969,
        0xff53_4d42,
        0xfe53_4d42,
        0x00c3_6400,
        0x0bd0_0bd0,
        0x4750_4653,
        0x1983_0326,
        0x5346_414f,
        0x0102_1997,
        0x6573_5546,
    ];
    let stat = rustix::fs::statfs(volume.root())?;
    Ok(NETWORK.contains(&(stat.f_type as u32)))
}

fn syncfs_reports_errors() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(8))
}
