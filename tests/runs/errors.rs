//! What is wrong with a job, its source or its volume: one clear error, the right exit code, nothing left behind.

use std::path::Path;

use tempfile::TempDir;

use crate::support::{Cluster, Outcome, files, namespace::in_namespace};

const JOB: &str = "name = \"j\"\n[dataset]\nsource = \"s3://data\"\n[sql]\nquery = \"select a from data\"\n";

async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "t.csv", "a,b\n1,2\n");
    cluster
}

/// Whatever stands on a volume besides its own mark and what is staged for good.
fn left_behind(volume: &Path) -> Vec<String> {
    let name = |path: &Path| path.strip_prefix(volume).unwrap().display().to_string();
    let kept = |name: &String| {
        !["volume.json", "refs/latest", "snapshots/"].iter().any(|kept| name.contains(kept)) || name.contains("staging")
    };
    files(volume).iter().map(|path| name(path)).filter(kept).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_wrong_creates_nothing() {
    let cluster = cluster().await;
    for (text, part) in [
        (JOB.replace("query =", "querry ="), "unknown key `querry`"),
        (JOB.to_owned() + "[command]\nargv = [\"x\"]\n", "two kinds of work"),
        (JOB.replace("[sql]", "include = [\"a{\"]\n[sql]"), "`a{` is no glob"),
        (
            JOB.replace(
                "[sql]\nquery = \"select a from data\"",
                "[mapreduce]\nmap = \"word-count\"\n[split]\nsize = \"1XB\"",
            ),
            "`1XB` is no size",
        ),
        (JOB.replace("select a", "selct a"), "selct"),
    ] {
        let volume = cluster.volume().join("none");
        let job = cluster.file("job.toml", &text);
        let error = cluster.terminal().on_volume(&volume).forebay(["run", &job]).code(2);
        assert!(error.stderr.contains(part) && error.stderr.contains("job.toml:"), "{part}: {}", error.stderr);
        assert!(error.stdout.is_empty() && !volume.exists());
        let error = cluster.terminal().on_volume(&volume).forebay(["run", &job, "--json"]).json(2);
        assert!(error["error"]["message"].as_str().unwrap().contains(part), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_column_leaves_the_dataset_and_no_run() {
    let (cluster, volume) = (cluster().await, TempDir::new().unwrap());
    let job = cluster.file("job.toml", &JOB.replace("select a", "select aa"));
    let terminal = cluster.terminal().on_volume(volume.path());
    let error = terminal.forebay(["run", &job, "--id", "r"]).code(2);
    assert!(error.stderr.contains("No field named aa") && error.stderr.contains("job.toml:5:17"), "{}", error.stderr);
    let job_of = |query: &str| cluster.file("job.toml", &JOB.replace("select a from data", query));
    let error = terminal.forebay(["check", &job_of("select b from dat")]).code(2);
    assert!(error.stderr.contains("job.toml:5:24"), "{}", error.stderr);
    cluster.file("job.toml", &JOB.replace("select a", "select aa"));
    assert_eq!(left_behind(volume.path()), [""; 0]);
    terminal.forebay(["dataset", "verify", "data", "--full"]).code(0);
    // The corrected job may have the same id.
    let job = cluster.file("job.toml", JOB);
    terminal.forebay(["run", &job, "--id", "r"]).code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_out_of_reach_leaves_nothing() {
    let (cluster, volume) = (cluster().await, TempDir::new().unwrap());
    let job = |text: &str| cluster.file("job.toml", text);
    let check = |error: Outcome, parts: &[&str]| {
        parts.iter().for_each(|part| assert!(error.stderr.contains(part), "{part}: {}", error.stderr));
        assert_eq!(left_behind(volume.path()), [""; 0]);
    };
    let terminal = || cluster.terminal().on_volume(volume.path());
    let absent = job(&JOB.replace("s3://data", "s3://absent"));
    check(terminal().forebay(["run", &absent]).code(3), &["the bucket `absent` does not exist"]);
    let empty = job(&JOB.replace("s3://data", "s3://data/nothing/"));
    check(terminal().forebay(["run", &empty]).code(3), &["s3://data/nothing/"]);
    let good = job(JOB);
    let denied = cluster.with_env("AWS_SECRET_ACCESS_KEY", "wrong").on_volume(volume.path());
    check(denied.forebay(["run", &good]).code(4), &["denied", "check the credentials"]);
    let unreachable = cluster.with_env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1").on_volume(volume.path());
    check(unreachable.forebay(["run", &good]).code(4), &["http://127.0.0.1:1 cannot be reached"]);
    terminal().forebay(["run", &good]).code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_read_only_is_named() {
    let cluster = cluster().await;
    let job = cluster.file("job.toml", JOB);
    let text = format!("mount -t tmpfs -o ro tmpfs /mnt; $forebay --volume /mnt/v run {job}");
    let error = in_namespace(&cluster.terminal(), &text).code(4);
    assert!(error.stderr.contains("/mnt/v") && error.stderr.contains("read-only"), "{}", error.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_that_does_not_fit_leaves_nothing() {
    let cluster = cluster().await;
    cluster.s3.put("data", "big.csv", vec![b'x'; 8 << 20]);
    let job = cluster.file("job.toml", JOB);
    let text = format!(
        "mount -t tmpfs -o size=6m tmpfs /mnt; set +e; $forebay --volume /mnt/v run {job} --id r; code=$?; \
         find /mnt/v -type f | sort; exit $code"
    );
    let error = in_namespace(&cluster.terminal(), &text).code(4);
    assert!(error.stderr.contains("free some space"), "{}", error.stderr);
    assert_eq!(error.stdout, "/mnt/v/volume.json\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_fills_up_loses_nothing_that_was_done() {
    let cluster = cluster().await;
    for n in 0..4 {
        cluster.s3.put("data", &format!("{n}.csv"), "a\n1\n");
    }
    // The first two tasks fit, the others do not, until somebody makes room.
    let text = "name = 'j'\n[dataset]\nsource = 's3://data'\nexclude = ['t.csv']\n[command]\n\
                shell = 'head -c 4000000 /dev/zero > $FOREBAY_OUTPUT_DIR/x'\n[workers]\ncount = 1\nslots = 1\n\
                [retry]\nattempts = 1\n[split]\nby = 'file'\n";
    let job = cluster.file("job.toml", text);
    let text = format!(
        "mount -t tmpfs -o size=11m tmpfs /mnt; set +e; $forebay --volume /mnt/v run {job} --id r >/dev/null; echo $?; \
         $forebay --volume /mnt/v runs tasks r --state succeeded --json; \
         mount -o remount,size=40m /mnt; $forebay --volume /mnt/v run {job} --id r2 >/dev/null; echo $?; \
         ls /mnt/v/runs/r2/output"
    );
    let outcome = in_namespace(&cluster.terminal(), &text).code(0);
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[0], "1", "{outcome:#?}");
    assert!(outcome.stderr.contains("No space left on device") || outcome.stderr.contains("full"), "{outcome:#?}");
    let tasks: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
    assert_eq!(tasks["tasks"].as_array().unwrap().len(), 2, "{tasks}");
    assert_eq!(
        lines[2..],
        ["0", "_SUCCESS", "_manifest.parquet", "task-00000", "task-00001", "task-00002", "task-00003"]
    );
}
