//! `forebay dataset stage --dry-run`: what staging would do, told before a byte moves.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use crate::support::{Cluster, files};

const BIG: usize = 40 << 20;

fn dry(cluster: &Cluster, source: &str) -> Value {
    cluster.forebay(["dataset", "stage", source, "--dry-run", "--json"]).json(0)
}

/// Every file of a directory, and what it holds.
fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    files(root).iter().map(|path| (path.display().to_string(), fs::read(path).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_before_is_what_staging_then_does() {
    let cluster = Cluster::start().await;
    for n in 0..1500 {
        cluster.s3.put("data", &format!("p/{n:04}"), "1234567890");
    }
    cluster.s3.put("data", "p/big", vec![7; BIG]);
    let volume = cluster.volume().join("not/yet/there");
    let terminal = cluster.terminal().on_volume(&volume);
    let dry = terminal.forebay(["dataset", "stage", "s3://data/p", "--dry-run", "--json"]).json(0);
    assert!(!cluster.volume().join("not").exists(), "nothing is made");
    assert_eq!(cluster.s3.counts().gets(), 0);
    let bytes = 15_000 + BIG;
    assert_eq!(
        (&dry["objects"], &dry["fetch_bytes"], &dry["shared_objects"]),
        (&1501.into(), &bytes.into(), &0.into())
    );
    assert_eq!(dry["requests"], json!({ "get": 1500 + 3, "head": 1, "list": 2 }));
    assert!((dry["cost_usd"].as_f64().unwrap() - (1504.0 * 0.4e-6 + 2.0 * 5e-6)).abs() < 1e-9, "{dry}");
    assert!(dry["speed"]["measured"].is_null() && dry["seconds"].as_f64().unwrap() > 3.0, "assumed: {dry}");

    let counts = cluster.s3.counts();
    let before = (counts.gets(), counts.heads(), counts.lists());
    terminal.forebay(["dataset", "stage", "s3://data/p"]).code(0);
    assert_eq!((counts.gets() - before.0, counts.heads() - before.1, counts.lists() - before.2), (1503, 1, 2));

    cluster.s3.put("data", "p/0007", "changed");
    let held = contents(&volume);
    let again = terminal.forebay(["dataset", "stage", "s3://data/p", "--dry-run", "--json"]).json(0);
    assert_eq!(
        (&again["fetch_objects"], &again["fetch_bytes"], &again["shared_objects"]),
        (&1.into(), &7.into(), &1500.into())
    );
    assert!(again["speed"]["measured"].is_string(), "{again}");
    assert!(contents(&volume) == held, "nothing is changed");
    assert_eq!(fs::read_dir(volume.join("trash")).into_iter().flatten().count(), 0);
    let text = terminal.forebay(["dataset", "stage", "s3://data/p", "--dry-run"]).code(0).stdout;
    for part in
        ["1 of 7 B to be fetched, 1500 to be shared", "1 GET, 0 HEAD, 2 LIST", "us-east-1", "as fast as the staging of"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_source_needs_nothing() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x", "1");
    let id = cluster.forebay(["dataset", "stage", "s3://data"]).code(0).stdout;
    let dry = dry(&cluster, "s3://data");
    assert_eq!(
        (&dry["unchanged"], &dry["fetch_objects"], &dry["requests"]["get"]),
        (&id.trim().into(), &0.into(), &0.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_give_way_are_counted_and_the_first_of_them_shown() {
    let cluster = Cluster::start().await;
    for key in ["a", "a/b", "x/README", "x/readme", "../up", "odd//key", "plain"] {
        cluster.s3.put("data", key, "1");
    }
    for n in 0..30 {
        cluster.s3.put("data", &format!("zz/{n:02}/"), "");
    }
    let dry = dry(&cluster, "s3://data");
    assert_eq!((&dry["renamed"], dry["renames"].as_array().unwrap().len()), (&34.into(), 20));
    assert_eq!(dry["renames"][1]["path"], "%/61.key");
    let why = |n: usize| dry["renames"][n]["why"].as_str().unwrap();
    let parts = ["`..`", "directory of other keys", "is empty", "`x/README` only in case"];
    parts.iter().enumerate().for_each(|(n, part)| assert!(why(n).contains(part), "{part}: {dry}"));
    let text = cluster.forebay(["dataset", "stage", "s3://data", "--dry-run"]).code(0).stdout;
    assert!(text.contains("34 of 37 keys") && text.contains("and 14 more"), "{text}");
    assert_eq!(fs::read_dir(cluster.volume()).unwrap().count(), 0, "nothing is made");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_not_fit_or_is_not_there_is_told_by_the_exit_code() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x", "12345");
    cluster.forebay(["volume", "set", "--quota", "4B"]).code(0);
    let dry = cluster.forebay(["dataset", "stage", "s3://data", "--dry-run", "--json"]).json(4);
    assert_eq!((&dry["room"]["fits"], &dry["fetch_objects"]), (&false.into(), &1.into()));
    let text = cluster.forebay(["dataset", "stage", "s3://data", "--dry-run"]).code(4);
    assert!(text.stderr.contains("quota") && text.stdout.contains("1 object"), "{text:?}");
    cluster.forebay(["dataset", "stage", "s3://absent", "--dry-run"]).code(3);
    cluster.forebay(["dataset", "stage", "s3://data", "--name", "../d", "--dry-run"]).code(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_costs_no_requests() {
    let cluster = Cluster::start().await;
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("a"), "12345").unwrap();
    let dry = dry(&cluster, &format!("file://{}", source.path().display()));
    assert!(dry["requests"].is_null() && dry["cost_usd"].is_null(), "{dry}");
    assert_eq!(dry["fetch_bytes"], 5);
}
