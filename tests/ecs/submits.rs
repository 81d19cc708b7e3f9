//! Runs that are submitted from where the volume is not, and whose coordinator is a task of ECS.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use forebay::s3_server::{ACCESS_KEY, SECRET_KEY};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    double::{Ecs, Faults, Seen},
    engine::EFS,
    support::{
        Terminal, copies,
        desk::{Desk, TASKS},
        eventually, link, published,
    },
};

const ROLE: &str = "arn:aws:iam::123456789012:role/coordinator";
const COORDINATOR: &str = "[coordinator]\ntask_role = 'arn:aws:iam::123456789012:role/coordinator'\n";

struct Fixture {
    desk: Desk,
    ecs: Ecs,
}

impl Fixture {
    async fn new() -> Self {
        let desk = Desk::new().await;
        desk.cluster.put_contents("data", TASKS);
        let ecs = Ecs::start(Path::new(env!("CARGO_BIN_EXE_forebay")), &[(EFS, desk.cluster.volume())]).await;
        let environment = [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_ENDPOINT_URL_S3", desk.cluster.s3.endpoint()),
            ("AWS_ENDPOINT_URL_ECS", ecs.endpoint()),
            ("FOREBAY_LISTEN", "127.0.0.1".to_owned()),
        ];
        ecs.set_role(ROLE, environment);
        Self { desk, ecs }
    }

    /// A job that ships more than what a call has room for.
    fn job(&self, more: &str) -> String {
        let fleet = format!(
            "fleet = 'ecs'\nslots = 1\n{more}\n[ecs]\ncluster = 'c'\n\
             image = 'registry/forebay:1'\nsubnets = ['subnet-0123456789abcdef0']\n\
             security_groups = ['sg-0123456789abcdef0']\ncapacity = [{{ provider = 'FARGATE_SPOT' }}]\n\
             execution_role = 'arn:aws:iam::123456789012:role/x'\nlog_group = '/forebay'\ndirectory = 'team/v'\n\
             efs = {{ file_system = '{EFS}' }}\n"
        );
        self.desk.job("s3://data", "/mnt/forebay", 600, &fleet)
    }

    /// The desk, which does not reach the bucket either.
    fn terminal(&self) -> Terminal {
        let terminal = self.desk.terminal().without_env("AWS_ENDPOINT_URL_S3");
        let terminal = terminal.env("AWS_ENDPOINT_URL_ECS", &self.ecs.endpoint());
        terminal.env("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", &self.ecs.endpoint())
    }

    fn run_dir(&self) -> PathBuf {
        self.desk.cluster.volume().join("team/v/runs/r")
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

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_submitted_looked_at_and_waited_for_from_where_no_volume_is() {
    let fixture = Fixture::new().await;
    let own = format!("{COORDINATOR}memory = '3GiB'\nsecurity_groups = ['sg-0123456789abcdef1']\n");
    let (job, terminal) = (fixture.job(&own), fixture.terminal());
    fixture.desk.submits(&terminal, &job);
    assert_eq!(fixture.tasks("coordinator").len(), 1);

    assert!(fixture.parcel() > 8192, "{}", fixture.parcel());
    let (call, definition) = fixture.coordinator();
    let vpc = &call["networkConfiguration"]["awsvpcConfiguration"];
    assert_eq!(vpc["securityGroups"][0], "sg-0123456789abcdef1");
    assert_eq!((&call["launchType"], &call["capacityProviderStrategy"]), (&"FARGATE".into(), &Value::Null));
    let size = (&definition["cpu"], &definition["memory"], &definition["taskRoleArn"]);
    assert_eq!(size, (&"1024".into(), &"3072".into(), &ROLE.into()));

    let result = fixture.desk.follows(&terminal);
    assert_eq!(published(&fixture.run_dir().join("output")), copies(TASKS));
    fixture.nothing_is_left();
    let worker = fixture.ecs.done("RunTask").into_iter().find(|call| call.body["count"] == 2).unwrap();
    assert_eq!(worker.body["capacityProviderStrategy"][0]["capacityProvider"], "FARGATE_SPOT");

    // By the task definition that is there.
    fixture.desk.finds(&terminal, &job, &result);
    assert_eq!((fixture.tasks("coordinator").len(), fixture.tasks("worker").len()), (2, 2));
    let families = fixture.ecs.done("RegisterTaskDefinition").len();
    assert_eq!(families, 3, "of a coordinator, workers and commands");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_coordinator_goes_on_where_one_was_killed() {
    let fixture = Fixture::new().await;
    let (job, terminal) = (fixture.job(COORDINATOR), fixture.terminal());
    terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    fixture.desk.is_begun();
    fixture.ecs.run_out_of_memory(&fixture.tasks("coordinator")[0].id);
    eventually("it has stopped", || fixture.tasks("coordinator")[0].status == "STOPPED");
    let told = terminal.forebay(["wait", "r"]).code(4).stdout;
    assert!(told.contains("no coordinator any more") && told.contains("`forebay submit JOB --id r`"), "{told}");
    // The next one is given more, which makes it no other job.
    let text = fs::read_to_string(&job).unwrap();
    fixture.desk.write(&text.replace(COORDINATOR, &format!("{COORDINATOR}memory = '3GiB'\n")));
    let second = terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    assert!(!second.stderr.contains("already"), "{}", second.stderr);
    assert_eq!(fixture.coordinator().1["memory"], "3072");
    link(&fixture.run_dir(), 2);
    // Who gives up waiting leaves no task behind, and ends nothing else.
    let waiting = terminal.start(["wait", "r"]);
    let is_running = |task: &Seen| task.status == "RUNNING";
    eventually("a task waits", || fixture.tasks("command").iter().any(is_running));
    waiting.signal(Signal::INT);
    waiting.outcome().code(130);
    eventually("it has stopped", || fixture.tasks("command").iter().all(|task| task.status == "STOPPED"));
    fixture.desk.go();
    let result = terminal.forebay(["wait", "r", "--json"]).last_json(0);
    assert_eq!((&result["state"], &result["tasks"]["succeeded"]), (&"succeeded".into(), &TASKS.into()));
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
    fixture.desk.go();
    let result = terminal.forebay(["wait", "r", "--json"]).last_json(0);
    assert_eq!(result["state"], "succeeded");
    let tasks = terminal.forebay(["runs", "tasks", "r"]).code(0).stdout;
    assert!(tasks.lines().count() > TASKS, "{tasks}");
    fixture.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_submitted_is_told() {
    let fixture = Fixture::new().await;
    let terminal = fixture.terminal();
    let job = fixture.job(COORDINATOR);
    let text = fs::read_to_string(&job).unwrap();
    let submit = |text: &str, code| fixture.desk.told(&terminal, text, code);
    let told = submit(&text.replace(COORDINATOR, ""), 4);
    assert!(told.contains("set task_role under [coordinator]"), "{told}");
    let told = submit(&text.replace("[coordinator]\n", "[coordinator]\ntime = '1h'\n"), 2);
    assert!(told.contains("time means nothing to the fleet `ecs`"), "{told}");
    fixture.desk.noise(64 << 10);
    let told = submit(&text, 4);
    assert!(told.contains("a task definition takes 60000: put files into the image"), "{told}");
    fixture.ecs.set_faults(Faults { no_capacity: 1, ..Faults::default() });
    fixture.desk.noise(42_000);
    let told = submit(&text, 4);
    assert!(told.contains("Capacity is unavailable"), "{told}");
    assert!((55_000..60_000).contains(&fixture.parcel()), "{}", fixture.parcel());
    assert_eq!(fixture.ecs.tasks().len(), 0, "nothing was started");

    fixture.ecs.set_faults(Faults { bad_images: u32::MAX, ..Faults::default() });
    submit(&text, 0);
    let told = terminal.forebay(["wait", "w"]).code(4).words();
    assert!(told.contains("CannotPullContainerError") && told.contains("`forebay submit --id w`"), "{told}");
    let told = terminal.forebay(["runs", "show", "w"]).code(4).words();
    assert!(told.contains("CannotPullContainerError"), "{told}");
    // While it waits that is told.
    fixture.ecs.set_faults(Faults { provisioning: Duration::from_secs(600), ..Faults::default() });
    submit(&text, 0);
    let told = terminal.forebay(["wait", "w", "--timeout", "2s"]).code(124).words();
    assert!(told.contains("is PROVISIONING"), "{told}");
    let without = text.replace("log_group = '/forebay'\n", "");
    assert!(submit(&without, 2).contains("coordinates another job"));
    terminal.forebay(["submit", &job, "--id", "silent"]).code(0);
    let told = terminal.forebay(["runs", "show", "silent"]).code(4).words();
    assert!(told.contains("set log_group under [ecs]"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_instances_the_coordinator_is_one_of_their_tasks() {
    let fixture = Fixture::new().await;
    let job = fixture.job(COORDINATOR);
    let text = fs::read_to_string(&job).unwrap();
    let (own, network) = text.split_once("subnets = ").unwrap();
    let log = &network[network.find("execution_role").unwrap()..network.find("efs = ").unwrap()];
    let volume = fixture.desk.cluster.volume().display();
    fixture.desk.write(&format!("{own}capacity = [{{ provider = 'own' }}]\nhost_path = '{volume}'\n{log}"));
    let terminal = fixture.terminal();
    fixture.desk.go();
    terminal.forebay(["submit", &job, "--id", "r"]).code(0);
    assert_eq!(terminal.forebay(["wait", "r", "--json"]).last_json(0)["state"], "succeeded");
    let (call, definition) = fixture.coordinator();
    assert_eq!(call["capacityProviderStrategy"][0]["capacityProvider"], "own");
    assert_eq!((&definition["networkMode"], &definition["memory"]), (&"host".into(), &"2048".into()));
    fixture.nothing_is_left();
}
