//! `forebay dataset verify --repair`: what is damaged becomes again what was staged, or stays and is named.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use forebay::s3_server::{Fault, Upload};
use serde_json::Value;

use crate::{faults::chance, support::Cluster};

const KEYS: [&str; 6] = ["empty", "flipped", "long", "missing", "odd//key", "short"];

fn content(key: &str) -> Vec<u8> {
    match key {
        "empty" => Vec::new(),
        // More than one buffer.
        "long" => (0..5 << 20).map(|i: u32| (i / 3) as u8).collect(),
        key => format!("this is {key}").into_bytes(),
    }
}

async fn staged() -> Cluster {
    let cluster = Cluster::start().await;
    put_all(&cluster);
    stage(&cluster);
    cluster
}

fn put_all(cluster: &Cluster) {
    KEYS.iter().for_each(|key| drop(cluster.s3.upload("data", key, Upload::new(content(key)))));
}

fn stage(cluster: &Cluster) -> String {
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0).stdout.trim().to_owned()
}

fn place(data: &Path, key: &str) -> PathBuf {
    data.join(if key == "odd//key" { "%/6f64642f2f6b6579.key" } else { key })
}

/// Damage of every kind, done to the files as a broken disk would: in place.
fn damage(data: &Path) {
    fs::write(place(data, "empty"), "x").unwrap();
    fs::write(place(data, "flipped"), "THIS is flipped").unwrap();
    let mut long = content("long");
    long[4 << 20] ^= 1;
    fs::write(place(data, "long"), long).unwrap();
    fs::remove_file(place(data, "missing")).unwrap();
    fs::remove_dir_all(data.join("%")).unwrap();
    fs::write(place(data, "short"), "this").unwrap();
}

#[track_caller]
fn assert_whole(data: &Path) {
    for key in KEYS {
        assert!(fs::read(place(data, key)).unwrap() == content(key), "{key}");
    }
}

fn of<'a>(report: &'a Value, key: &str) -> &'a Value {
    let bad = report["bad"].as_array().unwrap();
    bad.iter().find(|bad| bad["key"] == key).unwrap_or_else(|| panic!("{key} is not in {report}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_every_kind_is_fetched_again() {
    let cluster = staged().await;
    let data = cluster.data("data");
    let whole = fs::metadata(data.join("flipped")).unwrap().ino();
    cluster.forebay(["dataset", "verify", "data", "--full", "--repair"]).code(0);
    assert_eq!(fs::metadata(data.join("flipped")).unwrap().ino(), whole, "what is whole is left alone");

    damage(&data);
    let gets = cluster.s3.counts().gets();
    let found = cluster.forebay(["dataset", "verify", "data", "--full"]).code(4);
    assert!(found.stderr.contains("--repair"), "{}", found.stderr);
    assert_eq!(cluster.s3.counts().gets(), gets, "only a repair asks S3");
    let sizes = cluster.forebay(["dataset", "verify", "data", "--repair", "--json"]).json(0);
    assert_eq!((&sizes["repaired"], sizes["bad"].as_array().unwrap().len()), (&4.into(), 4), "{sizes}");
    let bytes = cluster.forebay(["dataset", "verify", "data", "--full", "--repair", "--json"]).json(0);
    assert_eq!((&bytes["repaired"], &of(&bytes, "long")["from"]), (&2.into(), &"source".into()), "{bytes}");
    assert_whole(&data);
    cluster.forebay(["dataset", "verify", "data", "--full"]).code(0);
    assert!(cluster.left_behind("data").is_empty(), "{:?}", cluster.left_behind("data"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_outlasts_what_staging_outlasts() {
    let cluster = staged().await;
    damage(&cluster.data("data"));
    let faults = [Fault::Busy, Fault::Error, Fault::Reset, Fault::Cut, Fault::Flip];
    cluster.s3.set_faults(chance(&faults.map(|fault| (fault, 100))));
    cluster.forebay(["dataset", "verify", "data", "--full", "--repair"]).code(0);
    assert_whole(&cluster.data("data"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_does_not_have_any_more_is_named_and_nothing_else_is_put_there() {
    let cluster = staged().await;
    let data = cluster.data("data");
    damage(&data);
    cluster.s3.put("data", "flipped", "THIS IS FLIPPED");
    cluster.s3.remove("data", "missing");
    // Of the same ETag, and not the same bytes.
    cluster.s3.upload("data", "short", Upload::new(content("short")).damaged_at(2));
    let told = cluster.forebay(["dataset", "verify", "data", "--full", "--repair"]).code(4);
    assert!(told.stdout.contains("6 bad, 3 of them repaired"), "{told:?}");
    assert!(
        told.stderr.contains("3 objects of `data` are still damaged") && told.stderr.contains("stage again"),
        "{told:?}"
    );
    let report = cluster.forebay(["dataset", "verify", "data", "--full", "--repair", "--json"]).json(4);
    assert_eq!(report["bad"].as_array().unwrap().len(), 3, "{report}");
    for (key, why) in [("flipped", "any more"), ("missing", "any more"), ("short", "same ETag")] {
        let bad = of(&report, key);
        assert!(bad["why"].as_str().unwrap().contains(why) && bad["help"].is_string(), "{bad}");
    }
    assert_eq!(fs::read(data.join("flipped")).unwrap(), b"THIS is flipped");
    assert_eq!(fs::read(data.join("short")).unwrap(), b"this");
    assert!(!data.join("missing").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_versioned_bucket_the_version_that_was_staged_is_fetched() {
    let cluster = Cluster::start().await;
    cluster.s3.make_versioned("data");
    put_all(&cluster);
    stage(&cluster);
    let data = cluster.data("data");
    damage(&data);
    for key in KEYS {
        cluster.s3.put("data", key, "another version");
    }
    cluster.s3.remove("data", "missing");
    cluster.forebay(["dataset", "verify", "data", "--full", "--repair"]).code(0);
    assert_whole(&data);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_snapshots_that_share_the_file_are_repaired_with_it() {
    let cluster = staged().await;
    let first = cluster.data("data");
    cluster.s3.put("data", "more", "so that there is a second snapshot");
    let latest = stage(&cluster);
    let second = cluster.data("data");
    let inode = |data: &Path| fs::metadata(data.join("flipped")).unwrap().ino();
    let linked = inode(&first) == inode(&second);
    damage(&first);
    // A name that is gone is gone in one of them only; a reflink is a file of its own.
    if linked {
        assert_eq!(fs::read(second.join("short")).unwrap(), b"this", "one file with two names");
    } else {
        damage(&second);
    }
    let report = cluster.forebay(["dataset", "verify", "data", "--full", "--repair", "--json"]).json(0);
    assert_eq!(of(&report, "short")["others"][0]["repaired"], true, "{report}");
    assert_whole(&second);
    assert_eq!(fs::read(first.join("short")).unwrap(), content("short"), "both at once");
    assert_eq!(inode(&first) == inode(&second), linked, "they share the new file as they did the old one");

    // Where only one of them is damaged, the other one is all it takes.
    fs::remove_file(second.join("long")).unwrap();
    KEYS.iter().for_each(|key| cluster.s3.remove("data", key));
    let whole = cluster.forebay(["dataset", "verify", "data", "--repair", "--json"]).json(0);
    let first_id = first.parent().unwrap().file_name().unwrap().to_str().unwrap();
    assert_eq!(of(&whole, "long")["from"], first_id, "{whole}");

    // What cannot be repaired is told of every snapshot that has it.
    for data in [&first, &second] {
        let _ = fs::remove_file(data.join("short"));
    }
    let lost = cluster.forebay(["dataset", "verify", "data", "--repair", "--snapshot", first_id, "--json"]).json(4);
    let other = &of(&lost, "short")["others"][0];
    assert_eq!((&other["snapshot"], &other["repaired"]), (&latest.as_str().into(), &false.into()), "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_out_of_reach_is_the_reason_and_flags_that_do_nothing_are_refused() {
    let cluster = staged().await;
    fs::remove_file(cluster.data("data").join("missing")).unwrap();
    let lonely = cluster.with_env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1");
    let report = lonely.forebay(["dataset", "verify", "data", "--repair", "--json"]).json(4);
    assert!(of(&report, "missing")["why"].as_str().unwrap().contains("127.0.0.1:1"), "{report}");
    let endpoint = cluster.s3.endpoint();
    let error = lonely.forebay(["dataset", "verify", "data", "--endpoint", &endpoint]).code(2);
    assert!(error.stderr.contains("--repair"), "{}", error.stderr);
    lonely.forebay(["dataset", "verify", "data", "--repair", "--endpoint", &endpoint]).code(0);
    assert_eq!(fs::read(cluster.data("data").join("missing")).unwrap(), content("missing"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_has_moved_to_another_region_is_followed() {
    let cluster = staged().await;
    fs::remove_file(cluster.data("data").join("missing")).unwrap();
    cluster.s3.move_to("data", "eu-west-1");
    cluster.forebay(["dataset", "verify", "data", "--repair"]).code(0);
    cluster.forebay(["dataset", "verify", "data", "--full"]).code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_a_source_to_repair_from_too() {
    let cluster = Cluster::start().await;
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("a"), "12345").unwrap();
    fs::write(source.path().join("b"), "67890").unwrap();
    let url = format!("file://{}", source.path().display());
    cluster.forebay(["dataset", "stage", &url, "--name", "d"]).code(0);
    let data = cluster.data("d");
    fs::write(data.join("a"), "1").unwrap();
    fs::write(data.join("b"), "6").unwrap();
    fs::write(source.path().join("b"), "other").unwrap();
    let report = cluster.forebay(["dataset", "verify", "d", "--repair", "--json"]).json(4);
    assert_eq!((&of(&report, "a")["repaired"], &of(&report, "b")["repaired"]), (&true.into(), &false.into()));
    assert_eq!((fs::read(data.join("a")).unwrap(), fs::read(data.join("b")).unwrap()), (b"12345".into(), b"6".into()));
}
