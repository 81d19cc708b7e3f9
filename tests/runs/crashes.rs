//! `kill -9` at random moments: whatever is killed, the run ends with the output of an undisturbed one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::process::Pid;
use serde_json::Value;

use crate::support::{
    Cluster, Terminal, eventually,
    processes::{Running, kill},
    published,
};

const MOMENTS: u32 = 20;
const TASKS: usize = 24;
const WORKERS: usize = 3;
const SLOTS: usize = 2;

struct Fixture {
    cluster: Cluster,
    /// Of an undisturbed run.
    expected: BTreeMap<String, Vec<u8>>,
    took: Duration,
    random: fastrand::Rng,
}

impl Fixture {
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        for n in 0..TASKS {
            let lines: Vec<_> = (0..200).map(|line| format!("{} {}", line * n % 7, line % 13)).collect();
            cluster.s3.put("data", &format!("{n:02}.txt"), lines.join("\n"));
        }
        // Each attempt that comes to its end says so outside of the run.
        let done = cluster.volume().join("done");
        std::fs::create_dir(&done).unwrap();
        let head = "name = 'j'\n[dataset]\nsource = 's3://data'\n";
        let tail = format!("[workers]\ncount = {WORKERS}\nslots = {SLOTS}\n[retry]\nbackoff = '10ms..10ms'\n");
        let program = format!(
            "sleep 0.0$((FOREBAY_TASK_INDEX % 5 + 2)); sort $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/sorted; \
             : > {}/$FOREBAY_RUN_ID.$FOREBAY_TASK_INDEX.$FOREBAY_ATTEMPT.$$",
            done.display()
        );
        cluster.file("command.toml", &format!("{head}[command]\nshell = \"\"\"{program}\"\"\"\n{tail}"));
        let seed = std::env::var("FOREBAY_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("FOREBAY_TEST_SEED={seed}");
        let random = fastrand::Rng::with_seed(seed);
        let mut fixture = Self { cluster, expected: BTreeMap::new(), took: Duration::ZERO, random };
        let begun = Instant::now();
        fixture.start("undisturbed").outcome().code(0);
        fixture.took = begun.elapsed();
        fixture.expected = fixture.output("undisturbed");
        assert_eq!(fixture.expected.len(), TASKS);
        fixture
    }

    fn terminal(&self) -> Terminal {
        self.cluster.terminal()
    }

    fn start(&self, run: &str) -> Running {
        let job = self.cluster.volume().join("command.toml").display().to_string();
        self.terminal().start(["run", &job, "--id", run, "--json"])
    }

    fn output(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        published(&self.cluster.run_dir(run).join("output"))
    }

    /// Lets a run go on for a random part of its time.
    fn wait(&mut self) {
        std::thread::sleep(self.took.mul_f64(self.random.f64()));
    }

    /// Some of the workers that there are now, or else as soon as there are any.
    fn workers(&mut self, running: &mut Running, count: usize) -> Vec<Pid> {
        let mut workers = Vec::new();
        eventually("there are workers, or the run has ended", || {
            workers = running.children();
            workers.len() >= count || running.has_ended()
        });
        self.random.shuffle(&mut workers);
        workers.truncate(count);
        workers
    }

    /// Tasks by their numbers of attempts, of those that are done.
    fn succeeded(&self, run: &str) -> BTreeMap<String, u64> {
        let outcome = self.cluster.forebay(["runs", "tasks", run, "--state", "succeeded", "--json"]);
        // It may have been killed before it was there.
        if outcome.code == Some(3) {
            return BTreeMap::new();
        }
        let tasks = outcome.json(0)["tasks"].as_array().unwrap().clone();
        let numbers = |task: &Value| (task["task"].as_str().unwrap().to_owned(), task["attempts"].as_u64().unwrap());
        tasks.iter().map(numbers).collect()
    }

    /// The attempts of a run that came to their end: task, attempt, process.
    fn done(&self, run: &str) -> BTreeSet<(String, String)> {
        let names = std::fs::read_dir(self.cluster.volume().join("done")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let of_run = names.filter_map(|name| name.strip_prefix(&format!("{run}.")).map(str::to_owned));
        of_run.map(|name| (name.split('.').next().unwrap().to_owned(), name)).collect()
    }

    /// What holds at the end of every run, whatever happened to it.
    fn check(&self, run: &str, result: &Value) {
        assert_eq!((&result["state"], &result["tasks"]["succeeded"]), (&"succeeded".into(), &TASKS.into()), "{result}");
        assert!(self.output(run) == self.expected, "the output of {run} differs");
        let attempts: PathBuf = self.cluster.run_dir(run).join("attempts");
        assert!(!attempts.exists(), "{}", attempts.display());
    }

    /// The coordinator has died: what is done by then is not done again.
    fn resume(&self, run: &str) {
        let (before, done_before) = (self.succeeded(run), self.done(run));
        let result = self.start(run).outcome().json(0);
        self.check(run, &result);
        let after = self.succeeded(run);
        for (task, attempts) in before {
            assert_eq!(after[&task], attempts, "{run}: task {task} was done, and tried again");
            let index = task.split_once('-').unwrap().1;
            // A worker may have outlived its coordinator for a moment, but nothing was begun again.
            let again = self.done(run).difference(&done_before).filter(|(task, _)| task == index).count();
            assert_eq!(again, 0, "{run}: task {task} was done, and was done again");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_worker_is_killed() {
    workers_are_killed(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_are_killed() {
    workers_are_killed(2).await;
}

async fn workers_are_killed(count: usize) {
    let mut fixture = Fixture::new().await;
    for moment in 0..MOMENTS {
        let run = format!("r{moment}");
        let mut running = fixture.start(&run);
        fixture.wait();
        kill(&fixture.workers(&mut running, count));
        let result = running.outcome().json(0);
        fixture.check(&run, &result);
        let attempts = result["tasks"]["attempts"].as_u64().unwrap() as usize;
        assert!(attempts <= TASKS + count * SLOTS, "{attempts} attempts: more than those in the slots that were lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_is_killed() {
    let mut fixture = Fixture::new().await;
    for moment in 0..MOMENTS {
        let run = format!("r{moment}");
        let running = fixture.start(&run);
        fixture.wait();
        kill(&[running.pid()]);
        running.outcome();
        fixture.resume(&run);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_and_all_workers_are_killed() {
    let mut fixture = Fixture::new().await;
    for moment in 0..MOMENTS {
        let run = format!("r{moment}");
        let running = fixture.start(&run);
        fixture.wait();
        let workers = running.children();
        kill(&[running.pid()]);
        kill(&workers);
        running.outcome();
        fixture.resume(&run);
    }
}
