//! Map-reduce over a tree of more than 10,000 real text files: what a page of Perl counts, forebay counts, however many
//! workers and splits there are.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::support::{Cluster, files, output};

const FILES: usize = 10_500;

/// The smallest text files among the sources of the crates that this test was built from.
fn tree(root: &Path) {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cargo"));
    let sources = cargo_home.join("registry/src");
    let is_text =
        |path: &PathBuf| path.extension().is_some_and(|e| ["rs", "md", "txt", "toml"].iter().any(|t| e == *t));
    let found = files(&sources).into_iter().filter(is_text);
    let mut found: Vec<_> = found.map(|path| (fs::metadata(&path).unwrap().len(), path)).collect();
    found.sort();
    assert!(found.len() >= FILES, "only {} text files below {}", found.len(), sources.display());
    for (_, path) in &found[..FILES] {
        let target = root.join(path.strip_prefix(&sources).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn words_are_counted_as_perl_counts_them() {
    agree_with_perl(&[(1, "1MiB"), (2, "64KiB"), (7, "1MiB"), (7, "16KiB")]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, with 29,000 tasks in three of its nine runs; .ci/run has them"]
async fn words_are_counted_as_perl_counts_them_by_any_workers_and_splits() {
    let splits = ["1KiB", "64KiB", "1MiB"];
    let all = splits.into_iter().flat_map(|split| [1, 2, 7].map(|workers| (workers, split)));
    agree_with_perl(&all.collect::<Vec<_>>()).await;
}

async fn agree_with_perl(ways: &[(u32, &str)]) {
    let (cluster, dir) = (Cluster::start().await, TempDir::new().unwrap());
    tree(dir.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runs/word_count.pl");
    let perl = Command::new("perl").arg(script).arg(dir.path()).output().unwrap();
    assert!(perl.status.success(), "{}", String::from_utf8_lossy(&perl.stderr));
    let expected = counts_of_lines(&perl.stdout);
    let mut first: Option<BTreeMap<String, Vec<u8>>> = None;
    for (workers, split) in ways {
        let job = format!(
            "name = 'words'\nreuse = 'off'\n[dataset]\nsource = 'file://{}'\n[mapreduce]\nmap = 'word-count'\npartitions = 3\n\
             [split]\nsize = '{split}'\n[workers]\ncount = {workers}\nslots = 4\n[output]\nformat = 'ndjson'\n",
            dir.path().display()
        );
        let result = cluster.forebay(["run", &cluster.file("words.toml", &job), "--json"]).json(0);
        println!("{workers} workers, splits of {split}: {} tasks in {} s", result["tasks"]["total"], result["seconds"]);
        assert_eq!((&result["staged"]["objects"], &result["workers"]), (&FILES.into(), &(*workers).into()));
        let output = output(&result);
        assert!(counts_of(&output) == expected, "{workers} workers, splits of {split}");
        // Not only after sorting: every byte is where it was.
        assert!(first.get_or_insert_with(|| output.clone()) == &output, "{workers} workers, splits of {split}");
    }
}

/// Of `count<TAB>word` lines; bytes that are no UTF-8 count as U+FFFD, as forebay publishes them.
fn counts_of_lines(lines: &[u8]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let tab = line.iter().position(|byte| *byte == b'\t').unwrap();
        let count: u64 = std::str::from_utf8(&line[..tab]).unwrap().parse().unwrap();
        *counts.entry(String::from_utf8_lossy(&line[tab + 1..]).into_owned()).or_default() += count;
    }
    counts
}

fn counts_of(output: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in output.values().flat_map(|part| part.split(|byte| *byte == b'\n')).filter(|line| !line.is_empty()) {
        let row: serde_json::Value = serde_json::from_slice(line).unwrap();
        *counts.entry(row["word"].as_str().unwrap().to_owned()).or_default() += row["count"].as_u64().unwrap();
    }
    counts
}
