//! Runs that are submitted from where the volume is not, and whose coordinator is a pod.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::{
    server::KubernetesServer,
    support::{
        contents, copies,
        desk::{Desk, TASKS},
        eventually, link, published,
    },
};

struct Fixture {
    desk: Desk,
    kubernetes: KubernetesServer,
}

impl Fixture {
    async fn new() -> Self {
        let desk = Desk::new().await;
        let src = desk.cluster.volume().join("src");
        fs::create_dir(&src).unwrap();
        contents(TASKS).for_each(|(name, content)| fs::write(src.join(name), content).unwrap());
        let kubernetes = KubernetesServer::start("batch");
        let account = desk.cluster.volume().join("account");
        kubernetes.kubeconfig(&account);
        kubernetes.set(|settings| settings.account = Some(account));
        kubernetes.kubeconfig(&desk.path("config"));
        Self { desk, kubernetes }
    }

    /// A job that ships more than 100 KiB.
    fn job(&self, more: &str) -> String {
        let here = self.desk.cluster.volume().display().to_string();
        let fleet = format!(
            "fleet = 'kubernetes'\n[kubernetes]\nkubeconfig = 'config'\nimage = 'i:1'\nprogram = '{}'\n\
             claim = 'shared'\nuser = 1000\nttl = '1h'\nmount = '{}'\n{more}",
            env!("CARGO_BIN_EXE_forebay"),
            self.volume().display()
        );
        self.desk.job(&format!("file://{here}/src"), &here, 4000, &fleet)
    }

    /// Where pods have the volume.
    fn volume(&self) -> PathBuf {
        self.desk.cluster.volume().join("v")
    }

    fn coordinators(&self) -> Vec<Value> {
        let is_one = |job: &Value| job["metadata"]["labels"]["app.kubernetes.io/component"] == "coordinator";
        self.kubernetes.manifests().into_iter().filter(is_one).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_submitted_looked_at_and_waited_for_from_where_no_volume_is() {
    let fixture = Fixture::new().await;
    let own = "[coordinator]\nservice_account = 'boss'\nmemory = '2GiB'\n";
    let (job, terminal) = (fixture.job(own), fixture.desk.terminal());
    fixture.desk.submits(&terminal, &job);
    assert_eq!(fixture.coordinators().len(), 1);
    let pod = &fixture.coordinators()[0]["spec"]["template"]["spec"];
    assert_eq!((&pod["serviceAccountName"], &pod["automountServiceAccountToken"]), (&"boss".into(), &true.into()));
    assert_eq!(pod["containers"][0]["resources"]["limits"]["memory"], "2048Mi");

    let result = fixture.desk.follows(&terminal);
    assert_eq!(published(&fixture.volume().join("runs/r/output")), copies(TASKS));
    eventually("only Jobs that have ended are left", || fixture.kubernetes.left() == 0);
    fixture.desk.finds(&terminal, &job, &result);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_evicted_goes_on_and_one_that_failed_is_not_tried_again() {
    let fixture = Fixture::new().await;
    let (job, terminal) = (fixture.job(""), fixture.desk.terminal());
    terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    fixture.desk.is_begun();
    let is_coordinator = |name: &str| name.contains("-coordinator-");
    let names = || fixture.kubernetes.at_work().into_iter().filter_map(|pod| pod.metadata.name);
    let first = names().find(|name| is_coordinator(name)).unwrap();
    fixture.kubernetes.evict(&first);
    link(&fixture.volume().join("runs/r"), 2);
    fixture.desk.go();
    assert_eq!(terminal.forebay(["wait", "r", "--json"]).last_json(0)["state"], "succeeded");

    eventually("its coordinator has ended", || fixture.kubernetes.left() == 0);
    fs::remove_file(fixture.desk.cluster.volume().join("go")).unwrap();
    let other = fs::read_to_string(&job).unwrap().replace("ttl = '1h'", "ttl = '2h'");
    fixture.desk.write(&other);
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
    let terminal = fixture.desk.terminal();
    let job = fixture.job("");
    let text = fs::read_to_string(&job).unwrap();
    let submit = |text: &str, code| fixture.desk.told(&terminal, text, code);
    let told = submit(&text.replace("user = 1000\n", ""), 4);
    assert!(told.contains("set user under [kubernetes]"), "{told}");
    let told = submit(&format!("{text}[coordinator]\npartition = 'x'\n"), 2);
    assert!(told.contains("partition means nothing to the fleet `kubernetes`"), "{told}");
    fixture.desk.noise(2 << 20);
    let told = submit(&text, 4);
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
