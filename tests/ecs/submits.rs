//! Runs that are submitted from where the volume is not, and whose coordinator is a task of ECS.

use std::{fs, path::Path, time::Duration};

use forebay::s3_server::{ACCESS_KEY, SECRET_KEY};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    double::{Ecs, Faults, Seen},
    engine::EFS,
    support::{Cluster, Outcome, Terminal, eventually, published},
};

const FILES: usize = 8;
const ROLE: &str = "arn:aws:iam::123456789012:role/coordinator";
const COORDINATOR: &str = "[coordinator]\ntask_role = 'arn:aws:iam::123456789012:role/coordinator'\n";

struct Fixture {
    cluster: Cluster,
    ecs: Ecs,
    /// The desk of who submits, which tasks do not see.
    desk: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        for n in 0..FILES {
            cluster.s3.put("data", &n.to_string(), format!("file {n}"));
        }
        let ecs = Ecs::start(Path::new(env!("CARGO_BIN_EXE_forebay")), &[(EFS, cluster.volume())]).await;
        let environment = [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_ENDPOINT_URL_S3", cluster.s3.endpoint()),
            ("AWS_ENDPOINT_URL_ECS", ecs.endpoint()),
            ("FOREBAY_LISTEN", "127.0.0.1".to_owned()),
        ];
        ecs.set_role(ROLE, environment);
        Self { cluster, ecs, desk: TempDir::new().unwrap() }
    }

    /// A job whose tasks wait until they are let go, by a program that takes more than what a call has room for.
    fn job(&self, more: &str) -> String {
        let noise: String = (0..600).map(|n| format!("# {:x}\n", fastrand::u128(n..))).collect();
        let tool = format!(
            "#!/bin/sh\n{noise}: > /mnt/forebay/begun.$FOREBAY_TASK_INDEX\n\
             while [ ! -e /mnt/forebay/go ]; do sleep 0.01; done\necho task $FOREBAY_TASK_INDEX\n\
             cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/copy\n"
        );
        fs::write(self.desk.path().join("tool.sh"), tool).unwrap();
        let text = format!(
            "name = 'j'\nreuse = 'off'\n[dataset]\nsource = 's3://data'\n[command]\nargv = ['sh', 'tool.sh']\n\
             files = ['tool.sh']\n[workers]\nfleet = 'ecs'\ncount = 2\nslots = 1\n{more}\n[ecs]\ncluster = 'c'\n\
             image = 'registry/forebay:1'\nsubnets = ['subnet-0123456789abcdef0']\n\
             security_groups = ['sg-0123456789abcdef0']\ncapacity = [{{ provider = 'FARGATE_SPOT' }}]\n\
             execution_role = 'arn:aws:iam::123456789012:role/x'\nlog_group = '/forebay'\ndirectory = 'team/v'\n\
             efs = {{ file_system = '{EFS}' }}\n"
        );
        let path = self.desk.path().join("job.toml");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// A host that has no volume at that path, nor anywhere, and does not reach the bucket.
    fn terminal(&self) -> Terminal {
        let state = self.desk.path().join("state").display().to_string();
        let terminal = self.cluster.terminal().without_env("AWS_ENDPOINT_URL_S3").env("XDG_STATE_HOME", &state);
        let terminal = terminal.env("AWS_ENDPOINT_URL_ECS", &self.ecs.endpoint());
        let terminal = terminal.env("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", &self.ecs.endpoint());
        terminal.on_volume(&self.desk.path().join("none"))
    }

    fn run_dir(&self) -> std::path::PathBuf {
        self.cluster.volume().join("team/v/runs/r")
    }

    fn begun(&self) -> usize {
        (0..FILES).filter(|n| self.cluster.volume().join(format!("begun.{n}")).exists()).count()
    }

    fn go(&self) {
        fs::write(self.cluster.volume().join("go"), "").unwrap();
    }

    /// The tasks of a kind.
    fn tasks(&self, kind: &str) -> Vec<Seen> {
        let is_one = |task: &Seen| match kind {
            "worker" => !task.started_by.ends_with("-coordinator") && !task.started_by.ends_with("-command"),
            kind => task.started_by.ends_with(kind),
        };
        self.ecs.tasks().into_iter().filter(is_one).collect()
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        eventually("all tasks have stopped", || self.ecs.tasks().iter().all(|task| task.status == "STOPPED"));
    }

    /// The call that started a coordinator, and its task definition.
    fn coordinator(&self) -> (Value, Value) {
        let is_its = |body: &Value, key: &str| body[key].as_str().is_some_and(|name| name.ends_with("-coordinator"));
        let of = |action, key| self.ecs.done(action).into_iter().map(|call| call.body).rfind(|body| is_its(body, key));
        (of("RunTask", "startedBy").unwrap(), of("RegisterTaskDefinition", "family").unwrap())
    }

    fn parcel(&self) -> usize {
        let variables = self.coordinator().1["containerDefinitions"][0]["environment"].clone();
        let parcel = variables.as_array().unwrap().iter().find(|it| it["name"] == "FOREBAY_PARCEL").unwrap();
        parcel["value"].as_str().unwrap().len()
    }
}

fn json(outcome: Outcome, code: i32) -> Value {
    let outcome = outcome.code(code);
    serde_json::from_str(outcome.stdout.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{outcome:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_submitted_looked_at_and_waited_for_from_where_no_volume_is() {
    let fixture = Fixture::new().await;
    let own = format!("{COORDINATOR}memory = '3GiB'\nsecurity_groups = ['sg-0123456789abcdef1']\n");
    let (job, terminal) = (fixture.job(&own), fixture.terminal());
    let submitted = terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    assert_eq!(submitted.stdout, "r\n");
    assert!(submitted.stderr.contains("forebay wait r"), "{}", submitted.stderr);
    eventually("two tasks have begun", || fixture.begun() == 2);
    // Again it is the same, while it runs.
    let again = terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    assert!(again.stderr.contains("coordinates it already"), "{}", again.stderr);
    let text = fs::read_to_string(&job).unwrap();
    fs::write(&job, text.replace("count = 2", "count = 3")).unwrap();
    let other = terminal.forebay(["submit", &job, "--id", "r"]).code(2);
    assert!(other.stderr.contains("coordinates another job"), "{}", other.stderr);
    fs::write(&job, text).unwrap();
    assert_eq!(fixture.tasks("coordinator").len(), 1);

    assert!(fixture.parcel() > 8192, "{}", fixture.parcel());
    let (call, definition) = fixture.coordinator();
    let vpc = &call["networkConfiguration"]["awsvpcConfiguration"];
    assert_eq!(vpc["securityGroups"][0], "sg-0123456789abcdef1");
    assert_eq!((&call["launchType"], &call["capacityProviderStrategy"]), (&"FARGATE".into(), &Value::Null));
    let size = (&definition["cpu"], &definition["memory"], &definition["taskRoleArn"]);
    assert_eq!(size, (&"1024".into(), &"3072".into(), &ROLE.into()));

    assert_eq!(json(terminal.forebay(["runs", "show", "r", "--json"]), 0)["state"], "running");
    terminal.forebay(["wait", "r", "--timeout", "1s"]).code(124);
    let waiting = terminal.start(["wait", "r", "--json"]);
    fixture.go();
    let result = json(waiting.outcome(), 0);
    assert_eq!((&result["state"], &result["tasks"]["succeeded"]), (&"succeeded".into(), &FILES.into()));
    let printed = terminal.forebay(["runs", "logs", "r"]).code(0).stdout;
    assert_eq!(printed.matches("task ").count(), FILES, "{printed}");
    assert_eq!(published(&fixture.run_dir().join("output")).len(), FILES);
    fixture.nothing_is_left();
    let worker = fixture.ecs.done("RunTask").into_iter().find(|call| call.body["count"] == 2).unwrap();
    assert_eq!(worker.body["capacityProviderStrategy"][0]["capacityProvider"], "FARGATE_SPOT");

    // It has ended: who submits it again finds the run, by the task definition that is there.
    let old = terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    assert!(!old.stderr.contains("already"), "{}", old.stderr);
    assert_eq!(json(terminal.forebay(["wait", "r", "--json"]), 0)["seconds"], result["seconds"]);
    assert_eq!((fixture.tasks("coordinator").len(), fixture.tasks("worker").len()), (2, 2));
    let families = fixture.ecs.done("RegisterTaskDefinition").len();
    assert_eq!(families, 3, "of a coordinator, workers and commands");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_coordinator_goes_on_where_one_was_killed() {
    let fixture = Fixture::new().await;
    let (job, terminal) = (fixture.job(COORDINATOR), fixture.terminal());
    terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    eventually("two tasks have begun", || fixture.begun() == 2);
    fixture.ecs.run_out_of_memory(&fixture.tasks("coordinator")[0].id);
    eventually("it has stopped", || fixture.tasks("coordinator")[0].status == "STOPPED");
    let told = terminal.forebay(["wait", "r"]).code(4).stdout;
    assert!(told.contains("no coordinator any more") && told.contains("`forebay submit JOB --id r`"), "{told}");
    // The next one is given more, which makes it no other job.
    let text = fs::read_to_string(&job).unwrap();
    fs::write(&job, text.replace(COORDINATOR, &format!("{COORDINATOR}memory = '3GiB'\n"))).unwrap();
    let second = terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    assert!(!second.stderr.contains("already"), "{}", second.stderr);
    assert_eq!(fixture.coordinator().1["memory"], "3072");
    let link = fixture.run_dir().join("epochs/2/link.json");
    eventually("another one coordinates", || link.exists());
    // Who gives up waiting leaves no task behind, and ends nothing else.
    let waiting = terminal.start(["wait", "r"]);
    let is_running = |task: &Seen| task.status == "RUNNING";
    eventually("a task waits", || fixture.tasks("command").iter().any(is_running));
    waiting.signal(Signal::INT);
    waiting.outcome().code(130);
    eventually("it has stopped", || fixture.tasks("command").iter().all(|task| task.status == "STOPPED"));
    fixture.go();
    let result = json(terminal.forebay(["wait", "r", "--json"]), 0);
    assert_eq!((&result["state"], &result["tasks"]["succeeded"]), (&"succeeded".into(), &FILES.into()));
    fixture.nothing_is_left();
    assert_eq!((fixture.tasks("coordinator").len(), fixture.tasks("worker").len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_coordinator_is_started_though_answers_are_lost_and_lists_and_logs_are_late() {
    let fixture = Fixture::new().await;
    fixture.ecs.set_faults(Faults {
        throttle: 1,
        lose_answers: 1,
        hidden_for: Duration::from_secs(2),
        late_logs: Duration::from_secs(5),
        ..Faults::default()
    });
    let (job, terminal) = (fixture.job(COORDINATOR), fixture.terminal());
    terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    let again = terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    assert!(again.stderr.contains("coordinates it already"), "{}", again.stderr);
    assert_eq!(fixture.tasks("coordinator").len(), 1);
    fixture.go();
    let result = json(terminal.forebay(["wait", "r", "--json"]), 0);
    assert_eq!(result["state"], "succeeded");
    let tasks = terminal.forebay(["runs", "tasks", "r"]).code(0).stdout;
    assert!(tasks.lines().count() > FILES, "{tasks}");
    fixture.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_submitted_is_told() {
    let fixture = Fixture::new().await;
    let terminal = fixture.terminal();
    let job = fixture.job(COORDINATOR);
    let text = fs::read_to_string(&job).unwrap();
    let words = |text: String| text.replace('|', " ").split_whitespace().collect::<Vec<_>>().join(" ");
    let submit = |text: String, code| {
        fs::write(&job, text).unwrap();
        words(terminal.forebay(["submit", &job, "--id", "w"]).code(code).stderr)
    };
    let told = submit(text.replace(COORDINATOR, ""), 4);
    assert!(told.contains("set task_role under [coordinator]"), "{told}");
    let told = submit(text.replace("[coordinator]\n", "[coordinator]\ntime = '1h'\n"), 2);
    assert!(told.contains("time means nothing to the fleet `ecs`"), "{told}");
    let noise = |bytes: usize| {
        let noise: Vec<u8> = (0..bytes).map(|_| fastrand::u8(..)).collect();
        fs::write(fixture.desk.path().join("tool.sh"), noise).unwrap();
    };
    noise(64 << 10);
    let told = submit(text.clone(), 4);
    assert!(told.contains("a task definition takes 60000: put files into the image"), "{told}");
    fixture.ecs.set_faults(Faults { no_capacity: 1, ..Faults::default() });
    noise(42_000);
    let told = submit(text.clone(), 4);
    assert!(told.contains("Capacity is unavailable"), "{told}");
    assert!((55_000..60_000).contains(&fixture.parcel()), "{}", fixture.parcel());
    assert_eq!(fixture.ecs.tasks().len(), 0, "nothing was started");

    fixture.ecs.set_faults(Faults { bad_images: u32::MAX, ..Faults::default() });
    submit(text.clone(), 0);
    let told = words(terminal.forebay(["wait", "w"]).code(4).stderr);
    assert!(told.contains("CannotPullContainerError") && told.contains("`forebay submit --id w`"), "{told}");
    let told = words(terminal.forebay(["runs", "show", "w"]).code(4).stderr);
    assert!(told.contains("CannotPullContainerError"), "{told}");
    // While it waits that is told.
    fixture.ecs.set_faults(Faults { provisioning: Duration::from_secs(600), ..Faults::default() });
    submit(text.clone(), 0);
    let told = words(terminal.forebay(["wait", "w", "--timeout", "2s"]).code(124).stderr);
    assert!(told.contains("is PROVISIONING"), "{told}");
    let without = text.replace("log_group = '/forebay'\n", "");
    assert!(submit(without, 2).contains("coordinates another job"));
    terminal.forebay(["submit", &job, "--id", "silent"]).code(0);
    let told = words(terminal.forebay(["runs", "show", "silent"]).code(4).stderr);
    assert!(told.contains("set log_group under [ecs]"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_instances_the_coordinator_is_one_of_their_tasks() {
    let fixture = Fixture::new().await;
    let job = fixture.job(COORDINATOR);
    let text = fs::read_to_string(&job).unwrap();
    let (own, network) = text.split_once("subnets = ").unwrap();
    let log = &network[network.find("execution_role").unwrap()..network.find("efs = ").unwrap()];
    let volume = fixture.cluster.volume().display();
    fs::write(&job, format!("{own}capacity = [{{ provider = 'own' }}]\nhost_path = '{volume}'\n{log}")).unwrap();
    let terminal = fixture.terminal();
    fixture.go();
    terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    assert_eq!(json(terminal.forebay(["wait", "r", "--json"]), 0)["state"], "succeeded");
    let (call, definition) = fixture.coordinator();
    assert_eq!(call["capacityProviderStrategy"][0]["capacityProvider"], "own");
    assert_eq!((&definition["networkMode"], &definition["memory"]), (&"host".into(), &"2048".into()));
    fixture.nothing_is_left();
}
