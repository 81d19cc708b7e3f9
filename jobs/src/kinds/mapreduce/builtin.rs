//! The built-ins over lines: word-count, line-count, grep.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, StringBuilder, UInt64Builder},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use forebay_datasets::{
    read::{PieceBytes, lines, piece_bytes},
    split::{Piece, Split},
};
use regex::bytes::Regex;

use super::shuffle;
use crate::{
    kinds::{
        TaskContext, TaskError, TaskOutput,
        table::{Layout, TableWriter},
    },
    task::OutputFile,
};

/// A batch holds so many rows at most, and hardly more than so many bytes.
const ROWS: usize = 64 << 10;
const BATCH_BYTES: usize = 16 << 20;

/// So much is read at a time. In between a task looks whether it is to end, or to leave the rest to others.
const PART: u64 = 4 << 20;

/// Maps the records of pieces, part by part and in order. Says what it left unread, once it was asked to yield and has
/// read something.
fn each_part(
    ctx: &TaskContext<'_>,
    pieces: &[Piece],
    mut map: impl FnMut(&Piece, &PieceBytes),
) -> Result<Option<Split>, TaskError> {
    let mut yields = false;
    for (at, piece) in pieces.iter().enumerate() {
        for part in piece.parts(PART) {
            if ctx.cancel.is_cancelled() {
                return Err(TaskError::Cancelled);
            }
            if yields {
                let rest = std::iter::once(piece.from(&part)).chain(pieces[at + 1..].iter().cloned());
                return Ok(Some(Split { pieces: rest.collect() }));
            }
            map(piece, &piece_bytes(ctx.volume, &part)?);
            yields = ctx.yields.is_cancelled();
        }
    }
    Ok(None)
}

type Counts = HashMap<Box<[u8]>, u64>;

/// Words are runs of bytes other than ASCII white space: space, `\t`, `\n`, `\v`, `\f`, `\r`.
pub(super) fn count_words(ctx: &TaskContext<'_>, pieces: &[Piece], partitions: u32) -> Result<TaskOutput, TaskError> {
    let is_space = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    let mut counts = Counts::new();
    let rest = each_part(ctx, pieces, |_, bytes| {
        for word in bytes.split(is_space).filter(|word| !word.is_empty()) {
            match counts.get_mut(word) {
                Some(count) => *count += 1,
                None => drop(counts.insert(word.into(), 1)),
            }
        }
    })?;
    let words: u64 = counts.values().sum();
    let pairs = counts.into_iter().map(|(word, count)| (word, count.to_le_bytes())).collect();
    let files = shuffle::write(ctx, pairs, partitions)?;
    Ok(TaskOutput { files, metrics: [("words".to_owned(), words as f64)].into(), rest })
}

pub(super) fn count_lines(ctx: &TaskContext<'_>, pieces: &[Piece], partitions: u32) -> Result<TaskOutput, TaskError> {
    let mut counts: Vec<(String, u64)> = Vec::new();
    let rest = each_part(ctx, pieces, |piece, bytes| {
        let found = lines(bytes).count() as u64;
        match counts.last_mut() {
            Some((key, count)) if *key == piece.key => *count += found,
            _ => counts.push((piece.key.clone(), found)),
        }
    })?;
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let pairs = counts.into_iter().map(|(key, count)| (key, count.to_le_bytes())).collect();
    let files = shuffle::write(ctx, pairs, partitions)?;
    Ok(TaskOutput { files, metrics: [("lines".to_owned(), total as f64)].into(), rest })
}

/// Adds up the counts of each key.
pub(super) fn sum(
    ctx: &TaskContext<'_>,
    files: &[OutputFile],
    key_name: &str,
    count_name: &str,
) -> Result<TaskOutput, TaskError> {
    let fields = vec![Field::new(key_name, DataType::Utf8, false), Field::new(count_name, DataType::UInt64, false)];
    let mut rows = Rows::create(ctx, Arc::new(Schema::new(fields)))?;
    let mut held: Option<(Vec<u8>, u64)> = None;
    shuffle::merge(ctx, files, |key, value| {
        let count = number(value)?;
        match &mut held {
            Some((word, sum)) if word == key => *sum += count,
            _ => {
                let done = held.replace((key.to_vec(), count));
                done.map_or(Ok(()), |(word, sum)| rows.push(&word, sum, None))?;
            }
        }
        Ok(())
    })?;
    held.map_or(Ok(()), |(word, sum)| rows.push(&word, sum, None))?;
    rows.finish()
}

/// A match's key is its object; its value is the line's offset and the line.
pub(super) fn grep(
    ctx: &TaskContext<'_>,
    pieces: &[Piece],
    pattern: &str,
    partitions: u32,
) -> Result<TaskOutput, TaskError> {
    let pattern = Regex::new(pattern).map_err(|error| TaskError::BadInput(error.to_string()))?;
    let mut pairs = Vec::new();
    let rest = each_part(ctx, pieces, |piece, bytes| {
        for (at, line) in lines(bytes).filter(|(_, line)| pattern.is_match(line)) {
            let mut value = (bytes.offset + at as u64).to_be_bytes().to_vec();
            value.extend_from_slice(line);
            pairs.push((piece.key.clone(), value));
        }
    })?;
    let metrics = [("matches".to_owned(), pairs.len() as f64)].into();
    Ok(TaskOutput { files: shuffle::write(ctx, pairs, partitions)?, metrics, rest })
}

pub(super) fn matches(ctx: &TaskContext<'_>, files: &[OutputFile]) -> Result<TaskOutput, TaskError> {
    let field = |name, kind| Field::new(name, kind, false);
    let fields = vec![field("key", DataType::Utf8), field("offset", DataType::UInt64), field("line", DataType::Utf8)];
    let mut rows = Rows::create(ctx, Arc::new(Schema::new(fields)))?;
    shuffle::merge(ctx, files, |key, value| {
        let (offset, line) = value.split_first_chunk::<8>().ok_or_else(|| malformed("a match"))?;
        rows.push(key, u64::from_be_bytes(*offset), Some(line))
    })?;
    rows.finish()
}

fn number(value: &[u8]) -> Result<u64, TaskError> {
    Ok(u64::from_le_bytes(value.try_into().map_err(|_| malformed("a count"))?))
}

fn malformed(what: &str) -> TaskError {
    TaskError::BadInput(format!("a file between map and reduce holds something else than {what}"))
}

/// Rows of a key, one number, and maybe a text, on their way into the task's part of the output. Bytes that are no
/// UTF-8 become U+FFFD; the order is that of the bytes.
struct Rows<'a> {
    ctx: &'a TaskContext<'a>,
    schema: SchemaRef,
    writer: TableWriter,
    keys: StringBuilder,
    numbers: UInt64Builder,
    texts: StringBuilder,
    held: usize,
}

impl<'a> Rows<'a> {
    fn create(ctx: &'a TaskContext<'a>, schema: SchemaRef) -> Result<Self, TaskError> {
        let writer = TableWriter::create(ctx.out_dir, ctx.spec.task.index, &schema, Layout::of(ctx.job.output.format))?;
        let (keys, numbers, texts) = (StringBuilder::new(), UInt64Builder::new(), StringBuilder::new());
        Ok(Self { ctx, schema, writer, keys, numbers, texts, held: 0 })
    }

    fn push(&mut self, key: &[u8], number: u64, text: Option<&[u8]>) -> Result<(), TaskError> {
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

    fn finish(mut self) -> Result<TaskOutput, TaskError> {
        if self.held > 0 {
            self.flush()?;
        }
        Ok(TaskOutput { files: vec![self.writer.finish()?], ..TaskOutput::default() })
    }
}
