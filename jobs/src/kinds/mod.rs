//! The kinds of work, as far as they run inside a worker.
//!
//! They know their input and where their output goes, and nothing of attempts, retries or S3. Programs are started by
//! the worker; what they are told stands in [`command`], and what they are fed in [`mapreduce`].

pub mod command;
pub mod mapreduce;
pub mod partitioned;
pub mod sql;
pub mod table;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use arrow::error::ArrowError;
use forebay_datasets::{
    checksum::Crc64,
    output::OutputError,
    read::ReadError,
    split::Split,
    volume::{Volume, VolumeError},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::sql::NotHeld;
use crate::{spec::JobSpec, task::TaskSpec, wire::Cluster};

/// What a task's work may use.
#[derive(Debug)]
pub struct TaskContext<'a> {
    /// The volume as this host mounts it.
    pub volume: &'a Volume,
    /// The run's job.
    pub job: &'a JobSpec,
    /// What the task is to do.
    pub spec: &'a TaskSpec,
    /// Where outputs go: a directory of this attempt alone.
    pub out_dir: &'a Path,
    /// For what is gone with the attempt.
    pub scratch_dir: &'a Path,
    /// How many threads it may keep busy.
    pub threads: usize,
    /// Bytes of memory that it may use; none: no limit.
    pub memory: Option<u64>,
    /// Where the run's directory is on this host.
    pub run_dir: &'a Path,
    /// The scheduler of the run's query, where it has one; another one, once another coordinator has come.
    pub cluster: watch::Receiver<Option<Cluster>>,
    /// Set when the attempt is to end.
    pub cancel: &'a CancellationToken,
    /// Set when others are to do what it has not come to: where the kind of work can, it is done with what it has read.
    pub yields: &'a CancellationToken,
}

/// What a task has made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskOutput {
    /// Files, closed and synced.
    pub files: Vec<Written>,
    /// Figures of its own.
    pub metrics: BTreeMap<String, f64>,
    /// What of its input it left unread, when it was to yield.
    pub rest: Option<Split>,
}

/// A closed and synced file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where it is on this host.
    pub path: PathBuf,
    /// Path below the run's output; none for what only the next phase reads.
    pub publish_as: Option<String>,
    /// For what the next phase reads: the partition it belongs to.
    pub partition: Option<u32>,
    /// Bytes.
    pub size: u64,
    /// Of all its bytes.
    pub checksum: Crc64,
    /// Records, where known.
    pub rows: Option<u64>,
}

/// Why a task's work failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It was to end.
    #[error("it was cancelled")]
    Cancelled,
    /// The query, or the data it meets, is wrong; another try gives the same.
    #[error("{0}")]
    BadInput(String),
    /// What is to be read of a staged object is not held.
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
    /// A staged object cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An output is not as it should be.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A file could not be read or written.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What several workers were to do together did not come to its end.
    #[error("the query's stages were lost: {0}")]
    Cluster(String),
    /// The engine that was chosen cannot execute the query.
    #[error("the engine cannot execute the query: {0}")]
    Unfit(String),
    /// A table could not be read or written.
    #[error("`{what}` cannot be read or written as a table")]
    Table {
        /// Which object or file.
        what: String,
        /// Why.
        #[source]
        source: ArrowError,
    },
}

impl TaskError {
    /// Whether another try can help.
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self,
            Self::BadInput(_)
                | Self::Unfit(_)
                | Self::NotHeld(_)
                | Self::Read(ReadError::Partial { .. })
                | Self::Table {
                    source: ArrowError::CsvError(_) | ArrowError::JsonError(_) | ArrowError::ParquetError(_),
                    ..
                }
        )
    }
}
