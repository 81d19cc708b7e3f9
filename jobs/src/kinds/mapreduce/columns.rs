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
        table::{self, Layout, TableWriter},
    },
    task::OutputFile,
};

/// What is known of a column. Numbers are compared as 64-bit floats, NaN the greatest; text by its bytes.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Stats {
    count: u64,
    nulls: u64,
    /// Of the values, those that were numbers where they stood.
    numbers: u64,
    #[serde(with = "bits")]
    sum: f64,
    least: Option<Bits>,
    most: Option<Bits>,
    text: Option<(String, String)>,
}

/// A float as JSON cannot write all of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Bits(#[serde(with = "bits")] f64);

mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        number.to_bits().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

impl Stats {
    fn of(column: &ArrayRef) -> Result<Self, arrow::error::ArrowError> {
        let nulls = column.logical_null_count() as u64;
        let mut stats = Self { count: column.len() as u64 - nulls, nulls, ..Self::default() };
        if column.data_type().is_numeric() {
            let numbers = cast(column, &DataType::Float64)?;
            let numbers = numbers.as_any().downcast_ref::<Float64Array>().expect("just cast");
            stats.numbers = stats.count;
            stats.sum = compute::sum(numbers).unwrap_or_default();
            (stats.least, stats.most) = (compute::min(numbers).map(Bits), compute::max(numbers).map(Bits));
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
        self.numbers += other.numbers;
        self.sum += other.sum;
        let by = |a: &Bits, b: &Bits| a.0.total_cmp(&b.0);
        self.least = self.least.into_iter().chain(other.least).min_by(by);
        self.most = self.most.into_iter().chain(other.most).max_by(by);
        self.text = match (self.text.take(), other.text) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
    }

    /// Least and most: of a column that is text in one file and numbers in another there are none.
    fn ends(&self) -> (Option<String>, Option<String>) {
        match self.numbers {
            0 => self.text.clone().unzip(),
            _ if self.is_numeric() => {
                (self.least.map(|Bits(least)| least.to_string()), self.most.map(|Bits(most)| most.to_string()))
            }
            _ => (None, None),
        }
    }

    fn mean(&self) -> Option<f64> {
        self.is_numeric().then(|| self.sum / self.numbers as f64)
    }

    fn is_numeric(&self) -> bool {
        self.numbers > 0 && self.numbers == self.count
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
    let mut pairs = shuffle::Pairs::new(ctx, partitions);
    for (name, stats) in columns {
        pairs.push(name.as_bytes(), &[&serde_json::to_vec(&stats).expect("plain fields serialise")])?;
    }
    Ok(TaskOutput { files: pairs.finish()?, metrics: [("rows".to_owned(), rows as f64)].into(), rest: None })
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
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(columns.keys().map(|name| String::from_utf8_lossy(name)))),
        Arc::new(UInt64Array::from_iter_values(stats().map(|stats| stats.count))),
        Arc::new(UInt64Array::from_iter_values(stats().map(|stats| stats.nulls))),
        Arc::new(stats().map(|stats| stats.ends().0).collect::<StringArray>()),
        Arc::new(stats().map(|stats| stats.ends().1).collect::<StringArray>()),
        Arc::new(stats().map(Stats::mean).collect::<Float64Array>()),
    ];
    let schema = Arc::new(Schema::new(vec![
        Field::new("column", DataType::Utf8, false),
        Field::new("count", DataType::UInt64, false),
        Field::new("nulls", DataType::UInt64, false),
        Field::new("min", DataType::Utf8, true),
        Field::new("max", DataType::Utf8, true),
        Field::new("mean", DataType::Float64, true),
    ]));
    let mut writer = TableWriter::create(ctx.out_dir, ctx.spec.task.index, &schema, Layout::of(ctx.job.output.format))?;
    let batch = RecordBatch::try_new(schema, arrays);
    writer.write(&batch.map_err(|source| TaskError::Table { what: "column-stats".to_owned(), source })?)?;
    Ok(TaskOutput { files: vec![writer.finish()?], ..TaskOutput::default() })
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;

    use super::*;

    fn travelled(stats: &Stats) -> Stats {
        serde_json::from_slice(&serde_json::to_vec(stats).unwrap()).unwrap()
    }

    #[test]
    fn floats_that_json_cannot_write_arrive() {
        let column: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN, f64::NEG_INFINITY]));
        let stats = travelled(&Stats::of(&column).unwrap());
        assert_eq!(stats.ends(), (Some("-inf".into()), Some("NaN".into())));
        assert!(stats.mean().unwrap().is_nan());
    }

    #[test]
    fn a_column_of_numbers_here_and_text_there_has_no_mean() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["n/a", "3"]));
        let mut stats = Stats::of(&numbers).unwrap();
        assert_eq!((stats.ends(), stats.mean()), ((Some("1".into()), Some("2".into())), Some(1.5)));
        stats.add(Stats::of(&texts).unwrap());
        assert_eq!((stats.count, stats.ends(), stats.mean()), (4, (None, None), None));
    }
}
