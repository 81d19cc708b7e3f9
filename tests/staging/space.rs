//! Volumes that are full, that fail, and that become read-only: a clear error, nothing published, the space given back.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::Duration,
};

use forebay::s3_server::Faults;

use crate::support::{Cluster, Outcome, bytes, files, namespace::in_namespace};

const SMALL: u64 = 300;

/// 300 small objects and two of 18 MiB, from a server that takes its time.
async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    for n in 0..SMALL {
        cluster.s3.put("data", &format!("small/{n:03}"), bytes(n, 2000));
    }
    for n in 0..2 {
        cluster.s3.put("data", &format!("large/{n}"), bytes(n, 18 << 20));
    }
    cluster.s3.set_faults(Faults { latency: Duration::from_millis(50), pace: Some(12 << 20), ..Faults::default() });
    cluster
}

/// Stages onto `$volume`, and does `harm` when the first object has arrived; the lines are the exit code, whether
/// anything is published, and the KiB that the volume holds.
fn harmed(mounts: &str, volume: &str, harm: &str, afterwards: &str) -> String {
    format!(
        "{mounts}\n$forebay --json --volume {volume} dataset stage s3://data & pid=$!\n\
         until [ -n \"$(find {volume} -path '*/staging/*' -type f -size +0 2>/dev/null | head -n 1)\" ]; do sleep 0.01; done\n\
         {harm}\nset +e; wait $pid; echo $?\n\
         ls {volume}/datasets/data/snapshots {volume}/datasets/data/refs 2>/dev/null | wc -w\n\
         du -sk {volume} | cut -f 1\n{afterwards}"
    )
}

/// The error, and what stands on the volume after it; the rest of the lines.
#[track_caller]
fn check<'a>(outcome: &'a Outcome, causes: &[&str], kept_kib: u64) -> Vec<&'a str> {
    let mut lines = outcome.stdout.lines();
    let error = lines.next().unwrap_or_default();
    let figures: Vec<_> = lines.by_ref().take(3).collect();
    assert_eq!(figures[..2], ["4", "0"], "{outcome:#?}");
    assert!(figures[2].parse::<u64>().unwrap() <= kept_kib, "the space is given back: {outcome:#?}");
    assert!(causes.iter().any(|cause| error.contains(cause)), "{outcome:#?}");
    assert!(error.contains("/v") || error.contains("the volume's file system"), "{outcome:#?}");
    lines.collect()
}

const FULL: [&str; 2] = ["free some space", "No space left on device"];
/// What a volume may hold on to: its mark and some directories.
const LITTLE: u64 = 200;
/// Once there is room again all of it is staged.
const AGAIN: &str = "rm -f /mnt/filler; $forebay --volume $v dataset stage s3://data >/dev/null; echo $?\n\
                     $forebay --volume $v dataset verify data --full; echo $?";

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_fills_up_under_way_gives_the_space_back() {
    let text = harmed(
        "mount -t tmpfs -o size=64m tmpfs /mnt; v=/mnt/v",
        "/mnt/v",
        "cat /dev/zero > /mnt/filler || true",
        AGAIN,
    );
    let outcome = in_namespace(&cluster().await.terminal(), &text).code(0);
    let rest = check(&outcome, &FULL, LITTLE);
    assert_eq!(rest[0], "0", "{outcome:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_without_inodes_is_said_to_have_none() {
    let mounts = "mount -t tmpfs -o size=64m,nr_inodes=150 tmpfs /mnt; v=/mnt/v";
    let text = format!(
        "{mounts}\nset +e; $forebay --json --volume $v dataset stage s3://data; echo $?\n\
         ls $v/datasets/data/snapshots $v/datasets/data/refs 2>/dev/null | wc -w; du -sk $v | cut -f 1\n\
         mount -o remount,nr_inodes=10000 /mnt\n{AGAIN}"
    );
    let outcome = in_namespace(&cluster().await.terminal(), &text).code(0);
    let rest = check(&outcome, &["inodes", "room for", "No space left on device"], LITTLE);
    assert_eq!(rest[0], "0", "{outcome:#?}");
}

/// An ext4 file system of its own, on a file in memory.
fn ext4(memory: &str, size: &str, options: &str) -> String {
    format!(
        "mount -t tmpfs -o size={memory} tmpfs /mnt; truncate -s {size} /mnt/image; mkfs.ext4 -q -m 0 /mnt/image\n\
         mkdir /mnt/m; mount -o loop,{options} /mnt/image /mnt/m; v=/mnt/m/v"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "mounts a block device, as root; .ci/run has it"]
async fn a_block_device_that_fills_up_gives_the_space_back() {
    let harm = "cat /dev/zero > /mnt/m/filler || true";
    let again = AGAIN.replace("/mnt/filler", "/mnt/m/filler");
    let text = harmed(&ext4("128m", "96m", "noatime"), "$v", harm, &again);
    let outcome = in_namespace(&cluster().await.terminal(), &text).code(0);
    let rest = check(&outcome, &FULL, 2 * LITTLE);
    assert_eq!(rest[0], "0", "{outcome:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "mounts a block device, as root; .ci/run has it"]
async fn a_block_device_that_fails_publishes_nothing() {
    // The device has less behind it than it says: what ext4 took is refused when it is synced, and what goes past the page
    // cache at once, as what it is.
    let text = harmed(&ext4("48m", "256m", "noatime"), "$v", "cat /dev/zero > /mnt/filler || true", "");
    let outcome = in_namespace(&cluster().await.terminal(), &text).code(0);
    check(&outcome, &["Input/output error", "read-only", "Read-only", "No space left on device"], u64::MAX);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "mounts a block device, as root; .ci/run has it"]
async fn a_volume_that_becomes_read_only_is_named() {
    let harm = "echo 1 > /sys/fs/ext4/$(basename $(findmnt -no SOURCE /mnt/m))/trigger_fs_error";
    let text = harmed(&ext4("160m", "128m", "errors=remount-ro"), "$v", harm, "");
    let outcome = in_namespace(&cluster().await.terminal(), &text).code(0);
    // Until ext4 has told all writers, a sync that waits for its journal is told of the device instead.
    check(&outcome, &["read-only", "Read-only", "the volume's device or server failed"], u64::MAX);
}

/// The program that refuses calls of the kernel, compiled once.
static REFUSE: LazyLock<PathBuf> = LazyLock::new(|| {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("refuse-{}", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/staging/refuse.c");
    let compiled = Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(source).status().unwrap();
    assert!(compiled.success(), "cc {source}");
    program
});

/// One of the calls that go wrong: which, with what, which one of them first, and how many (0: all from there).
struct Refused {
    call: &'static str,
    errno: rustix::io::Errno,
    from: u32,
    count: u32,
    cause: &'static str,
}

/// Stages with calls of the kernel below `staging/` refused.
fn stage_refused(cluster: &Cluster, refused: &Refused) -> (Outcome, usize) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let command = cluster.terminal().command();
    let mut wrapped = Command::new(&*REFUSE);
    wrapped.arg(refused.call).arg(refused.errno.raw_os_error().to_string());
    wrapped.args([refused.from.to_string(), refused.count.to_string()]).arg("/staging/").arg(log.path());
    wrapped.arg("--").arg(command.get_program()).args(command.get_args()).args([
        "dataset",
        "stage",
        "s3://data",
        "--json",
    ]);
    wrapped.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let outcome = Outcome::of(wrapped.output().unwrap());
    (outcome, std::fs::read_to_string(log.path()).unwrap().lines().count())
}

fn data_is_right(cluster: &Cluster) -> bool {
    let data = cluster.data("data");
    files(&data).iter().all(|path| {
        let key = path.strip_prefix(&data).unwrap().to_str().unwrap();
        cluster.s3.object("data", key).is_some_and(|should| should == std::fs::read(path).unwrap())
    }) && files(&data).len() as u64 == SMALL + 2
}

async fn is_an_error(refused: Refused) {
    let cluster = cluster().await;
    cluster.s3.set_faults(Faults::default());
    let (outcome, count) = stage_refused(&cluster, &refused);
    let what = format!("{} {:?} from {}: {count} calls", refused.call, refused.errno, refused.from);
    assert!(count > 0, "{what}: none was refused: {outcome:#?}");
    let error = outcome.json(4)["error"].to_string();
    assert!(error.contains(refused.cause), "{what}: {error}");
    let volume = cluster.volume().display().to_string();
    assert!(error.contains(&volume), "{what}: the file, or what was synced, is named: {error}");
    cluster.forebay(["dataset", "show", "data"]).code(3);
    let kept: u64 = files(cluster.volume()).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(kept < LITTLE << 10, "{what}: {kept} bytes are kept: {:?}", cluster.left_behind("data"));
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    assert!(data_is_right(&cluster), "{what}");
    let left: Vec<_> = cluster.left_behind("data").iter().flat_map(|dir| files(dir)).collect();
    assert!(left.is_empty(), "{what}: {left:?}");
}

macro_rules! refused {
    ($($name:ident: $call:literal $errno:ident from $from:literal count $count:literal, $cause:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let errno = rustix::io::Errno::$errno;
            is_an_error(Refused { call: $call, errno, from: $from, count: $count, cause: $cause }).await;
        })*
    };
}

refused! {
    a_write_that_fails: "write" IO from 100 count 1, "Input/output error";
    writes_that_find_no_space: "write" NOSPC from 100 count 0, "free some space";
    writes_over_the_quota: "write" DQUOT from 100 count 0, "uota";
    a_sync_that_fails: "sync" IO from 3 count 1, "Input/output error";
    a_first_sync_that_fails: "sync" IO from 1 count 1, "Input/output error";
    syncs_that_find_no_space: "sync" NOSPC from 3 count 0, "free some space";
    syncs_over_the_quota: "sync" DQUOT from 3 count 0, "uota";
    files_that_cannot_be_created: "create" NOSPC from 50 count 0, "free some space";
    files_over_the_quota: "create" DQUOT from 50 count 0, "uota";
    a_volume_that_is_read_only_from_now_on: "create" ROFS from 50 count 0, "read-only";
    a_rename_that_fails: "rename" IO from 3 count 1, "Input/output error";
}

/// After a sync that succeeded, what close says is of no account.
#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_fails_spoils_nothing() {
    let cluster = cluster().await;
    cluster.s3.set_faults(Faults::default());
    let refused = Refused { call: "close", errno: rustix::io::Errno::IO, from: 10, count: 5, cause: "" };
    let (outcome, count) = stage_refused(&cluster, &refused);
    assert!(count > 0, "{outcome:#?}");
    outcome.code(0);
    assert!(data_is_right(&cluster));
}
