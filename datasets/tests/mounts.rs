//! What the volume does on file systems of other kinds, mounted for the purpose: each test starts itself again in a mount
//! namespace, with the file system at `/mnt`. Where none can be made, it says so.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]

use std::{env, fs, os::unix::fs::MetadataExt, path::Path, process::Command};

use forebay_datasets::{
    room::{self, RoomError},
    volume::{Shared, Volume},
};

const INSIDE: &str = "FOREBAY_TEST_INSIDE";
/// Of a shell in which the file system could not be mounted.
const NOT_HERE: i32 = 77;

/// Runs `inside` of a test of this name on a file system that a shell text mounts at `/mnt`, with `$image` to use.
fn on(test: &str, mount: &str, inside: impl FnOnce(&Path)) {
    if env::var_os(INSIDE).is_some_and(|wanted| wanted == mount) {
        return inside(Path::new("/mnt"));
    }
    if env::var_os(INSIDE).is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{{ {mount}; }} >/dev/null 2>&1 || exit {NOT_HERE}; exec \"$0\" --exact {test} --nocapture");
    let map = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    let mut shell = Command::new("unshare");
    shell.args([map, "sh", "-c", &text]).arg(env::current_exe().unwrap());
    let status = shell.env(INSIDE, mount).env("image", dir.path().join("image")).status();
    match status {
        Ok(status) if status.code() == Some(NOT_HERE) => eprintln!("SKIPPED {test}: cannot `{mount}` here"),
        status => assert!(status.unwrap().success(), "on `{mount}`"),
    }
}

fn volume(root: &Path) -> Volume {
    Volume::open_or_create(&root.join("v")).unwrap()
}

#[test]
fn files_are_shared_by_reflink_where_there_are_any() {
    for mount in [
        "truncate -s 320M $image && mkfs.xfs -q $image && mount -o loop $image /mnt",
        "truncate -s 120M $image && mkfs.btrfs -q $image && mount -o loop $image /mnt",
    ] {
        on("files_are_shared_by_reflink_where_there_are_any", mount, |root| {
            let volume = volume(root);
            let content = vec![7; 8 << 20];
            let (from, to) = (root.join("v/from"), root.join("v/to"));
            fs::write(&from, &content).unwrap();
            rustix::fs::syncfs(fs::File::open(root).unwrap()).unwrap();
            let free = room::Space::of(&volume).unwrap().free_bytes;
            for n in 0..32 {
                assert_eq!(volume.share(&from, &root.join(format!("v/{n}"))).unwrap(), Shared::Reflink);
            }
            assert_eq!(volume.share(&from, &to).unwrap(), Shared::Reflink);
            let (one, two) = (fs::metadata(&from).unwrap(), fs::metadata(&to).unwrap());
            assert!(one.ino() != two.ino() && (one.nlink(), two.nlink()) == (1, 1));
            assert!(fs::read(&to).unwrap() == content);
            let taken = free.saturating_sub(room::Space::of(&volume).unwrap().free_bytes);
            assert!(taken < content.len() as u64, "33 files of the same blocks take {taken} bytes");
            // Damage through one name does not reach the other.
            fs::write(&from, "damaged").unwrap();
            assert!(fs::read(&to).unwrap() == content);
        });
    }
}

#[test]
fn a_mount_that_refuses_what_was_found_gets_the_next_best_thing() {
    // The findings say reflink; this kernel's tmpfs knows of none.
    on("a_mount_that_refuses_what_was_found_gets_the_next_best_thing", "mount -t tmpfs tmpfs /mnt", |root| {
        volume(root);
        let description = root.join("v/volume.json");
        let text = fs::read_to_string(&description).unwrap().replace("\"reflink\": false", "\"reflink\": true");
        fs::write(&description, text).unwrap();
        let volume = volume(root);
        assert!(volume.mount().reflink);
        fs::write(root.join("v/from"), "x").unwrap();
        assert_eq!(volume.share(&root.join("v/from"), &root.join("v/to")).unwrap(), Shared::Link);
        let names: Vec<_> = fs::read_dir(root.join("v")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "nothing is left of the attempt: {names:?}");
    });
}

#[test]
fn a_file_system_without_inodes_or_bytes_is_full_before_the_first_one() {
    let mount = "mount -t tmpfs -o size=8m,nr_inodes=200 tmpfs /mnt";
    on("a_file_system_without_inodes_or_bytes_is_full_before_the_first_one", mount, |root| {
        let volume = volume(root);
        room::check(&volume, 7 << 20, 100).unwrap();
        let inodes = room::check(&volume, 0, 197);
        assert!(matches!(inodes, Err(RoomError::Inodes { needed: 197, reserve: 2, .. })), "{inodes:?}");
        let bytes = room::check(&volume, 8 << 20, 1);
        assert!(matches!(bytes, Err(RoomError::Bytes { .. })), "{bytes:?}");
        // What the check lets pass can be written.
        for n in 0..190 {
            fs::write(root.join(n.to_string()), "").unwrap();
        }
        assert!(matches!(room::check(&volume, 0, 8), Err(RoomError::Inodes { .. })));
    });
}

#[test]
fn a_probe_where_no_inode_is_left_is_an_error_and_leaves_nothing() {
    let mount = "mount -t tmpfs -o nr_inodes=8 tmpfs /mnt";
    on("a_probe_where_no_inode_is_left_is_an_error_and_leaves_nothing", mount, |root| {
        let full = Volume::open_or_create(&root.join("v"));
        assert!(matches!(full, Err(forebay_datasets::volume::VolumeError::Full { .. })), "{full:?}");
        assert_eq!(fs::read_dir(root.join("v")).unwrap().count(), 0);
    });
}
