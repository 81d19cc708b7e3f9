//! What a query gets of a snapshot of some columns, and what it is refused.

use std::fs;

use tempfile::TempDir;

use crate::table::{NAMES, NAMES_CSV, QUERY, STAGE, cluster, fetched, held, job, job_of, result, wide};

#[tokio::test(flavor = "multi_thread")]
async fn a_query_fetches_the_columns_that_it_reads_and_the_footers_and_nothing_else() {
    let cluster = cluster().await;
    let terminal = cluster.terminal();
    let (files, names) = ([wide(1), wide(2)], NAMES_CSV.len() as u64);
    let whole: u64 = files.iter().map(|file| file.len() as u64).sum::<u64>() + names;
    let (run, given) = result(&cluster, &terminal, &job("columns = 'needed'", QUERY));
    let (served, staged) = (cluster.s3.counts().bytes(), run["staged"]["fetched_bytes"].as_u64().unwrap());
    println!(
        "three of forty columns: {staged} bytes staged, {served} served, of {whole}: {:.1} %",
        served as f64 * 100.0 / whole as f64
    );
    assert_eq!(staged, files.iter().map(|file| fetched(file)).sum::<u64>() + names);
    // Which columns the query reads was told by one footer, and by the other table's first lines.
    assert_eq!(served, staged + (64 << 10) + names);
    assert!(served * 9 < whole, "{served} of {whole}");

    // Unchanged, the same columns and fewer are there already.
    let gets = cluster.s3.counts().gets();
    for columns in [NAMES, "c04,c30"] {
        let again = terminal.forebay(["dataset", "stage", "s3://data", "--columns", columns, "--json"]).json(0);
        assert_eq!((&again["snapshot"], &again["fetched_bytes"]), (&run["snapshot"], &0.into()));
        assert_eq!(again["columns"], serde_json::json!(["c03", "c04", "c30"]), "it is the same one");
    }
    assert_eq!(cluster.s3.counts().gets(), gets);

    // What another query reads is another snapshot.
    let (other, _) = result(&cluster, &terminal, &job("columns = ['c10']", "select sum(c10) as s from w"));
    assert_ne!(other["snapshot"], run["snapshot"]);
    // No part is shared as the whole, and the whole serves all from then on.
    let all = terminal.forebay(["dataset", "stage", "s3://data", "--json"]).json(0);
    assert!(all["fetched_bytes"].as_u64().unwrap() >= whole - names, "{all}");
    let (over_all, expected) = result(&cluster, &terminal, &job("columns = 'needed'", QUERY));
    assert_eq!((&over_all["snapshot"], &over_all["staged"]["fetched_bytes"]), (&all["snapshot"], &0.into()));
    assert_eq!(given, expected);
    assert_eq!(expected.lines().count(), 4, "{expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_says_what_it_does_not_hold() {
    let cluster = cluster().await;
    cluster.s3.make_versioned("data");
    for n in [1, 2] {
        cluster.s3.put("data", &format!("w/{n}.parquet"), wide(n));
    }
    let staged = cluster.forebay(STAGE).json(0);
    let id = staged["snapshot"].as_str().unwrap();
    let version = format!("version = '{id}'");

    let error = |text: &str| cluster.forebay(["run", &cluster.file("job.toml", text)]).code(2).words();
    let not_held = error(&job(&version, "select sum(c10) from w"));
    for part in ["columns c10", "`w/1.parquet`", id, "c03, c04, c30"] {
        assert!(not_held.contains(part), "{part}: {not_held}");
    }
    for work in ["[command]\nargv = ['true']", "[mapreduce]\nmap = 'column-stats'"] {
        let whole = error(&format!("name = 'j'\n[dataset]\nsource = 's3://data'\n{version}\n{work}"));
        assert!(whole.contains("c03, c04, c30") && whole.contains("whole"), "{whole}");
    }

    let shown = cluster.forebay(["dataset", "show", "data"]).code(0);
    assert!(shown.stderr.contains("partial: columns c03, c04, c30 of 2 Parquet objects"), "{}", shown.stderr);
    let shown = cluster.forebay(["dataset", "show", "data", "--objects", "--json"]).json(0);
    let (held_bytes, whole) = (&shown["snapshot"]["held_bytes"], &shown["snapshot"]["bytes"]);
    assert!(held_bytes.as_u64().unwrap() * 8 < whole.as_u64().unwrap(), "{held_bytes} of {whole}");
    assert_eq!(held_bytes, &staged["held_bytes"]);
    assert_eq!(shown["snapshot"]["version"], 2, "who knows no parts does not take it for a whole");
    assert_eq!(shown["snapshot"]["columns"], serde_json::json!(["c03", "c04", "c30"]));
    assert!(shown["objects"][0]["held"].is_null());
    for (object, bytes) in shown["objects"].as_array().unwrap()[1..].iter().zip([wide(1), wide(2)]) {
        let number = |range: &serde_json::Value, name: &str| range[name].as_u64().unwrap();
        let ranges = object["held"].as_array().unwrap().iter();
        let ranges: Vec<_> = ranges.map(|r| number(r, "offset")..number(r, "offset") + number(r, "length")).collect();
        assert_eq!(ranges, held(&bytes));
        assert!(object["version_id"].is_string(), "{object}");
    }

    let verify = || cluster.forebay(["dataset", "verify", "data", "--full", "--json"]);
    assert_eq!(&verify().json(0)["bytes"], held_bytes);
    let path = cluster.data("data").join("w/2.parquet");
    let mut bytes = fs::read(&path).unwrap();
    assert!(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).unwrap()) * 512 * 4 < bytes.len() as u64);
    let at = shown["objects"][2]["held"][0]["offset"].as_u64().unwrap() as usize;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let bad = &verify().json(4)["bad"][0];
    assert_eq!(bad["key"], "w/2.parquet");
    assert!(bad["what"].as_str().unwrap().starts_with(&format!("the checksum of its bytes {at}..")), "{bad}");

    // A part is never taken for the whole.
    let staged = cluster.forebay(["dataset", "stage", "s3://data", "--json"]).json(0);
    assert!(staged["snapshot"] != id && staged["columns"].is_null(), "{staged}");
    fs::write(cluster.volume().join("datasets/data/refs/latest"), id).unwrap();
    let command = "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\nargv = ['true']";
    cluster.forebay(["check", &cluster.file("job.toml", command)]).code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_no_file_has_are_an_error_and_columns_that_some_have_are_not() {
    let cluster = cluster().await;
    let gets = |columns: &str| cluster.forebay(["dataset", "stage", "s3://data", "--columns", columns]);
    let absent = gets("c04,c99").code(2);
    assert!(absent.stderr.contains("no Parquet object has the columns c99"), "{}", absent.stderr);
    cluster.forebay(["dataset", "show", "data"]).code(3);
    assert!(cluster.left_behind("data").is_empty());
    gets("c03,,c04").code(2);

    cluster.s3.put("data", "w/0.parquet", vec![7; 500_000]);
    let no_footer = gets("c04").code(4);
    for part in ["`w/0.parquet`", "it is no Parquet file", "exclude"] {
        assert!(no_footer.words().contains(part), "{part}: {}", no_footer.stderr);
    }
    cluster.s3.remove("data", "w/0.parquet");
    // A query that reads all of them needs no choice.
    let all = job("columns = 'needed'", "select * from w limit 1");
    let run = cluster.forebay(["run", &cluster.file("job.toml", &all), "--json"]).json(0);
    let shown = cluster.forebay(["dataset", "show", "data", "--json"]).json(0);
    assert!(shown["snapshot"]["columns"].is_null() && shown["snapshot"]["id"] == run["snapshot"], "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_a_source_of_columns_too() {
    let (cluster, dir) = (crate::support::Cluster::start().await, TempDir::new().unwrap());
    fs::create_dir(dir.path().join("w")).unwrap();
    fs::write(dir.path().join("w/1.parquet"), wide(1)).unwrap();
    fs::write(dir.path().join("names.csv"), NAMES_CSV).unwrap();
    let source = format!("file://{}", dir.path().canonicalize().unwrap().display());
    let query = |columns: &str| result(&cluster, &cluster.terminal(), &job_of(&source, columns, QUERY));
    let (part, given) = query("name = 'd'\ncolumns = 'needed'");
    assert_eq!(part["staged"]["fetched_bytes"], fetched(&wide(1)) + NAMES_CSV.len() as u64);
    let path = cluster.data("d").join("w/1.parquet");
    let meta = fs::metadata(&path).unwrap();
    assert!(std::os::unix::fs::MetadataExt::blocks(&meta) * 512 * 4 < meta.len(), "it has holes: {meta:?}");
    cluster.forebay(["dataset", "verify", "d", "--full"]).code(0);
    let (whole, expected) = query("name = 'd'");
    assert_eq!(given, expected);
    assert_ne!(part["snapshot"], whole["snapshot"]);
}
