//! `forebay check JOB`, the built binary.

mod support;

use std::{fs, path::Path};

use forebay_jobs::spec::parse::job_file;
use support::Cluster;

const JOB: &str = "name = \"j\"\n[dataset]\nsource = \"s3://data\"\n[sql]\nquery = \"QUERY\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_shown_where_they_are() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "t.csv", "a,b\n1,2\n");
    for (text, parts) in [
        (JOB.replace("query", "querry"), vec!["unknown key `querry`", "did you mean `query`?", "job.toml:5"]),
        (JOB.replace("QUERY", "selct 1"), vec!["selct", "job.toml:5"]),
        (JOB.replace("QUERY", "select 1") + "[command]\nargv = [\"x\"]\n", vec!["two kinds of work"]),
        (JOB.replace("[sql]", "include = [\"a{\"]\n[sql]"), vec!["`a{` is no glob", "job.toml:4"]),
        (JOB.replace("QUERY", "select 1") + "[retry]\ntimeout = \"soon\"\n", vec!["`soon`", "job.toml:7"]),
    ] {
        let job = cluster.file("job.toml", &text);
        let error = cluster.forebay(["check", &job]).code(2);
        for part in parts {
            assert!(error.stderr.contains(part), "{part}: {}", error.stderr);
        }
    }
    cluster.forebay(["check", "/nowhere/job.toml"]).code(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_column_is_found_in_what_is_staged() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "t.csv", "carrier,delay\nUA,2\n");
    let good = cluster.file("good.toml", &JOB.replace("QUERY", "select carrier from data"));
    let bad = cluster.file("bad.toml", &JOB.replace("QUERY", "select carier from data"));
    assert_eq!(cluster.forebay(["check", &good, "--json"]).json(0)["tasks"], serde_json::Value::Null);
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    assert_eq!(cluster.forebay(["check", &good, "--json"]).json(0)["tasks"], serde_json::json!([1]));
    let error = cluster.forebay(["check", &bad]).code(2);
    assert!(error.stderr.contains("carier"), "{}", error.stderr);
}

#[test]
fn the_jobs_that_are_deployed_are_jobs() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for fleet in ["kubernetes", "slurm"] {
        let file = deploy.join(fleet).join("job.toml");
        let job = job_file(&fs::read_to_string(&file).unwrap(), &deploy, &[]);
        assert_eq!(job.unwrap().workers.fleet.name(), fleet);
    }
}
