//! Whole runs by the built binary, whose workers are pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    server::{Failing, KubernetesServer},
    support::{Cluster, Outcome, Terminal, eventually, link, names, processes::Running, published},
};

const FILES: usize = 12;

struct Fixture {
    cluster: Cluster,
    kubernetes: KubernetesServer,
}

impl Fixture {
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        for n in 0..FILES {
            let lines: String = (0..200).map(|line| format!("word{} of {n}\n", line * n % 17)).collect();
            cluster.s3.put("data", &format!("{n:02}.txt"), lines);
        }
        let kubernetes = KubernetesServer::start("batch");
        kubernetes.kubeconfig(&cluster.volume().join("config"));
        Self { cluster, kubernetes }
    }

    /// A job of a task a file, each of which waits until it is let go.
    fn job(&self, name: &str, workers: &str, table: &str) -> String {
        let here = self.cluster.volume().display();
        let text = format!(
            "name = 'j'\nreuse = 'off'\n[dataset]\nsource = 's3://data'\n[command]\nshell = \"\"\"\n\
             : > {here}/begun.$FOREBAY_TASK_INDEX.$$; while [ ! -e {here}/go ]; do sleep 0.01; done\n\
             sort $(cat $FOREBAY_INPUTS) | uniq -c > $FOREBAY_OUTPUT_DIR/counts\"\"\"\n\
             [workers]\ncount = 3\nslots = 2\n{workers}\n[retry]\nbackoff = '10ms..10ms'\n{table}"
        );
        self.cluster.file(name, &text)
    }

    fn pods(&self, more: &str) -> String {
        let program = env!("CARGO_BIN_EXE_forebay");
        let table = format!(
            "[kubernetes]\nkubeconfig = 'config'\nimage = 'registry/forebay:1'\nprogram = '{program}'\nclaim = 'shared'\n\
             user = 1000\nttl = '0s'\n{more}"
        );
        self.job("job.toml", "fleet = 'kubernetes'", &table)
    }

    fn terminal(&self) -> Terminal {
        self.cluster.with_env("FOREBAY_LISTEN", "127.0.0.1")
    }

    fn begun(&self) -> usize {
        names(self.cluster.volume(), "begun.").len()
    }

    fn go(&self) {
        fs::write(self.cluster.volume().join("go"), "").unwrap();
    }

    fn output(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        published(&self.cluster.run_dir(run).join("output"))
    }

    /// What local workers make of it.
    fn expected(&self) -> BTreeMap<String, Vec<u8>> {
        let job = self.job("local.toml", "", "");
        self.terminal().forebay(["run", &job, "--id", "local"]).code(0);
        self.output("local")
    }

    /// As many workers are at work as there are to be, and have tasks.
    fn are_at_work(&self) -> Vec<String> {
        eventually("three pods are at work", || self.kubernetes.at_work().len() == 3);
        eventually("their slots are full", || self.begun() >= 6);
        self.kubernetes.at_work().into_iter().map(|pod| pod.metadata.name.unwrap()).collect()
    }

    fn nothing_is_left(&self) {
        eventually("no pod, no Job and no worker is left", || {
            self.kubernetes.pods().is_empty() && self.kubernetes.jobs().is_empty() && self.kubernetes.adrift() == 0
        });
    }

    fn ends_well(&self, running: Running) {
        self.go();
        let result = running.outcome().json(0);
        assert_eq!((&result["state"], &result["tasks"]["succeeded"]), (&"succeeded".into(), &FILES.into()));
        self.nothing_is_left();
        let output = self.output("r");
        assert_eq!(output.len(), FILES);
        assert!(output == self.expected(), "not byte for byte what local workers make");
    }

    fn start(&self, job: &str) -> Running {
        self.terminal().start(["run", job, "--id", "r", "--json"])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_in_pods_makes_what_a_local_one_makes_and_leaves_nothing() {
    let fixture = Fixture::new().await;
    fixture.go();
    let job = fixture.pods("");
    let running = fixture.start(&job);
    fixture.ends_well(running);
    let made = fixture.kubernetes.manifests();
    assert_eq!((made.len(), &made[0]["spec"]["completions"]), (1, &3.into()), "one Job for all workers");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_evicted_doubled_and_cut_off_and_the_output_is_the_same() {
    let fixture = Fixture::new().await;
    let job = fixture.pods("");
    let running = fixture.start(&job);
    let pods = fixture.are_at_work();
    fixture.kubernetes.duplicate(&pods[0]);
    fixture.kubernetes.evict(&pods[1]);
    fixture.kubernetes.lose_node_of(&pods[2]);
    eventually("what was lost was begun anew", || {
        let at_work = fixture.kubernetes.at_work();
        at_work.iter().all(|pod| pod.metadata.name.as_ref() != Some(&pods[1])) && at_work.len() >= 3
    });
    fixture.ends_well(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_is_killed_and_the_next_one_takes_its_pods_over() {
    let fixture = Fixture::new().await;
    let job = fixture.pods("");
    let running = fixture.start(&job);
    let pods = fixture.are_at_work();
    running.signal(Signal::KILL);
    drop(running.outcome());
    let resumed = fixture.terminal().start(["resume", "r", "--json"]);
    link(&fixture.cluster.run_dir("r"), 2);
    fixture.ends_well(resumed);
    let made = fixture.kubernetes.manifests();
    assert_eq!(made.len(), 1, "those that were there were enough: {pods:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_killed_before_its_job_is_answered_has_made_it_once() {
    let fixture = Fixture::new().await;
    let job = fixture.pods("");
    fixture.kubernetes.fail("POST", "/jobs", 1, Failing::Late(Duration::from_secs(600)));
    let running = fixture.start(&job);
    eventually("the Job is made", || fixture.kubernetes.jobs().len() == 1);
    running.signal(Signal::KILL);
    drop(running.outcome());
    let resumed = fixture.terminal().start(["resume", "r", "--json"]);
    fixture.are_at_work();
    fixture.ends_well(resumed);
    let names: BTreeSet<_> =
        fixture.kubernetes.manifests().iter().map(|job| job["metadata"]["name"].to_string()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_is_replaced_under_another_job() {
    let fixture = Fixture::new().await;
    let job = fixture.pods("");
    let running = fixture.start(&job);
    let pods = fixture.are_at_work();
    fixture.kubernetes.out_of_memory(&pods[0]);
    eventually("there is another Job", || fixture.kubernetes.manifests().len() == 2);
    eventually("three are at work", || fixture.kubernetes.at_work().len() == 3);
    assert_eq!(fixture.kubernetes.manifests()[1]["spec"]["completions"], 1);
    fixture.ends_well(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_leaves_no_pod_behind() {
    let fixture = Fixture::new().await;
    let job = fixture.pods("");
    let running = fixture.start(&job);
    fixture.are_at_work();
    running.signal(Signal::INT);
    running.outcome().code(130);
    fixture.nothing_is_left();
}

fn failed(fixture: &Fixture, job: &str) -> Outcome {
    let outcome = fixture.terminal().forebay(["run", job, "--id", "r"]).code(4);
    fixture.nothing_is_left();
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_can_never_work_end_the_coordinator_with_a_word_of_what_to_do() {
    let fixture = Fixture::new().await;
    let why = ("ErrImagePull".to_owned(), "registry/forebay:1: not found".to_owned());
    fixture.kubernetes.set(|settings| settings.image = Some(why));
    let outcome = failed(&fixture, &fixture.pods(""));
    let told = outcome.words();
    assert!(told.contains("registry/forebay:1: not found") && told.contains("pull_secrets"), "{told}");
    // The run is there, and goes on once that is mended.
    fixture.kubernetes.set(|settings| settings.image = None);
    let resumed = fixture.terminal().start(["resume", "r", "--json"]);
    fixture.ends_well(resumed);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_asks_the_cluster_whether_it_would_take_the_workers_and_makes_none() {
    let fixture = Fixture::new().await;
    let job = fixture.pods("");
    fixture.terminal().forebay(["check", &job]).code(0);
    assert_eq!((fixture.kubernetes.manifests().len(), fixture.kubernetes.jobs().len()), (1, 0));
    fixture.kubernetes.set(|settings| settings.jobs = Some(0));
    let outcome = fixture.terminal().forebay(["check", &job]).code(4);
    assert!(outcome.stderr.contains("exceeded quota"), "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_not_known_is_told_and_so_is_a_user_that_pods_cannot_have() {
    let fixture = Fixture::new().await;
    let text = fs::read_to_string(fixture.pods("context = 'nowhere'")).unwrap();
    let job = fixture.cluster.file("job.toml", &text);
    let outcome = failed(&fixture, &job);
    assert!(outcome.stderr.contains("nowhere"), "{}", outcome.stderr);
    if rustix::process::geteuid().is_root() {
        let job = fixture.cluster.file("job.toml", &text.replace("user = 1000\n", ""));
        let outcome = fixture.terminal().forebay(["run", &job, "--id", "r2"]).code(4);
        assert!(outcome.stderr.contains("do not run as root"), "{}", outcome.stderr);
    }
}
