//! A worker that is much slower than the others does not hold up a run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::{Pid, Signal};

use crate::support::{
    Cluster, copies, csv, eventually, link,
    processes::{is_running, signal},
    published,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_on_a_worker_that_stands_still_is_done_by_another() {
    let cluster = Cluster::start().await;
    cluster.put_contents("data", 8);
    let pid = cluster.volume().join("pid");
    let text = format!(
        "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\nshell = \"\"\"\n\
         if [ -n \"$SLOW\" ]; then echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 1000; fi\n\
         cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/x\"\"\"\n[workers]\nfleet = 'external'\ncount = 2\n",
        pid = pid.display()
    );
    let job = cluster.file("job.toml", &text);
    let running = cluster.terminal().start(["--listen", "127.0.0.1", "run", &job, "--id", "r", "--json"]);
    link(&cluster.run_dir("r"), 1);
    let slow = cluster.with_env("SLOW", "1").start(["worker", "--run", "r", "--slots", "1", "--name", "slow"]);
    eventually("it has begun a task", || pid.exists());
    let fast = cluster.terminal().start(["worker", "--run", "r", "--slots", "1", "--name", "fast"]);
    let result = running.outcome().json(0);
    // Of the slow worker's attempts one was begun, and one waited behind it.
    assert_eq!((&result["tasks"]["succeeded"], &result["tasks"]["attempts"]), (&8.into(), &9.into()), "{result}");
    assert_eq!(published(&cluster.run_dir("r").join("output")), copies(8));
    fast.outcome().code(0);
    slow.outcome().code(0);
    let pid = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    assert!(!is_running(rustix::process::Pid::from_raw(pid).unwrap()), "it was ended");
}

/// Runs a fiftieth of the time, until it is dropped.
struct Throttled(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Throttled {
    fn new(pid: Pid) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let throttle = move || {
            while !seen.load(Ordering::Relaxed) {
                for (order, millis) in [(Signal::STOP, 490), (Signal::CONT, 10)] {
                    signal(&[pid], order);
                    // The pace itself is what is tested.
                    std::thread::sleep(Duration::from_millis(millis));
                }
            }
        };
        Self(over, Some(std::thread::spawn(throttle)))
    }
}

impl Drop for Throttled {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let _ = self.1.take().map(JoinHandle::join);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_slow_worker_has_not_read_is_read_by_another_once() {
    let cluster = Cluster::start().await;
    let line = "one two three four five six seven eight\n";
    let lines = (256 << 20) / line.len();
    cluster.s3.put("data", "words.txt", line.repeat(lines));
    let text = "name = 'j'\n[dataset]\nsource = 's3://data'\n[mapreduce]\nmap = 'word-count'\n[split]\ncount = 4\n\
         [workers]\nfleet = 'external'\ncount = 2\n[retry]\nspeculate = false\n[output]\nformat = 'csv'\n";
    let job = cluster.file("job.toml", text);
    let running = cluster.terminal().start(["--listen", "127.0.0.1", "run", &job, "--id", "r", "--json"]);
    link(&cluster.run_dir("r"), 1);
    let slow = cluster.terminal().start(["worker", "--run", "r", "--slots", "1", "--name", "slow"]);
    let throttled = Throttled::new(slow.pid());
    eventually("it has a task", || cluster.run_dir("r").join("slots/slow.0").exists());
    let fast = cluster.terminal().start(["worker", "--run", "r", "--slots", "1", "--name", "fast"]);
    let result = running.outcome().json(0);
    drop(throttled);
    // Four splits, what was left of one or two of them, and a reduce task.
    let tasks = result["tasks"]["total"].as_u64().unwrap();
    assert!(tasks > 5 && result["tasks"]["attempts"] == tasks, "nothing was done twice: {result}");
    let expected =
        ["eight", "five", "four", "one", "seven", "six", "three", "two"].map(|word| format!("{word},{lines}\n"));
    assert_eq!(csv(&result), format!("word,count\n{}", expected.concat()));
    let explained = (0..4).map(|task| cluster.forebay(["explain", "r", &task.to_string()]).code(0).stdout);
    assert!(explained.into_iter().any(|text| text.contains("done in part: what it had not read became")));
    fast.outcome().code(0);
    slow.outcome().code(0);
}
