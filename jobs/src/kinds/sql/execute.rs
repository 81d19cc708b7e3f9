//! A query, executed within its worker's memory, and its output.
//!
//! A plan that asks for more memory than there is, where nothing can be spilled any more, is made again in a way that
//! needs less ([`Thrift`]): sorts and merges of joins spill, the hash table of a join does not.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Schema, SchemaRef},
};
use datafusion::{
    error::DataFusionError,
    physical_plan::{ExecutionPlan, execute_stream},
    prelude::SessionConfig,
};
use forebay_datasets::split::Split;
use futures::StreamExt;

use super::{
    bad::{BadRecord, BadRecords},
    blame, cause,
    distributed::{self, Current},
    engine,
    held::NotHeld,
    memory, passing, query_of, readable,
    session::{Over, Session},
};
use crate::{
    kinds::{
        TaskContext, TaskError, TaskOutput, Written,
        partitioned::PartitionedWriter,
        table::{Layout, TableWriter, write_lines},
    },
    spec::{Engine, OnBadRecord, OutputFormat, OutputSpec},
    task::TaskInput,
};

/// How sparing of memory a plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thrift {
    /// As fast as it can be.
    None,
    /// Joins sort and merge.
    Merge,
    /// And few threads share the memory, in smaller batches.
    Small,
}

impl Thrift {
    fn next(self) -> Option<Self> {
        match self {
            Self::None => Some(Self::Merge),
            Self::Merge => Some(Self::Small),
            Self::Small => None,
        }
    }

    fn apply(self, mut config: SessionConfig) -> SessionConfig {
        if self != Self::None {
            config.options_mut().optimizer.prefer_hash_join = false;
        }
        match self {
            Self::None | Self::Merge => config,
            Self::Small => {
                // With one DataFusion would not merge.
                let batch = config.batch_size().min(1024);
                config.with_target_partitions(2).with_batch_size(batch)
            }
        }
    }
}

/// Executes the query of the task's job.
pub async fn execute(ctx: &TaskContext<'_>) -> Result<TaskOutput, TaskError> {
    let current = Current::default();
    tokio::select! {
        () = ctx.cancel.cancelled() => {
            current.cancel().await;
            Err(TaskError::Cancelled)
        }
        output = query(ctx, &current) => output,
    }
}

async fn query(ctx: &TaskContext<'_>, current: &Current) -> Result<TaskOutput, TaskError> {
    let TaskInput::Split(split) = &ctx.spec.input else {
        return Err(TaskError::BadInput("the task is no query".to_owned()));
    };
    match engine::choose_over(ctx.job, split).engine {
        Engine::Datafusion => query_by(Engine::Datafusion, ctx, split, current).await,
        Engine::Ballista => match query_by(Engine::Ballista, ctx, split, current).await {
            Err(TaskError::Unfit(why)) => match distributed::refusal(ctx.job, &why) {
                Some(refusal) => Err(refusal),
                None => {
                    tracing::info!(%why, "Ballista cannot execute the query: DataFusion does, in this worker");
                    query_by(Engine::Datafusion, ctx, split, current).await
                }
            },
            output => output,
        },
    }
}

async fn query_by(
    engine: Engine,
    ctx: &TaskContext<'_>,
    split: &Split,
    current: &Current,
) -> Result<TaskOutput, TaskError> {
    let sql = query_of(ctx.job)?;
    let failed = |error: &DataFusionError| failed(error, ctx.scratch_dir, ctx.memory);
    let mut config = engine::config_of(engine, ctx.job, ctx.threads).map_err(|error| failed(&error))?;
    memory::fit(&mut config, ctx.threads, ctx.memory, &sql.options);
    let runtime = || memory::runtime(ctx.memory, ctx.scratch_dir).map_err(|error| failed(&error));
    let over = Over { volume: ctx.volume, sql, split, on_bad_record: ctx.job.dataset.on_bad_record };
    let mut session = Session::open(over, &config, &runtime()?).await?;
    let (mut thrift, mut plans) = (Thrift::None, 1.0);
    loop {
        let done = match engine {
            Engine::Datafusion => run(ctx, &session).await,
            Engine::Ballista => distributed::run(ctx, &session, &thrift.apply(config.clone()), current).await,
        };
        let error = match done {
            Ok(mut output) => {
                output.metrics.insert("plans".to_owned(), plans);
                return Ok(output);
            }
            Err(Stopped::Task(error)) => return Err(error),
            Err(Stopped::Query(error)) => error,
        };
        match thrift.next().filter(|_| is_exhausted(&error)) {
            Some(next) => {
                tracing::info!(%error, ?next, "the plan needs too much memory");
                session = session.with(next.apply(config.clone()), runtime()?);
                (thrift, plans) = (next, plans + 1.0);
            }
            None => {
                let blamed = blame::of(&error, &session).await;
                return Err(blamed.unwrap_or_else(|| failed(&error)));
            }
        }
    }
}

/// Why a plan did not come to its end.
pub(super) enum Stopped {
    Query(DataFusionError),
    Task(TaskError),
}

impl From<DataFusionError> for Stopped {
    fn from(error: DataFusionError) -> Self {
        Self::Query(error)
    }
}

impl From<TaskError> for Stopped {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}

async fn run(ctx: &TaskContext<'_>, session: &Session) -> Result<TaskOutput, Stopped> {
    let frame = session.frame().await?;
    check_output(frame.schema().as_arrow(), &ctx.job.output)?;
    let context = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await?;
    let mut stream = execute_stream(Arc::clone(&plan), context)?;
    let mut sink = Sink::create(ctx, &stream.schema())?;
    while let Some(batch) = stream.next().await {
        sink.write(&batch?)?;
    }
    let mut metrics = metrics(&plan);
    let mut files = sink.finish()?;
    if ctx.job.dataset.on_bad_record == OnBadRecord::Skip {
        let (listed, count) = skipped(ctx, &session.bad)?;
        files.extend(listed);
        metrics.insert("skipped_records".to_owned(), count);
    }
    Ok(TaskOutput { files, metrics, rest: None })
}

/// The files that a query's rows go to.
pub(super) enum Sink {
    One(Box<TableWriter>),
    Partitioned(Box<PartitionedWriter>),
}

impl Sink {
    pub(super) fn create(ctx: &TaskContext<'_>, schema: &SchemaRef) -> Result<Self, TaskError> {
        let output = &ctx.job.output;
        let row_group = output.row_group_size.unwrap_or_else(|| memory::row_group(ctx.memory));
        let layout = Layout { format: output.format, row_group: Some(row_group) };
        let index = ctx.spec.task.index;
        Ok(match output.partition_by.is_empty() {
            true => Self::One(Box::new(TableWriter::create(ctx.out_dir, index, schema, layout)?)),
            false => {
                let most = memory::writers(ctx.memory);
                let writer = PartitionedWriter::create(ctx.out_dir, index, schema, layout, &output.partition_by, most)?;
                Self::Partitioned(Box::new(writer))
            }
        })
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), TaskError> {
        match self {
            Self::One(writer) => writer.write(batch),
            Self::Partitioned(writer) => writer.write(batch),
        }
    }

    pub(super) fn finish(self) -> Result<Vec<Written>, TaskError> {
        match self {
            Self::One(writer) => Ok(vec![writer.finish()?]),
            Self::Partitioned(writer) => writer.finish(),
        }
    }
}

/// Lists the records that were skipped in the output, if there are any.
fn skipped(ctx: &TaskContext<'_>, bad: &BadRecords) -> Result<(Option<Written>, f64), TaskError> {
    let skipped = bad.skipped().map_err(|source| TaskError::Io { path: ctx.volume.root().to_owned(), source })?;
    let line = |BadRecord { key, line, why }: &BadRecord| serde_json::json!({ "key": key, "line": line, "why": why });
    let listed = match skipped.is_empty() {
        true => None,
        false => Some(write_lines(
            ctx.out_dir,
            &format!("_skipped/part-{:05}.ndjson", ctx.spec.task.index),
            skipped.iter().map(line),
        )?),
    };
    Ok((listed, skipped.len() as f64))
}

/// What is told of a plan that was executed.
fn metrics(plan: &Arc<dyn ExecutionPlan>) -> BTreeMap<String, f64> {
    let (mut sums, mut open) = (BTreeMap::<&str, usize>::new(), vec![Arc::clone(plan)]);
    while let Some(plan) = open.pop() {
        open.extend(plan.children().into_iter().map(Arc::clone));
        let Some(metrics) = plan.metrics() else { continue };
        let by_name = |name: &str| metrics.sum_by_name(name).map(|value| value.as_usize());
        for (name, value) in [
            ("spills", metrics.spill_count()),
            ("spilled_bytes", metrics.spilled_bytes()),
            ("spilled_rows", metrics.spilled_rows()),
            ("bytes_scanned", by_name("bytes_scanned")),
        ] {
            *sums.entry(name).or_default() += value.unwrap_or(0);
        }
    }
    sums.into_iter().map(|(name, sum)| (name.to_owned(), sum as f64)).collect()
}

/// Finds what is wrong with where rows of these columns are to go.
pub(super) fn check_output(schema: &Schema, output: &OutputSpec) -> Result<(), TaskError> {
    let wrong = |what: String| Err(TaskError::BadInput(format!("[output] {what}")));
    for name in &output.partition_by {
        let known = || schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
        match schema.fields().iter().filter(|field| field.name() == name).collect::<Vec<_>>()[..] {
            [] => return wrong(format!("partition_by names the column `{name}`, and the query gives {}", known())),
            [field] if field.data_type().is_nested() || is_bytes(field.data_type()) => {
                return wrong(format!(
                    "partition_by: `{name}` is {}, which no directory can be named by",
                    field.data_type()
                ));
            }
            [_] => {}
            _ => return wrong(format!("partition_by: the query gives `{name}` twice")),
        }
    }
    if !output.partition_by.is_empty() && output.partition_by.len() == schema.fields().len() {
        return wrong("partition_by names all columns of the query, and none is left for the files".to_owned());
    }
    let nested = || schema.fields().iter().find(|field| field.data_type().is_nested());
    match nested().filter(|_| output.format == OutputFormat::Csv) {
        Some(field) => wrong(format!("format: `{}` is {}, which CSV cannot hold", field.name(), field.data_type())),
        None => Ok(()),
    }
}

fn is_bytes(data_type: &DataType) -> bool {
    use DataType::{Binary, BinaryView, FixedSizeBinary, LargeBinary};
    matches!(data_type, Binary | BinaryView | FixedSizeBinary(_) | LargeBinary)
}

pub(super) fn is_exhausted(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::ResourcesExhausted(_))
}

/// What an error of a query's is. `path` is where it reads and writes.
pub(super) fn failed(error: &DataFusionError, path: &Path, memory: Option<u64>) -> TaskError {
    if let Some(not_held) = cause::<NotHeld>(error) {
        return not_held.into();
    }
    if let Some(record) = cause::<BadRecord>(error) {
        return TaskError::BadInput(record.to_string());
    }
    if let Some(source) = passing(error) {
        let source = io::Error::new(source.kind(), readable(error));
        return TaskError::Io { path: path.to_owned(), source };
    }
    match (is_exhausted(error), memory) {
        (true, Some(memory)) => TaskError::BadInput(format!(
            "the query needs more memory than the {} MiB of its worker, and can spill no more of it: give [workers] \
             memory more ({})",
            memory >> 20,
            readable(error)
        )),
        _ => super::bad_query(error),
    }
}
