//! Tasks that start while the rest of their dataset is still being staged.

use std::path::PathBuf;

use forebay::s3_server::Faults;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Cluster, eventually, failure, processes::Running, published};

/// Three chunks of a staging, the last one with the object that the server does not give.
const OBJECTS: usize = 300;
const LATE: &str = "299.txt";

struct Fixture {
    cluster: Cluster,
    job: String,
    marks: PathBuf,
}

impl Fixture {
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        for n in 0..OBJECTS {
            cluster.s3.put("data", &format!("{n:03}.txt"), format!("text {n}\n"));
        }
        let marks = cluster.volume().join("marks");
        std::fs::create_dir(&marks).unwrap();
        let job = format!(
            "name = 'j'\n[dataset]\nsource = 's3://data'\nearly_start = true\n[command]\nshell = \"\"\"\n\
             case $(cat $FOREBAY_INPUTS) in $FOREBAY_DATASET_DIR/*) ;; *) exit 1;; esac\n\
             cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/text\n\
             : > {}/$FOREBAY_TASK_INDEX.$FOREBAY_ATTEMPT.$$\n\"\"\"\n\
             [split]\ncount = 30\n[workers]\ncount = 1\nslots = 2\n",
            marks.display()
        );
        let job = cluster.file("job.toml", &job);
        let this = Self { cluster, job, marks };
        this.hold_back(true);
        this
    }

    fn hold_back(&self, held: bool) {
        let failing = held.then(|| LATE.to_owned()).into_iter().collect();
        self.cluster.s3.set_faults(Faults { failing, ..Faults::default() });
    }

    /// Starts the run, and waits until tasks have ended of which nothing waits for the late object.
    fn begin(&self) -> Running {
        let run = self.cluster.terminal().start(["run", &self.job, "--id", "r", "--json"]);
        eventually("tasks that end", || self.ended() >= 10);
        assert!(!self.cluster.volume().join("datasets/data/snapshots").exists(), "nothing is published yet");
        run
    }

    fn ended(&self) -> usize {
        std::fs::read_dir(&self.marks).unwrap().count()
    }

    /// What each task has to have written, and how often each was tried.
    fn check(&self, result: &Value, attempts: impl Fn(u64) -> bool) {
        assert_eq!(result["tasks"]["succeeded"], 30, "{result}");
        assert!(attempts(result["tasks"]["attempts"].as_u64().unwrap()), "{result}");
        assert_eq!(result["staged"]["objects"], OBJECTS, "{result}");
        let output: Vec<u8> = published(&self.cluster.run_dir("r").join("output")).into_values().flatten().collect();
        let texts: String = (0..OBJECTS).map(|n| format!("text {n}\n")).collect();
        assert_eq!(String::from_utf8(output).unwrap(), texts);
        assert!(!self.cluster.run_dir("r").join("inputs").exists(), "the second names are gone");
        let snapshot = self.cluster.data("data");
        assert_eq!(result["snapshot"].as_str(), snapshot.parent().unwrap().file_name().unwrap().to_str());
        self.cluster.forebay(["dataset", "verify", "data", "--full"]).code(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_starts_once_its_own_inputs_are_there() {
    let fixture = Fixture::new().await;
    let run = fixture.begin();
    fixture.hold_back(false);
    fixture.check(&run.outcome().json(0), |attempts| attempts == 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_between_is_resumed_where_it_was() {
    let fixture = Fixture::new().await;
    let run = fixture.begin();
    run.signal(Signal::KILL);
    run.outcome();
    fixture.hold_back(false);
    let result = fixture.cluster.forebay(["resume", "r", "--json"]).json(0);
    // What was committed is not done again: only what was in the two slots, or on its way to be committed.
    fixture.check(&result, |attempts| (30..=30 + 4).contains(&attempts));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_meanwhile_ends_the_run_and_publishes_no_mixture() {
    let fixture = Fixture::new().await;
    let run = fixture.begin();
    fixture.cluster.s3.put("data", LATE, "another text\n");
    fixture.hold_back(false);
    let result = run.outcome().json(4);
    let error = failure(&result);
    assert!(error.starts_with("s3://data/ changed while it was being staged, and tasks had started"), "{error}");
    assert!(!fixture.cluster.run_dir("r").join("output").exists());
    // The next run, whose dataset is staged by now, has nothing to wait for.
    let result = fixture.cluster.forebay(["run", &fixture.job, "--id", "again", "--json"]).json(0);
    assert_eq!(result["tasks"]["succeeded"], 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_may_read_anything_waits_for_everything() {
    let fixture = Fixture::new().await;
    let text = std::fs::read_to_string(&fixture.job).unwrap().replace("early_start = true\n", "");
    let job = fixture.cluster.file("waits.toml", &text);
    let run = fixture.cluster.terminal().start(["run", &job, "--id", "r", "--json"]);
    let staged = fixture.cluster.volume().join("datasets/data/staging");
    let logs = || std::fs::read_dir(&staged).into_iter().flatten().flatten().map(|entry| entry.path().join("stagers"));
    let recorded = |dir: PathBuf| {
        let logs = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path().join("log.ndjson"));
        logs.filter_map(|log| std::fs::read_to_string(log).ok()).any(|log| log.matches("\"chunk\"").count() >= 2)
    };
    eventually("two chunks that are durable", || logs().any(recorded));
    assert_eq!(fixture.ended(), 0);
    fixture.hold_back(false);
    fixture.check(&run.outcome().json(0), |attempts| attempts == 30);
}
