//! The job: what the user writes, and what it means with every default written out.
//!
//! [`parse::job_file`] turns a TOML text into a [`JobSpec`] or into an error that points at the line. A `JobSpec`
//! serialises to a job file again, which is what a run keeps.

pub mod coordinator;
mod dataset;
pub mod ecs;
pub mod kubernetes;
pub mod parse;
pub mod size;
pub mod table;
mod work;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use self::{coordinator::CoordinatorSpec, ecs::EcsSpec, kubernetes::KubernetesSpec};
pub use self::{
    dataset::{ColumnsSpec, DatasetSpec, KeysSpec, OnBadRecord, S3Spec},
    work::{CommandSpec, Engine, MapReduceSpec, Mapper, Program, SqlSpec, Work},
};
use crate::kinds::{mapreduce, sql};

/// A whole job, every default resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The job's name: what its runs are called by.
    pub name: String,
    /// What it reads.
    pub dataset: DatasetSpec,
    /// What is done.
    pub work: Work,
    /// How the dataset is cut.
    pub split: SplitSpec,
    /// Who does it.
    pub workers: WorkersSpec,
    /// What its coordinator is given, if the fleet starts that too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<CoordinatorSpec>,
    /// In what they run, if their fleet is Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesSpec>,
    /// Where Slurm starts them; none with another fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slurm: Option<SlurmSpec>,
    /// In what they run, if their fleet is ECS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecs: Option<EcsSpec>,
    /// What happens when an attempt fails.
    pub retry: RetrySpec,
    /// `FOREBAY_PARAM_<NAME>`, and `${params.name}` in `argv`, `shell` and `query`.
    pub params: BTreeMap<String, String>,
    /// Where the output goes.
    pub output: OutputSpec,
    /// What becomes of what earlier runs have done.
    #[serde(default)]
    pub reuse: Reuse,
}

impl JobSpec {
    /// The name of what it needs to be compiled into its workers' program.
    pub fn native(&self) -> Option<&str> {
        match &self.work {
            Work::Mapreduce(MapReduceSpec { map: Mapper::Native(name), .. }) => Some(name),
            Work::Mapreduce(_) | Work::Command(_) | Work::Sql(_) => None,
        }
    }

    /// Attempts at once in each worker, on hosts with so many cores if they are this host's processes.
    pub fn slots(&self, cores: u32) -> u32 {
        let there = match (self.workers.fleet, &self.ecs) {
            (FleetKind::Local, _) => cores,
            (FleetKind::Ecs, Some(ecs)) => (ecs.cpu / 1024).saturating_mul(self.workers.count),
            (FleetKind::Ecs | FleetKind::Kubernetes | FleetKind::Slurm | FleetKind::External, _) => 0,
        };
        self.workers.slots_of(there)
    }

    /// Whether its coordinator reads letters. Where workers have to reach each other besides, letters would not do.
    pub fn takes_mail(&self) -> bool {
        match self.workers.link {
            LinkKind::Tcp => false,
            LinkKind::Files => true,
            LinkKind::Auto => !self.is_gang() && !sql::engine::may_distribute(self),
        }
    }

    /// Whether it is the same job, wherever the files are that it ships, and whatever coordinates it: who needs more memory
    /// for that has no other run.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let placeless = |job: &Self| {
            let mut job = Self { coordinator: None, ..job.clone() };
            job.work.files_mut().into_iter().flatten().for_each(|(_, path)| path.clear());
            job
        };
        placeless(self) == placeless(other)
    }

    /// Whether its tasks only work together, all at once.
    pub fn is_gang(&self) -> bool {
        matches!(&self.work, Work::Command(command) if command.gang)
    }

    /// Whether tasks that an earlier run has done may be left undone. What the ranks of a gang make hangs on more than
    /// their inputs.
    pub fn may_reuse(&self) -> bool {
        self.never_reused().is_none()
    }

    /// Why none of its tasks is ever reused, if none is.
    pub fn never_reused(&self) -> Option<String> {
        let (gang, varies) = match &self.work {
            Work::Command(command) => (command.gang, None),
            Work::Sql(sql) => (false, sql::changes_each_time(&sql.query)),
            Work::Mapreduce(_) => (false, None),
        };
        if self.native().is_some() && self.workers.fleet != FleetKind::Local {
            return Some(
                "the native map and reduce are in workers that others start, and nobody compares their code".to_owned(),
            );
        }
        match (self.reuse, gang, varies) {
            (Reuse::Off, ..) => Some("the job says `reuse = \"off\"`".to_owned()),
            (Reuse::Auto, true, _) => Some("the ranks of a gang are never reused".to_owned()),
            (Reuse::Auto, false, Some(function)) => {
                Some(format!("the query asks for `{function}`, which is another one each time"))
            }
            (Reuse::Auto, false, None) => None,
        }
    }

    /// Whether it is a query that is aggregated a split at a time.
    pub fn is_by_splits(&self) -> bool {
        matches!(&self.work, Work::Sql(sql) if sql.engine == Some(Engine::Splits))
    }

    /// Whether a task of the first phase can be done with what it has read, and what it has not becomes other tasks.
    pub fn can_yield(&self) -> bool {
        self.retry.resplit && mapreduce::can_yield(&self.work)
    }
}

/// `[split]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitSpec {
    /// Where cuts may be.
    pub by: SplitBy,
    /// How much goes into a split.
    pub size: SplitSize,
}

/// Where cuts may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SplitBy {
    /// Between objects.
    File,
    /// Anywhere in text, at the next record's start; between objects elsewhere.
    Bytes,
    /// Between the row groups of Parquet objects; between objects elsewhere.
    RowGroups,
    /// Nowhere: one split.
    Whole,
}

/// How much goes into a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SplitSize {
    /// About this many bytes.
    Bytes(u64),
    /// At most this many splits of about the same size.
    Count(u32),
    /// One object, row group or whole dataset each.
    Each,
}

/// `[workers]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkersSpec {
    /// What starts them.
    pub fleet: FleetKind,
    /// Worker processes.
    pub count: u32,
    /// Attempts at once in each; none: the host's cores.
    pub slots: Option<u32>,
    /// How long a worker may exist; another one is started in its place.
    pub time: Option<Duration>,
    /// Cores of each worker, which its slots share; none: as many as there are.
    pub cpus: Option<u32>,
    /// Bytes of memory of each worker, of which a slot has its part and no more.
    pub memory: Option<u64>,
    /// GPUs of each worker, of which a slot has its own.
    pub gpus: u32,
    /// Attempts at once, of all workers together; none: as many as there are slots.
    pub readers: Option<u32>,
    /// The time over which the number of attempts at once grows to all.
    pub ramp: Duration,
    /// How long a worker goes on without a coordinator.
    pub patience: Duration,
    /// What carries their messages to the coordinator and back.
    #[serde(default)]
    pub link: LinkKind,
}

impl WorkersSpec {
    /// Attempts at once in each worker, where so many cores are for so many workers.
    pub fn slots_of(&self, cores: u32) -> u32 {
        let by_cpus = self.cpus.filter(|_| self.gpus == 0);
        let by_gpus = Some(self.gpus).filter(|gpus| *gpus > 0);
        self.slots.or(by_gpus).or(by_cpus).unwrap_or(cores / self.count.max(1)).max(1)
    }
}

/// What starts workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FleetKind {
    /// Processes on this host.
    Local,
    /// Pods of Kubernetes.
    Kubernetes,
    /// Slurm does, as array tasks.
    Slurm,
    /// Amazon ECS.
    Ecs,
    /// Somebody else does.
    External,
}

impl FleetKind {
    /// As a job file names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Kubernetes => "kubernetes",
            Self::Slurm => "slurm",
            Self::Ecs => "ecs",
            Self::External => "external",
        }
    }
}

/// `[slurm]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlurmSpec {
    /// None: the cluster's default.
    pub partition: Option<String>,
    /// None: the user's default.
    pub account: Option<String>,
    /// None: the account's default.
    pub qos: Option<String>,
    /// What each worker has beside its cpus, memory and gpus.
    pub gres: Option<String>,
    /// Further options of `sbatch`.
    pub options: Vec<String>,
    /// Lines of shell that come before the worker.
    pub setup: Vec<String>,
    /// The program, as nodes know it; none: as this host does.
    pub program: Option<PathBuf>,
}

/// What carries the messages between coordinator and workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// Connections to the coordinator.
    #[default]
    Tcp,
    /// Letters on the volume: no connection is made.
    Files,
    /// Connections, and letters of those workers that reach no address of the coordinator's.
    Auto,
}

/// `[retry]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetrySpec {
    /// Tries of a task that fails, at least 1.
    pub attempts: u32,
    /// Wait before the second try; doubles with each.
    pub backoff_first: Duration,
    /// The longest wait.
    pub backoff_last: Duration,
    /// Time-out of one attempt.
    pub timeout: Option<Duration>,
    /// Failed tasks that a run survives.
    pub max_failures: u32,
    /// Whether a task that takes much longer than its peers is begun a second time elsewhere.
    pub speculate: bool,
    /// Whether what such a task has not read yet becomes other tasks, where its kind of work can do that.
    #[serde(default)]
    pub resplit: bool,
}

/// `[output]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSpec {
    /// Of what built-in kinds of work write.
    pub format: OutputFormat,
    /// Columns of a query whose values become directories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partition_by: Vec<String>,
    /// About the bytes of a row group of Parquet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_group_size: Option<u64>,
    /// `s3://…` or `file:///…`: the published output is copied there.
    pub to: Option<String>,
    /// How `to` is reached.
    pub s3: S3Spec,
}

/// What becomes of what earlier runs have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reuse {
    /// A task whose work and input are those of a task of an earlier run gets that one's output.
    #[default]
    Auto,
    /// Every task is done, and nothing is kept for later runs.
    Off,
}

/// A table format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputFormat {
    /// zstd-compressed Parquet.
    #[default]
    Parquet,
    /// With a header.
    Csv,
    /// One object a line.
    Ndjson,
    /// An Arrow IPC file.
    Arrow,
}
