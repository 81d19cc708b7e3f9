//! A coordinator dies or stalls, and its workers work for the next one; a worker is told to end, and others do its work.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{
    Cluster, copies, eventually, link, names,
    processes::{Running, is_running, kill},
    published,
};

pub(super) const TASKS: usize = 4;
/// Lines of `[workers]`: what carries the messages makes no difference.
const LINKS: [&str; 2] = ["link = 'tcp'", "link = 'files'"];

pub(super) struct Fixture {
    pub(super) cluster: Cluster,
    job: String,
}

impl Fixture {
    /// As many tasks as there are slots, each of which waits for the file `go`. Each says that it was begun, and that it
    /// was done.
    pub(super) async fn new(workers: &str) -> Self {
        let cluster = Cluster::start().await;
        cluster.put_contents("data", TASKS);
        let here = cluster.volume().join("marks");
        fs::create_dir(&here).unwrap();
        let here = here.display();
        let text = format!(
            "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\nshell = \"\"\"\n\
             : > {here}/begun.$FOREBAY_TASK_INDEX.$$; while [ ! -e {here}/go ]; do sleep 0.01; done\n\
             cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/x; : > {here}/done.$FOREBAY_TASK_INDEX.$$\"\"\"\n\
             [workers]\ncount = 2\nslots = 2\n{workers}\n[retry]\nattempts = 1\nbackoff = '10ms..10ms'\nspeculate = false\n"
        );
        let job = cluster.file("job.toml", &text);
        Self { cluster, job }
    }

    pub(super) fn start(&self) -> Running {
        self.cluster.terminal().start(["run", &self.job, "--id", "r", "--json"])
    }

    /// A coordinator at work, all of whose tasks are in slots; and its workers.
    pub(super) fn at_work(&self) -> (Running, Vec<Pid>) {
        let running = self.start();
        eventually("all tasks are begun", || self.marks("begun").len() == TASKS);
        let workers = running.children();
        assert_eq!(workers.len(), 2);
        (running, workers)
    }

    pub(super) fn is_taken_over(&self) {
        link(&self.cluster.run_dir("r"), 2);
    }

    pub(super) fn go(&self) {
        fs::write(self.cluster.volume().join("marks/go"), "").unwrap();
    }

    pub(super) fn marks(&self, which: &str) -> Vec<String> {
        names(&self.cluster.volume().join("marks"), which)
    }

    /// Every task was done, and none was begun twice.
    pub(super) fn check(&self, result: &Value) {
        let tasks = &result["tasks"];
        assert_eq!((&tasks["succeeded"], &tasks["attempts"]), (&TASKS.into(), &TASKS.into()), "{result}");
        assert_eq!([self.marks("begun").len(), self.marks("done").len()], [TASKS; 2]);
        assert_eq!(published(&self.cluster.run_dir("r").join("output")), copies(TASKS));
        assert!(!self.cluster.run_dir("r").join("reports").exists());
        let epochs = fs::read_dir(self.cluster.run_dir("r").join("epochs")).unwrap();
        let left: Vec<_> =
            epochs.map(|epoch| epoch.unwrap().path().join("link")).filter(|link| link.exists()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_of_a_killed_coordinator_are_taken_on_by_the_next() {
    for link in LINKS {
        let fixture = Fixture::new(link).await;
        let (first, workers) = fixture.at_work();
        kill(&[first.pid()]);
        first.outcome();
        let why =
            || fixture.cluster.forebay(["explain", "r", "2", "--json"]).json(0)["why"].as_str().unwrap().to_owned();
        assert_eq!(why(), "nobody coordinates the run: `forebay resume r` goes on");
        let second = fixture.start();
        fixture.is_taken_over();
        eventually("it says who has the task", || why().starts_with("attempt 0-2.1.1 is begun at "));
        fixture.go();
        let result = second.outcome().json(0);
        fixture.check(&result);
        assert_eq!(result["workers"], 2, "no other was started");
        eventually("they have ended", || !workers.iter().copied().any(is_running));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_without_a_coordinator_counts_even_if_the_workers_are_killed_too() {
    for link in LINKS {
        let fixture = Fixture::new(link).await;
        let (first, workers) = fixture.at_work();
        kill(&[first.pid()]);
        first.outcome();
        fixture.go();
        let reports = fixture.cluster.run_dir("r").join("reports");
        let count = |name: &String| {
            let text = fs::read(reports.join(name)).unwrap();
            let kept: Value = serde_json::from_slice(&text).unwrap();
            kept["reports"].as_array().unwrap().len()
        };
        eventually("all results are kept", || names(&reports, "local-1").iter().map(count).sum::<usize>() == TASKS);
        kill(&workers);
        fixture.check(&fixture.start().outcome().json(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_was_stopped_for_longer_than_its_lease_does_no_harm_when_it_wakes_up() {
    for link in LINKS {
        let fixture = Fixture::new(link).await;
        let (first, workers) = fixture.at_work();
        first.signal(Signal::STOP);
        let second = fixture.start();
        fixture.is_taken_over();
        first.signal(Signal::CONT);
        let forebay = || fixture.cluster.forebay(["runs", "show", "r", "--json"]).json(0);
        eventually("the workers have come over", || forebay()["workers"] == 2);
        fixture.go();
        let result = second.outcome().json(0);
        fixture.check(&result);
        let deposed = first.outcome().code(4);
        assert!(deposed.stdout.contains("taken over by another coordinator"), "{deposed:?}");
        eventually("they have ended", || !workers.iter().copied().any(is_running));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_whose_coordinator_never_comes_back_end_by_themselves() {
    let fixture = Fixture::new("patience = '1s'").await;
    let (first, workers) = fixture.at_work();
    kill(&[first.pid()]);
    first.outcome();
    eventually("the workers have ended", || !workers.iter().copied().any(is_running));
    // They gave back what they had not done.
    fixture.go();
    let result = fixture.start().outcome().json(0);
    assert_eq!(result["tasks"]["succeeded"], TASKS);
    assert_eq!([fixture.marks("begun").len(), fixture.marks("done").len()], [2 * TASKS, TASKS]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_that_drains_has_not_done_is_done_by_others_and_uses_up_no_try() {
    for link in LINKS {
        let fixture = Fixture::new(link).await;
        let (running, workers) = fixture.at_work();
        kill_process(workers[0], Signal::TERM).unwrap();
        eventually("its tasks are begun by another", || fixture.marks("begun").len() == TASKS + 2);
        fixture.go();
        let result = running.outcome().json(0);
        assert_eq!((&result["tasks"]["succeeded"], &result["tasks"]["failed"]), (&TASKS.into(), &0.into()));
        assert_eq!(fixture.marks("done").len(), TASKS);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_coordinator_was_killed_is_cancelled_and_its_workers_end() {
    for link in LINKS {
        let fixture = Fixture::new(link).await;
        let (first, workers) = fixture.at_work();
        kill(&[first.pid()]);
        first.outcome();
        fixture.cluster.forebay(["cancel", "r"]).code(0);
        let shown = fixture.cluster.forebay(["runs", "show", "r", "--json"]).json(0);
        assert_eq!(shown["state"], "cancelled");
        eventually("they have ended", || !workers.iter().copied().any(is_running));
        assert_eq!(fixture.marks("done").len(), 0);
    }
}
