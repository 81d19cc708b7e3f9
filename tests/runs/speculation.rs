//! A worker that is much slower than the others does not hold up a run.

use crate::support::{Cluster, eventually, processes::is_running, published};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_on_a_worker_that_stands_still_is_done_by_another() {
    let cluster = Cluster::start().await;
    for n in 0..8 {
        cluster.s3.put("data", &format!("{n}.txt"), format!("content {n}"));
    }
    let pid = cluster.volume().join("pid");
    let text = format!(
        "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\nshell = \"\"\"\n\
         if [ -n \"$SLOW\" ]; then echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 1000; fi\n\
         cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/x\"\"\"\n[workers]\nfleet = 'external'\ncount = 2\n",
        pid = pid.display()
    );
    let job = cluster.file("job.toml", &text);
    let running = cluster.terminal().start(["--listen", "127.0.0.1", "run", &job, "--id", "r", "--json"]);
    eventually("there is a coordinator", || cluster.run_dir("r").join("epochs/1/link.json").exists());
    let slow = cluster.with_env("SLOW", "1").start(["worker", "--run", "r", "--slots", "1", "--name", "slow"]);
    eventually("it has begun a task", || pid.exists());
    let fast = cluster.terminal().start(["worker", "--run", "r", "--slots", "1", "--name", "fast"]);
    let result = running.outcome().json(0);
    // Of the slow worker's attempts one was begun, and one waited behind it.
    assert_eq!((&result["tasks"]["succeeded"], &result["tasks"]["attempts"]), (&8.into(), &9.into()), "{result}");
    assert_eq!(published(&cluster.run_dir("r").join("output")).len(), 8);
    fast.outcome().code(0);
    slow.outcome().code(0);
    let pid = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    assert!(!is_running(rustix::process::Pid::from_raw(pid).unwrap()), "it was ended");
}
