//! The states that a task leaves to the last one, in the order in which they were made.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::RecordBatch,
    datatypes::{Field, Schema, SchemaRef},
};
use datafusion::{
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{
        ExecutionPlan,
        stream::RecordBatchStreamAdapter,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use forebay_datasets::volume::{NewFile, Volume};
use futures::stream;

use crate::kinds::{
    TaskError, Written,
    ipc::{self, BatchWriter},
};

/// Writes the states of a split.
pub(super) struct StateWriter {
    path: PathBuf,
    batches: BatchWriter<NewFile>,
    rows: u64,
}

impl StateWriter {
    pub(super) fn create(volume: &Volume, dir: &Path, schema: &Schema) -> Result<Self, TaskError> {
        let path = dir.join("states.arrows");
        let batches = BatchWriter::new(path.clone(), NewFile::create(&path)?, schema, ipc::compression(volume))?;
        Ok(Self { path, batches, rows: 0 })
    }

    pub(super) fn write(&mut self, states: &RecordBatch) -> Result<(), TaskError> {
        self.rows += states.num_rows() as u64;
        self.batches.write(states)
    }

    /// Syncs the file and gives it its name.
    pub(super) fn finish(self) -> Result<Written, TaskError> {
        let (size, checksum) = self.batches.finish()?.finish()?;
        // All states of a run are of one partition: what is above the aggregate wants all groups.
        let (partition, rows) = (Some(0), Some(self.rows));
        Ok(Written { path: self.path, publish_as: None, partition, size, checksum, rows })
    }
}

/// What reads the states of all splits, one file after the other.
pub(super) fn reader(schema: &SchemaRef, paths: Vec<PathBuf>) -> Result<Arc<dyn ExecutionPlan>> {
    let states = Arc::new(States { schema: Arc::clone(schema), paths });
    Ok(Arc::new(StreamingTableExec::try_new(Arc::clone(schema), vec![states], None, [], false, None)?))
}

#[derive(Debug)]
struct States {
    schema: SchemaRef,
    paths: Vec<PathBuf>,
}

impl PartitionStream for States {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let schema = Arc::clone(&self.schema);
        let batches = self.paths.clone().into_iter().flat_map(move |path| batches(&path, &schema));
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream::iter(batches)))
    }
}

/// The batches of one file, which is opened only now.
fn batches(path: &Path, schema: &SchemaRef) -> Box<dyn Iterator<Item = Result<RecordBatch>> + Send> {
    let failed = |error: TaskError| match error {
        TaskError::Io { path, source } => {
            DataFusionError::IoError(std::io::Error::new(source.kind(), format!("{}: {source}", path.display())))
        }
        error => DataFusionError::External(Box::new(error)),
    };
    let opened = match ipc::open(path) {
        Ok(opened) => opened,
        Err(error) => return Box::new(std::iter::once(Err(failed(error)))),
    };
    if !opened.schema().fields().iter().map(shape).eq(schema.fields().iter().map(shape)) {
        let what = format!("{} holds other states than those of this query", path.display());
        return Box::new(std::iter::once(Err(DataFusionError::Execution(what))));
    }
    let schema = Arc::clone(schema);
    Box::new(opened.map(move |batch| Ok(RecordBatch::try_new(Arc::clone(&schema), batch?.columns().to_vec())?)))
}

fn shape(field: &Arc<Field>) -> (&str, &arrow::datatypes::DataType) {
    (field.name(), field.data_type())
}
