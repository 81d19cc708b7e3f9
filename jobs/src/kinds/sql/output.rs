//! What a query leaves: files, the records that it skipped, and figures.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Schema, SchemaRef},
};
use datafusion::{
    execution::TaskContext as QueryContext,
    physical_plan::{ExecutionPlan, execute_stream},
};
use futures::StreamExt;

use super::{
    bad::{BadRecord, BadRecords},
    execute::Stopped,
    memory, views,
};
use crate::{
    kinds::{
        TaskContext, TaskError, TaskOutput, Written,
        partitioned::PartitionedWriter,
        table::{Layout, TableWriter, write_lines},
    },
    spec::{OnBadRecord, OutputFormat, OutputSpec},
};

/// Executes a plan, and writes its rows as the job's output.
pub(super) async fn written(
    ctx: &TaskContext<'_>,
    plan: &Arc<dyn ExecutionPlan>,
    context: Arc<QueryContext>,
) -> Result<TaskOutput, Stopped> {
    let mut stream = execute_stream(Arc::clone(plan), context)?;
    let mut sink = Sink::create(ctx, &stream.schema())?;
    while let Some(batch) = stream.next().await {
        sink.write(&batch?)?;
    }
    Ok(TaskOutput { files: sink.finish()?, metrics: metrics(plan), rest: None })
}

/// The files that a query's rows go to.
pub(super) struct Sink {
    columns: SchemaRef,
    writer: Writer,
}

enum Writer {
    One(Box<TableWriter>),
    Partitioned(Box<PartitionedWriter>),
}

impl Sink {
    pub(super) fn create(ctx: &TaskContext<'_>, schema: &SchemaRef) -> Result<Self, TaskError> {
        let output = &ctx.job.output;
        let row_group = output.row_group_size.unwrap_or_else(|| memory::row_group(ctx.memory));
        let layout = Layout { format: output.format, row_group: Some(row_group) };
        let index = ctx.spec.task.index;
        let columns = Arc::new(views::plain(schema));
        let writer = match output.partition_by.is_empty() {
            true => Writer::One(Box::new(TableWriter::create(ctx.out_dir, index, &columns, layout)?)),
            false => {
                let (dir, most) = (ctx.out_dir, memory::writers(ctx.memory));
                let writer = PartitionedWriter::create(dir, index, &columns, layout, &output.partition_by, most)?;
                Writer::Partitioned(Box::new(writer))
            }
        };
        Ok(Self { columns, writer })
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), TaskError> {
        let batch = views::without(batch, &self.columns);
        let batch = batch.map_err(|source| TaskError::Table { what: "the rows of the query".to_owned(), source })?;
        match &mut self.writer {
            Writer::One(writer) => writer.write(&batch),
            Writer::Partitioned(writer) => writer.write(&batch),
        }
    }

    pub(super) fn finish(self) -> Result<Vec<Written>, TaskError> {
        match self.writer {
            Writer::One(writer) => Ok(vec![writer.finish()?]),
            Writer::Partitioned(writer) => writer.finish(),
        }
    }
}

/// Lists the records that were skipped in the output, if there are any.
pub(super) fn list_skipped(ctx: &TaskContext<'_>, bad: &BadRecords, output: &mut TaskOutput) -> Result<(), TaskError> {
    if ctx.job.dataset.on_bad_record != OnBadRecord::Skip {
        return Ok(());
    }
    let skipped = bad.skipped().map_err(|source| TaskError::Io { path: ctx.volume.root().to_owned(), source })?;
    let line = |BadRecord { key, line, why }: &BadRecord| serde_json::json!({ "key": key, "line": line, "why": why });
    if !skipped.is_empty() {
        let name = format!("_skipped/part-{:05}.ndjson", ctx.spec.task.index);
        output.files.push(write_lines(ctx.out_dir, &name, skipped.iter().map(line))?);
    }
    output.metrics.insert("skipped_records".to_owned(), skipped.len() as f64);
    Ok(())
}

/// What is told of a plan that was executed.
pub(super) fn metrics(plan: &Arc<dyn ExecutionPlan>) -> BTreeMap<String, f64> {
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
                    views::plain_type(field.data_type())
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
        Some(field) => wrong(format!(
            "format: `{}` is {}, which CSV cannot hold",
            field.name(),
            views::plain_type(field.data_type())
        )),
        None => Ok(()),
    }
}

fn is_bytes(data_type: &DataType) -> bool {
    use DataType::{Binary, BinaryView, FixedSizeBinary, LargeBinary};
    matches!(data_type, Binary | BinaryView | FixedSizeBinary(_) | LargeBinary)
}
