//! A network and a volume of a history's own, and the processes there.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, geteuid};

use crate::support::{
    Outcome,
    processes::{Running, kill},
    published,
};

/// In the place's own mounts.
const VOLUME: &str = "/mnt/v";
const JOBS: [&str; 2] = ["/mnt/command.toml", "/mnt/phases.toml"];

/// Lasts as long as the process that holds it.
pub struct Place {
    holder: Child,
    net: PathBuf,
}

impl Place {
    /// Whether the user may make networks and mounts.
    pub fn can_be_made() -> bool {
        let mut unshare = Command::new("unshare");
        unshare.arg(kind()).args(["sh", "-euc", "ip link set lo up; mount -t tmpfs tmpfs /mnt"]);
        unshare.status().is_ok_and(|status| status.success())
    }

    pub fn new() -> Self {
        let set_up = r#"
            ip link set lo up; mount -t tmpfs -o size=96m tmpfs /mnt; mkdir /mnt/src
            for n in $(seq 10 33); do
                seq 1 200 | while read -r line; do echo $((line * n % 7)) $((line % 13)); done >/mnt/src/$n.txt
            done
            head="name = 'j'
[dataset]
source = 'file:///mnt/src'
"
            tail="[workers]
count = 3
slots = 2
[retry]
attempts = 1000
backoff = '10ms..50ms'
"
            cat >/mnt/command.toml <<END
$head[command]
shell = """sleep 0.0\$((FOREBAY_TASK_INDEX % 5 + 2)); sort \$(cat \$FOREBAY_INPUTS) > \$FOREBAY_OUTPUT_DIR/sorted"""
$tail
END
            cat >/mnt/phases.toml <<END
$head[mapreduce]
map = ['sh', '-c', "sleep 0.02; tr ' ' '\\\\n'"]
reduce = ['uniq', '-c']
partitions = 6
[split]
by = 'file'
$tail
END
            echo ready; exec sleep infinity"#;
        let mut unshare = Command::new("unshare");
        unshare.arg(kind()).args(["sh", "-euc", set_up]);
        let mut holder = unshare.stdout(Stdio::piped()).process_group(0).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n");
        let net = fs::read_link(format!("/proc/{}/ns/net", holder.id())).unwrap();
        Self { holder, net }
    }

    /// A program there.
    fn command(&self, program: &str) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["-t", &self.holder.id().to_string(), "-m", "-n"]);
        if !geteuid().is_root() {
            nsenter.args(["-U", "--preserve-credentials"]);
        }
        nsenter.arg(program);
        nsenter
    }

    pub fn sh(&self, text: &str) {
        let _ = self.command("sh").args(["-c", text]).stderr(Stdio::null()).status().unwrap();
    }

    fn forebay(&self) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_forebay"));
        command.args(["--volume", VOLUME]).env("HOME", "/mnt").env_remove("AWS_ENDPOINT_URL_S3");
        command
    }

    pub fn start(&self, job: usize, run: &str) -> Running {
        let mut command = self.forebay();
        command.args(["run", JOBS[job], "--id", run, "--json"]);
        Running::new(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    pub fn run(&self, job: usize, run: &str) -> Outcome {
        self.start(job, run).outcome()
    }

    pub fn tasks(&self, run: &str) -> serde_json::Value {
        Outcome::of(self.forebay().args(["runs", "tasks", run, "--json"]).output().unwrap()).json(0)
    }

    fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(path.trim_start_matches('/'))
    }

    pub fn run_dir(&self, run: &str) -> PathBuf {
        self.path(VOLUME).join("runs").join(run)
    }

    pub fn output(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        published(&self.run_dir(run).join("output"))
    }

    /// Processes there whose command line has this argument.
    pub fn processes(&self, argument: &str) -> Vec<Pid> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let is_here = fs::read_link(entry.path().join("ns/net")).is_ok_and(|net| net == self.net);
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if is_here && line.split(|byte| *byte == 0).any(|part| part == argument.as_bytes()) {
                found.extend(Pid::from_raw(pid));
            }
        }
        found.sort_by_key(|pid| pid.as_raw_nonzero());
        found
    }

    pub fn workers(&self) -> Vec<Pid> {
        self.processes("worker")
    }
}

/// Another user is root in a namespace of its own.
fn kind() -> &'static str {
    if geteuid().is_root() { "-mn" } else { "-rmn" }
}

impl Drop for Place {
    fn drop(&mut self) {
        kill(&[self.processes("worker"), self.processes("run")].concat());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
