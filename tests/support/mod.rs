//! A volume, an S3 server, and the built binary between them.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use forebay::s3_server::{ACCESS_KEY, S3Server, SECRET_KEY};
use tempfile::TempDir;

pub struct Cluster {
    pub s3: S3Server,
    volume: TempDir,
}

/// The binary with an environment of its own.
pub struct Terminal {
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
        let mut terminal = self.terminal();
        terminal.env.insert(name, value.to_owned());
        terminal
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

    fn terminal(&self) -> Terminal {
        let env = [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL_S3", self.s3.endpoint()),
            ("HOME", self.volume.path().display().to_string()),
        ];
        Terminal { volume: self.volume.path().to_owned(), env: env.into() }
    }
}

impl Terminal {
    pub fn forebay<const N: usize>(&self, args: [&str; N]) -> Outcome {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.env_clear().envs(&self.env).arg("--volume").arg(&self.volume).args(args);
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Outcome {
    /// Asserts the exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Asserts the exit code, and that the output is one JSON object.
    #[track_caller]
    pub fn json(self, code: i32) -> serde_json::Value {
        let outcome = self.code(code);
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:#?}"))
    }
}
