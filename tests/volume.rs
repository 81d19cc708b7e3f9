//! `forebay volume …`, `dataset pin|unpin|gc` and what runs hold: the built binary on real mounts.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]

mod support;

use std::{fs, path::PathBuf, process::Command, time::Duration};

use rustix::process::Signal;
use serde_json::Value;
use support::{Cluster, Outcome, eventually};

fn in_namespace(cluster: &Cluster, text: &str) -> Outcome {
    support::namespace::in_namespace(&cluster.terminal(), text)
}

/// Stages these bytes as the only object of `data`. Returns the snapshot.
fn stage(cluster: &Cluster, content: &str) -> String {
    cluster.s3.put("data", "same", "shared by all of them");
    cluster.s3.put("data", "x", content.to_owned());
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0).stdout.trim().to_owned()
}

fn snapshots(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry["snapshot"].as_str().unwrap()).collect()
}

fn is_there(cluster: &Cluster, snapshot: &str) -> bool {
    let outcome = cluster.forebay(["dataset", "verify", "data", "--full", "--snapshot", snapshot]);
    assert!(matches!(outcome.code, Some(0 | 3)), "it is whole or gone: {outcome:#?}");
    outcome.code == Some(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_tells_what_it_holds_and_what_its_mount_does() {
    let cluster = Cluster::start().await;
    let missing = cluster.forebay(["volume", "show"]).code(3);
    assert!(missing.stderr.contains("there is no volume"), "{}", missing.stderr);
    stage(&cluster, "1");
    stage(&cluster, "23");
    let shown = cluster.forebay(["volume", "show", "--json"]).json(0);
    let holds = &shown["holds"];
    assert_eq!((&holds["snapshots"], &holds["objects"], &holds["bytes"]), (&2.into(), &3.into(), &24.into()));
    assert!(shown["free_bytes"].as_u64().unwrap() > 0 && shown["quota"].is_null(), "{shown}");
    let mount = &shown["mount"];
    assert_eq!(
        (&mount["link"], &mount["rename_atomic"], &mount["folds_case"]),
        (&true.into(), &true.into(), &false.into())
    );
    let kept: Value = serde_json::from_slice(&fs::read(cluster.volume().join("volume.json")).unwrap()).unwrap();
    assert_eq!(&kept["mounts"][0], mount, "found at first use, and kept");
    cluster.forebay(["volume", "set", "--quota", "500GiB"]).code(0);
    let text = cluster.forebay(["volume", "show"]).code(0).stdout;
    for part in
        ["500.00 GiB, 24 B used", "1 dataset, 2 snapshots, 3 objects", "rename over  at once", "reflinks", "O_DIRECT"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    cluster.forebay(["volume", "set", "--quota", "none"]).code(0);
    assert!(cluster.forebay(["volume", "show", "--json"]).json(0)["quota"].is_null());
    cluster.forebay(["volume", "set", "--quota", "much"]).code(2);
    let checked = cluster.forebay(["volume", "check", "--json"]).json(0);
    assert_eq!((&checked["lacks"], &checked["changed"]), (&serde_json::json!([]), &serde_json::json!({})));
    assert!(!support::files(cluster.volume()).iter().any(|path| path.to_string_lossy().contains(".probe-")));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_mount_has_its_own_findings_and_a_check_tells_what_changed() {
    let cluster = Cluster::start().await;
    let text = "mount -t tmpfs tmpfs /mnt; V='--volume /mnt/v'; $forebay $V volume check -q >/dev/null; \
                mount -o remount,noatime /mnt; $forebay $V volume show | grep probed; \
                $forebay $V volume check -q >/dev/null; $forebay $V volume show --json; \
                sed -i 's/\"fallocate\": true/\"fallocate\": false/' /mnt/v/volume.json; $forebay $V volume check --json";
    let outcome = in_namespace(&cluster, text).code(0);
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert!(lines[0].contains("never from such a mount"), "{outcome:#?}");
    let shown: Value = serde_json::from_str(lines[1]).unwrap();
    let options = |at: usize| shown["mounts"][at]["options"].as_str().unwrap();
    assert!(options(0) == "rw,relatime" && options(1) == "rw,noatime" && shown["mounts"][2].is_null(), "{shown}");
    let checked: Value = serde_json::from_str(lines[2]).unwrap();
    assert_eq!(checked["changed"], serde_json::json!({ "fallocate": { "was": false, "is": true } }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_lacks_what_is_needed_is_named() {
    let cluster = Cluster::start().await;
    cluster.forebay(["volume", "check"]).code(0);
    // A file system without hard links, and one on which directories cannot be synced.
    for (source, part) in [
        ("int linkat(int a, const char *b, int c, const char *d, int e) { errno = EPERM; return -1; }", "second name"),
        (
            "int fsync(int fd) { struct stat s; fstat(fd, &s); if (S_ISDIR(s.st_mode)) { errno = EINVAL; return -1; } \
             return fdatasync(fd); }",
            "a directory cannot be synced",
        ),
    ] {
        let (c, library) = (cluster.volume().join("shim.c"), cluster.volume().join("shim.so"));
        fs::write(&c, format!("#include <errno.h>\n#include <sys/stat.h>\n#include <unistd.h>\n{source}\n")).unwrap();
        let cc = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&c).status().unwrap();
        assert!(cc.success());
        let terminal = cluster.with_env("LD_PRELOAD", library.to_str().unwrap());
        let lacks = terminal.forebay(["volume", "check"]).code(4);
        assert!(lacks.stderr.contains(part), "{part}: {}", lacks.stderr);
        let lacks = terminal.forebay(["volume", "check", "--json"]).json(4);
        assert!(lacks["lacks"][0].as_str().unwrap().contains(part), "{lacks}");
        cluster.forebay(["volume", "check"]).code(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_or_read_only_is_no_finding() {
    let cluster = Cluster::start().await;
    let text = "mount -t tmpfs -o size=400k tmpfs /mnt; V='--volume /mnt/v'; $forebay $V volume check -q >/dev/null; \
                cp /mnt/v/volume.json /tmp/before; head -c 10m /dev/zero > /mnt/fill || true; set +e; \
                $forebay $V volume check; echo $?; rm /mnt/fill; mount -o remount,ro /mnt; \
                $forebay $V volume check; echo $?; $forebay $V volume show -q >/dev/null; echo $?; \
                cmp /mnt/v/volume.json /tmp/before; echo $?";
    let text = text.replace("/tmp/before", cluster.volume().join("before").to_str().unwrap());
    let outcome = in_namespace(&cluster, &text);
    assert_eq!(outcome.stdout.lines().collect::<Vec<_>>(), ["4", "4", "0", "0"], "{outcome:#?}");
    assert!(outcome.stderr.contains("no room left") && outcome.stderr.contains("read-only"), "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflinks_are_found_where_they_are() {
    let cluster = Cluster::start().await;
    for (make, size) in [("mkfs.xfs -q", "320M"), ("mkfs.btrfs -q", "120M"), ("mkfs.ext4 -q", "16M")] {
        let image = cluster.volume().join("image");
        let text = format!(
            "truncate -s {size} {0}; {make} {0} >/dev/null 2>&1 && mount -o loop {0} /mnt || exit 77; rm {0}; \
             $forebay --volume /mnt/v volume check --json",
            image.display()
        );
        let outcome = in_namespace(&cluster, &text);
        let _ = fs::remove_file(&image);
        if outcome.code == Some(77) {
            eprintln!("SKIPPED {make}: it is not here, or loop devices are not: {}", outcome.stderr);
            continue;
        }
        let mount = &outcome.json(0)["mount"];
        assert_eq!(mount["reflink"], Value::from(!make.contains("ext4")), "{make}: {mount}");
        assert_eq!(mount["syncfs"], true, "{make}: {mount}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_go_by_the_rules_and_what_is_held_stays() {
    let cluster = Cluster::start().await;
    let ids: Vec<_> = (1..=4).map(|n| stage(&cluster, &"x".repeat(n * 1000))).collect();
    let plan = cluster.forebay(["dataset", "gc", "--keep-last", "2", "--dry-run", "--json"]).json(0);
    assert_eq!(
        (snapshots(&plan["removed"]), snapshots(&plan["kept"])),
        (vec![&*ids[0], &ids[1]], vec![&*ids[2], &ids[3]])
    );
    assert_eq!(plan["frees_bytes"], 3000, "what the snapshots share stays");
    assert!(ids.iter().all(|id| is_there(&cluster, id)));

    let pinned = cluster.forebay(["dataset", "pin", &format!("data@{}", &ids[0][..8]), "--name", "paper"]).code(0);
    assert_eq!(pinned.stdout.trim(), ids[0]);
    let shown = cluster.forebay(["dataset", "show", "data", "--json"]).json(0);
    assert_eq!(shown["pins"], serde_json::json!({ "paper": ids[0] }));
    let text = cluster.forebay(["dataset", "show", "data"]).code(0).stdout;
    assert!(text.contains("pinned as paper") && text.contains("latest"), "{text}");

    // The first is pinned, the last is the latest; the third is too young for the second rule.
    let none = cluster.forebay(["dataset", "gc", "--older-than", "1d", "--json"]).json(0);
    assert_eq!(snapshots(&none["removed"]), [""; 0]);
    let done = cluster.forebay(["dataset", "gc", "data", "--keep-last", "2", "--json"]).json(0);
    assert_eq!(snapshots(&done["removed"]), [&*ids[1]]);
    let freed = done["removed"][0]["frees_bytes"].as_u64().unwrap();
    assert!((2000..8000).contains(&freed), "{freed} bytes: its object, its manifest, its record");
    assert_eq!(ids.iter().map(|id| is_there(&cluster, id)).collect::<Vec<_>>(), [true, false, true, true]);

    cluster.forebay(["dataset", "unpin", "data", "--name", "paper"]).code(0);
    let unpinned = cluster.forebay(["dataset", "unpin", "data", "--name", "paper"]).code(3);
    assert!(unpinned.stderr.contains("no pin `paper`"), "{}", unpinned.stderr);
    let text = cluster.forebay(["dataset", "gc", "--max-size", "1B"]).code(0);
    assert!(text.stdout.contains("removed") && text.stderr.contains("freed"), "{text:#?}");
    assert_eq!(ids.iter().map(|id| is_there(&cluster, id)).collect::<Vec<_>>(), [false, false, false, true]);
    assert!(cluster.left_behind("data").is_empty());
    let idle = cluster.forebay(["dataset", "gc"]).code(0);
    assert!(idle.stderr.contains("--keep-last"), "{}", idle.stderr);
    cluster.forebay(["dataset", "gc", "nothing", "--keep-last", "1"]).code(3);
    cluster.forebay(["dataset", "gc", "../x", "--keep-last", "1"]).code(2);
    cluster.forebay(["dataset", "pin", &format!("data@{}", ids[0])]).code(3);
    cluster.forebay(["dataset", "pin", "data", "--name", "../x"]).code(2);
}

/// A run over `data` whose one task waits for the file `go`.
fn job(cluster: &Cluster) -> String {
    let text = format!(
        "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\nshell = \"\"\"\n\
         while [ ! -e {}/go ]; do sleep 0.01; done; cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/x\"\"\"\n\
         [workers]\ncount = 1\n[split]\nby = 'whole'\n",
        cluster.volume().display()
    );
    cluster.file("job.toml", &text)
}

fn is_working(cluster: &Cluster, run: &str) {
    eventually("a task runs", || cluster.tasks(run, "running") > 0);
}

fn gc(cluster: &Cluster) -> Value {
    cluster.forebay(["dataset", "gc", "--keep-last", "0", "--json"]).json(0)
}

fn lease(cluster: &Cluster) -> Vec<PathBuf> {
    let leases = fs::read_dir(cluster.volume().join("datasets/data/leases")).into_iter().flatten();
    leases.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_reads_stays_until_the_run_has_ended() {
    let cluster = Cluster::start().await;
    let old = stage(&cluster, "old");
    let job = job(&cluster);
    let running = cluster.terminal().start(["run", &job, "--id", "r", "--json"]);
    is_working(&cluster, "r");
    let new = stage(&cluster, "new");
    let kept = gc(&cluster);
    assert_eq!((snapshots(&kept["kept"]), &kept["kept"][0]["because"]), (vec![&*old, &new], &"read by run r".into()));
    assert!(cluster.forebay(["dataset", "show", "data"]).code(0).stdout.contains("read by run r"));
    fs::write(cluster.volume().join("go"), "").unwrap();
    let result = running.outcome().json(0);
    assert_eq!(
        fs::read_to_string(cluster.run_dir("r").join("output/task-00000/x")).unwrap(),
        "shared by all of themold"
    );
    assert_eq!((&result["snapshot"], lease(&cluster)), (&old.clone().into(), vec![]));
    assert_eq!(snapshots(&gc(&cluster)["removed"]), [&*old]);
    assert!(!is_there(&cluster, &old) && is_there(&cluster, &new));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_keeps_its_snapshot_for_a_week_and_then_says_that_it_is_gone() {
    let cluster = Cluster::start().await;
    let old = stage(&cluster, "old");
    let job = job(&cluster);
    let running = cluster.terminal().start(["run", &job, "--id", "r"]);
    is_working(&cluster, "r");
    running.signal(Signal::INT);
    running.outcome().code(130);
    stage(&cluster, "new");
    let set_age = |days: u64| {
        let file = fs::File::open(&lease(&cluster)[0]).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(days * 24 * 3600)).unwrap();
    };
    set_age(6);
    assert_eq!(gc(&cluster)["kept"][0]["because"], "read by run r");
    set_age(8);
    assert_eq!(snapshots(&gc(&cluster)["removed"]), [&*old]);
    assert!(lease(&cluster).is_empty());
    let gone = cluster.forebay(["resume", "r"]).code(3);
    assert!(gone.stderr.contains(&old) && gone.stderr.contains("is gone"), "{}", gone.stderr);
    assert!(gone.stderr.contains("forebay resume r"), "{}", gone.stderr);
    // The same content has the same id.
    assert_eq!(stage(&cluster, "old"), old);
    fs::write(cluster.volume().join("go"), "").unwrap();
    let result = cluster.forebay(["resume", "r", "--json"]).json(0);
    assert_eq!((&result["state"], lease(&cluster)), (&"succeeded".into(), vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_never_began_or_were_cancelled_hold_nothing() {
    let cluster = Cluster::start().await;
    let old = stage(&cluster, "old");
    let bad = "name = 'j'\n[dataset]\nsource = 's3://data'\n[sql]\nquery = 'select nothing from data'\n";
    let bad = cluster.file("bad.toml", bad);
    cluster.forebay(["run", &bad, "--id", "bad"]).code(2);
    let job = job(&cluster);
    let running = cluster.terminal().start(["run", &job, "--id", "r"]);
    is_working(&cluster, "r");
    running.signal(Signal::INT);
    running.outcome().code(130);
    cluster.forebay(["cancel", "r"]).code(0);
    stage(&cluster, "new");
    assert_eq!(snapshots(&gc(&cluster)["removed"]), [&*old]);
    assert!(lease(&cluster).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_stays_in_the_trash_for_a_later_command() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x", "1");
    // A mount point is as busy as a directory in which another host of an NFS server holds a file open.
    let text = "mount -t tmpfs tmpfs /mnt; V='--volume /mnt/v'; $forebay $V dataset stage s3://data -q >/dev/null; \
                mkdir -p /mnt/v/trash/a/busy; : > /mnt/v/trash/a/file; mount -t tmpfs tmpfs /mnt/v/trash/a/busy; \
                $forebay $V dataset gc --json; find /mnt/v/trash -mindepth 1; umount /mnt/v/trash/a/busy; \
                $forebay $V dataset stage s3://data -q >/dev/null; find /mnt/v/trash -mindepth 1";
    let outcome = in_namespace(&cluster, text).code(0);
    let lines: Vec<_> = outcome.stdout.lines().collect();
    let collected: Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(collected["left_in_trash"], true);
    assert_eq!(lines[1..], ["/mnt/v/trash/a", "/mnt/v/trash/a/busy"], "{outcome:#?}");
}
