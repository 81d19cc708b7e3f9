//! What can be typed. What it means is decided in `commands`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use forebay_jobs::{
    id::{RunId, TaskId, WorkerId},
    spec::size::duration,
};

/// Batch and parallel data processing on shared storage: stage once, read in parallel, publish in one step.
#[derive(Debug, Parser)]
#[command(name = "forebay", version, max_term_width = 100, after_help = "Exit codes: 0 all done; 1 tasks failed; \
2 usage or job file; 3 not found; 4 storage or coordinator out of reach; 5 cannot ever run; 124 `wait` ran out of \
time; 130 interrupted.")]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Directory on the shared file system that holds datasets and runs
    #[arg(long, global = true, env = "FOREBAY_VOLUME", default_value = "./.forebay", value_name = "DIR")]
    pub volume: PathBuf,
    /// Print one versioned JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Print results only: no progress, no hints
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stage a job's dataset, do its work on workers, and publish the output
    Run(RunArgs),
    /// Go on with a run whose coordinator is gone
    Resume {
        /// The run
        run: RunId,
    },
    /// End a run; what it has committed stays on the volume
    Cancel {
        /// The run
        run: RunId,
    },
    /// Wait until a run has ended
    Wait {
        /// The run
        run: RunId,
        /// Give up after this long, with exit code 124
        #[arg(long, value_parser = duration, value_name = "TIME")]
        timeout: Option<Duration>,
    },
    /// Find what is wrong with a job, and show its plan, before any data moves
    Check(JobArgs),
    /// Look at runs
    #[command(subcommand)]
    Runs(RunsCommand),
    /// Stage, list, show and verify datasets
    #[command(subcommand)]
    Dataset(DatasetCommand),
    /// See the whole flow on example data: nothing to configure, no network
    Demo(DemoArgs),
    /// Execute attempts of a run; a fleet starts this
    #[command(hide = true)]
    Worker(WorkerArgs),
}

/// A job file and what overrides it.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The job file
    pub job: PathBuf,
    /// Override one of the job's [params]
    #[arg(long, value_parser = key_value, value_name = "NAME=VALUE")]
    pub set: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub job: JobArgs,
    /// Name of the run; the same name again attaches to the run that is there
    #[arg(long)]
    pub id: Option<RunId>,
}

#[derive(Debug, Subcommand)]
pub enum RunsCommand {
    /// List the volume's runs, newest first
    List,
    /// Show a run's state, its figures and its output
    Show {
        /// The run
        run: RunId,
    },
    /// List a run's tasks
    Tasks {
        /// The run
        run: RunId,
        /// Only failed tasks
        #[arg(long)]
        failed: bool,
    },
    /// Print what a run's tasks wrote to standard output and standard error
    Logs {
        /// The run
        run: RunId,
        /// One task, such as 17 or 1-3; without it all
        task: Option<TaskId>,
    },
}

#[derive(Debug, Subcommand)]
pub enum DatasetCommand {
    /// Copy a source onto the volume as one immutable, verified snapshot
    Stage(StageArgs),
    /// List the volume's datasets
    List,
    /// Show a dataset's snapshots and objects
    Show {
        /// The dataset
        name: String,
        /// A snapshot's id or the beginning of one; without it the latest
        #[arg(long, value_name = "ID")]
        snapshot: Option<String>,
        /// List every object
        #[arg(long)]
        objects: bool,
    },
    /// Compare a staged snapshot with its manifest; S3 is not asked
    Verify {
        /// The dataset
        name: String,
        /// A snapshot's id or the beginning of one; without it the latest
        #[arg(long, value_name = "ID")]
        snapshot: Option<String>,
        /// Read every byte, not only the sizes
        #[arg(long)]
        full: bool,
    },
}

#[derive(Debug, Args)]
pub struct StageArgs {
    /// s3://bucket/prefix or file:///dir
    pub source: String,
    /// Name on the volume; without it derived from the source
    #[arg(long)]
    pub name: Option<String>,
    /// Take only keys that match; may be given more than once
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave out keys that match; may be given more than once
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Base URL of an S3-compatible server
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Region, where the environment does not say
    #[arg(long)]
    pub region: Option<String>,
    /// Do not sign requests: for public buckets
    #[arg(long)]
    pub anonymous: bool,
    /// Pay for the requests
    #[arg(long)]
    pub requester_pays: bool,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Worker processes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
}

#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The run to work for
    #[arg(long)]
    pub run: RunId,
    /// This worker's own name in it
    #[arg(long)]
    pub name: WorkerId,
    /// Attempts at once; without it one a core
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub slots: Option<u32>,
}

impl Cli {
    /// <https://no-color.org>: set and not empty.
    pub fn no_color(&self) -> bool {
        std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_param_may_hold_an_equals_sign() {
        assert_eq!(key_value("filter=a=b"), Ok(("filter".into(), "a=b".into())));
        assert!(key_value("=x").is_err() && key_value("x").is_err());
    }
}
