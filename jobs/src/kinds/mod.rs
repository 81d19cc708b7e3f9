//! The kinds of work, as far as they run inside a worker.
//!
//! They know their input and where their output goes, and nothing of attempts, retries or S3. Programs are started by
//! the worker; what they are told stands in [`command`], and what they are fed in [`mapreduce`].

pub mod command;
mod ipc;
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

use self::{
    mapreduce::native::BoxError,
    sql::{KnownTable, NotBySplit, NotHeld},
};
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
    /// What the run's plan tells of the table of a query by splits.
    pub table: Option<&'a KnownTable>,
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

#[cfg(test)]
impl<'a> TaskContext<'a> {
    /// What tests give a task: one thread, all the memory that it wants, and nobody who ends it.
    pub(crate) fn plain(
        (volume, job, spec): (&'a Volume, &'a JobSpec, &'a TaskSpec),
        [out_dir, scratch_dir]: &'a [PathBuf; 2],
        never: &'a CancellationToken,
    ) -> Self {
        Self {
            volume,
            job,
            spec,
            out_dir,
            scratch_dir,
            threads: 1,
            table: None,
            memory: None,
            run_dir: volume.root(),
            cluster: watch::channel(None).1,
            cancel: never,
            yields: never,
        }
    }
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

/// The name that a file would have in the output, had a task at another place of the same phase made it; none if the
/// name does not tell who made it.
pub fn published_at(name: &str, from: u32, to: u32) -> Option<String> {
    if let Some(rest) = name.strip_prefix(&format!("task-{from:05}/")) {
        return Some(format!("task-{to:05}/{rest}"));
    }
    let (dir, file) = name.rsplit_once('/').map_or(("", name), |(dir, _)| name.split_at(dir.len() + 1));
    Some(format!("{dir}part-{to:05}{}", file.strip_prefix(&format!("part-{from:05}"))?))
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

#[cfg(test)]
impl Written {
    /// As the coordinator has it, and gives it to the next phase.
    pub(crate) fn handed_on(&self, volume: &Volume) -> crate::task::OutputFile {
        crate::task::OutputFile {
            path: volume.relative(&self.path).unwrap(),
            publish_as: None,
            partition: self.partition,
            size: self.size,
            checksum: self.checksum,
            rows: self.rows,
        }
    }
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
    /// What is compiled into the program failed.
    #[error("the {step} of `{job}` failed {place}")]
    Native {
        /// The native job.
        job: String,
        /// Its map, its combine or its reduce.
        step: &'static str,
        /// At which byte of which object, or at which key.
        place: String,
        /// How.
        #[source]
        source: BoxError,
    },
    /// What is to be read of a staged object is not held.
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
    /// The query cannot be aggregated a split at a time.
    #[error(transparent)]
    NotBySplit(#[from] NotBySplit),
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
    pub(crate) fn native(job: &str, step: &'static str, place: &str, source: BoxError) -> Self {
        Self::Native { job: job.to_owned(), step, place: place.to_owned(), source }
    }

    /// Whether another try can help.
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self,
            Self::BadInput(_)
                | Self::Unfit(_)
                | Self::NotHeld(_)
                | Self::NotBySplit(_)
                | Self::Read(ReadError::Partial { .. })
                | Self::Table {
                    source: ArrowError::CsvError(_) | ArrowError::JsonError(_) | ArrowError::ParquetError(_),
                    ..
                }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_tells_the_place_of_its_task() {
        for (name, at) in [
            ("part-00003.csv", "part-123456.csv"),
            ("year=2013/part-00003-1.parquet", "year=2013/part-123456-1.parquet"),
            ("task-00003/part-00003.txt", "task-123456/part-00003.txt"),
        ] {
            assert_eq!(published_at(name, 3, 123_456).as_deref(), Some(at));
            assert_eq!(published_at(at, 123_456, 3).as_deref(), Some(name));
        }
        assert_eq!(published_at("part-00003.csv", 4, 5), None);
    }
}
