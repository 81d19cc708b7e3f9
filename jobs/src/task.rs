//! Tasks and what becomes of their attempts.

use std::collections::BTreeMap;

use forebay_datasets::{checksum::Crc64, split::Split};
use serde::{Deserialize, Serialize};

use crate::id::{AttemptId, TaskId};

/// What one task is to do; the run's [`Work`](crate::spec::Work) says how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Which task this is.
    pub task: TaskId,
    /// How many tasks its phase has.
    pub count: u32,
    /// What it reads.
    pub input: TaskInput,
}

/// What a task reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskInput {
    /// A part of the staged dataset.
    Split(Split),
    /// One partition of what the phase before has committed: at most one file of each of its tasks, in task order.
    Shuffle(Vec<OutputFile>),
}

/// A file that an attempt has written and closed, as the worker reports it and the coordinator checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Path relative to the volume's root.
    pub path: String,
    /// Path below the run's `output/` once published; none for what only the next phase reads.
    pub publish_as: Option<String>,
    /// For what the next phase reads: the partition it belongs to.
    pub partition: Option<u32>,
    /// Bytes.
    pub size: u64,
    /// Of the whole file.
    pub checksum: Crc64,
    /// Records, where the kind of work knows.
    pub rows: Option<u64>,
}

/// An attempt's end, as its worker reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// The attempt that ended.
    pub attempt: AttemptId,
    /// How.
    pub outcome: Outcome,
    /// Seconds from its start to its end.
    pub seconds: f64,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its work is done and these files are durable.
    Done {
        /// Every file it wrote for others.
        outputs: Vec<OutputFile>,
        /// From `metrics.json` and the kind of work: records in, records out, …
        metrics: BTreeMap<String, f64>,
        /// What of its split it left unread, because it was asked to yield: these are other tasks' from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rest: Option<Split>,
    },
    /// It failed.
    Failed(Failure),
    /// It asks to be run again and uses up no attempt: exit code 75, or its worker drained.
    GivenBack,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// A program ended with a code other than 0 and 75.
    #[error("its program ended with exit code {code}{}", last_words(stderr))]
    ExitCode {
        /// The code.
        code: i32,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// A signal ended the program.
    #[error("signal {signal} ended its program{}", last_words(stderr))]
    Signal {
        /// The signal's number.
        signal: i32,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// It ran for longer than `[retry] timeout`.
    #[error("it ran longer than its time-out of {seconds} s")]
    TimedOut {
        /// The time-out.
        seconds: u64,
    },
    /// It could not be started, or could not go on: a missing program, a broken file, a full disk.
    #[error("{message}")]
    Error {
        /// The chain of causes, in one line.
        message: String,
        /// Whether another try can help.
        retryable: bool,
    },
    /// It used more memory than its slot has, and the kernel ended it.
    #[error("it used more than its {} MiB of memory, and was ended", limit >> 20)]
    OutOfMemory {
        /// Bytes.
        limit: u64,
    },
    /// Its worker was lost.
    #[error("its worker was lost")]
    WorkerLost,
    /// What it reported is not what stands on the volume.
    #[error("{message}")]
    BadOutput {
        /// Which file, and what is wrong with it.
        message: String,
    },
    /// Its coordinator wanted it no more.
    #[error("its coordinator wanted it no more")]
    Cancelled,
}

/// The last line that a program printed to its standard error, with a colon before it.
fn last_words(stderr: &str) -> String {
    match stderr.lines().rev().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => format!(": {}", line.chars().filter(|c| !c.is_control()).take(200).collect::<String>()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_is_quoted() {
        let failure = |stderr: &str| Failure::ExitCode { code: 1, stderr: stderr.to_owned() }.to_string();
        assert_eq!(failure("a\n\u{1b}[1mno such file\n\n"), "its program ended with exit code 1: [1mno such file");
        assert_eq!(failure(" \n"), "its program ended with exit code 1");
    }
}
