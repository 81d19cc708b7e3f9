//! A container: the command of a task as a process in namespaces of its own, whose root is not to be written, and which
//! has the volumes of its task definition, and the image's program.

use std::{
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
};

use super::{Shared, State};

/// As process 1: the program itself, or `init`, which hands SIGTERM on to it. Arguments: the program; pairs of what is mounted and where, up to `--`; then the program's arguments.
const SCRIPT: &str = "
    init=$1 program=$2; shift 2
    mount -t tmpfs none /mnt
    mkdir /mnt/image
    mount --bind \"$(dirname \"$program\")\" /mnt/image
    while [ \"$1\" != -- ]; do mkdir -p \"$2\"; mount --bind \"$1\" \"$2\"; shift 2; done
    shift
    mount -o remount,bind,ro /
    cd /
    exec 2>&1
    program=/mnt/image/$(basename \"$program\")
    [ \"$init\" = true ] || { echo; exec \"$program\" \"$@\"; }
    \"$program\" \"$@\" &
    child=$!
    trap \"kill -TERM $child\" TERM
    echo
    while :; do
        code=0; wait $child || code=$?
        # The signal ends the waiting, and not the child.
        [ $code -gt 128 ] && kill -0 $child 2>/dev/null || exit $code
    done";

pub struct Container {
    child: Child,
    /// The group and the stream of its log.
    log: Option<(String, String)>,
    grace: Duration,
    /// Its scratch volumes.
    _scratch: Vec<TempDir>,
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// What is to be started; [`Container::start`] waits until it is.
pub fn of_task(shared: &Shared, state: &State, id: &str) -> Container {
    let task = &state.tasks[id];
    let (definition, overrides) = (&task.definition, &task.request["overrides"]["containerOverrides"][0]);
    let container = &definition["containerDefinitions"][0];
    let mut command = Command::new("unshare");
    command.args(if rustix::process::geteuid().is_root() { ["-m", "--pid"] } else { ["-rm", "--pid"] });
    command.args(["--fork", "--kill-child", "--mount-proc", "sh", "-euc", SCRIPT, "sh"]);
    command.arg(container["linuxParameters"]["initProcessEnabled"].to_string()).arg(&shared.program);
    // What covers the others comes last.
    let mut mounts: Vec<_> = container["mountPoints"].as_array().unwrap().iter().collect();
    mounts.sort_by_key(|mount| mount["containerPath"] == "/tmp");
    let mut scratch = Vec::new();
    for mount in mounts {
        let volumes = definition["volumes"].as_array().unwrap().iter();
        let volume = volumes.clone().find(|volume| volume["name"] == mount["sourceVolume"]).unwrap();
        let efs = &volume["efsVolumeConfiguration"];
        let path = match (efs["fileSystemId"].as_str(), volume["host"]["sourcePath"].as_str()) {
            (Some(fs), _) => {
                let root = efs["rootDirectory"].as_str().unwrap_or("/");
                shared.file_systems[fs].join(root.trim_start_matches('/'))
            }
            (None, Some(host)) => Path::new(host).to_owned(),
            (None, None) => {
                scratch.push(TempDir::new().unwrap());
                scratch.last().unwrap().path().to_owned()
            }
        };
        command.arg(path).arg(mount["containerPath"].as_str().unwrap());
    }
    command.arg("--");
    let arguments = if overrides["command"].is_null() { &container["command"] } else { &overrides["command"] };
    command.args(texts(arguments)).env_clear().env("PATH", std::env::var("PATH").unwrap());
    for environment in [&container["environment"], &overrides["environment"]] {
        for variable in environment.as_array().into_iter().flatten() {
            command.env(variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap());
        }
    }
    let role = definition["taskRoleArn"].as_str().and_then(|role| state.roles.get(role));
    command.envs(role.into_iter().flatten().map(|(name, value)| (name, value)));
    command.env("ECS_CONTAINER_METADATA_URI_V4", format!("http://{}/v4/{id}", shared.address));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let grace = Duration::from_secs(container["stopTimeout"].as_u64().unwrap_or(30));
    let option = |name: &str| container["logConfiguration"]["options"][name].as_str();
    let stream = |prefix: &str| format!("{prefix}/{}/{id}", container["name"].as_str().unwrap());
    let log = option("awslogs-group").zip(option("awslogs-stream-prefix").map(stream));
    let log = log.map(|(group, stream)| (group.to_owned(), stream));
    Container { child, log, grace, _scratch: scratch }
}

impl Container {
    /// Waits until its process 1 hears signals; what comes after that is its log.
    pub async fn start(&mut self, shared: &Arc<Shared>, late: Duration) {
        let mut out = BufReader::new(self.child.stdout.take().unwrap());
        // Nothing comes of one that ends at once, which is seen by whoever waits for it.
        let _ = out.read_u8().await;
        let (shared, log) = (Arc::clone(shared), self.log.take());
        tokio::spawn(async move {
            let mut lines = out.split(b'\n');
            while let Ok(Some(line)) = lines.next_segment().await {
                let line = (Instant::now() + late, String::from_utf8_lossy(&line).into_owned());
                if let Some(log) = &log {
                    shared.lock().logs.entry(log.clone()).or_default().push(line);
                }
            }
        });
    }

    /// Its exit code, as Docker tells it.
    pub async fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().await.unwrap();
        status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(255)
    }

    pub async fn kill(&mut self) -> i32 {
        // Its process 1 ends with the one that waits for it, and all others with that.
        let _ = self.child.start_kill();
        self.wait().await
    }

    /// SIGTERM, and after a while SIGKILL.
    pub async fn terminate(&mut self) -> i32 {
        let parent = self.child.id().unwrap_or_default();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        match children.split_whitespace().next().and_then(|pid| Pid::from_raw(pid.parse().unwrap())) {
            Some(first) => drop(kill_process(first, Signal::TERM)),
            None => return self.kill().await,
        }
        match tokio::time::timeout(self.grace, self.wait()).await {
            Ok(exit) => exit,
            Err(_) => self.kill().await,
        }
    }
}
