//! `kill -9` at random moments: whatever is killed, the run ends with the output of an undisturbed one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::process::Pid;
use serde_json::Value;

use crate::support::{
    Cluster, eventually, names,
    processes::{Running, kill},
    published, seed,
};

const MOMENTS: u32 = 20;
const FILES: u64 = 24;
const WORKERS: usize = 3;
const SLOTS: u64 = 2;

struct Fixture {
    cluster: Cluster,
    jobs: [Job; 2],
    random: fastrand::Rng,
}

/// A job, and an undisturbed run of it.
struct Job {
    file: String,
    tasks: u64,
    output: BTreeMap<String, Vec<u8>>,
    took: Duration,
}

impl Fixture {
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        for n in 0..FILES {
            let lines: Vec<_> = (0..200).map(|line| format!("{} {}", line * n % 7, line % 13)).collect();
            cluster.s3.put("data", &format!("{n:02}.txt"), lines.join("\n"));
        }
        // Each attempt that comes to its end says so outside of the run.
        let done = cluster.volume().join("done");
        std::fs::create_dir(&done).unwrap();
        let head = "name = 'j'\nreuse = 'off'\n[dataset]\nsource = 's3://data'\n";
        let tail = format!("[workers]\ncount = {WORKERS}\nslots = {SLOTS}\n[retry]\nbackoff = '10ms..10ms'\n");
        let program = format!(
            "sleep 0.0$((FOREBAY_TASK_INDEX % 5 + 2)); sort $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/sorted; \
             : > {}/$FOREBAY_RUN_ID.$FOREBAY_TASK_INDEX.$FOREBAY_ATTEMPT.$$",
            done.display()
        );
        let command = format!("{head}[command]\nshell = \"\"\"{program}\"\"\"\n{tail}");
        let phases = format!(
            "{head}[mapreduce]\nmap = ['sh', '-c', \"sleep 0.02; tr ' ' '\\\\n'\"]\nreduce = ['uniq', '-c']\n\
             partitions = 6\n[split]\nby = 'file'\n{tail}"
        );
        let undisturbed = |name: &str, text: &str| {
            let file = cluster.file(&format!("{name}.toml"), text);
            let begun = Instant::now();
            let result = cluster.forebay(["run", &file, "--id", name, "--json"]).json(0);
            let (took, tasks) = (begun.elapsed(), result["tasks"]["total"].as_u64().unwrap());
            Job { file, tasks, output: published(&cluster.run_dir(name).join("output")), took }
        };
        let jobs = [undisturbed("command", &command), undisturbed("phases", &phases)];
        assert_eq!((jobs[0].tasks, jobs[0].output.len(), jobs[1].tasks), (FILES, FILES as usize, FILES + 6));
        Self { cluster, jobs, random: fastrand::Rng::with_seed(seed()) }
    }

    /// Which job a moment strikes.
    fn job(&self, moment: u32) -> &Job {
        &self.jobs[moment as usize % self.jobs.len()]
    }

    fn start(&self, job: &Job, run: &str) -> Running {
        self.cluster.terminal().start(["run", &job.file, "--id", run, "--json"])
    }

    /// Lets a run go on for a random part of its time: the moment itself is what varies, nothing is waited for.
    fn wait(&mut self, moment: u32) {
        let part = self.random.f64();
        std::thread::sleep(self.job(moment).took.mul_f64(part));
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
        let beginning = format!("{run}.");
        let names = names(&self.cluster.volume().join("done"), &beginning).into_iter();
        names
            .map(|name| name[beginning.len()..].to_owned())
            .map(|name| (name.split('.').next().unwrap().to_owned(), name))
            .collect()
    }

    /// What holds at the end of every run, whatever happened to it.
    fn check(&self, job: &Job, run: &str, result: &Value) {
        let tasks = &result["tasks"]["succeeded"];
        assert_eq!((&result["state"], tasks), (&"succeeded".into(), &job.tasks.into()), "{result}");
        let output = published(&self.cluster.run_dir(run).join("output"));
        assert!(output == job.output, "the output of {run} differs");
        let attempts: PathBuf = self.cluster.run_dir(run).join("attempts");
        assert!(!attempts.exists(), "{}", attempts.display());
    }

    /// The coordinator has died: what is done by then is not done again.
    fn resume(&self, job: &Job, run: &str) {
        let (before, done_before) = (self.succeeded(run), self.done(run));
        let result = self.start(job, run).outcome().json(0);
        self.check(job, run, &result);
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
async fn what_a_killed_worker_had_in_its_slots_is_all_that_is_lost() {
    workers_are_killed(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_killed_workers_had_in_their_slots_is_all_that_is_lost() {
    workers_are_killed(2).await;
}

async fn workers_are_killed(count: usize) {
    let mut fixture = Fixture::new().await;
    for moment in 0..MOMENTS {
        let run = format!("r{moment}");
        let mut running = fixture.start(fixture.job(moment), &run);
        fixture.wait(moment);
        kill(&fixture.workers(&mut running, count));
        let (job, result) = (fixture.job(moment), running.outcome().json(0));
        fixture.check(job, &run, &result);
        let lost = result["tasks"]["attempts"].as_u64().unwrap() - job.tasks;
        assert!(lost <= count as u64 * SLOTS, "{lost} attempts are lost: more than were in the slots");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_under_a_killed_coordinator_is_not_done_again() {
    coordinators_are_killed(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_before_coordinator_and_workers_were_killed_is_not_done_again() {
    coordinators_are_killed(true).await;
}

async fn coordinators_are_killed(and_workers: bool) {
    let mut fixture = Fixture::new().await;
    for moment in 0..MOMENTS {
        let run = format!("r{moment}");
        let running = fixture.start(fixture.job(moment), &run);
        fixture.wait(moment);
        let workers = running.children();
        kill(&[running.pid()]);
        if and_workers {
            kill(&workers);
        }
        running.outcome();
        let job = fixture.job(moment);
        fixture.resume(job, &run);
        if !and_workers && std::ptr::eq(job, &fixture.jobs[0]) {
            assert_eq!(
                fixture.done(&run).len() as u64,
                job.tasks,
                "{run}: its workers went on, and nothing was done twice"
            );
        }
    }
}
