//! Submitted twice, interrupted, cancelled, waited for.

use std::fs;

use forebay::s3_server::Faults;
use rustix::process::Signal;

use crate::support::{Cluster, eventually, output, published};

/// Three tasks, each of which waits for the file `go` beside the volume's runs.
fn job(cluster: &Cluster) -> String {
    cluster.s3.make_bucket("copies");
    for name in ["a", "b", "c"] {
        cluster.s3.put("data", name, format!("content of {name}"));
    }
    let text = format!(
        "name = 'j'\nreuse = 'off'\n[dataset]\nsource = 's3://data'\n[command]\nshell = \"\"\"\n\
         while [ ! -e {}/go ]; do sleep 0.01; done; cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/x\"\"\"\n\
         [workers]\ncount = 2\nslots = 2\n[output]\nto = 's3://copies/r/'\n",
        cluster.volume().display()
    );
    cluster.file("job.toml", &text)
}

fn go(cluster: &Cluster) {
    fs::write(cluster.volume().join("go"), "").unwrap();
}

/// Waits until tasks are in slots.
fn is_working(cluster: &Cluster, run: &str) {
    eventually("tasks run", || cluster.tasks(run, "running") == 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_submissions_of_one_id_one_coordinates_and_both_tell_the_result() {
    let cluster = Cluster::start().await;
    let job = job(&cluster);
    go(&cluster);
    for round in 0..5 {
        let id = format!("r{round}");
        let both = [0; 2].map(|_| cluster.terminal().start(["run", &job, "--id", &id, "--json"]));
        let [one, two] = both.map(|running| running.outcome().json(0));
        assert_eq!(one, two);
        assert_eq!((&one["state"], &one["tasks"]["attempts"]), (&"succeeded".into(), &3.into()));
        let epochs = fs::read_dir(cluster.run_dir(&id).join("epochs")).unwrap().count();
        assert_eq!(epochs, 1, "nobody took over");
    }
    assert_eq!(cluster.s3.object("copies", "r/task-00000/x").unwrap(), "content of a");
    let other = cluster.file("other.toml", &fs::read_to_string(job).unwrap().replace("count = 2", "count = 1"));
    let conflict = cluster.forebay(["run", &other, "--id", "r0"]).code(2);
    assert!(conflict.stderr.contains("another one: its job differs"), "{}", conflict.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_is_resumed_and_leaves_no_worker_behind() {
    let cluster = Cluster::start().await;
    let job = job(&cluster);
    let running = cluster.terminal().start(["run", &job, "--id", "r"]);
    is_working(&cluster, "r");
    let workers = running.children();
    assert_eq!(workers.len(), 2);
    running.signal(Signal::INT);
    let interrupted = running.outcome().code(130);
    assert!(interrupted.stderr.contains("forebay resume r"), "{}", interrupted.stderr);
    assert!(!workers.into_iter().any(crate::support::processes::is_running));
    let shown = cluster.forebay(["runs", "show", "r", "--json"]).json(0);
    assert_eq!((&shown["state"], &shown["coordinator"]), (&"interrupted".into(), &().into()));
    let wait = cluster.forebay(["wait", "r"]).code(4);
    assert!(wait.stderr.contains("forebay resume r"), "{}", wait.stderr);
    go(&cluster);
    let result = cluster.forebay(["resume", "r", "--json"]).json(0);
    assert_eq!(result["tasks"]["succeeded"], 3);
    assert_eq!(published(&cluster.run_dir("r").join("output")).len(), 3);
    assert_eq!(cluster.forebay(["resume", "r", "--json"]).json(0), result);
    assert_eq!(cluster.forebay(["wait", "r", "--json"]).json(0), result);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_waited_for_and_cancelled_by_others() {
    let cluster = Cluster::start().await;
    let job = job(&cluster);
    let running = cluster.terminal().start(["run", &job, "--id", "r", "--json"]);
    is_working(&cluster, "r");
    cluster.forebay(["wait", "r", "--timeout", "100ms"]).code(124);
    assert_eq!(cluster.forebay(["runs", "list", "--json"]).json(0)["runs"][0]["state"], "running");
    let waiting = cluster.terminal().start(["wait", "r", "--json"]);
    assert_eq!(cluster.forebay(["cancel", "r", "--json"]).json(0)["state"], "cancelled");
    let result = running.outcome().json(1);
    assert_eq!((&result["state"], &result["output"]), (&"cancelled".into(), &().into()));
    assert_eq!(waiting.outcome().json(1), result);
    assert!(!cluster.run_dir("r").join("output").exists());
    // It stays so, whoever asks.
    cluster.forebay(["cancel", "r"]).code(0);
    assert_eq!(cluster.forebay(["resume", "r", "--json"]).json(1), result);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_are_not_there_are_not_found() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x", "x");
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    for args in [["runs", "show", "r"], ["runs", "tasks", "r"], ["runs", "logs", "r"]] {
        let error = cluster.forebay(args).code(3);
        assert!(error.stderr.contains("`r`"), "{}", error.stderr);
    }
    for command in ["resume", "cancel", "wait"] {
        cluster.forebay([command, "r"]).code(3);
    }
    cluster.forebay(["runs", "show", "../r"]).code(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_outputs_are_copied_in_parts_and_compared() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x", "x");
    cluster.s3.put("copies", "r/_SUCCESS", "of an earlier run");
    let faults = Faults { busy_every: Some(2), lose_completion: true, ..Faults::default() };
    let text = "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\n\
                shell = 'yes 0123456789abcde | head -c 40000000 > $FOREBAY_OUTPUT_DIR/large; echo small > $FOREBAY_OUTPUT_DIR/small'\n\
                [output]\nto = 's3://copies/r'\n";
    let job = cluster.file("job.toml", text);
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    cluster.s3.set_faults(faults);
    let result = cluster.forebay(["run", &job, "--json"]).json(0);
    for (name, bytes) in output(&result) {
        assert!(cluster.s3.object("copies", &format!("r/{name}")).unwrap() == bytes, "{name}");
    }
    let parts = cluster.s3.counts().parts();
    assert!(parts > 3, "{parts} parts, those that were refused too");
    assert_ne!(cluster.s3.object("copies", "r/_SUCCESS").unwrap(), "of an earlier run");
    assert!(cluster.s3.object("copies", "r/_manifest.parquet").is_some());
}
