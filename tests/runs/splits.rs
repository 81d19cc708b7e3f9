//! A query by splits: the same bytes whoever works, whatever is killed, and a refusal before anything starts.

use std::fs;

use crate::support::{Cluster, eventually, link, processes::kill, published};

const QUERY: &str = "select k, sum(x) as s, avg(x) as a, stddev(x) as d, count(*) as c from data group by k";

/// Lines of floats whose sum has other last digits in another order.
async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    for file in 0..4_u64 {
        let line = |n: u64| {
            let noise = (file * 1000 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            format!("{{\"k\": {}, \"x\": {}}}\n", n % 7, noise as f64 / 1e13)
        };
        cluster.s3.put("data", &format!("{file}.ndjson"), (0..1000).map(line).collect::<String>());
    }
    cluster
}

fn job(query: &str, rest: &str) -> String {
    format!(
        "name = 'j'\nreuse = 'off'\n[dataset]\nsource = 's3://data'\n[sql]\nquery = \"\"\"{query}\"\"\"\nengine = 'splits'\n\
         [split]\nsize = '4KiB'\n{rest}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn any_workers_give_the_same_bytes_also_when_one_is_killed() {
    let cluster = cluster().await;
    let job = |workers: &str| cluster.file("job.toml", &job(QUERY, &format!("[workers]\n{workers}")));
    let result = cluster.forebay(["run", &job("count = 1\nslots = 1"), "--id", "one", "--json"]).json(0);
    assert!(result["tasks"]["total"].as_u64().unwrap() > 20, "{result}");
    assert_eq!((&result["output"]["rows"], &result["output"]["files"][0]), (&7.into(), &"part-00000.parquet".into()));
    let output = |run: &str| published(&cluster.run_dir(run).join("output"));
    let expected = output("one");

    cluster.forebay(["run", &job("count = 3\nslots = 2"), "--id", "three", "--json"]).json(0);
    assert!(output("three") == expected, "three workers give other bytes");

    let running = cluster.terminal().start(["run", &job("count = 2\nslots = 1"), "--id", "killed", "--json"]);
    eventually("some of it is done", || cluster.tasks("killed", "succeeded") > 0);
    kill(&running.children()[..1]);
    running.outcome().json(0);
    assert!(output("killed") == expected, "with a worker that was killed it gives other bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_that_fails_is_tried_again() {
    let cluster = cluster().await;
    let external =
        "[workers]\nfleet = 'external'\n[retry]\nattempts = 1000\nbackoff = '10ms..10ms'\n[output]\nformat = 'csv'\n";
    let text = job("select count(*) as c from data", external);
    let running = cluster.terminal().start([
        "--listen",
        "127.0.0.1",
        "run",
        &cluster.file("job.toml", &text),
        "--id",
        "r",
        "--json",
    ]);
    link(&cluster.run_dir("r"), 1);
    eventually("it is planned", || cluster.run_dir("r").join("plan.ndjson").exists());
    let (file, away) = (cluster.data("data").join("0.ndjson"), cluster.volume().join("away"));
    fs::rename(&file, &away).unwrap();
    let worker = cluster.terminal().start(["worker", "--run", "r", "--slots", "1", "--name", "w"]);
    let tries = || {
        let tasks = cluster.forebay(["runs", "tasks", "r", "--json"]).json(0)["tasks"].as_array().unwrap().clone();
        tasks.iter().filter_map(|task| task["attempts"].as_u64()).max().unwrap_or_default()
    };
    eventually("one has failed", || tries() > 1);
    fs::rename(&away, &file).unwrap();
    let result = running.outcome().json(0);
    worker.outcome().code(0);
    let tasks = &result["tasks"];
    assert_eq!((&tasks["succeeded"], &tasks["failed"]), (&tasks["total"], &0.into()), "{result}");
    assert!(tasks["attempts"].as_u64() > tasks["total"].as_u64(), "{result}");
    assert_eq!(published(&cluster.run_dir("r").join("output"))["part-00000.csv"], b"c\n4000\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_combine_is_refused_by_check_and_by_run() {
    let cluster = cluster().await;
    let joined = cluster.file("joined.toml", &job("select sum(a.x) as s from data a join data b on a.k = b.k", ""));
    let first = cluster.file("first.toml", &job("select first_value(x) as f from data", ""));
    let good = cluster.file("good.toml", &job(QUERY, ""));
    let refused = || {
        for (job, what) in [(&joined, "2 reads of it"), (&first, "`first_value`, which is not known to combine")] {
            for command in ["check", "run"] {
                let error = cluster.forebay([command, job, "--json"]).json(2);
                let message = error["error"]["message"].as_str().unwrap().to_owned();
                assert!(message.contains(what) && message.contains("use engine = \"datafusion\""), "{message}");
            }
        }
    };
    let ahead = cluster.forebay(["check", &good]).code(0).stdout;
    assert!(ahead.contains("each split:") && ahead.contains("then, over the states of all splits:"), "{ahead}");
    refused();
    let runs = fs::read_dir(cluster.volume().join("runs")).into_iter().flatten().count();
    assert_eq!(runs, 0, "no run is left behind");
    // Now it is staged.
    refused();
    let planned = cluster.forebay(["check", &good]).code(0).stdout;
    let tasks = planned.lines().find_map(|line| line.strip_prefix("tasks: ")).unwrap();
    assert!(
        tasks.ends_with(", then 1") && planned.contains("mode=Partial") && planned.contains("mode=Final"),
        "{planned}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_each_split_skips_are_listed_and_counted() {
    let cluster = Cluster::start().await;
    let line = |n: u32| if n % 500 == 77 { "{\"n\": \n".to_owned() } else { format!("{{\"n\": {n}}}\n") };
    cluster.s3.put("data", "a.ndjson", (0..2000).map(line).collect::<String>());
    let text = job("select count(*) as c from data", "[output]\nformat = 'csv'\n");
    let text = text.replace("[sql]", "on_bad_record = 'skip'\n[sql]");
    let result = cluster.forebay(["run", &cluster.file("job.toml", &text), "--id", "r", "--json"]).json(0);
    assert_eq!((&result["output"]["skipped_records"], &result["output"]["rows"]), (&4.into(), &1.into()), "{result}");
    let output = cluster.run_dir("r").join("output");
    assert_eq!(fs::read_to_string(output.join("part-00000.csv")).unwrap(), "c\n1996\n");
    let mut lists: Vec<_> = fs::read_dir(output.join("_skipped")).unwrap().map(|entry| entry.unwrap().path()).collect();
    lists.sort();
    let listed: String = lists.iter().map(|list| fs::read_to_string(list).unwrap()).collect();
    let lines: Vec<_> = listed.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|record| record["line"].as_u64().unwrap()).collect::<Vec<_>>(), [78, 578, 1078, 1578]);
}
