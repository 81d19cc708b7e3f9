//! `kill -9` of a stager of columns, bits that flip on the volume, and stagers that meet.

use std::{collections::BTreeSet, fs, os::unix::fs::FileExt, path::Path, time::Duration};

use forebay::s3_server::Faults;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    support::{Cluster, eventually, files, since},
    table::{STAGE, wide},
};

/// As many as are in one chunk of a plan, none of which counts by the chunk's record before all are there.
const OBJECTS: i64 = 5;
/// The end of each object, and eight ranges before it.
const ANSWERS: usize = OBJECTS as usize * 9;
/// What may be fetched again after a kill: what was in the sockets, and written and not yet recorded.
const IN_FLIGHT: usize = 8;

/// From a server that takes its time.
async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.s3.make_versioned("data");
    for n in 0..OBJECTS {
        cluster.s3.put("data", &format!("w/{n}.parquet"), wide(n));
    }
    cluster.s3.set_faults(Faults { latency: Duration::from_millis(50), pace: Some(1 << 20), ..Faults::default() });
    cluster
}

struct Undisturbed {
    snapshot: serde_json::Value,
    objects: serde_json::Value,
}

fn undisturbed(cluster: &Cluster) -> Undisturbed {
    let volume = TempDir::new().unwrap();
    let terminal = cluster.terminal().on_volume(volume.path());
    let snapshot = terminal.forebay(STAGE).json(0)["snapshot"].clone();
    let objects = terminal.forebay(["dataset", "show", "data", "--objects", "--json"]).json(0)["objects"].clone();
    assert_eq!(cluster.s3.counts().sent_whole().len(), ANSWERS);
    Undisturbed { snapshot, objects }
}

/// Changes a byte of the end of one object and a byte of a range before the end of another, which a stager of the volume
/// has recorded; the keys of the two.
fn flip_recorded(volume: &Path) -> [String; 2] {
    let site = volume.join("datasets/data/staging");
    let logs = files(&site).into_iter().filter(|path| path.ends_with("log.ndjson"));
    let log: String = logs.map(|log| fs::read_to_string(log).unwrap()).collect();
    let records: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let done: Vec<_> =
        records.iter().filter_map(|record| record.get("object")).map(|object| number(&object["at"][1])).collect();
    let parts: Vec<_> = records
        .iter()
        .filter_map(|record| record.get("part"))
        .map(|part| (number(&part["at"][1]), number(&part["offset"]), number(&part["length"])))
        .filter(|(row, ..)| !done.contains(row))
        .collect();
    let is_end = |part: &&(u64, u64, u64)| part.1 + part.2 == wide(0).len() as u64;
    let end = parts.iter().find(is_end).unwrap();
    let before = parts.iter().find(|part| !is_end(part) && part.0 != end.0).unwrap();
    [end, before].map(|(row, offset, length)| {
        let key = format!("w/{row}.parquet");
        let path = files(&site).into_iter().find(|path| path.ends_with(&key)).unwrap();
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        // Far from the footer, which could not be read.
        let (mut byte, at) = ([0], offset + length / 100);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        key
    })
}

async fn is_killed_and_goes_on(flips: bool) {
    let cluster = cluster().await;
    let undisturbed = undisturbed(&cluster);
    let volume = TempDir::new().unwrap();
    let terminal = cluster.terminal().on_volume(volume.path());
    let before = cluster.s3.counts().sent_whole();
    let stager = terminal.start(STAGE);
    let answers = || since(&before, cluster.s3.counts().sent_whole());
    eventually("it is in the middle", || answers().len() > ANSWERS / 2);
    stager.signal(Signal::KILL);
    assert_eq!(stager.outcome().code, None);
    eventually("the server sees that the stager is gone", || cluster.s3.counts().under_way().is_empty());
    let done: BTreeSet<_> = answers().into_keys().collect();
    assert!(done.len() < ANSWERS - IN_FLIGHT, "too late: {}", done.len());
    let flipped = flips.then(|| flip_recorded(volume.path()));

    let before = cluster.s3.counts().sent_whole();
    let staged = terminal.forebay(STAGE).json(0);
    let answers = since(&before, cluster.s3.counts().sent_whole());
    let again: Vec<_> = answers.keys().filter(|what| done.contains(*what)).collect();
    println!("killed after {} answers of {ANSWERS}; again: {again:?}; wrong: {flipped:?}", done.len());
    assert!(again.len() <= IN_FLIGHT + flipped.iter().flatten().count(), "fetched again: {again:?}");
    for flipped in flipped.into_iter().flatten() {
        assert!(again.iter().any(|what| what.starts_with(&flipped)), "{flipped} is wrong: {again:?}");
    }
    assert_eq!(staged["snapshot"], undisturbed.snapshot);
    let shown = terminal.forebay(["dataset", "show", "data", "--objects", "--json"]).json(0);
    assert_eq!(shown["objects"], undisturbed.objects);
    terminal.forebay(["dataset", "verify", "data", "--full"]).code(0);
    assert_eq!(fs::read_dir(volume.path().join("datasets/data/staging")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_only_the_ranges_that_are_missing_are_fetched() {
    is_killed_and_goes_on(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_range_is_compared_before_it_counts() {
    is_killed_and_goes_on(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stagers_of_the_same_columns_share_the_work() {
    let cluster = cluster().await;
    // They are more than one chunk of a plan, which one of the two does.
    for n in OBJECTS..2 * OBJECTS {
        cluster.s3.put("data", &format!("w/{n}.parquet"), wide(n));
    }
    let volume = TempDir::new().unwrap();
    let terminal = cluster.terminal().on_volume(volume.path());
    let both = [terminal.start(STAGE), terminal.start(STAGE)];
    let ids = both.map(|stager| stager.outcome().json(0)["snapshot"].clone());
    assert_eq!(ids[0], ids[1]);
    let sent = cluster.s3.counts().sent_whole();
    let twice: Vec<_> = sent.iter().filter(|(_, times)| **times > 1).collect();
    assert_eq!((sent.len(), twice), (2 * ANSWERS, vec![]));
    terminal.forebay(["dataset", "verify", "data", "--full"]).code(0);
}
