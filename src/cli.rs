//! What can be typed. What it means is decided in `commands`.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZero,
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use forebay_coordinator::server::Advertised;
use forebay_datasets::source::S3Options;
use forebay_jobs::{
    id::{RunId, TaskId, WorkerId},
    spec::size,
};

/// Where datasets and runs go if nobody says otherwise.
pub const DEFAULT_VOLUME: &str = "./.forebay";

/// Batch and parallel data processing on shared storage: stage once, read in parallel, publish in one step.
#[derive(Debug, Parser)]
#[command(
    name = "forebay",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 all done; 1 tasks failed; \
2 usage or job file; 3 not found; 4 storage or coordinator out of reach; 5 cannot ever run; 124 `wait` ran out of \
time; 130 interrupted."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Where a coordinator listens for its workers [default: this host alone; with workers on others everywhere]
    ///
    /// An address of this host's, with or without a port: 10.0.0.1, 10.0.0.1:7000, ::, [::1]:7000. Without one any free
    /// port is taken.
    #[arg(long, global = true, env = "FOREBAY_LISTEN", hide_env = true, value_name = "ADDRESS", value_parser = listen)]
    pub listen: Option<SocketAddr>,
    /// Where workers reach a coordinator, if that is not where it listens: behind NAT, or with several networks
    ///
    /// HOST, HOST:PORT, or several of them with commas between, which workers try in this order. IPv6 addresses with a
    /// port have brackets.
    #[arg(
        long,
        global = true,
        env = "FOREBAY_ADVERTISE",
        hide_env = true,
        value_name = "HOSTS",
        value_delimiter = ','
    )]
    pub advertise: Vec<Advertised>,
    /// Directory on the shared file system that holds datasets and runs
    #[arg(long, global = true, env = "FOREBAY_VOLUME", default_value = DEFAULT_VOLUME, value_name = "DIR")]
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
    /// Stage a job's dataset, work on it with many workers, publish the output in one step
    Run(RunArgs),
    /// Have a run coordinated by the fleet that its workers are of, and print its id
    ///
    /// The volume need not be here: --volume is where the fleet's hosts have it. So it is for commands about the run then,
    /// which are executed there.
    Submit(SubmitArgs),
    /// Coordinate a run that was submitted
    #[command(hide = true)]
    Coordinate {
        /// The job as it was sealed: a file, or - for standard input [default: what FOREBAY_PARCEL holds]
        parcel: Option<PathBuf>,
    },
    /// Bring a run to its end whose coordinator was interrupted or killed
    Resume {
        /// The run
        run: RunId,
    },
    /// End a run; what is committed stays on the volume, nothing is published
    Cancel {
        /// The run
        run: RunId,
    },
    /// Wait for a run that another process coordinates, and end with its exit code
    Wait(WaitArgs),
    /// Find what is wrong with a job before any data moves
    Check(JobArgs),
    /// Tell where a task is, why, and what became of each attempt at it
    Explain {
        /// The run
        run: RunId,
        /// The task, such as 17, or 1-17 for the second phase
        task: TaskId,
    },
    /// List runs, show one, its tasks and what its programs printed
    #[command(subcommand)]
    Runs(RunsCommand),
    /// Stage, list, show, compare, verify, pin and remove datasets
    #[command(subcommand)]
    Dataset(DatasetCommand),
    /// Show what the volume holds and what its mount does, check the mount, set a quota
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Stage a sample from an S3 server of its own and run three jobs over it; needs no network and no set-up
    Demo,
    /// Work for a run: fleets start it, or you do, on any host that mounts the volume
    Worker(WorkerArgs),
}

impl Command {
    /// The run that it is about, if it only asks about runs or ends one: any host of the volume can do that. Of a list
    /// it is none.
    pub fn about_runs(&self) -> Option<Option<&RunId>> {
        match self {
            Self::Cancel { run } | Self::Wait(WaitArgs { run, .. }) | Self::Explain { run, .. } => Some(Some(run)),
            Self::Runs(RunsCommand::List) => Some(None),
            Self::Runs(RunsCommand::Show { run } | RunsCommand::Tasks { run, .. } | RunsCommand::Logs { run, .. }) => {
                Some(Some(run))
            }
            _ => None,
        }
    }
}

#[derive(Debug, Args)]
pub struct JobArgs {
    /// The job file
    pub job: PathBuf,
    /// Override one of the job's [params]; may be given more than once
    #[arg(long, value_parser = key_value, value_name = "NAME=VALUE")]
    pub set: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub job: JobArgs,
    /// Name of the run: submitted again, it attaches to the run that is there
    #[arg(long)]
    pub id: Option<RunId>,
    /// Do none of the tasks, and take them for done: only to measure what coordinating costs
    #[arg(long, hide = true)]
    pub pretend: bool,
}

#[derive(Debug, Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    pub job: JobArgs,
    /// Name of the run: submitted again, it is the same run
    #[arg(long)]
    pub id: Option<RunId>,
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The run
    pub run: RunId,
    /// Wait no longer than this, such as 90s or 10m
    #[arg(long, value_parser = size::duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// It may not be there yet
    #[arg(long, hide = true)]
    pub soon: bool,
}

#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The run to work for
    #[arg(long)]
    pub run: RunId,
    /// The worker's name, which no other worker of the run may have at the same time [default: of host and process]
    #[arg(long)]
    pub name: Option<WorkerId>,
    /// Attempts at once; without it as many as there are cores
    #[arg(long)]
    pub slots: Option<NonZero<u32>>,
    /// When this worker is taken away, in seconds since 1970: it drains in time [default: Slurm's, in a Slurm job]
    #[arg(long, env = "SLURM_JOB_END_TIME", hide_env = true)]
    pub until: Option<u64>,
    /// How long this worker may exist from now on, such as 4h: it drains in time
    #[arg(long, value_parser = size::duration, value_name = "TIME")]
    pub time: Option<Duration>,
    /// Do none of the tasks, and report them as done: only to measure what coordinating costs
    #[arg(long, hide = true)]
    pub pretend: bool,
}

#[derive(Debug, Subcommand)]
pub enum RunsCommand {
    /// List the volume's runs, newest first
    List,
    /// Show what a run came to, or how far it is
    Show {
        /// The run
        run: RunId,
    },
    /// List a run's tasks
    Tasks {
        /// The run
        run: RunId,
        /// Only tasks in this state
        #[arg(long)]
        state: Option<TaskStateArg>,
        /// Only tasks from this one on, such as 17, or 1-17 for the second phase
        #[arg(long, value_name = "TASK")]
        from: Option<TaskId>,
        /// So many tasks at most
        #[arg(long, default_value = "10000", value_name = "COUNT")]
        limit: NonZero<u32>,
    },
    /// Print what a run's programs printed
    Logs {
        /// The run
        run: RunId,
        /// Only of this task, such as 17, or 1-17 for the second phase
        #[arg(long)]
        task: Option<TaskId>,
        /// Go on until the run has ended
        #[arg(long, short)]
        follow: bool,
    },
}

/// Where a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskStateArg {
    /// Waits for its inputs to be staged
    Awaiting,
    /// Waits for a worker, or for its next try
    Ready,
    /// Is on a worker
    Running,
    /// Done, as one of a gang of which others are not
    Finished,
    /// Done
    Succeeded,
    /// Failed for good
    Failed,
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
    /// Tell what differs between two snapshots: keys added, removed, and with other bytes
    ///
    /// The exit code is 0 whether they differ or not.
    Diff {
        /// The dataset
        name: String,
        /// The earlier one: a snapshot's id or the beginning of one; without it the one that was staged before TO
        from: Option<String>,
        /// The later one; without it the latest
        to: Option<String>,
        /// Only count
        #[arg(long)]
        summary: bool,
    },
    /// Compare a staged snapshot with its manifest; S3 is asked only to repair
    Verify(VerifyArgs),
    /// Keep a snapshot until it is unpinned
    Pin {
        /// The dataset, and a snapshot's id or the beginning of one; without it the latest
        #[arg(value_name = "NAME[@ID]")]
        snapshot: String,
        /// The pin's label, once in a dataset; without it the snapshot's id
        #[arg(long, value_name = "LABEL")]
        name: Option<String>,
    },
    /// Take a pin away
    Unpin {
        /// The dataset, and the snapshot's id or the beginning of one
        #[arg(value_name = "NAME[@ID]")]
        snapshot: String,
        /// The pin's label; without it every pin of the snapshot
        #[arg(long, value_name = "LABEL")]
        name: Option<String>,
    },
    /// Remove snapshots by age, count and size; never the latest, nor what is pinned or read
    ///
    /// Only a snapshot that all of the given rules let go is removed. Without a rule, only what killed processes left
    /// is cleared away.
    Gc(GcArgs),
}

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Show free space, the quota, what the volume holds, and what its mount does
    Show,
    /// Find out anew what the mount does; exit code 4 if it lacks what the guarantees need
    Check,
    /// Change the volume's settings
    Set {
        /// Bytes of snapshots that staging may fill it with, such as 500GiB; none lifts the quota
        #[arg(long, value_parser = quota, value_name = "SIZE")]
        quota: Option<Quota>,
    },
}

/// A quota that was typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota(pub Option<u64>);

#[derive(Debug, Args)]
pub struct GcArgs {
    /// Only these datasets; without any, all
    pub names: Vec<String>,
    /// Keep the newest so many snapshots of each dataset, and what so many runs of each work leave to later ones
    #[arg(long, value_name = "N")]
    pub keep_last: Option<usize>,
    /// Remove only what was staged, or left by a run, longer ago than this, such as 30d
    #[arg(long, value_parser = size::duration, value_name = "TIME")]
    pub older_than: Option<Duration>,
    /// Remove what runs leave to later ones, then the oldest snapshots, until all take no more than this, such as 1TiB
    #[arg(long, value_parser = size::bytes, value_name = "SIZE")]
    pub max_size: Option<u64>,
    /// Say what would be removed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct StageArgs {
    /// s3://bucket/prefix or file:///dir; of several, which are in one bucket, keys are those below what they have in
    /// common
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<String>,
    /// Take only the keys of this file, one a line, below the source
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
    /// Name on the volume; without it derived from the source
    #[arg(long)]
    pub name: Option<String>,
    /// Take only keys that match; may be given more than once
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave out keys that match; may be given more than once
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Of Parquet objects fetch only these top-level columns, with commas between; only queries can read what is staged
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = column, conflicts_with = "dry_run")]
    pub columns: Option<Vec<String>>,
    #[command(flatten)]
    pub s3: S3Args,
    /// Say what would be fetched, what that takes and costs, and which keys give way, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait until the bytes are on the disk: only to measure what that costs, since a crash of the host may
    /// leave a snapshot with holes then
    #[arg(long)]
    pub no_sync: bool,
}

/// How S3 is reached.
#[derive(Debug, Args)]
pub struct S3Args {
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

impl S3Args {
    pub fn options(&self) -> S3Options {
        S3Options {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            anonymous: self.anonymous,
            path_style: None,
            requester_pays: self.requester_pays,
        }
    }
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The dataset
    pub name: String,
    /// A snapshot's id or the beginning of one; without it the latest
    #[arg(long, value_name = "ID")]
    pub snapshot: Option<String>,
    /// Read every byte, not only the sizes
    #[arg(long)]
    pub full: bool,
    /// Replace what is found to be damaged by the very bytes that were staged: from another snapshot that has them, or
    /// from the source, if it still has that object
    #[arg(long)]
    pub repair: bool,
    #[command(flatten)]
    pub s3: S3Args,
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let address = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text).parse::<IpAddr>();
    let unclear = |_| format!("`{text}` is no address of this host's, such as 10.0.0.1, 10.0.0.1:7000 or [::1]:7000");
    address.map(|address| SocketAddr::new(address, 0)).or_else(|_| text.parse().map_err(unclear))
}

fn quota(text: &str) -> Result<Quota, String> {
    if text == "none" { Ok(Quota(None)) } else { size::bytes(text).map(|bytes| Quota(Some(bytes))) }
}

fn column(text: &str) -> Result<String, &'static str> {
    match text.trim() {
        "" => Err("a column has no name"),
        name => Ok(name.to_owned()),
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
    fn a_quota_is_a_size_or_none() {
        assert_eq!((quota("none"), quota("1KiB")), (Ok(Quota(None)), Ok(Quota(Some(1024)))));
        assert!(quota("much").is_err());
    }

    #[test]
    fn where_to_listen_is_an_address_with_or_without_a_port() {
        let read = |text| listen(text).map(|address| address.to_string()).ok();
        assert_eq!(read("10.0.0.1"), Some("10.0.0.1:0".into()));
        assert_eq!(read("10.0.0.1:7000"), Some("10.0.0.1:7000".into()));
        assert_eq!(
            (read("::1"), read("[::1]"), read("[::1]:7000")),
            (Some("[::1]:0".into()), Some("[::1]:0".into()), Some("[::1]:7000".into()))
        );
        assert_eq!([read("head"), read("10.0.0.1:x"), read("")], [None, None, None]);
    }

    #[test]
    fn a_param_may_hold_an_equals_sign() {
        assert_eq!(key_value("filter=a=b"), Ok(("filter".into(), "a=b".into())));
        assert!(key_value("=x").is_err() && key_value("x").is_err());
    }
}
