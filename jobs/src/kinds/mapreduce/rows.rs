//! Rows of a reduce task's output.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder, UInt64Builder},
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use crate::kinds::{
    TaskContext, TaskError, TaskOutput,
    table::{Layout, TableWriter},
};

/// A batch holds so many rows at most, and hardly more than so many bytes.
const ROWS: usize = 64 << 10;
const BATCH_BYTES: usize = 16 << 20;

/// A column of what a reduce writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column(Field);

impl Column {
    /// Of text. Bytes that are no UTF-8 become U+FFFD.
    pub fn text(name: &str) -> Self {
        Self(Field::new(name, DataType::Utf8, true))
    }

    /// Of whole numbers from 0 on, of 64 bits.
    pub fn uint(name: &str) -> Self {
        Self(Field::new(name, DataType::UInt64, true))
    }

    /// Of whole numbers of 64 bits, with a sign.
    pub fn int(name: &str) -> Self {
        Self(Field::new(name, DataType::Int64, true))
    }

    /// Of floating-point numbers of 64 bits.
    pub fn float(name: &str) -> Self {
        Self(Field::new(name, DataType::Float64, true))
    }

    /// Of true and false.
    pub fn bool(name: &str) -> Self {
        Self(Field::new(name, DataType::Boolean, true))
    }

    /// No row is without a value in it.
    #[must_use]
    pub fn required(self) -> Self {
        Self(self.0.with_nullable(false))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0.name()
    }
}

/// What a row has in a column; made of texts, numbers and options of them by `into`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    /// No value.
    Null,
    /// Of a column of text.
    Text(&'a [u8]),
    /// Of a column of whole numbers from 0 on, or of any whole numbers that can hold it.
    Uint(u64),
    /// Of a column of whole numbers.
    Int(i64),
    /// Of a column of floating-point numbers.
    Float(f64),
    /// Of a column of true and false.
    Bool(bool),
}

macro_rules! cells {
    ($($kind:ty => $value:ident, $cell:expr;)*) => {
        $(impl<'a> From<$kind> for Cell<'a> {
            fn from($value: $kind) -> Self {
                $cell
            }
        })*
    };
}

cells! {
    &'a [u8] => text, Self::Text(text);
    &'a Vec<u8> => text, Self::Text(text);
    &'a str => text, Self::Text(text.as_bytes());
    &'a String => text, Self::Text(text.as_bytes());
    u64 => number, Self::Uint(number);
    u32 => number, Self::Uint(number.into());
    usize => number, Self::Uint(number as u64);
    i64 => number, Self::Int(number);
    i32 => number, Self::Int(number.into());
    f64 => number, Self::Float(number);
    bool => answer, Self::Bool(answer);
}

impl<'a, T: Into<Cell<'a>>> From<Option<T>> for Cell<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Rows on their way into the task's part of the output, in the order in which they come.
pub(super) struct RowWriter<'a> {
    ctx: &'a TaskContext<'a>,
    schema: SchemaRef,
    writer: TableWriter,
    columns: Vec<Values>,
    held: usize,
    /// Of text that is held.
    bytes: usize,
    rows: u64,
}

enum Values {
    Text(StringBuilder),
    Uint(UInt64Builder),
    Int(Int64Builder),
    Float(Float64Builder),
    Bool(BooleanBuilder),
}

impl Values {
    fn of(kind: &DataType) -> Self {
        match kind {
            DataType::UInt64 => Self::Uint(UInt64Builder::new()),
            DataType::Int64 => Self::Int(Int64Builder::new()),
            DataType::Float64 => Self::Float(Float64Builder::new()),
            DataType::Boolean => Self::Bool(BooleanBuilder::new()),
            // There is no column of anything else.
            _ => Self::Text(StringBuilder::new()),
        }
    }

    /// Adds a cell; false if it is of another kind.
    fn push(&mut self, cell: Cell<'_>) -> bool {
        match (self, cell) {
            (Self::Text(texts), Cell::Text(text)) => texts.append_value(String::from_utf8_lossy(text)),
            (Self::Uint(numbers), Cell::Uint(number)) => numbers.append_value(number),
            (Self::Int(numbers), Cell::Int(number)) => numbers.append_value(number),
            (Self::Int(numbers), Cell::Uint(number)) => match i64::try_from(number) {
                Ok(number) => numbers.append_value(number),
                Err(_) => return false,
            },
            (Self::Float(numbers), Cell::Float(number)) => numbers.append_value(number),
            (Self::Bool(answers), Cell::Bool(answer)) => answers.append_value(answer),
            (Self::Text(texts), Cell::Null) => texts.append_null(),
            (Self::Uint(numbers), Cell::Null) => numbers.append_null(),
            (Self::Int(numbers), Cell::Null) => numbers.append_null(),
            (Self::Float(numbers), Cell::Null) => numbers.append_null(),
            (Self::Bool(answers), Cell::Null) => answers.append_null(),
            _ => return false,
        }
        true
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Text(texts) => Arc::new(texts.finish()),
            Self::Uint(numbers) => Arc::new(numbers.finish()),
            Self::Int(numbers) => Arc::new(numbers.finish()),
            Self::Float(numbers) => Arc::new(numbers.finish()),
            Self::Bool(answers) => Arc::new(answers.finish()),
        }
    }
}

impl<'a> RowWriter<'a> {
    pub(super) fn create(ctx: &'a TaskContext<'a>, columns: &[Column]) -> Result<Self, TaskError> {
        let schema: SchemaRef =
            Arc::new(Schema::new(columns.iter().map(|column| column.0.clone()).collect::<Vec<_>>()));
        let writer = TableWriter::create(ctx.out_dir, ctx.spec.task.index, &schema, Layout::of(ctx.job.output.format))?;
        let columns = columns.iter().map(|column| Values::of(column.0.data_type())).collect();
        Ok(Self { ctx, schema, writer, columns, held: 0, bytes: 0, rows: 0 })
    }

    /// Adds a row: a cell for each column.
    pub(super) fn push(&mut self, cells: &[Cell<'_>]) -> Result<(), TaskError> {
        if cells.len() != self.columns.len() {
            let names: Vec<_> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
            let (has, wants) = (cells.len(), names.join(", "));
            return Err(TaskError::BadInput(format!("a row has {has} cells, and the columns are {wants}")));
        }
        for ((field, column), cell) in self.schema.fields().iter().zip(&mut self.columns).zip(cells) {
            if (*cell == Cell::Null && !field.is_nullable()) || !column.push(*cell) {
                let (name, kind) = (field.name(), field.data_type());
                return Err(TaskError::BadInput(format!(
                    "the column `{name}` is of {kind}, and a row has {cell:?} there"
                )));
            }
            if let Cell::Text(text) = cell {
                self.bytes += text.len();
            }
        }
        self.held += 1;
        self.rows += 1;
        if self.held == ROWS || self.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    /// How many there were.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    fn flush(&mut self) -> Result<(), TaskError> {
        let columns = self.columns.iter_mut().map(Values::finish).collect();
        (self.held, self.bytes) = (0, 0);
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns);
        let what = || format!("part {}", self.ctx.spec.task.index);
        self.writer.write(&batch.map_err(|source| TaskError::Table { what: what(), source })?)
    }

    pub(super) fn finish(mut self) -> Result<TaskOutput, TaskError> {
        if self.held > 0 {
            self.flush()?;
        }
        Ok(TaskOutput { files: vec![self.writer.finish()?], ..TaskOutput::default() })
    }
}
