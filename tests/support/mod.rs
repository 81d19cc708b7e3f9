//! A volume, an S3 server, and the built binary between them.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod desk;
pub mod examples;
pub mod namespace;
pub mod processes;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use forebay::s3_server::{ACCESS_KEY, S3Server, SECRET_KEY};
use serde_json::Value;
use tempfile::TempDir;

use self::processes::Running;

pub struct Cluster {
    pub s3: S3Server,
    volume: TempDir,
}

/// The binary, or another program that is used as it is, with an environment of its own.
pub struct Terminal {
    program: PathBuf,
    volume: PathBuf,
    env: BTreeMap<&'static str, String>,
}

/// What the binary did.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Cluster {
    pub async fn start() -> Self {
        Self { s3: S3Server::start().await.unwrap(), volume: TempDir::new().unwrap() }
    }

    pub fn forebay<const N: usize>(&self, args: [&str; N]) -> Outcome {
        self.terminal().forebay(args)
    }

    pub fn with_env(&self, name: &'static str, value: &str) -> Terminal {
        self.terminal().env(name, value)
    }

    pub fn volume(&self) -> &Path {
        self.volume.path()
    }

    /// The directory of a run.
    pub fn run_dir(&self, run: &str) -> PathBuf {
        self.volume.path().join("runs").join(run)
    }

    /// Puts every file below a directory into a bucket.
    pub fn put_tree(&self, bucket: &str, root: &Path) {
        for path in files(root) {
            let key = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            self.s3.put(bucket, &key, std::fs::read(&path).unwrap());
        }
    }

    /// Puts so many objects into a bucket, which [`copies`] knows.
    pub fn put_contents(&self, bucket: &str, count: usize) {
        contents(count).for_each(|(key, content)| self.s3.put(bucket, &key, content));
    }

    /// How many tasks of a run are in a state: none where the run is not there yet.
    pub fn tasks(&self, run: &str, state: &str) -> usize {
        let outcome = self.forebay(["runs", "tasks", run, "--state", state, "--json"]);
        match outcome.code {
            Some(3) => 0,
            _ => outcome.json(0)["tasks"].as_array().unwrap().len(),
        }
    }

    /// The directory of a dataset's latest snapshot.
    pub fn data(&self, name: &str) -> PathBuf {
        let dataset = self.volume.path().join("datasets").join(name);
        let latest = std::fs::read_to_string(dataset.join("refs/latest")).unwrap();
        dataset.join("snapshots").join(latest).join("data")
    }

    /// What stands in the staging area and in the trash.
    pub fn left_behind(&self, name: &str) -> Vec<PathBuf> {
        let names = |dir: &Path| -> Vec<_> {
            std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
        };
        let staging = self.volume.path().join("datasets").join(name).join("staging");
        [names(&staging), names(&self.volume.path().join("trash"))].concat()
    }

    /// Writes a file beside the volume, such as a job.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.volume.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    pub fn terminal(&self) -> Terminal {
        let env = [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL_S3", self.s3.endpoint()),
            ("HOME", self.volume.path().display().to_string()),
            ("PATH", std::env::var("PATH").unwrap()),
        ];
        Terminal {
            program: env!("CARGO_BIN_EXE_forebay").into(),
            volume: self.volume.path().to_owned(),
            env: env.into(),
        }
    }
}

impl Terminal {
    pub fn forebay<const N: usize>(&self, args: [&str; N]) -> Outcome {
        let output = self.command().args(args).output().unwrap();
        Outcome::of(output)
    }

    /// Starts it and goes on.
    pub fn start<const N: usize>(&self, args: [&str; N]) -> Running {
        let mut command = self.command();
        Running::new(command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// The program on this volume, in this environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(&self.env).arg("--volume").arg(&self.volume);
        command
    }

    pub fn of_program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    pub fn on_volume(mut self, volume: &Path) -> Self {
        self.volume = volume.to_owned();
        self
    }

    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.insert(name, value.to_owned());
        self
    }

    pub fn without_env(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }
}

impl Outcome {
    pub fn of(output: std::process::Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Asserts the exit code, and that the output is one JSON object.
    #[track_caller]
    pub fn json(self, code: i32) -> Value {
        let outcome = self.code(code);
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:#?}"))
    }

    /// The same of the last line of the output: what was said before it came from somewhere else.
    #[track_caller]
    pub fn last_json(self, code: i32) -> Value {
        let outcome = self.code(code);
        let last = outcome.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {outcome:#?}"))
    }

    /// What was said on standard error, wherever lines were broken.
    pub fn words(&self) -> String {
        self.stderr.split_whitespace().filter(|word| *word != "|").collect::<Vec<_>>().join(" ")
    }
}

/// Decides what is random in a test: `FOREBAY_TEST_SEED`, or another one each time. It is printed, so that a run that
/// failed can be had again.
pub fn seed() -> u64 {
    let seed = match std::env::var("FOREBAY_TEST_SEED") {
        Ok(seed) => seed.parse().expect("FOREBAY_TEST_SEED is a number"),
        Err(_) => fastrand::u64(..1_000_000),
    };
    println!("FOREBAY_TEST_SEED={seed}");
    seed
}

/// So many bytes that are the same for the same seed.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Counts that have grown since `before`, and by how much.
pub fn since(before: &BTreeMap<String, u64>, after: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let grown = |(what, n)| {
        let by = n - before.get(&what).copied().unwrap_or(0);
        (by > 0).then_some((what, by))
    };
    after.into_iter().filter_map(grown).collect()
}

/// The names in a directory that begin so.
pub fn names(dir: &Path, beginning: &str) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(beginning)).collect()
}

/// Every file below a directory, in order.
pub fn files(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { pending.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// So many inputs, each with a content of its own, in order.
pub fn contents(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|n| (format!("{n:03}.txt"), format!("content {n}")))
}

/// What a run publishes of [`contents`] if there is a task for each, which copies it to `x`.
pub fn copies(count: usize) -> BTreeMap<String, Vec<u8>> {
    let copy = |(n, (_, content)): (usize, (String, String))| (format!("task-{n:05}/x"), content.into_bytes());
    contents(count).enumerate().map(copy).collect()
}

/// Why a run failed, as it tells.
#[track_caller]
pub fn failure(result: &Value) -> &str {
    result["error"].as_str().unwrap_or_else(|| panic!("no error is told: {result}"))
}

/// What a run published, as it tells where.
#[track_caller]
pub fn output(result: &Value) -> BTreeMap<String, Vec<u8>> {
    let path = result["output"]["path"].as_str();
    published(Path::new(path.unwrap_or_else(|| panic!("there is no output: {result}"))))
}

/// What a run published whose output is CSV, in one part.
#[track_caller]
pub fn csv(result: &Value) -> String {
    let mut output = output(result);
    let part = output.remove("part-00000.csv").unwrap_or_else(|| panic!("{:?}", output.keys()));
    String::from_utf8(part).unwrap()
}

/// What a run published: the files of its output by name, without the manifest and the marker.
pub fn published(output: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &Path| path.strip_prefix(output).unwrap().to_str().unwrap().to_owned();
    let data = files(output).into_iter().filter(|path| !name(path).starts_with('_'));
    data.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect()
}

/// Waits until a run has a coordinator, the first one or a later one. How it is reached.
#[track_caller]
pub fn link(run_dir: &Path, epoch: u32) -> Value {
    let path = run_dir.join(format!("epochs/{epoch}/link.json"));
    eventually(&format!("there is coordinator {epoch}"), || path.exists());
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Waits until something holds that another process does, and of which it gives no event.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed().as_secs() < 60, "in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
