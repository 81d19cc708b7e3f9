//! `forebay demo`: the whole of it on one machine, with real processes and the real S3 protocol, and nothing to set up.
//!
//! An S3 server starts in this process, on loopback, with a sample of real data in it. Three jobs follow, each by the
//! very command that is shown.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use forebay_coordinator::driver::RunResult;
use forebay_datasets::volume::{self, Volume};
use tokio::process::Command;

use crate::{
    cli::{DEFAULT_VOLUME, Global},
    error::{CliError, Exit},
    render,
    s3_server::{ACCESS_KEY, S3Server, SECRET_KEY},
};

const BUCKET: &str = "acme-flights";
/// The US Bureau of Transportation Statistics' flights of January 2013, public domain (CC0).
const OBJECTS: [(&str, &[u8]); 3] = [
    ("2013-01/airlines.csv", include_bytes!("../../examples/nycflights13/airlines.csv")),
    ("2013-01/airports.csv", include_bytes!("../../examples/nycflights13/airports.csv")),
    ("2013-01/flights/2013-01.parquet", include_bytes!("../../examples/nycflights13/flights/2013-01.parquet")),
];
const JOBS: [(&str, &str, &str); 3] = [
    ("delay-by-carrier.toml", include_str!("../../examples/demo/delay-by-carrier.toml"), "SQL over Parquet and CSV"),
    ("column-stats.toml", include_str!("../../examples/demo/column-stats.toml"), "map-reduce over row groups"),
    ("fingerprint.toml", include_str!("../../examples/demo/fingerprint.toml"), "any command, once a file"),
];
/// Rows of a result that are shown.
const ROWS: usize = 8;

pub async fn execute(global: &Global) -> Result<Exit, CliError> {
    let volume = Volume::open_or_create(&global.volume)?;
    let jobs = volume.root().join("demo");
    volume::create_dir(&jobs)?;
    for (name, text, _) in JOBS {
        volume::replace(&jobs.join(name), text.as_bytes())?;
    }
    let server = S3Server::start().await.map_err(CliError::runtime)?;
    for (key, bytes) in OBJECTS {
        server.put(BUCKET, key, bytes);
    }
    let demo = Demo { global, jobs: global.volume.join("demo"), server: &server };
    demo.say(&format!("An S3 server with {} objects listens at {}.", OBJECTS.len(), server.endpoint()));
    let mut results = Vec::new();
    for (name, _, what) in JOBS {
        demo.say(&format!("\n{what}"));
        results.push(demo.run(name).await?);
    }
    match global.json {
        true => println!("{}", serde_json::json!({ "version": 1, "runs": results })),
        false => demo.say(&demo.closing_words(&results)),
    }
    Ok(Exit::Done)
}

struct Demo<'a> {
    global: &'a Global,
    /// Where the job files are.
    jobs: PathBuf,
    server: &'a S3Server,
}

impl Demo<'_> {
    fn say(&self, text: &str) {
        render::note(self.global.quiet, text);
    }

    /// What a user types before a command.
    fn program(&self) -> String {
        let program = super::program();
        match self.global.volume.as_os_str() == DEFAULT_VOLUME {
            true => program,
            false => format!("{program} --volume {}", self.global.volume.display()),
        }
    }

    /// Runs a job as its user would, and shows the beginning of its output.
    async fn run(&self, name: &str) -> Result<RunResult, CliError> {
        let job = self.jobs.join(name);
        self.say(&format!("$ {} run {}", self.program(), job.display()));
        let mut command = Command::new(std::env::current_exe().map_err(CliError::runtime)?);
        command.arg("--volume").arg(&self.global.volume).arg("run").arg(&job).arg("--json");
        if self.global.quiet {
            command.arg("--quiet");
        }
        command
            .env("AWS_ENDPOINT_URL_S3", self.server.endpoint())
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_REGION", "us-east-1")
            .env_remove("AWS_SESSION_TOKEN")
            .env_remove("AWS_PROFILE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let child = command.spawn().map_err(CliError::runtime)?;
        let output = child.wait_with_output().await.map_err(CliError::runtime)?;
        let result = match serde_json::from_slice::<RunResult>(&output.stdout) {
            Ok(result) if output.status.success() => result,
            _ => {
                let said = String::from_utf8_lossy(&output.stdout);
                let message = format!("the demo's job {name} ended with {}: {}", output.status, said.trim());
                return Err(CliError::new(Exit::TasksFailed, message));
            }
        };
        if let (Some(output), false) = (&result.output, self.global.json) {
            let dir = Path::new(&output.path);
            let files: Vec<_> = output.files.iter().map(|file| dir.join(file)).collect();
            render::preview(&files, ROWS)?;
        }
        Ok(result)
    }

    fn closing_words(&self, results: &[RunResult]) -> String {
        let volume = self.global.volume.display();
        let bytes: u64 = results.iter().filter_map(|result| result.staged.as_ref()).map(|s| s.fetched_bytes).sum();
        let fetched = match bytes {
            0 => "was staged before".to_owned(),
            bytes => format!("was staged once, {}", render::bytes(bytes)),
        };
        let (program, jobs) = (self.program(), self.jobs.display());
        let last = results.last().map(|result| result.run.to_string()).unwrap_or_default();
        format!(
            "\nThe dataset {fetched}; three jobs read it. All of a run is in its directory:\n  \
             {volume}/runs/{last}/\n    \
             output/       what it published\n    \
             result.json   its report\n    \
             logs/         what its programs printed, for `runs logs`\n\
             Try next:\n  \
             {program} runs list\n  \
             {program} runs show {last}\n  \
             {program} runs tasks {last}\n  \
             {program} dataset verify demo-flights --full\n\
             The jobs are in {jobs}: put your own bucket in one, and run it."
        )
    }
}
