//! What is staged, what is staged again, and what single faults come to.

use forebay::s3_server::Faults;

use crate::support::Cluster;

/// Fetched in ranges.
const BIG: usize = 40 << 20;

fn big(seed: u8) -> Vec<u8> {
    (0..BIG).map(|i| (i / 7) as u8 ^ seed).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_staged_once_and_only_what_changed_again() {
    let cluster = Cluster::start().await;
    for i in 0..1200 {
        cluster.s3.put("data", &format!("p/small/{i:04}.txt"), format!("object {i}"));
    }
    cluster.s3.put("data", "p/big.bin", big(0));
    cluster.s3.put("data", "p/a//b", "odd");
    cluster.s3.put("data", "elsewhere", "not below the prefix");
    let staged = cluster.forebay(["dataset", "stage", "s3://data/p", "--json"]).json(0);
    assert_eq!((&staged["objects"], &staged["fetched_objects"]), (&1202.into(), &1202.into()));
    assert_eq!(std::fs::read(cluster.data("p").join("big.bin")).unwrap(), big(0));
    assert_eq!(std::fs::read(cluster.data("p").join("small/0007.txt")).unwrap(), b"object 7");
    assert_eq!(std::fs::read(cluster.data("p").join("%/612f2f62.key")).unwrap(), b"odd");

    let gets = cluster.s3.counts().gets();
    let again = cluster.forebay(["dataset", "stage", "s3://data/p", "--json"]).json(0);
    assert_eq!((&again["snapshot"], &again["fetched_objects"]), (&staged["snapshot"], &0.into()));
    assert_eq!(cluster.s3.counts().gets(), gets, "an unchanged source is listed, and nothing is fetched");

    cluster.s3.put("data", "p/small/0007.txt", "changed");
    cluster.s3.remove("data", "p/small/0008.txt");
    let changed = cluster.forebay(["dataset", "stage", "s3://data/p", "--json"]).json(0);
    assert_eq!((&changed["objects"], &changed["fetched_objects"]), (&1201.into(), &1.into()));
    assert_ne!(changed["snapshot"], staged["snapshot"]);
    cluster.forebay(["dataset", "verify", "p", "--full"]).code(0);
    let first = staged["snapshot"].as_str().unwrap();
    cluster.forebay(["dataset", "verify", "p", "--full", "--snapshot", first]).code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_arrives_whole_is_never_published() {
    for (key, content, faults) in [
        ("x", vec![7; 1000], Faults { cut_short: ["x".to_owned()].into(), ..Faults::default() }),
        ("x", vec![7; 1000], Faults { flipped: ["x".to_owned()].into(), ..Faults::default() }),
        ("big", big(2), Faults { flipped: ["big".to_owned()].into(), ..Faults::default() }),
        ("big", big(2), Faults { ignore_range: true, ..Faults::default() }),
    ] {
        let cluster = Cluster::start().await;
        cluster.s3.put("data", key, content);
        cluster.s3.set_faults(faults.clone());
        let error = cluster.forebay(["dataset", "stage", "s3://data"]).code(4);
        assert!(error.stderr.contains(&format!("`{key}`")), "{faults:?}: {}", error.stderr);
        cluster.forebay(["dataset", "show", "data"]).code(3);
        cluster.s3.set_faults(Faults::default());
        cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
        cluster.forebay(["dataset", "verify", "data", "--full"]).code(0);
        assert!(cluster.left_behind("data").is_empty(), "{faults:?}: {:?}", cluster.left_behind("data"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changes_between_two_ranges_is_never_mixed() {
    for (ignore_if_match, list_without_etags) in [(false, false), (true, false), (false, true), (true, true)] {
        let cluster = Cluster::start().await;
        cluster.s3.put("data", "big", big(3));
        let replaced = [("big".to_owned(), big(4))].into();
        cluster.s3.set_faults(Faults { replaced, ignore_if_match, list_without_etags, ..Faults::default() });
        cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
        assert!(std::fs::read(cluster.data("data").join("big")).unwrap() == big(4), "all of it is the new object");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_its_own_word_and_exit_code() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x", "1");
    let absent = cluster.forebay(["dataset", "stage", "s3://absent/p"]).code(3);
    assert!(absent.stderr.contains("the bucket `absent` does not exist"), "{}", absent.stderr);
    let empty = cluster.forebay(["dataset", "stage", "s3://data", "--include", "*.csv"]).code(3);
    assert!(empty.stderr.contains("no object below s3://data/ is selected"), "{}", empty.stderr);
    let glob = cluster.forebay(["dataset", "stage", "s3://data", "--include", "a{"]).code(2);
    assert!(glob.stderr.contains("`a{` is no glob"), "{}", glob.stderr);
    cluster.forebay(["dataset", "stage", "http://data"]).code(2);
    cluster.forebay(["dataset", "show", "nothing"]).code(3);
    let key = cluster.with_env("AWS_SECRET_ACCESS_KEY", "wrong").forebay(["dataset", "stage", "s3://data"]).code(4);
    assert!(key.stderr.contains("denied (SignatureDoesNotMatch)"), "{}", key.stderr);
    let gone = cluster.with_env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1");
    let gone = gone.forebay(["dataset", "stage", "s3://data"]).code(4);
    assert!(gone.stderr.contains("http://127.0.0.1:1 cannot be reached"), "{}", gone.stderr);
    assert!(cluster.left_behind("data").is_empty(), "{:?}", cluster.left_behind("data"));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_on_the_volume_is_found() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x", "whole");
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    std::fs::write(cluster.data("data").join("x"), "whale").unwrap();
    cluster.forebay(["dataset", "verify", "data"]).code(0);
    let report = cluster.forebay(["dataset", "verify", "data", "--full", "--json"]).json(4);
    assert_eq!(report["bad"][0]["key"], "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_xml_cannot_write_and_keys_that_look_encoded_are_kept() {
    let cluster = Cluster::start().await;
    let mut keys = vec!["a b", "a%20b", "a+b", "control \u{1} \u{7f}", "é/ß", "line\nbreak"];
    keys.sort_unstable();
    keys.iter().for_each(|key| cluster.s3.put("data", &format!("p q/{key}"), *key));
    cluster.forebay(["dataset", "stage", "s3://data/p q", "--name", "d"]).code(0);
    let shown = cluster.forebay(["dataset", "show", "d", "--objects", "--json"]).json(0);
    let staged: Vec<_> = shown["objects"].as_array().unwrap().iter().map(|o| o["key"].as_str().unwrap()).collect();
    assert_eq!(staged, keys);
    for object in shown["objects"].as_array().unwrap() {
        let path = cluster.data("d").join(object["path"].as_str().unwrap());
        assert_eq!(std::fs::read_to_string(path).unwrap(), object["key"].as_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_inside_of_a_source_is_no_part_of_it() {
    let (cluster, dir) = (Cluster::start().await, tempfile::TempDir::new().unwrap());
    std::fs::write(dir.path().join("x"), "1").unwrap();
    let volume = dir.path().join(".forebay");
    for source in [format!("file://{}", dir.path().display()), format!("file://{}/", dir.path().display())] {
        let terminal = cluster.terminal().on_volume(&volume);
        let staged = terminal.forebay(["dataset", "stage", &source, "--name", "d", "--json"]).json(0);
        assert_eq!(staged["objects"], 1);
    }
    assert_eq!(std::fs::read_dir(volume.join("datasets/d/snapshots")).unwrap().count(), 1);
}
