//! Three hosts, as far as the kernel can make them of one: each with a network and processes of its own, on one switch,
//! over one directory. What one host does not see of another here, it would not see of a real one: whether its
//! processes are there. Links are cut, and hosts die.
//!
//! `cargo test --test hosts -- --ignored`, as root.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]

#[path = "../support/mod.rs"]
mod support;

mod network;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tempfile::TempDir;

use self::network::{Host, Network};
use crate::support::{contents, copies, eventually, link, names, processes::Running, published};

const TASKS: usize = 4;

/// A run whose coordinator is on the first host, with a worker on each of the two others.
struct Scene {
    network: Network,
    dir: TempDir,
    coordinator: Running,
    _workers: Vec<Running>,
}

impl Scene {
    /// Every task is in a slot, two on each host, and waits for the file `go`.
    fn new(speculate: bool) -> Option<Self> {
        let Some(network) = Network::new(3) else {
            println!("skipped: no network can be made here");
            return None;
        };
        let dir = TempDir::new().unwrap();
        let marks = dir.path().join("marks");
        fs::create_dir(&marks).unwrap();
        put_contents(&dir);
        let marks = marks.display();
        let text = format!(
            "name = 'j'\n[dataset]\nsource = 'file://{}/src'\n[command]\nshell = \"\"\"\n\
             : > {marks}/begun.$FOREBAY_TASK_INDEX.$FOREBAY_ATTEMPT; until [ -e {marks}/go ]; do sleep 0.01; done\n\
             cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/x; : > {marks}/done.$FOREBAY_TASK_INDEX.$FOREBAY_ATTEMPT\
             \"\"\"\n[workers]\nfleet = 'external'\ncount = 2\n[retry]\nspeculate = {speculate}\n",
            dir.path().display()
        );
        fs::write(dir.path().join("job.toml"), text).unwrap();
        let coordinator = coordinate(&network.hosts[0], &dir);
        link(&dir.path().join("v/runs/r"), 1);
        let workers = network.hosts[1..].iter().map(|host| work(host, &dir, &host.name())).collect();
        let scene = Self { network, dir, coordinator, _workers: workers };
        eventually("all tasks are begun", || scene.marks("begun") == TASKS);
        Some(scene)
    }

    fn marks(&self, which: &str) -> usize {
        marks(&self.dir, which)
    }

    fn go(&self) {
        fs::write(self.dir.path().join("marks/go"), "").unwrap();
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("v/runs/r/output")
    }
}

/// The inputs of the tasks, in `src`.
fn put_contents(dir: &TempDir) {
    let src = dir.path().join("src");
    fs::create_dir(&src).unwrap();
    contents(TASKS).for_each(|(name, content)| fs::write(src.join(name), content).unwrap());
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

fn coordinate(host: &Host, dir: &TempDir) -> Running {
    let (volume, job) = (path(dir, "v"), path(dir, "job.toml"));
    host.start(&["--volume", &volume, "--listen", host.address(), "run", &job, "--id", "r", "--json"])
}

/// A worker of two slots.
fn work(host: &Host, dir: &TempDir, name: &str) -> Running {
    host.start(&["--volume", &path(dir, "v"), "worker", "--run", "r", "--name", name, "--slots", "2"])
}

/// All is done and published, and nothing counts twice.
#[track_caller]
fn check(result: &Value, output: PathBuf) {
    assert_eq!((&result["state"], &result["tasks"]["succeeded"]), (&"succeeded".into(), &TASKS.into()), "{result}");
    assert_eq!(published(&output), copies(TASKS));
}

#[test]
#[ignore = "makes networks, as root; .ci/run has it"]
fn what_is_done_behind_a_cut_link_counts_before_the_link_is_there_again() {
    let Some(scene) = Scene::new(false) else { return };
    scene.network.cut(2);
    scene.go();
    let output = scene.output();
    eventually("all are done", || scene.marks("done") == TASKS);
    assert_eq!(scene.marks("begun"), TASKS);
    // Its results come over the volume.
    let result = scene.coordinator.outcome().json(0);
    check(&result, output);
    assert_eq!(result["tasks"]["attempts"], TASKS);
}

#[test]
#[ignore = "makes networks, as root; .ci/run has it"]
fn a_link_that_is_cut_for_longer_than_its_time_out_and_heals_costs_nothing() {
    let Some(scene) = Scene::new(false) else { return };
    // That of the coordinator: it hears of nobody.
    scene.network.cut(0);
    let show = || {
        let shown = scene.network.hosts[0].start(&["--volume", &path(&scene.dir, "v"), "runs", "show", "r", "--json"]);
        shown.outcome().json(0)["workers"].as_u64()
    };
    eventually("both workers are absent", || show() == Some(0));
    scene.network.heal(0);
    eventually("both are there again", || show() == Some(2));
    // Once more, and now for good: what is done there comes over the volume again.
    scene.network.cut(2);
    scene.go();
    let (output, begun) = (scene.output(), scene.marks("begun"));
    let result = scene.coordinator.outcome().json(0);
    check(&result, output);
    assert_eq!((begun, &result["tasks"]["attempts"]), (TASKS, &TASKS.into()));
}

#[test]
#[ignore = "makes networks, as root; .ci/run has it"]
fn the_tasks_of_a_host_that_dies_are_done_by_another() {
    let Some(mut scene) = Scene::new(true) else { return };
    scene.network.kill(2);
    let _idle = work(&scene.network.hosts[1], &scene.dir, "idle");
    eventually("its tasks are begun elsewhere", || scene.marks("begun") == TASKS + 2);
    scene.go();
    let output = scene.output();
    let result = scene.coordinator.outcome().json(0);
    check(&result, output);
}

#[test]
#[ignore = "makes networks, as root; .ci/run has it"]
fn the_workers_of_a_coordinator_whose_host_dies_work_for_the_next_on_another_host() {
    let Some(mut scene) = Scene::new(true) else { return };
    scene.network.kill(0);
    let next = coordinate(&scene.network.hosts[2], &scene.dir);
    link(&scene.dir.path().join("v/runs/r"), 2);
    scene.go();
    let output = scene.output();
    let result = next.outcome().json(0);
    check(&result, output);
    assert_eq!((marks(&scene.dir, "begun"), marks(&scene.dir, "done")), (TASKS, TASKS), "nothing is done again");
    assert_eq!(result["workers"], 2);
}

/// A query by Ballista, whose workers exchange over the network and over the volume.
#[test]
#[ignore = "makes networks, as root; .ci/run has it"]
fn a_query_is_right_in_workers_that_have_the_volume_at_other_paths() {
    let Some(network) = Network::new(3) else {
        println!("skipped: no network can be made here");
        return;
    };
    let dir = TempDir::new().unwrap();
    let flights = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nycflights13/flights");
    let query = "select a.carrier, count(*) as n, sum(b.distance) as miles from t a join t b \
                 on a.origin = b.origin and a.month = b.month and a.day = b.day and a.hour = b.hour \
                 group by 1 order by 1";
    let text = |name: &str, engine: &str, fleet: &str| {
        let job = format!(
            "name = '{name}'\n[dataset]\nsource = 'file://{}'\nname = 'flights'\n[sql]\nengine = '{engine}'\n\
             query = \"{query}\"\ntables = {{ t = '*.parquet' }}\n[workers]\n{fleet}\n[output]\nformat = 'csv'\n",
            flights.display()
        );
        fs::write(dir.path().join("job.toml"), job).unwrap();
    };
    let volume = dir.path().join("v");
    let answer = |run: &str| published(&volume.join("runs").join(run).join("output"));
    text("one", "datafusion", "count = 1");
    let (at, job) = (path(&dir, "v"), path(&dir, "job.toml"));
    network.hosts[0].start(&["--volume", &at, "run", &job, "--id", "one", "--json"]).outcome().json(0);
    text("two", "ballista", "fleet = 'external'\ncount = 2");
    let coordinator = coordinate(&network.hosts[0], &dir);
    link(&volume.join("runs/r"), 1);
    let workers: Vec<_> = network.hosts[1..]
        .iter()
        .map(|host| {
            let elsewhere = dir.path().join(host.name()).join("volume");
            host.moves(&volume, &elsewhere);
            host.start(&["--volume", &elsewhere.display().to_string(), "worker", "--run", "r", "--name", &host.name()])
        })
        .collect();
    let result = coordinator.outcome().json(0);
    assert_eq!((&result["state"], &result["workers"]), (&"succeeded".into(), &2.into()), "{result}");
    assert_eq!(answer("r"), answer("one"));
    workers.into_iter().for_each(|worker| drop(worker.outcome().code(0)));
}

/// A run of these arguments on the first host, with a worker on each of the others, which end when it does. What the
/// workers said.
fn run(network: &Network, arguments: &[&str], workers: &str) -> Vec<String> {
    let dir = TempDir::new().unwrap();
    put_contents(&dir);
    let text = format!(
        "name = 'j'\n[dataset]\nsource = 'file://{}/src'\n[command]\nshell = 'cat $(cat $FOREBAY_INPUTS) > \
         $FOREBAY_OUTPUT_DIR/x'\n[workers]\nfleet = 'external'\n{workers}\n",
        dir.path().display()
    );
    fs::write(dir.path().join("job.toml"), text).unwrap();
    let (volume, job) = (path(&dir, "v"), path(&dir, "job.toml"));
    let all = [&["--volume", &volume], arguments, &["run", &job, "--id", "r", "--json"]].concat();
    let coordinator = network.hosts[0].start(&all);
    link(&dir.path().join("v/runs/r"), 1);
    let workers: Vec<_> = network.hosts[1..].iter().map(|host| work(host, &dir, &host.name())).collect();
    let result = coordinator.outcome().json(0);
    check(&result, dir.path().join("v/runs/r/output"));
    workers.into_iter().map(|worker| worker.outcome().code(0).stderr).collect()
}

#[test]
#[ignore = "makes networks, as root; .ci/run has it"]
fn a_coordinator_that_listens_everywhere_is_found_by_an_address_of_its_host() {
    let Some(network) = Network::new(2) else { return println!("skipped: no network can be made here") };
    // Nobody knows the host's name in there.
    run(&network, &[], "link = 'tcp'");
    if !network.hosts[0].has_v6() {
        return println!("skipped: the hosts have no IPv6");
    }
    network.hosts.iter().for_each(Host::only_v6);
    run(&network, &[], "link = 'tcp'");
    run(&network, &["--listen", "fd77::1"], "link = 'tcp'");
    run(&network, &["--listen", "[::]:7000", "--advertise", "[fd77::9]:7000,fd77::1"], "link = 'tcp'");
}

#[test]
#[ignore = "makes networks, as root; .ci/run has it"]
fn addresses_are_tried_until_one_answers() {
    let Some(network) = Network::new(2) else { return println!("skipped: no network can be made here") };
    // Nobody has the first, and nobody listens at the second.
    let advertise = "10.77.0.99:7000,10.77.0.1:7001,10.77.0.1:7000";
    run(&network, &["--listen", "0.0.0.0:7000", "--advertise", advertise], "link = 'tcp'");
}

#[test]
#[ignore = "makes networks, as root; .ci/run has it"]
fn workers_that_reach_no_address_of_their_coordinator_write_letters() {
    let Some(network) = Network::new(3) else { return println!("skipped: no network can be made here") };
    let said = run(&network, &["--listen", "127.0.0.1"], "");
    assert!(said.iter().all(|said| said.contains("letters on the volume")), "{said:?}");
    // Where only letters arrive nothing is tried.
    network.cut(0);
    let said = run(&network, &[], "link = 'files'");
    assert!(said.iter().all(String::is_empty), "{said:?}");
}

fn marks(dir: &TempDir, which: &str) -> usize {
    names(&dir.path().join("marks"), which).len()
}
