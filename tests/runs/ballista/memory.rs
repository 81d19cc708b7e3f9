//! What a worker's memory is to its stages: a limit.

use std::{fs, path::Path};

use super::{parquet, text};
use crate::support::{Cluster, eventually};

/// Rows of keys and values, in four files; no two keys are equal.
fn put_pairs(cluster: &Cluster, rows: i64) {
    let key = |n: i64| n.wrapping_mul(0x1e37_79b9_7f4a_7c15) >> 8;
    for part in 0..4 {
        let values = || (0..rows).filter(move |n| n % 4 == part);
        let columns = [("k", values().map(key).collect()), ("v", values().collect())];
        let file = parquet(columns.map(|(name, values): (_, Vec<i64>)| (name, values.into_iter())));
        cluster.s3.put("acme", &format!("pairs/{part}.parquet"), file);
    }
}

fn job(cluster: &Cluster, query: &str, memory: &str) -> String {
    let text = format!(
        "name = 'pairs'\nreuse = 'off'\n[dataset]\nsource = 's3://acme'\n[output]\nformat = 'csv'\n\
         [sql]\nquery = \"{query}\"\ntables.t = 'pairs/*'\nengine = 'ballista'\n\
         options = {{ 'datafusion.execution.batch_size' = 4096 }}\n\
         [workers]\ncount = 2\nslots = 1\nmemory = '{memory}'\n"
    );
    cluster.file("pairs.toml", &text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_outgrows_its_worker_s_memory_spills_to_the_worker_s_scratch_directory() {
    let (cluster, rows) = (Cluster::start().await, 1_200_000);
    put_pairs(&cluster, rows);
    let query = "select count(*) as c, sum(s) as s from (select k, sum(v) as s from t group by k)";
    let file = job(&cluster, query, "80MiB");
    let coordinator = cluster.terminal().start(["run", &file, "--id", "spills", "--json"]);
    let slots = cluster.run_dir("spills").join("slots");
    let spilled = || {
        let of_stages = fs::read_dir(&slots).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut of_stages = of_stages.filter(|path| path.extension().is_some_and(|name| name == "stages"));
        of_stages.any(|dir| walk(&dir).iter().any(|size| *size > 0))
    };
    eventually("a stage spills", spilled);
    let result = coordinator.outcome().json(0);
    assert_eq!(text(&result), format!("c,s\n{rows},{}\n", rows * (rows - 1) / 2));
    assert!(!slots.exists() || walk(&slots).is_empty(), "it goes with the run");
}

/// The sizes of the files below a directory in which others come and go.
fn walk(dir: &Path) -> Vec<u64> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => sizes.extend(walk(&entry.path())),
            Ok(meta) => sizes.push(meta.len()),
            Err(_) => {}
        }
    }
    sizes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_cannot_be_had_in_its_worker_s_memory_says_so() {
    let cluster = Cluster::start().await;
    put_pairs(&cluster, 400_000);
    let query = "select array_length(array_agg(repeat('x', 100) || v)) as n from t";
    let file = job(&cluster, query, "64MiB");
    let result = cluster.forebay(["run", &file, "--json"]).json(1);
    let told = result["error"].as_str().unwrap();
    assert!(
        told.contains("more memory than the 64 MiB of its worker") && told.contains("[workers] memory more"),
        "{told}"
    );
    assert_eq!(result["tasks"]["attempts"], 1, "another try would find the same: {result}");
}
