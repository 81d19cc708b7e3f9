//! Runs that are submitted from where the volume is not, and whose coordinator is a pod.

use std::{fs, path::PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    server::KubernetesServer,
    support::{Cluster, Outcome, Terminal, eventually, published},
};

const FILES: usize = 8;

struct Fixture {
    cluster: Cluster,
    kubernetes: KubernetesServer,
    /// The desk of who submits, which pods do not see.
    desk: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        fs::create_dir(cluster.volume().join("src")).unwrap();
        for n in 0..FILES {
            fs::write(cluster.volume().join(format!("src/{n}")), format!("file {n}")).unwrap();
        }
        let kubernetes = KubernetesServer::start("batch");
        let account = cluster.volume().join("account");
        kubernetes.kubeconfig(&account);
        kubernetes.set(|settings| settings.account = Some(account));
        let desk = TempDir::new().unwrap();
        kubernetes.kubeconfig(&desk.path().join("config"));
        Self { cluster, kubernetes, desk }
    }

    /// A job whose tasks wait until they are let go, by a program of more than 100 KiB that it ships.
    fn job(&self, more: &str) -> String {
        let (here, volume) = (self.cluster.volume().display(), self.volume());
        let noise: String = (0..2000).map(|n| format!("# {:x}\n", fastrand::u128(n..))).collect();
        let tool = format!(
            "#!/bin/sh\n{noise}: > {here}/begun.$FOREBAY_TASK_INDEX\n\
             while [ ! -e {here}/go ]; do sleep 0.01; done\necho task $FOREBAY_TASK_INDEX\n\
             cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/copy\n"
        );
        fs::write(self.desk.path().join("tool.sh"), tool).unwrap();
        let text = format!(
            "name = 'j'\nreuse = 'off'\n[dataset]\nsource = 'file://{here}/src'\n[command]\nargv = ['sh', 'tool.sh']\n\
             files = ['tool.sh']\n[workers]\nfleet = 'kubernetes'\ncount = 2\n[kubernetes]\nkubeconfig = 'config'\n\
             image = 'i:1'\nprogram = '{}'\nclaim = 'shared'\nuser = 1000\nttl = '1h'\nmount = '{}'\n{more}",
            env!("CARGO_BIN_EXE_forebay"),
            volume.display()
        );
        let path = self.desk.path().join("job.toml");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Where pods have the volume.
    fn volume(&self) -> PathBuf {
        self.cluster.volume().join("v")
    }

    /// A host that has no volume at that path, nor anywhere.
    fn terminal(&self) -> Terminal {
        let state = self.desk.path().join("state").display().to_string();
        self.cluster.terminal().env("XDG_STATE_HOME", &state).on_volume(&self.desk.path().join("none"))
    }

    fn begun(&self) -> usize {
        (0..FILES).filter(|n| self.cluster.volume().join(format!("begun.{n}")).exists()).count()
    }

    fn go(&self) {
        fs::write(self.cluster.volume().join("go"), "").unwrap();
    }

    fn coordinators(&self) -> Vec<Value> {
        let is_one = |job: &Value| job["metadata"]["labels"]["app.kubernetes.io/component"] == "coordinator";
        self.kubernetes.manifests().into_iter().filter(is_one).collect()
    }
}

fn json(outcome: Outcome, code: i32) -> Value {
    let outcome = outcome.code(code);
    serde_json::from_str(outcome.stdout.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{outcome:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_submitted_looked_at_and_waited_for_from_where_no_volume_is() {
    let fixture = Fixture::new().await;
    let (job, terminal) =
        (fixture.job("[coordinator]\nservice_account = 'boss'\nmemory = '2GiB'\n"), fixture.terminal());
    let submitted = terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    assert_eq!(submitted.stdout, "r\n");
    assert!(submitted.stderr.contains("forebay wait r"), "{}", submitted.stderr);
    eventually("two tasks have begun", || fixture.begun() == 2);
    // Again it is the same, while it runs.
    let again = terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    assert!(again.stderr.contains("coordinates it already"), "{}", again.stderr);
    assert_eq!(fixture.coordinators().len(), 1);
    let text = fs::read_to_string(&job).unwrap();
    fs::write(&job, text.replace("count = 2", "count = 3")).unwrap();
    let other = terminal.forebay(["submit", &job, "--id", "r"]).code(2);
    assert!(other.stderr.contains("coordinates another job"), "{}", other.stderr);
    fs::write(&job, text).unwrap();
    let noted = fs::read_to_string(fixture.desk.path().join("state/forebay/submitted/r.json")).unwrap();
    assert!(noted.contains("\"count\":2"), "who asks for the run asks for this one: {noted}");
    let pod = &fixture.coordinators()[0]["spec"]["template"]["spec"];
    assert_eq!((&pod["serviceAccountName"], &pod["automountServiceAccountToken"]), (&"boss".into(), &true.into()));
    assert_eq!(pod["containers"][0]["resources"]["limits"]["memory"], "2048Mi");

    assert_eq!(json(terminal.forebay(["runs", "show", "r", "--json"]), 0)["state"], "running");
    terminal.forebay(["wait", "r", "--timeout", "1s"]).code(124);
    let waiting = terminal.start(["wait", "r", "--json"]);
    fixture.go();
    let result = json(waiting.outcome(), 0);
    assert_eq!((&result["state"], &result["tasks"]["succeeded"]), (&"succeeded".into(), &FILES.into()));
    let printed = terminal.forebay(["runs", "logs", "r"]).code(0).stdout;
    assert_eq!(printed.matches("task ").count(), FILES, "{printed}");
    let output = published(&fixture.volume().join("runs/r/output"));
    assert_eq!(output.len(), FILES);
    eventually("only Jobs that have ended are left", || fixture.kubernetes.left() == 0);

    // It has ended: who submits it again finds the run.
    let old = terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    assert!(!old.stderr.contains("already"), "{}", old.stderr);
    assert_eq!(json(terminal.forebay(["wait", "r", "--json"]), 0)["seconds"], result["seconds"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_evicted_goes_on_and_one_that_failed_is_not_tried_again() {
    let fixture = Fixture::new().await;
    let (job, terminal) = (fixture.job(""), fixture.terminal());
    terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    eventually("two tasks have begun", || fixture.begun() == 2);
    let is_coordinator = |name: &str| name.contains("-coordinator-");
    let names = || fixture.kubernetes.at_work().into_iter().filter_map(|pod| pod.metadata.name);
    let first = names().find(|name| is_coordinator(name)).unwrap();
    fixture.kubernetes.evict(&first);
    let second = fixture.volume().join("runs/r/epochs/2/link.json");
    eventually("another pod coordinates", || second.exists());
    fixture.go();
    assert_eq!(json(terminal.forebay(["wait", "r", "--json"]), 0)["state"], "succeeded");

    eventually("its coordinator has ended", || fixture.kubernetes.left() == 0);
    fs::remove_file(fixture.cluster.volume().join("go")).unwrap();
    let other = fs::read_to_string(&job).unwrap().replace("ttl = '1h'", "ttl = '2h'");
    fs::write(&job, other).unwrap();
    terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    let has_failed = || {
        fixture.kubernetes.jobs().iter().any(|job| {
            job.metadata.name.as_ref().is_some_and(|name| name.ends_with("-coordinator"))
                && job.status.as_ref().is_some_and(|status| status.failed == Some(1))
        })
    };
    eventually("that another job has its name is told at once", has_failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_submitted_is_told() {
    let fixture = Fixture::new().await;
    let terminal = fixture.terminal();
    let job = fixture.job("");
    let text = fs::read_to_string(&job).unwrap();
    let submit = |text: String, code| {
        fs::write(&job, text).unwrap();
        terminal
            .forebay(["submit", &job])
            .code(code)
            .stderr
            .replace('|', " ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let told = submit(text.replace("user = 1000\n", ""), 4);
    assert!(told.contains("set user under [kubernetes]"), "{told}");
    let told = submit(format!("{text}[coordinator]\npartition = 'x'\n"), 2);
    assert!(told.contains("partition means nothing to the fleet `kubernetes`"), "{told}");
    let noise: Vec<u8> = (0..2 << 20).map(|_| fastrand::u8(..)).collect();
    fs::write(fixture.desk.path().join("tool.sh"), noise).unwrap();
    let told = submit(text.clone(), 4);
    assert!(told.contains("put files into the image"), "{told}");
    fixture.job("");
    let why = ("ErrImagePull".to_owned(), "i:1: not found".to_owned());
    fixture.kubernetes.set(|settings| settings.image = Some(why));
    terminal.forebay(["submit", &job, "--id", "w"]).code(0);
    let told = terminal.forebay(["wait", "w", "--timeout", "3s"]).code(124).stderr;
    assert!(told.contains("ErrImagePull"), "{told}");
    let told = terminal.forebay(["runs", "show", "w"]).code(4).stderr;
    assert!(told.contains("not found"), "{told}");
    assert_eq!(fixture.kubernetes.jobs().len(), 1, "what a command was to run in is gone");
}
