//! Whole runs with workers in containers of the double's: the built binary is in the image, the volume on a file system.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    double::{Ecs, Faults, Seen},
    engine::EFS,
    support::{Cluster, Terminal, copies, eventually, names, processes::Running, published},
};

struct Fixture {
    cluster: Cluster,
    ecs: Ecs,
    job: String,
    tasks: usize,
}

const FARGATE: &str = "subnets = ['subnet-0123456789abcdef0']\nexecution_role = 'arn:aws:iam::123456789012:role/x'\n\
                       log_group = '/forebay'\nefs = { file_system = 'fs-0123456789abcdef0' }\n";

impl Fixture {
    /// As many tasks as workers with a slot each, all of which wait for the file `go`.
    async fn new(workers: usize, ecs: &str) -> Self {
        let cluster = Cluster::start().await;
        cluster.put_contents("data", workers);
        fs::create_dir(cluster.volume().join("marks")).unwrap();
        let job = format!(
            "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\nshell = \"\"\"\n\
             cd /mnt/forebay/marks; : > begun.$FOREBAY_TASK_INDEX.$(cat /proc/sys/kernel/random/uuid)\n\
             while [ ! -e go ]; do sleep 0.05; done\n\
             cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/x; : > done.$FOREBAY_TASK_INDEX\"\"\"\n{}",
            fleet(workers, ecs)
        );
        Self::of(cluster, &job, workers).await
    }

    async fn of(cluster: Cluster, job: &str, tasks: usize) -> Self {
        let job = cluster.file("job.toml", job);
        let ecs = Ecs::start(Path::new(env!("CARGO_BIN_EXE_forebay")), &[(EFS, cluster.volume())]).await;
        Self { cluster, ecs, job, tasks }
    }

    fn terminal(&self) -> Terminal {
        let terminal = self.cluster.with_env("AWS_ENDPOINT_URL_ECS", &self.ecs.endpoint());
        terminal.env("FOREBAY_LISTEN", "127.0.0.1")
    }

    fn start(&self) -> Running {
        self.terminal().start(["run", &self.job, "--id", "r", "--json"])
    }

    fn begun(&self) -> usize {
        names(&self.cluster.volume().join("marks"), "begun").len()
    }

    fn go(&self) {
        fs::write(self.cluster.volume().join("marks/go"), "").unwrap();
    }

    /// The output is whole, and no container is left.
    fn check(&self, result: &Value) {
        assert_eq!(
            (&result["tasks"]["succeeded"], &result["tasks"]["failed"]),
            (&self.tasks.into(), &0.into()),
            "{result}"
        );
        assert_eq!(published(&self.cluster.run_dir("r").join("output")), copies(self.tasks));
        self.nothing_is_left();
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        let left: Vec<Seen> = self.ecs.tasks().into_iter().filter(|task| task.status != "STOPPED").collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Calls keep their distance, and no limit of an account was hit.
    fn rates(&self) {
        let log = self.ecs.log();
        let runs: Vec<Instant> =
            log.iter().filter(|logged| logged.action == "RunTask").map(|logged| logged.at).collect();
        let least = runs.windows(2).map(|two| two[1] - two[0]).min().unwrap_or(Duration::MAX);
        assert!(least >= Duration::from_millis(490), "{least:?}");
        assert!(log.iter().all(|logged| logged.error.as_deref() != Some("ThrottlingException")));
        let begun = log.first().unwrap().at;
        let reads = log.iter().filter(|logged| matches!(&*logged.action, "DescribeTasks" | "ListTasks")).count();
        let seconds = (log.last().unwrap().at - begun).as_secs_f64();
        assert!((reads as f64) < 20.0 + 4.0 * seconds, "{reads} in {seconds} s");
    }
}

fn fleet(workers: usize, ecs: &str) -> String {
    format!(
        "[workers]\nfleet = 'ecs'\ncount = {workers}\nslots = 1\n[retry]\nattempts = 1\nspeculate = false\n\
         [ecs]\ncluster = 'c'\nimage = 'registry/forebay:1'\n{ecs}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_workers_come_in_batches_and_map_and_reduce() {
    const WORKERS: usize = 40;
    let cluster = Cluster::start().await;
    for n in 0..WORKERS {
        cluster.s3.put("data", &format!("{n:03}.txt"), format!("all some{} all\n", n % 4));
    }
    fs::create_dir(cluster.volume().join("marks")).unwrap();
    let map = "cd /mnt/forebay/marks; : > begun.$FOREBAY_TASK_INDEX; while [ ! -e go ]; do sleep 0.05; done; \
               tr ' ' '\\n' | sed 's/$/\\t1/'";
    let job = format!(
        "name = 'j'\n[dataset]\nsource = 's3://data'\n[mapreduce]\nmap = ['sh', '-c', \"{}\"]\n\
         reduce = ['sh', '-c', 'cut -f1 | uniq -c']\npartitions = 3\n[split]\nby = 'file'\n{}",
        map.replace('\\', "\\\\"),
        fleet(WORKERS, FARGATE)
    );
    let fixture = Fixture::of(cluster, &job, WORKERS + 3).await;
    let running = fixture.start();
    eventually("all workers have a task", || fixture.begun() == WORKERS);
    assert_eq!(fixture.ecs.count("RUNNING"), WORKERS);
    fixture.go();
    let result = running.outcome().json(0);
    assert_eq!((&result["tasks"]["succeeded"], &result["workers"]), (&fixture.tasks.into(), &WORKERS.into()));
    let output: Vec<u8> = published(&fixture.cluster.run_dir("r").join("output")).into_values().flatten().collect();
    let output = String::from_utf8(output).unwrap();
    let mut counts: Vec<_> = output.lines().map(str::trim).collect();
    counts.sort_unstable();
    assert_eq!(counts, ["10 some0", "10 some1", "10 some2", "10 some3", "80 all"]);
    fixture.nothing_is_left();
    fixture.rates();
    let runs = fixture.ecs.done("RunTask");
    assert_eq!(runs.iter().map(|run| run.body["count"].as_u64().unwrap()).collect::<Vec<_>>(), [10; 4]);
    let tokens: BTreeSet<_> = runs.iter().map(|run| run.body["clientToken"].as_str().unwrap()).collect();
    assert_eq!(tokens.len(), 4);
    let started_by: BTreeSet<_> = fixture.ecs.tasks().into_iter().map(|task| task.started_by).collect();
    assert_eq!((started_by.len(), fixture.ecs.tasks().len()), (1, WORKERS));
    assert!(fixture.ecs.tasks().iter().all(|task| task.exit == Some(0)), "{:?}", fixture.ecs.tasks());
    assert_eq!(fixture.ecs.done("RegisterTaskDefinition").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_was_killed_between_call_and_answer_leaves_no_worker_that_nobody_knows() {
    let fixture = Fixture::new(4, FARGATE).await;
    fixture.ecs.answer(false);
    let first = fixture.start();
    eventually("workers are started", || fixture.ecs.done("RunTask").len() == 1);
    first.signal(Signal::KILL);
    first.outcome();
    fixture.ecs.answer(true);
    let second = fixture.start();
    eventually("all tasks are begun", || fixture.begun() == 4);
    fixture.go();
    fixture.check(&second.outcome().json(0));
    assert_eq!(fixture.ecs.tasks().len(), 4, "none was started twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_spot_and_the_kernel_take_is_done_by_others() {
    let fixture = Fixture::new(3, FARGATE).await;
    let running = fixture.start();
    eventually("all tasks are begun", || fixture.begun() == 3);
    let tasks = fixture.ecs.tasks();
    fixture.ecs.interrupt(&tasks[0].id);
    eventually("its task is begun by another", || fixture.begun() == 4);
    let interrupted = fixture.ecs.tasks().into_iter().find(|task| task.id == tasks[0].id).unwrap();
    assert_eq!(interrupted.exit, Some(0), "it drained");
    fixture.ecs.run_out_of_memory(&tasks[1].id);
    eventually("that one's, too", || fixture.begun() == 5);
    fixture.go();
    fixture.check(&running.outcome().json(0));
    let again: Vec<_> = fixture.ecs.done("RunTask").iter().map(|run| run.body["count"].as_u64().unwrap()).collect();
    assert_eq!(again, [3, 1, 1]);
    fixture.rates();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_comes_though_calls_are_throttled_refused_lost_and_told_late() {
    let fixture = Fixture::new(5, FARGATE).await;
    fixture.ecs.set_faults(Faults {
        throttle: 1,
        no_capacity: 3,
        lose_answers: 1,
        hidden_for: Duration::from_secs(3),
        provisioning: Duration::from_millis(300),
        pending: Duration::from_millis(300),
        bad_images: 0,
        late_logs: Duration::ZERO,
    });
    let running = fixture.start();
    eventually("all tasks are begun", || fixture.begun() == 5);
    fixture.go();
    fixture.check(&running.outcome().json(0));
    assert_eq!(fixture.ecs.tasks().len(), 5, "{:?}", fixture.ecs.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_can_never_start_end_the_run_with_the_reason() {
    let fixture = Fixture::new(5, FARGATE).await;
    fixture.ecs.set_faults(Faults { bad_images: u32::MAX, ..Faults::default() });
    let outcome = fixture.start().outcome().code(4);
    let told = outcome.stdout.matches("its image cannot be pulled: CannotPullContainerError").count();
    assert_eq!((told, outcome.stdout.contains("its log")), (1, false), "{outcome:?}");
    fixture.nothing_is_left();
    // What it would be asked to do is wrong, which is told at once.
    let missing = Fixture::new(1, FARGATE).await;
    let text = fs::read_to_string(&missing.job).unwrap().replace("cluster = 'c'", "cluster = 'other'");
    fs::write(&missing.job, text).unwrap();
    let outcome = missing.start().outcome().code(4);
    assert!(outcome.stdout.contains("ClusterNotFoundException: Cluster not found."), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_instances_the_volume_is_a_directory_of_the_host() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "a.txt", "content 0");
    let dir = cluster.volume().join("volume");
    let server = Ecs::start(Path::new(env!("CARGO_BIN_EXE_forebay")), &[]).await;
    let keys = format!(
        "launch_type = 'EC2'\nhost_path = '{}'\ndirectory = 'volume'\nendpoint = '{}'\nregion = 'us-east-1'\n",
        cluster.volume().display(),
        server.endpoint()
    );
    let job = format!(
        "name = 'j'\n[dataset]\nsource = 's3://data'\n[mapreduce]\nmap = 'word-count'\n[output]\nformat = 'ndjson'\n{}",
        fleet(1, &keys)
    );
    let job = cluster.file("job.toml", &job);
    let terminal = cluster.with_env("FOREBAY_LISTEN", "127.0.0.1").on_volume(&dir);
    let result = terminal.forebay(["run", &job, "--id", "r", "--json"]).json(0);
    assert_eq!(result["tasks"]["succeeded"], 2);
    assert_eq!(server.count("STOPPED"), 1);
}
