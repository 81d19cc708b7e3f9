//! What a mount does: which kind it is by the system's own tables, and what the experiments of `probe` found.
//!
//! Hosts may mount one volume in different ways: by NFS and on the server itself, with other options, through another
//! proxy. Findings are therefore kept per kind of mount, which is its file system's type, its source, and those of its
//! options that are not one host's alone. Hosts whose mounts are of one kind share the findings of whoever came first.
//! They may still differ (by their kernels), so that a finding chooses what is *tried*, and whoever acts on it goes on
//! when the mount refuses.

use std::{fs, path::Path};

use rustix::fs::{AtFlags, CWD, StatxFlags, statfs, statx};
use serde::{Deserialize, Serialize};

/// Of the set of experiments. Findings of another set are not used, and are made anew.
pub(super) const PROBE: u32 = 1;
/// Options that differ from host to host, or with how the mount happened to be made, and change nothing.
const OF_ONE_HOST: [&str; 6] = ["addr", "clientaddr", "mountaddr", "mountport", "port", "xprtsec"];
/// File systems whose bytes are on another host, or that other hosts change too.
const NETWORK: [&str; 20] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "gfs2",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "ocfs2",
    "orangefs",
    "panfs",
    "pvfs2",
    "smb3",
    "smbfs",
    "virtiofs",
    "wekafs",
];
/// Those that keep what `syncfs` says: data, metadata and errors. Others are synced file by file.
const SYNCFS: [&str; 4] = ["btrfs", "ext4", "tmpfs", "xfs"];

/// What kind of mount a volume is on, and what it was found to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Its kind.
    #[serde(flatten)]
    pub kind: MountKind,
    /// Which set of experiments found this; 0 if none was made.
    pub probe: u32,
    /// When, RFC 3339.
    pub probed: String,
    /// On which host.
    pub host: String,
    /// With which kernel.
    pub kernel: String,
    /// `fsync` of a file works.
    pub sync_file: bool,
    /// `fsync` of a directory works, so that names survive a crash.
    pub sync_dir: bool,
    /// A rename onto a name that is taken replaces what it named, and who has that open keeps it.
    pub rename_replaces: bool,
    /// While a name is replaced by renames, it is never seen missing.
    pub rename_atomic: bool,
    /// A file can have a second name, which never overwrites.
    pub link: bool,
    /// `O_EXCL` refuses a name that is taken.
    pub create_exclusive: bool,
    /// `flock` keeps another process of this host out.
    pub flock: bool,
    /// `fcntl` record locks keep another process of this host out.
    pub record_locks: bool,
    /// `FICLONE` makes a second file of the same blocks.
    pub reflink: bool,
    /// Names that differ only in case are one name.
    pub folds_case: bool,
    /// Names that differ only in Unicode's composition (NFC, NFD) are one name.
    pub folds_unicode: bool,
    /// Names may hold `"*:<>?\|`, control characters, and a dot or blank at their end.
    pub odd_names: bool,
    /// Bytes of the longest name.
    pub longest_name: u32,
    /// `O_DIRECT` works if buffers, offsets and lengths are multiples of this.
    pub direct_io: Option<u32>,
    /// `fallocate` reserves blocks.
    pub fallocate: bool,
    /// One `syncfs` makes durable, and reports, as much as syncing each file does.
    pub syncfs: bool,
    /// Milliseconds that the file server's clock was ahead of this host's.
    pub clock_skew_ms: i64,
    /// Microseconds for one small file: created, written, synced, renamed.
    pub latency_us: u64,
}

/// By what mounts are told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountKind {
    /// Type of the file system, as the kernel names it: `ext4`, `nfs4`, `fuse.juicefs`.
    pub file_system: String,
    /// What is mounted: a device, or `server:/path`.
    pub source: String,
    /// How, without what is one host's alone.
    pub options: String,
}

impl Default for Mount {
    /// What is safe to assume before anything was tried: the guarantees are there, since without them nothing could be
    /// done, and what only makes things faster is not.
    fn default() -> Self {
        Self {
            kind: MountKind::default(),
            probe: 0,
            probed: String::new(),
            host: String::new(),
            kernel: String::new(),
            sync_file: true,
            sync_dir: true,
            rename_replaces: true,
            rename_atomic: true,
            link: true,
            create_exclusive: true,
            flock: false,
            record_locks: false,
            reflink: false,
            folds_case: false,
            folds_unicode: false,
            odd_names: true,
            longest_name: 255,
            direct_io: None,
            fallocate: false,
            syncfs: false,
            clock_skew_ms: 0,
            latency_us: 0,
        }
    }
}

impl Mount {
    /// A mount of which only the kind is known.
    pub(super) fn assumed(kind: MountKind) -> Self {
        Self { kind, ..Self::default() }
    }

    /// Whether experiments were made.
    pub fn is_probed(&self) -> bool {
        self.probe == PROBE
    }

    /// Whether other hosts hold or change its bytes: page caches are not to be trusted for long, memory maps can fail
    /// under a reader, and each call is a round trip.
    pub fn is_network(&self) -> bool {
        let name = self.kind.file_system.as_str();
        NETWORK.contains(&name) || name == "fuse" || name.starts_with("fuse.")
    }

    /// Whether it is NFS.
    pub fn is_nfs(&self) -> bool {
        self.kind.file_system.starts_with("nfs")
    }

    /// Whether it is Amazon EFS, as far as its source tells.
    pub fn is_efs(&self) -> bool {
        let source = &self.kind.source;
        self.is_nfs() && source.contains(".efs.") && source.contains(".amazonaws.")
    }

    /// What forebay's guarantees need and this mount does not do, each as a sentence.
    pub fn lacks(&self) -> Vec<&'static str> {
        let needs = [
            (self.sync_file, "a file cannot be synced: what is published may be lost in a crash"),
            (self.sync_dir, "a directory cannot be synced: what is published may lose its name in a crash"),
            (self.rename_replaces, "a rename does not replace what is there: no reference can be moved on"),
            (self.rename_atomic, "a name is missing for a moment while it is replaced: readers would see no dataset"),
            (self.link, "a file cannot be given a second name: nothing can be published without overwriting"),
            (self.create_exclusive, "O_EXCL does not refuse a name that is taken: two writers could write one file"),
        ];
        needs.into_iter().filter(|(there, _)| !there).map(|(_, what)| what).collect()
    }
}

impl MountKind {
    /// What is mounted at a path that is there. What the system does not tell stays empty.
    pub(super) fn of(path: &Path) -> Self {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok();
        let id = id.filter(|found| found.stx_mask & StatxFlags::MNT_ID.bits() != 0).map(|found| found.stx_mnt_id);
        let found = table.lines().rev().filter_map(Line::parse).filter(|line| match id {
            Some(id) => line.id == id,
            None => path.starts_with(&line.point),
        });
        // Without ids the deepest mount point counts, and of one point's mounts the last.
        match found.fold(None, |best: Option<Line>, line| match best {
            Some(best) if best.point.len() >= line.point.len() => Some(best),
            _ => Some(line),
        }) {
            Some(line) => line.kind,
            None => Self { file_system: by_number(path), ..Self::default() },
        }
    }

    /// Whether `syncfs` is to be trusted here: Linux reports what it could not write since 5.8.
    pub(super) fn keeps_syncfs(&self, kernel: &str) -> bool {
        let mut parts = kernel.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        SYNCFS.contains(&self.file_system.as_str()) && version >= (5, 8)
    }
}

/// A line of `/proc/self/mountinfo`.
struct Line {
    id: u64,
    point: String,
    kind: MountKind,
}

impl Line {
    /// `36 35 98:0 /root /point options optional-fields - type source super-options`
    fn parse(line: &str) -> Option<Self> {
        let (mount, of_type) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        let (id, point) = (mount.next()?.parse().ok()?, unescaped(mount.nth(3)?));
        let here = mount.next()?;
        let mut of_type = of_type.split(' ');
        let (file_system, source) = (of_type.next()?.to_owned(), unescaped(of_type.next()?));
        let mut options: Vec<&str> = Vec::new();
        for option in here.split(',').chain(of_type.next().unwrap_or_default().split(',')) {
            let name = option.split('=').next().unwrap_or(option);
            if !OF_ONE_HOST.contains(&name) && !options.contains(&option) {
                options.push(option);
            }
        }
        let options = unescaped(&options.join(","));
        Some(Self { id, point, kind: MountKind { file_system, source, options } })
    }
}

/// Blanks and backslashes are written as three octal digits there.
fn unescaped(text: &str) -> String {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Where `/proc` is hidden, the number of the type has to do.
fn by_number(path: &Path) -> String {
    let name = match statfs(path).map(|found| found.f_type as u32) {
        Ok(0xEF53) => "ext4",
        Ok(0x5846_5342) => "xfs",
        Ok(0x9123_683E) => "btrfs",
        Ok(0x0102_1994) => "tmpfs",
        Ok(0x6969) => "nfs",
        Ok(0x794C_7630) => "overlay",
        Ok(0x0BD0_0BD0) => "lustre",
        Ok(0x6573_5546) => "fuse",
        Ok(0x00C3_6400) => "ceph",
        Ok(0xFF53_4D42) => "cifs",
        Ok(0xFE53_4D42) => "smb3",
        Ok(0x4750_4653) => "gpfs",
        Ok(0x1983_0326) => "beegfs",
        Ok(0x0102_1997) => "9p",
        Ok(0x2FC1_2FC1) => "zfs",
        Ok(0xF2F5_2010) => "f2fs",
        Ok(number) => return format!("{number:#x}"),
        Err(_) => "",
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NFS: &str = "41 27 0:44 / /mnt/my\\040data rw,relatime shared:1 - nfs4 fs-1.efs.eu-west-1.amazonaws.com:/ \
                       rw,vers=4.1,rsize=1048576,clientaddr=10.0.0.7,addr=10.0.0.9,hard";

    #[test]
    fn hosts_that_mount_alike_have_one_kind() {
        let line = Line::parse(NFS).unwrap();
        assert_eq!((line.id, line.point.as_str()), (41, "/mnt/my data"));
        assert_eq!(line.kind, Line::parse(&NFS.replace("10.0.0.7", "10.0.0.8")).unwrap().kind);
        assert_eq!(line.kind.options, "rw,relatime,vers=4.1,rsize=1048576,hard");
        assert_ne!(line.kind, Line::parse(&NFS.replace("vers=4.1", "vers=3,nolock")).unwrap().kind);
        let mount = Mount::assumed(line.kind);
        assert!(mount.is_network() && mount.is_efs() && mount.lacks().is_empty());
    }

    #[test]
    fn a_mount_is_known_by_the_system_s_tables() {
        let dir = tempfile::tempdir().unwrap();
        let kind = MountKind::of(dir.path());
        assert!(!kind.file_system.is_empty() && !kind.source.is_empty() && !kind.options.is_empty(), "{kind:?}");
        assert_eq!(MountKind::of(Path::new("/proc")).file_system, "proc");
        if ["ext4", "tmpfs", "xfs", "btrfs"].contains(&kind.file_system.as_str()) {
            assert_eq!(by_number(dir.path()), kind.file_system);
        }
    }

    #[test]
    fn syncfs_is_trusted_where_it_reports_errors() {
        let kind = |name: &str| MountKind { file_system: name.into(), ..MountKind::default() };
        assert!(kind("ext4").keeps_syncfs("6.18.44-x") && kind("xfs").keeps_syncfs("5.8.0"));
        assert!(!kind("ext4").keeps_syncfs("5.7.19") && !kind("nfs4").keeps_syncfs("6.18.0"));
    }

    #[test]
    fn findings_of_another_set_of_experiments_are_read_and_not_believed() {
        let mount: Mount = serde_json::from_str(r#"{"file_system":"ext4","probe":99,"new_finding":1}"#).unwrap();
        assert_eq!((mount.kind.file_system.as_str(), mount.is_probed()), ("ext4", false));
    }
}
