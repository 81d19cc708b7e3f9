//! Rows of a reduce task's output.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, StringBuilder, UInt64Builder},
    datatypes::SchemaRef,
};

use crate::kinds::{
    TaskContext, TaskError, TaskOutput,
    table::{Layout, TableWriter},
};

/// A batch holds so many rows at most, and hardly more than so many bytes.
const ROWS: usize = 64 << 10;
const BATCH_BYTES: usize = 16 << 20;

/// Rows of a key, one number, and maybe a text, on their way into the task's part of the output. Bytes that are no
/// UTF-8 become U+FFFD; the order is that of the bytes.
pub(super) struct Rows<'a> {
    ctx: &'a TaskContext<'a>,
    schema: SchemaRef,
    writer: TableWriter,
    keys: StringBuilder,
    numbers: UInt64Builder,
    texts: StringBuilder,
    held: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn create(ctx: &'a TaskContext<'a>, schema: SchemaRef) -> Result<Self, TaskError> {
        let writer = TableWriter::create(ctx.out_dir, ctx.spec.task.index, &schema, Layout::of(ctx.job.output.format))?;
        let (keys, numbers, texts) = (StringBuilder::new(), UInt64Builder::new(), StringBuilder::new());
        Ok(Self { ctx, schema, writer, keys, numbers, texts, held: 0 })
    }

    pub(super) fn push(&mut self, key: &[u8], number: u64, text: Option<&[u8]>) -> Result<(), TaskError> {
        self.keys.append_value(String::from_utf8_lossy(key));
        self.numbers.append_value(number);
        if let Some(text) = text {
            self.texts.append_value(String::from_utf8_lossy(text));
        }
        self.held += 1;
        let bytes = self.keys.values_slice().len() + self.texts.values_slice().len();
        if self.held == ROWS || bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), TaskError> {
        let mut columns: Vec<ArrayRef> = vec![Arc::new(self.keys.finish()), Arc::new(self.numbers.finish())];
        let texts = self.texts.finish();
        if self.schema.fields().len() == 3 {
            columns.push(Arc::new(texts));
        }
        self.held = 0;
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
