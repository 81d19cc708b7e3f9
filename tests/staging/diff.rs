//! `forebay dataset diff`: what differs between two snapshots.

use serde_json::json;

use crate::support::Cluster;

async fn two_snapshots() -> (Cluster, [String; 2]) {
    let cluster = Cluster::start().await;
    for key in ["a", "b/c", "b/d", "same"] {
        cluster.s3.put("data", key, format!("this is {key}"));
    }
    let stage = || cluster.forebay(["dataset", "stage", "s3://data"]).code(0).stdout.trim().to_owned();
    let first = stage();
    cluster.s3.remove("data", "a");
    cluster.s3.put("data", "b/c", "grown since then");
    cluster.s3.put("data", "b/d", "THIS IS b/d");
    cluster.s3.put("data", "z", "new");
    let second = stage();
    (cluster, [first, second])
}

#[tokio::test(flavor = "multi_thread")]
async fn two_snapshots_are_told_apart_key_by_key() {
    let (cluster, [first, second]) = two_snapshots().await;
    let text = cluster.forebay(["dataset", "diff", "data"]).code(0).stdout;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..4], ["- a  9 B", "~ b/c  11 B -> 16 B", "~ b/d  11 B -> 11 B", "+ z  3 B"], "{text}");
    let counts = "added 1 (3 B), removed 1 (9 B), changed 2 (22 B -> 27 B), unchanged 1 (12 B)";
    assert_eq!(lines[4..], [format!("{} -> {}: {counts}", &first[..12], &second[..12])], "{text}");

    let object = cluster.forebay(["dataset", "diff", "data", "--json"]).json(0);
    let wanted = json!({
        "version": 1, "name": "data", "from": first, "to": second,
        "added": { "objects": 1, "bytes": 3 }, "removed": { "objects": 1, "bytes": 9 },
        "changed": { "objects": 2, "bytes": 27, "bytes_before": 22 }, "unchanged": { "objects": 1, "bytes": 12 },
        "objects": [
            { "key": "a", "change": "removed", "size": 9 },
            { "key": "b/c", "change": "changed", "size": 16, "size_before": 11 },
            { "key": "b/d", "change": "changed", "size": 11, "size_before": 11 },
            { "key": "z", "change": "added", "size": 3 },
        ],
    });
    assert_eq!(object, wanted);

    let back = cluster.forebay(["dataset", "diff", "data", &second[..8], &first[..8], "--summary"]).code(0).stdout;
    assert!(back.contains("added 1 (9 B), removed 1 (3 B)") && back.lines().count() == 1, "{back}");
    let same = cluster.forebay(["dataset", "diff", "data", &first, &first, "--json"]).json(0);
    assert_eq!((&same["unchanged"]["objects"], &same["objects"]), (&4.into(), &json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_to_be_compared_is_an_error_that_says_so() {
    let (cluster, [first, _]) = two_snapshots().await;
    let error = cluster.forebay(["dataset", "diff", "other"]).code(3).stderr;
    assert!(error.contains("no dataset `other`"), "{error}");
    cluster.forebay(["dataset", "diff", "data", "ffff"]).code(3);
    cluster.s3.put("one", "x", "1");
    cluster.forebay(["dataset", "stage", "s3://one"]).code(0);
    let error = cluster.forebay(["dataset", "diff", "one"]).code(3).stderr;
    assert!(error.contains("no snapshot before") && error.contains("dataset show"), "{error}");

    let manifest = cluster.volume().join(format!("datasets/data/snapshots/{first}/manifest.parquet"));
    let held = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &held[..held.len() / 2]).unwrap();
    let error = cluster.forebay(["dataset", "diff", "data"]).code(4);
    assert!(error.stderr.contains("manifest") && error.stdout.is_empty(), "{error:?}");
}
