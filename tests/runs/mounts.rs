//! Hosts that have the volume elsewhere, or another one in its place.

use std::{fs, path::Path, process::Command, thread};

use crate::support::{Cluster, Outcome, link, namespace::in_namespace, processes::Running, published};

struct Fixture {
    cluster: Cluster,
    running: Running,
}

impl Fixture {
    /// A run that waits for workers that the test starts.
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        for n in 0..3 {
            cluster.s3.put("data", &format!("{n}.txt"), format!("content {n}\n"));
        }
        fs::write(cluster.volume().join("map.sh"), "cat\n").unwrap();
        let job = cluster.file(
            "job.toml",
            "name = 'j'\n[dataset]\nsource = 's3://data'\n[mapreduce]\nmap = ['sh', 'map.sh']\nreduce = ['cat']\n\
             files = ['map.sh']\n[workers]\nfleet = 'external'\n",
        );
        let running = cluster.terminal().start(["--listen", "127.0.0.1", "run", &job, "--id", "r", "--json"]);
        link(&cluster.run_dir("r"), 1);
        Self { cluster, running }
    }

    fn work(&self, volume: &Path) -> Outcome {
        self.cluster.terminal().on_volume(volume).forebay(["worker", "--run", "r", "--slots", "2"])
    }

    /// What a worker says that is turned away, and what to do.
    fn refused(&self, volume: &Path) -> String {
        let terminal = self.cluster.terminal().on_volume(volume);
        let refused = terminal.forebay(["worker", "--run", "r", "--json"]).json(4);
        format!("{} {}", refused["error"]["message"], refused["error"]["help"])
    }

    fn id(&self) -> String {
        let shown = self.cluster.forebay(["volume", "show", "--json"]).json(0);
        shown["id"].as_str().unwrap().to_owned()
    }

    fn copy(&self, to: &Path) {
        assert!(Command::new("cp").arg("-a").arg(self.cluster.volume()).arg(to).status().unwrap().success());
    }

    /// All is done, be it that others were turned away before; with what the coordinator said.
    fn check(self) -> String {
        let outcome = self.running.outcome();
        let said = outcome.stderr.clone();
        assert_eq!(outcome.json(0)["state"], "succeeded");
        let output = published(&self.cluster.run_dir("r").join("output"));
        let text: String = output.into_values().map(|bytes| String::from_utf8(bytes).unwrap()).collect();
        assert_eq!(text, "content 0\t\ncontent 1\t\ncontent 2\t\n");
        said
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_another_volume_or_a_copy_is_told_which_it_has_and_which_it_should_have() {
    let fixture = Fixture::new().await;
    let (dir, id) = (tempfile::tempdir().unwrap(), fixture.id());
    let (other, copy, changed) = (dir.path().join("other"), dir.path().join("copy"), dir.path().join("changed"));

    // Another one, on which there is no such run.
    fixture.cluster.terminal().on_volume(&other).forebay(["volume", "check"]).code(0);
    let (said, root) = (fixture.refused(&other), other.display().to_string());
    assert!(
        said.contains("there is no run `r` on volume") && said.contains(&root) && said.contains("volume show"),
        "{said}"
    );

    // A copy has the same id, and all that the run had written by then.
    fixture.copy(&copy);
    let (said, root) = (fixture.refused(&copy), copy.display().to_string());
    let (ours, here) = (
        fixture.cluster.volume().display().to_string(),
        rustix::system::uname().nodename().to_str().unwrap().to_owned(),
    );
    for part in ["is a copy of it", &id, &root, &ours, &here, "--volume"] {
        assert!(said.contains(part), "{part}: {said}");
    }

    // A volume of another id, with the run in it.
    fixture.copy(&changed);
    let description = changed.join("volume.json");
    let text = fs::read_to_string(&description).unwrap();
    fs::write(&description, text.replace(&id, "0123456789abcdef")).unwrap();
    let said = fixture.refused(&changed);
    for part in ["has another volume: 0123456789abcdef", &id, &ours, "--volume"] {
        assert!(said.contains(part), "{part}: {said}");
    }

    fixture.work(fixture.cluster.volume()).code(0);
    let told = fixture.check();
    assert!(told.contains("is a copy of it") && told.contains("has another volume"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_has_the_volume_at_another_path_works() {
    let fixture = Fixture::new().await;
    let terminal = fixture.cluster.terminal();
    if in_namespace(&terminal, "true").code != Some(0) {
        println!("skipped: no mounts can be made here; run it as root");
        return;
    }
    let (dir, volume) = (tempfile::tempdir().unwrap(), fixture.cluster.volume().display().to_string());
    let elsewhere = dir.path().join("else/where");
    fs::create_dir_all(&elsewhere).unwrap();
    let elsewhere = elsewhere.display().to_string();
    // The path by which the coordinator has it leads nowhere there.
    let text = format!(
        "mount --bind {volume} {elsewhere}; mount -t tmpfs none {volume}; test ! -e {volume}/volume.json\n\
         $forebay --volume {elsewhere} worker --run r --slots 2"
    );
    let worker = thread::spawn(move || in_namespace(&terminal, &text));
    fixture.check();
    worker.join().unwrap().code(0);
}
