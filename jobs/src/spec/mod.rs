//! The job: what the user writes, and what it means with every default written out.
//!
//! [`parse::job_file`] turns a TOML text into a [`JobSpec`] or into an error that points at the line. A `JobSpec`
//! serialises to a job file again, which is what a run keeps.

pub mod parse;
pub mod size;
pub mod table;

use std::{collections::BTreeMap, path::Path, time::Duration};

use forebay_datasets::{
    columns::Columns,
    source::{Keys, S3Options, SourceError, SourceOptions},
    stage::StageRequest,
};
use serde::{Deserialize, Serialize};

use self::table::TableSpec;
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

    /// Whether its coordinator reads letters. Where workers have to reach each other besides, letters would not do.
    pub fn takes_mail(&self) -> bool {
        match self.workers.link {
            LinkKind::Tcp => false,
            LinkKind::Files => true,
            LinkKind::Auto => !self.is_gang() && !sql::engine::may_distribute(self),
        }
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
        if self.native().is_some() && self.workers.fleet == FleetKind::External {
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

/// `[dataset]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetSpec {
    /// `s3://bucket/prefix` or `file:///dir` (absolute); of several what they have in common.
    pub source: String,
    /// Of several sources, what each has below the common one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// Only the keys of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeysSpec>,
    /// Name on the volume.
    pub name: String,
    /// Globs over the keys below the prefix; empty takes all.
    pub include: Vec<String>,
    /// Globs over the keys below the prefix.
    pub exclude: Vec<String>,
    /// A snapshot id, or none for what the source holds now.
    pub version: Option<String>,
    /// Whether tasks start once their own inputs are staged; none: where what is built in is known to read nothing else.
    #[serde(default)]
    pub early_start: Option<bool>,
    /// What is staged of its Parquet objects.
    #[serde(default)]
    pub columns: ColumnsSpec,
    /// What becomes of records that cannot be read.
    #[serde(default)]
    pub on_bad_record: OnBadRecord,
    /// How S3 is reached, where the environment does not say.
    pub s3: S3Spec,
}

/// A file of keys, as it was when the job was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysSpec {
    /// Absolute, on the submitting host.
    pub file: String,
    /// Of the keys, without regard to their order.
    pub digest: String,
}

impl KeysSpec {
    fn read(&self) -> Result<Keys, SourceError> {
        let path = Path::new(&self.file);
        let keys = Keys::read(path)?;
        match keys.digest() == self.digest {
            true => Ok(keys),
            false => {
                let why = "it names other keys than when the job was submitted".to_owned();
                Err(SourceError::BadKeys { path: path.to_owned(), why })
            }
        }
    }
}

impl DatasetSpec {
    /// What is to be staged; the columns that a query needs are not known here, and left open.
    ///
    /// # Errors
    /// None for a spec that was parsed, whose source has been understood once; but a file of keys may have changed.
    pub fn stage_request(&self) -> Result<StageRequest, SourceError> {
        let options = SourceOptions {
            prefixes: self.prefixes.clone(),
            keys: self.keys.as_ref().map(KeysSpec::read).transpose()?,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            s3: self.s3.options(),
        };
        let columns = match &self.columns {
            ColumnsSpec::Only(columns) => Some(columns.clone()),
            ColumnsSpec::All | ColumnsSpec::Needed => None,
        };
        Ok(StageRequest { name: self.name.clone(), url: self.source.parse()?, options, columns, durable: true })
    }
}

/// The columns of Parquet objects that are staged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColumnsSpec {
    /// Whole objects, which any other job can read as well.
    #[default]
    All,
    /// Those that the query reads.
    Needed,
    /// These.
    Only(Columns),
}

/// What a query does with a record that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadRecord {
    /// It fails, and names the record.
    #[default]
    Fail,
    /// It goes on without; the output lists the record.
    Skip,
}

impl S3Spec {
    /// As [`forebay_datasets`] takes it.
    pub fn options(&self) -> S3Options {
        S3Options {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            anonymous: self.anonymous,
            path_style: self.path_style,
            requester_pays: self.requester_pays,
        }
    }
}

/// The keys of `[dataset]` and `[output]` that say how S3 is reached; all else is found as the AWS SDK finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3Spec {
    /// Base URL of an S3-compatible server.
    pub endpoint: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Sign nothing.
    pub anonymous: bool,
    /// Bucket in the path; none: in the path exactly when there is a custom endpoint.
    pub path_style: Option<bool>,
    /// Pay for the requests.
    pub requester_pays: bool,
}

/// Exactly one kind of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// `[command]`: any program, once a split.
    Command(CommandSpec),
    /// `[mapreduce]`
    Mapreduce(MapReduceSpec),
    /// `[sql]`
    Sql(SqlSpec),
}

impl Work {
    /// The programs that its tasks start.
    pub fn programs(&self) -> Vec<&Program> {
        match self {
            Self::Command(command) => vec![&command.program],
            Self::Mapreduce(MapReduceSpec { map, reduce, .. }) => {
                let map = match map {
                    Mapper::Program(program) => Some(program),
                    _ => None,
                };
                map.into_iter().chain(reduce).collect()
            }
            Self::Sql(_) => Vec::new(),
        }
    }
}

/// A program: an argument vector, or a text for `/bin/sh -c`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// The program and its arguments.
    Argv(Vec<String>),
    /// A shell's text.
    Shell(String),
}

/// `[command]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandSpec {
    /// What runs.
    pub program: Program,
    /// Whether its tasks are the ranks of one program: all run at once, can find each other, and begin again together.
    #[serde(default)]
    pub gang: bool,
    /// Files shipped with the run, which become the program's working directory: absolute paths on the submitting
    /// host by their names there.
    pub files: BTreeMap<String, String>,
    /// Further environment variables.
    pub env: BTreeMap<String, String>,
}

/// `[mapreduce]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapReduceSpec {
    /// From a split to keys and values.
    pub map: Mapper,
    /// From one partition's sorted keys and values to output; none where the built-in brings its own.
    pub reduce: Option<Program>,
    /// Number of reduce tasks.
    pub partitions: u32,
    /// As in `[command]`.
    pub files: BTreeMap<String, String>,
    /// As in `[command]`.
    pub env: BTreeMap<String, String>,
}

/// What maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapper {
    /// Words (runs of non-white-space bytes) and how often each occurs.
    WordCount,
    /// Lines of each object.
    LineCount,
    /// Lines that match a regular expression, with their object and byte offset.
    Grep(String),
    /// Count, nulls, minimum, maximum, mean of every column of CSV, NDJSON and Parquet objects.
    ColumnStats,
    /// What is compiled into the workers' program under this name; its reduce comes with it.
    Native(String),
    /// A program: lines in, `key<TAB>value` lines out.
    Program(Program),
}

/// `[sql]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlSpec {
    /// Views, if there are any, and the query at the end.
    pub query: String,
    /// The tables by their names.
    pub tables: BTreeMap<String, TableSpec>,
    /// What executes the query; none: forebay chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// DataFusion's options that the job sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// What executes a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// DataFusion, in one worker.
    Datafusion,
    /// Apache Ballista, in all workers.
    Ballista,
    /// DataFusion, in a task a split and one that puts together what these have aggregated.
    Splits,
}

impl Engine {
    /// As a job file names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Datafusion => "datafusion",
            Self::Ballista => "ballista",
            Self::Splits => "splits",
        }
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
    /// Somebody else does.
    External,
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
