//! What a job does: its kind of work, and what that is told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::table::TableSpec;

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
    /// The files that it ships: where they are, by the names that they have in the run.
    pub fn files(&self) -> Option<&BTreeMap<String, String>> {
        match self {
            Self::Command(command) => Some(&command.files),
            Self::Mapreduce(mapreduce) => Some(&mapreduce.files),
            Self::Sql(_) => None,
        }
    }

    pub(crate) fn files_mut(&mut self) -> Option<&mut BTreeMap<String, String>> {
        match self {
            Self::Command(command) => Some(&mut command.files),
            Self::Mapreduce(mapreduce) => Some(&mut mapreduce.files),
            Self::Sql(_) => None,
        }
    }

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
