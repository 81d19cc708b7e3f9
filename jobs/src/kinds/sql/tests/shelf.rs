//! Files on a volume, and queries over them, executed as a worker does it.

use std::{collections::BTreeMap, fs, path::Path};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use forebay_datasets::split::{Part, Piece};
use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::super::*;
use crate::{
    id::TaskId,
    kinds::{TaskContext, TaskOutput},
    spec::parse::job_file,
    task::{TaskInput, TaskSpec},
};

/// A volume that holds these files.
pub(super) struct Shelf {
    pub(super) root: TempDir,
    keys: Vec<String>,
}

impl Shelf {
    pub(super) fn new<K: AsRef<str>, B: AsRef<[u8]>>(files: impl IntoIterator<Item = (K, B)>) -> Self {
        let mut shelf = Self { root: TempDir::new().unwrap(), keys: Vec::new() };
        for dir in ["out", "scratch"] {
            fs::create_dir(shelf.root.path().join(dir)).unwrap();
        }
        for (key, bytes) in files {
            let path = shelf.root.path().join("data").join(key.as_ref());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            shelf.keys.push(key.as_ref().to_owned());
        }
        shelf
    }

    pub(super) fn volume(&self) -> Volume {
        Volume::open_or_create(self.root.path()).unwrap()
    }

    pub(super) fn split(&self) -> Split {
        let piece = |key: &String| {
            let path = format!("data/{key}");
            let size = fs::metadata(self.root.path().join(&path)).unwrap().len();
            Piece { key: key.clone(), path, size, partial: false, part: Part::Whole }
        };
        Split { pieces: self.keys.iter().map(piece).collect() }
    }

    /// Executes a job's query within some memory.
    pub(super) async fn run(&self, job: &str, memory: Option<u64>) -> Result<TaskOutput, TaskError> {
        self.run_over(self.split(), job, memory).await
    }

    pub(super) async fn run_over(&self, split: Split, job: &str, memory: Option<u64>) -> Result<TaskOutput, TaskError> {
        let (job, volume) = (spec(job), self.volume());
        let task = TaskSpec { task: TaskId { phase: 0, index: 0 }, count: 1, input: TaskInput::Split(split) };
        let dirs = ["out", "scratch"].map(|kind| self.root.path().join(kind));
        let never = CancellationToken::new();
        let plain = TaskContext::plain((&volume, &job, &task), &dirs, &never);
        execute(&TaskContext { threads: 2, memory, ..plain }).await
    }

    /// The lines of a query's CSV.
    pub(super) async fn lines(&self, rest: &str) -> Result<Vec<String>, String> {
        let output = self.run(&format!("{rest}\n[output]\nformat = 'csv'"), None).await.map_err(|e| e.to_string())?;
        let text = fs::read_to_string(&output.files[0].path).unwrap();
        Ok(text.lines().map(str::to_owned).collect())
    }

    pub(super) fn check(&self, rest: &str) -> Result<(), String> {
        let (job, split) = (spec(rest), self.split());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(check_staged(&self.volume(), &job, &split)).map(drop).map_err(|error| error.to_string())
    }
}

pub(super) fn spec(rest: &str) -> JobSpec {
    let text = format!("name = 'j'\n[dataset]\nsource = 's3://b'\n{rest}");
    job_file(&text, Path::new("/"), &[]).unwrap_or_else(|error| panic!("{error}: {text}"))
}

pub(super) fn batch(columns: &[(&str, ArrayRef)]) -> RecordBatch {
    RecordBatch::try_from_iter(columns.iter().map(|(name, array)| (*name, Arc::clone(array)))).unwrap()
}

pub(super) fn numbers(numbers: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(numbers))
}

pub(super) fn texts<const N: usize>(texts: [&str; N]) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(texts))
}

pub(super) fn parquet(columns: &[(&str, ArrayRef)]) -> Vec<u8> {
    let batch = batch(columns);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// What a run has published, by name.
pub(super) fn published(output: &TaskOutput) -> BTreeMap<String, String> {
    let text = |path: &Path| fs::read_to_string(path).unwrap();
    output.files.iter().map(|file| (file.publish_as.clone().unwrap(), text(&file.path))).collect()
}
