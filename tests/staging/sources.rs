//! What a dataset is made of: long listings, several prefixes, named keys.

use std::{collections::BTreeMap, fs, time::Duration, time::Instant};

use forebay::s3_server::{Chance, Fault, Faults, Upload};

use crate::{
    crowd,
    faults::chance,
    support::{Cluster, files},
};

/// Keys of a tree: some directories with many files, many with few, and files beside them.
fn tree() -> Vec<String> {
    let wide = (0..60).flat_map(|dir| (0..150).map(move |n| format!("p/wide/{dir:02}/{n:03}")));
    let deep = (0..3).flat_map(|dir| (0..1100).map(move |n| format!("p/deep/a/b/{dir}/{n:04}")));
    let flat = (0..1500).map(|n| format!("p/flat/{n:04}"));
    let odd = ["p/wide/", "p/wide/07/", "p/wide/07", "p/a b+c/%41", "p/ä/ö", "p/~", "p/wide/a//b"].map(str::to_owned);
    wide.chain(deep).chain(flat).chain(odd).collect()
}

fn put(cluster: &Cluster, keys: &[String]) {
    let stored = Upload::new("x").stored();
    keys.iter().for_each(|key| drop(cluster.s3.store("data", key, stored.clone())));
}

/// The keys of a dataset's latest snapshot.
fn staged_keys(cluster: &Cluster, name: &str) -> Vec<String> {
    let shown = cluster.forebay(["dataset", "show", name, "--objects", "--json"]).json(0);
    shown["objects"].as_array().unwrap().iter().map(|object| object["key"].as_str().unwrap().to_owned()).collect()
}

fn below<'a>(keys: impl IntoIterator<Item = &'a String>, prefix: &str) -> Vec<String> {
    let mut keys: Vec<_> = keys.into_iter().filter_map(|key| key.strip_prefix(prefix)).map(str::to_owned).collect();
    keys.retain(|key| !key.is_empty());
    keys.sort();
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_long_listing_are_listed_at_once_and_every_key_is_there_once() {
    let cluster = Cluster::start().await;
    let keys = tree();
    put(&cluster, &keys);
    // Long enough that what is asked for at once is seen at once.
    cluster.s3.set_faults(Faults { list_latency: Duration::from_millis(20), ..Faults::default() });
    let staged = cluster.forebay(["dataset", "stage", "s3://data/p", "--json"]).json(0);
    assert_eq!(staged["objects"], keys.len());
    assert_eq!(staged_keys(&cluster, "p"), below(&keys, "p/"));
    let counts = cluster.s3.counts();
    assert!(counts.most_lists() >= 4, "{} at once", counts.most_lists());
    let pages = keys.len() as u64 / 1000;
    assert!(counts.lists() < 4 * pages, "{} requests for {pages} pages", counts.lists());

    // The same snapshot, whatever order the pages came in.
    let again = cluster.forebay(["dataset", "stage", "s3://data/p", "--json"]).json(0);
    assert_eq!((&again["snapshot"], &again["fetched_objects"]), (&staged["snapshot"], &0.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_list_by_directory_is_listed_page_by_page() {
    let cluster = Cluster::start().await;
    let keys = tree();
    put(&cluster, &keys);
    cluster.s3.set_faults(Faults { refuse_delimiters: true, ..Faults::default() });
    let staged = cluster.forebay(["dataset", "stage", "s3://data/p", "--json"]).json(0);
    assert_eq!(staged["objects"], keys.len());
    assert_eq!(staged_keys(&cluster, "p"), below(&keys, "p/"));
    assert_eq!(cluster.s3.counts().most_lists(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_listing_takes_as_many_requests_as_it_has_pages() {
    let cluster = Cluster::start().await;
    put(&cluster, &(0..2000).map(|n| format!("{:02}/{n:04}", n / 100)).collect::<Vec<_>>());
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    assert_eq!(cluster.s3.counts().lists(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_outlast_pages_that_repeat_and_omit_keys() {
    let cluster = Cluster::start().await;
    let keys = tree();
    put(&cluster, &keys);
    for fault in [Fault::PageRepeats, Fault::PageOverlaps, Fault::PageOmits] {
        let chance = Chance { per_mille: vec![(fault, 1000)], at_most: 2, ..Chance::default() };
        cluster.s3.set_faults(Faults { chance, ..Faults::default() });
        let name = format!("{fault:?}");
        cluster.forebay(["dataset", "stage", "s3://data/p", "--name", &name, "--include", "wide/*/00*"]).code(0);
        let mut wanted = below(&keys, "p/wide/");
        wanted.retain(|key| key.split_once('/').is_some_and(|(_, name)| name.starts_with("00")));
        let wanted: Vec<_> = wanted.iter().map(|key| format!("wide/{key}")).collect();
        assert_eq!(staged_keys(&cluster, &name), wanted, "{name}");
        assert!(cluster.s3.happened()[&name] > 10, "{:?}", cluster.s3.happened());
    }
    cluster.s3.set_faults(chance(&[(Fault::Busy, 200), (Fault::Error, 100)]));
    cluster.forebay(["dataset", "stage", "s3://data/p", "--name", "busy", "--include", "wide/0*/00*"]).code(0);
    assert_eq!(staged_keys(&cluster, "busy").len(), 10 * 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_an_order_of_its_own_is_listed_whole() {
    let cluster = Cluster::start().await;
    // Two pages are in both orders; then directories alternate, of which the order of bytes has the upper-case ones first.
    let first = (0..2500).map(|n| format!("A/{n:04}"));
    let dirs = (0..400).map(|n| if n % 2 == 0 { format!("d{n:03}") } else { format!("D{n:03}") });
    let keys: Vec<_> = first.chain(dirs.flat_map(|dir| (0..20).map(move |n| format!("{dir}/{n:02}")))).collect();
    put(&cluster, &keys);
    cluster.s3.set_faults(Faults { list_by_lower_case: true, ..Faults::default() });
    let dry = cluster.forebay(["dataset", "stage", "s3://data", "--dry-run", "--json"]);
    assert!(dry.stderr.contains("is not listed in the order of its keys"), "{}", dry.stderr);
    assert_eq!(dry.json(0)["objects"], keys.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_prefixes_are_one_dataset_with_the_keys_below_what_they_have_in_common() {
    let cluster = Cluster::start().await;
    let keys = ["p/1/", "p/1/a", "p/1/b/c", "p/2/a", "p/22/a", "p/3/x", "q"].map(str::to_owned);
    put(&cluster, &keys);
    let args = ["dataset", "stage", "s3://data/p/2", "s3://data/p/1/b", "s3://data/p/1", "--json"];
    let staged = cluster.forebay(args).json(0);
    assert_eq!((&staged["name"], &staged["source"]), (&"p".into(), &"s3://data/p/".into()));
    assert_eq!(staged_keys(&cluster, "p"), ["1/a", "1/b/c", "2/a"]);
    cluster.forebay(["dataset", "verify", "p", "--full"]).code(0);
    let one = cluster.forebay(["dataset", "stage", "s3://data/p/1/b", "s3://data/p/1", "--json"]).json(0);
    assert_eq!((&one["name"], staged_keys(&cluster, "1")), (&"1".into(), vec!["a".to_owned(), "b/c".to_owned()]));

    let empty = cluster.forebay(["dataset", "stage", "s3://data/p/1", "s3://data/p/nothing"]).code(3);
    assert!(empty.stderr.contains("s3://data/p/nothing/"), "{}", empty.stderr);
    cluster.forebay(["dataset", "stage", "s3://data/p/1", "s3://other/p/2"]).code(2);

    let dir = tempfile::tempdir().unwrap();
    for key in ["x/1", "y/2", "z/3"] {
        fs::create_dir_all(dir.path().join(key).parent().unwrap()).unwrap();
        fs::write(dir.path().join(key), key).unwrap();
    }
    let [x, z] = ["x", "z"].map(|name| format!("file://{}/{name}", dir.path().display()));
    cluster.forebay(["dataset", "stage", &x, &z, "--name", "files"]).code(0);
    assert_eq!(staged_keys(&cluster, "files"), ["x/1", "z/3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn named_keys_are_looked_at_one_by_one() {
    let cluster = Cluster::start().await;
    let wanted = ["a b", "a+b", "a//b", "dir/", "ends in\r", "per%20cent", "tab\there", "ä?&=#", " "];
    for key in wanted {
        cluster.s3.put("data", &format!("p/{key}"), format!("this is {key:?}"));
    }
    cluster.s3.put("data", "p/not wanted", "x");
    let list = cluster.file("keys.txt", &format!("{}\n\n{}\na b\n", wanted.join("\n"), "a+b"));
    let args = ["dataset", "stage", "s3://data/p", "--keys", &list, "--json"];
    let staged = cluster.forebay(args).json(0);
    let mut sorted = wanted.map(str::to_owned).to_vec();
    sorted.sort();
    assert_eq!((&staged["objects"], staged_keys(&cluster, "p")), (&wanted.len().into(), sorted));
    let counts = cluster.s3.counts();
    assert_eq!((counts.heads(), counts.lists()), (wanted.len() as u64, 0));
    assert_eq!(fs::read(cluster.data("p").join("ends in\r")).unwrap(), b"this is \"ends in\\r\"");

    cluster.s3.put("data", "p/a b", "changed");
    let again = cluster.forebay(args).json(0);
    assert_eq!(again["fetched_objects"], 1, "only what changed");
    let dry = cluster.forebay(["dataset", "stage", "s3://data/p", "--keys", &list, "--dry-run", "--json"]).json(0);
    assert_eq!((&dry["requests"]["head"], &dry["requests"]["list"]), (&wanted.len().into(), &0.into()));

    let lacking = cluster.file("lacking.txt", "a b\nabsent\nabsent too\n");
    let error = cluster.forebay(["dataset", "stage", "s3://data/p", "--name", "l", "--keys", &lacking]).code(3).stderr;
    assert!(error.contains("2 of the 3 keys") && error.contains("\"absent\", \"absent too\""), "{error}");
    cluster.forebay(["dataset", "show", "l"]).code(3);
    let bad = cluster.file("bad.txt", &format!("a b\n{}\n", "k".repeat(1025)));
    let error = cluster.forebay(["dataset", "stage", "s3://data/p", "--keys", &bad]).code(2).stderr;
    assert!(error.contains("bad.txt") && error.contains("line 2"), "{error}");
    cluster.forebay(["dataset", "stage", "s3://data/p", "s3://data/q", "--keys", &list]).code(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_named_keys_outlast_a_busy_server_in_another_region() {
    let cluster = Cluster::start().await;
    let crowd = crowd::put(&cluster.s3, "data");
    let mut content: BTreeMap<_, _> = crowd.content.clone();
    content.retain(|key, _| key.starts_with("small/1"));
    let list = content.keys().rev().map(|key| format!("{key}\n")).collect::<String>();
    let list = cluster.file("keys.txt", &list);
    cluster.s3.move_to("data", "eu-west-1");
    cluster.s3.set_faults(chance(&[(Fault::Busy, 100), (Fault::Error, 50)]));
    cluster.forebay(["dataset", "stage", "s3://data", "--keys", &list]).code(0);
    crowd::check(&cluster.data("data"), &content, |_, _| false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_has_named_keys_too_and_none_outside_of_it() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("in/d")).unwrap();
    fs::write(dir.path().join("in/d/x"), "1").unwrap();
    fs::write(dir.path().join("in/y"), "2").unwrap();
    fs::write(dir.path().join("outside"), "3").unwrap();
    let source = format!("file://{}/in", dir.path().display());
    let list = cluster.file("keys.txt", "d/x\n");
    cluster.forebay(["dataset", "stage", &source, "--name", "d", "--keys", &list]).code(0);
    assert_eq!(files(&cluster.data("d")).len(), 1);
    let absolute = dir.path().join("outside").display().to_string();
    for (key, code) in [("../outside", 3), (&absolute, 3), ("d", 4)] {
        let list = cluster.file("keys.txt", key);
        let error = cluster.forebay(["dataset", "stage", &source, "--name", "e", "--keys", &list]).code(code);
        assert!(error.stderr.contains(key), "{}", error.stderr);
        cluster.forebay(["dataset", "show", "e"]).code(3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_names_several_sources_and_keys() {
    let cluster = Cluster::start().await;
    for key in ["p/1/a", "p/2/b", "p/3/c"] {
        cluster.s3.put("data", key, "a line\n");
    }
    cluster.file("keys.txt", "1/a\n3/c\n");
    let work = "[mapreduce]\nmap = \"line-count\"\n";
    let several = format!("name = \"s\"\n[dataset]\nsource = [\"s3://data/p/1\", \"s3://data/p/2\"]\n{work}");
    let keys = format!("name = \"k\"\n[dataset]\nsource = \"s3://data/p\"\nname = \"k\"\nkeys = \"keys.txt\"\n{work}");
    for (name, text, wanted) in [("p", several, ["1/a", "2/b"]), ("k", keys, ["1/a", "3/c"])] {
        let job = cluster.file("job.toml", &text);
        let result = cluster.forebay(["run", &job, "--json"]).json(0);
        assert_eq!(
            (&result["output"]["rows"], staged_keys(&cluster, name)),
            (&2.into(), wanted.map(str::to_owned).to_vec())
        );
    }
}

/// `cargo test --test staging -- --ignored --nocapture how_long_a_listing`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures, and proves nothing"]
async fn how_long_a_listing_takes() {
    let cluster = Cluster::start().await;
    let keys: Vec<_> = (0..400).flat_map(|dir| (0..300).map(move |n| format!("{dir:03}/{n:03}"))).collect();
    put(&cluster, &keys);
    for milliseconds in [20, 100] {
        let list_latency = Duration::from_millis(milliseconds);
        cluster.s3.set_faults(Faults { list_latency, ..Faults::default() });
        let (begun, counts) = (Instant::now(), cluster.s3.counts());
        let before = counts.lists();
        let dry = cluster.forebay(["dataset", "stage", "s3://data", "--dry-run", "--json"]).json(0);
        let (seconds, requests) = (begun.elapsed().as_secs_f64(), counts.lists() - before);
        println!("{milliseconds} ms a page, {} objects: {seconds:.2} s, {requests} requests", dry["objects"]);
    }
}
