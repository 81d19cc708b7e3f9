//! The built-in column-stats: count, nulls, minimum, maximum and mean of every column.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array},
    compute::{self, cast},
    datatypes::{DataType, Field, Schema},
};
use forebay_datasets::split::Piece;
use serde::{Deserialize, Serialize};

use super::shuffle;
use crate::{
    kinds::{
        TaskContext, TaskError, TaskOutput,
        table::{self, TableWriter},
    },
    task::OutputFile,
};

/// What is known of a column; for text, minimum and maximum are by bytes, and there is no sum.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Stats {
    count: u64,
    nulls: u64,
    sum: Option<f64>,
    number: Option<(f64, f64)>,
    text: Option<(String, String)>,
}

impl Stats {
    fn of(column: &ArrayRef) -> Result<Self, arrow::error::ArrowError> {
        let nulls = column.logical_null_count() as u64;
        let mut stats = Self { count: column.len() as u64 - nulls, nulls, ..Self::default() };
        if column.data_type().is_numeric() {
            let numbers = cast(column, &DataType::Float64)?;
            let numbers = numbers.as_any().downcast_ref::<Float64Array>().expect("just cast");
            stats.sum = compute::sum(numbers);
            stats.number = compute::min(numbers).zip(compute::max(numbers));
        } else if arrow::compute::can_cast_types(column.data_type(), &DataType::Utf8) {
            let texts = cast(column, &DataType::Utf8)?;
            let texts = texts.as_any().downcast_ref::<StringArray>().expect("just cast");
            let ends = compute::min_string(texts).zip(compute::max_string(texts));
            stats.text = ends.map(|(least, most)| (least.to_owned(), most.to_owned()));
        }
        Ok(stats)
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.nulls += other.nulls;
        self.sum = match (self.sum, other.sum) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        self.number = match (self.number, other.number) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
        self.text = match (self.text.take(), other.text) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
    }
}

pub(super) fn map(ctx: &TaskContext<'_>, pieces: &[Piece], partitions: u32) -> Result<TaskOutput, TaskError> {
    let mut columns = BTreeMap::<String, Stats>::new();
    let mut rows = 0;
    for piece in pieces {
        let bad = |source| TaskError::Table { what: piece.key.clone(), source };
        for batch in table::read(ctx.volume, piece)? {
            if ctx.cancel.is_cancelled() {
                return Err(TaskError::Cancelled);
            }
            let batch = batch.map_err(bad)?;
            rows += batch.num_rows();
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                columns.entry(field.name().clone()).or_default().add(Stats::of(column).map_err(bad)?);
            }
        }
    }
    let encode = |(name, stats)| (name, serde_json::to_vec(&stats).expect("plain fields serialise"));
    let files = shuffle::write(ctx, columns.into_iter().map(encode).collect(), partitions)?;
    Ok(TaskOutput { files, metrics: [("rows".to_owned(), rows as f64)].into() })
}

pub(super) fn reduce(ctx: &TaskContext<'_>, files: &[OutputFile]) -> Result<TaskOutput, TaskError> {
    let mut columns = BTreeMap::<Vec<u8>, Stats>::new();
    shuffle::merge(ctx, files, |key, value| {
        let stats = serde_json::from_slice(value)
            .map_err(|error| TaskError::BadInput(format!("a file between map and reduce is broken: {error}")))?;
        columns.entry(key.to_vec()).or_default().add(stats);
        Ok(())
    })?;
    let stats = || columns.values();
    let end = |stats: &Stats, of: fn(&(f64, f64)) -> f64, text: fn(&(String, String)) -> &String| {
        stats.number.as_ref().map(|ends| of(ends).to_string()).or_else(|| stats.text.as_ref().map(text).cloned())
    };
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(columns.keys().map(|name| String::from_utf8_lossy(name)))),
        Arc::new(UInt64Array::from_iter_values(stats().map(|stats| stats.count))),
        Arc::new(UInt64Array::from_iter_values(stats().map(|stats| stats.nulls))),
        Arc::new(stats().map(|stats| end(stats, |ends| ends.0, |ends| &ends.0)).collect::<StringArray>()),
        Arc::new(stats().map(|stats| end(stats, |ends| ends.1, |ends| &ends.1)).collect::<StringArray>()),
        Arc::new(stats().map(|stats| stats.sum.map(|sum| sum / stats.count as f64)).collect::<Float64Array>()),
    ];
    let schema = Arc::new(Schema::new(vec![
        Field::new("column", DataType::Utf8, false),
        Field::new("count", DataType::UInt64, false),
        Field::new("nulls", DataType::UInt64, false),
        Field::new("min", DataType::Utf8, true),
        Field::new("max", DataType::Utf8, true),
        Field::new("mean", DataType::Float64, true),
    ]));
    let mut writer = TableWriter::create(ctx.out_dir, ctx.spec.task.index, &schema, ctx.job.output.format)?;
    let batch = RecordBatch::try_new(schema, arrays);
    writer.write(&batch.map_err(|source| TaskError::Table { what: "column-stats".to_owned(), source })?)?;
    Ok(TaskOutput { files: vec![writer.finish()?], ..TaskOutput::default() })
}
