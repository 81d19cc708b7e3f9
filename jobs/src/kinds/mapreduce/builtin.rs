//! The built-ins over lines: word-count, line-count, grep.

use forebay_datasets::{
    read::{Parts, Records},
    split::{Piece, Split},
};

use super::{
    matcher::Matcher,
    rows::{Cell, Column, RowWriter},
    shuffle::{self, Files, Pairs},
    words::Words,
};
use crate::{
    kinds::{TaskContext, TaskError, TaskOutput},
    task::OutputFile,
};

/// After so much a task looks whether it is to leave the rest to others.
const PART: u64 = 4 << 20;
/// So much is read at a time: little enough for the processor's own cache. It divides a part.
const READ: u64 = 256 << 10;

/// Maps the records of pieces, in order. Says what it left unread, once it was asked to yield and has read something.
fn each_part<'p>(
    ctx: &TaskContext<'_>,
    pieces: &'p [Piece],
    mut map: impl FnMut(&'p Piece, Records<'_>) -> Result<(), TaskError>,
) -> Result<Option<Split>, TaskError> {
    let mut yields = false;
    for (at, piece) in pieces.iter().enumerate() {
        let others = |first| Split { pieces: std::iter::once(first).chain(pieces[at + 1..].iter().cloned()).collect() };
        if yields {
            return Ok(Some(others(piece.clone())));
        }
        let mut parts = Parts::open(ctx.volume, piece)?;
        let mut read = 0;
        while let Some(records) = parts.next(READ)? {
            if ctx.cancel.is_cancelled() {
                return Err(TaskError::Cancelled);
            }
            map(piece, records)?;
            read += READ;
            if read.is_multiple_of(PART)
                && ctx.yields.is_cancelled()
                && let Some(left) = parts.left()
            {
                return Ok(Some(others(left)));
            }
        }
        yields = ctx.yields.is_cancelled();
    }
    Ok(None)
}

/// Words are runs of bytes other than ASCII white space: space, `\t`, `\n`, `\v`, `\f`, `\r`.
pub(super) fn count_words(ctx: &TaskContext<'_>, pieces: &[Piece], partitions: u32) -> Result<TaskOutput, TaskError> {
    count_words_within(ctx, pieces, partitions, shuffle::budget(ctx))
}

pub(super) fn count_words_within(
    ctx: &TaskContext<'_>,
    pieces: &[Piece],
    partitions: u32,
    budget: usize,
) -> Result<TaskOutput, TaskError> {
    let (mut words, mut files) = (Words::new(), Files::new(ctx, partitions, Some(&shuffle::add_counts)));
    let rest = each_part(ctx, pieces, |_, records| {
        words.count(records.bytes);
        // A table that grows is there twice, once of double size.
        if words.held() > budget / 3 {
            files.spill(&words)?;
            words.clear();
        }
        Ok(())
    })?;
    let metrics = [("words".to_owned(), words.total() as f64)].into();
    Ok(TaskOutput { files: files.finish(&words)?, metrics, rest })
}

pub(super) fn count_lines(ctx: &TaskContext<'_>, pieces: &[Piece], partitions: u32) -> Result<TaskOutput, TaskError> {
    let mut counts: Vec<(&str, u64)> = Vec::new();
    let rest = each_part(ctx, pieces, |piece, records| {
        let ends = memchr::memchr_iter(b'\n', records.bytes).count();
        let found = (ends + usize::from(records.bytes.last().is_some_and(|last| *last != b'\n'))) as u64;
        match counts.last_mut() {
            Some((key, count)) if *key == piece.key => *count += found,
            _ => counts.push((&piece.key, found)),
        }
        Ok(())
    })?;
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let mut pairs = Pairs::new(ctx, partitions);
    counts.iter().try_for_each(|(key, count)| pairs.push(key.as_bytes(), &[&count.to_le_bytes()]))?;
    Ok(TaskOutput { files: pairs.finish()?, metrics: [("lines".to_owned(), total as f64)].into(), rest })
}

/// Adds up the counts of each key.
pub(super) fn sum(
    ctx: &TaskContext<'_>,
    files: &[OutputFile],
    key_name: &str,
    count_name: &str,
) -> Result<TaskOutput, TaskError> {
    let columns = [Column::text(key_name).required(), Column::uint(count_name).required()];
    let mut rows = RowWriter::create(ctx, &columns)?;
    let mut held: Option<(Vec<u8>, u64)> = None;
    shuffle::merge(ctx, files, |key, value| {
        let count = shuffle::count(value)?;
        match &mut held {
            Some((word, sum)) if word == key => *sum += count,
            Some((word, sum)) => {
                rows.push(&[Cell::Text(word), Cell::Uint(*sum)])?;
                word.clear();
                word.extend_from_slice(key);
                *sum = count;
            }
            None => held = Some((key.to_vec(), count)),
        }
        Ok(())
    })?;
    held.map_or(Ok(()), |(word, sum)| rows.push(&[Cell::Text(&word), Cell::Uint(sum)]))?;
    rows.finish()
}

/// A match's key is its object; its value is the line's offset and the line.
pub(super) fn grep(
    ctx: &TaskContext<'_>,
    pieces: &[Piece],
    pattern: &str,
    partitions: u32,
) -> Result<TaskOutput, TaskError> {
    grep_within(ctx, pieces, pattern, partitions, shuffle::budget(ctx))
}

pub(super) fn grep_within(
    ctx: &TaskContext<'_>,
    pieces: &[Piece],
    pattern: &str,
    partitions: u32,
    budget: usize,
) -> Result<TaskOutput, TaskError> {
    let matcher = Matcher::new(pattern)?;
    let mut pairs = Pairs::with_budget(ctx, partitions, budget);
    let rest = each_part(ctx, pieces, |piece, records| {
        matcher.each_line(records.bytes, |at, line| {
            pairs.push(piece.key.as_bytes(), &[&(records.offset + at as u64).to_be_bytes(), line])
        })
    })?;
    let metrics = [("matches".to_owned(), pairs.count() as f64)].into();
    Ok(TaskOutput { files: pairs.finish()?, metrics, rest })
}

pub(super) fn matches(ctx: &TaskContext<'_>, files: &[OutputFile]) -> Result<TaskOutput, TaskError> {
    let columns = [Column::text("key"), Column::uint("offset"), Column::text("line")].map(Column::required);
    let mut rows = RowWriter::create(ctx, &columns)?;
    shuffle::merge(ctx, files, |key, value| {
        let (offset, line) = value.split_first_chunk::<8>().ok_or_else(|| shuffle::malformed("a match"))?;
        rows.push(&[Cell::Text(key), Cell::Uint(u64::from_be_bytes(*offset)), Cell::Text(line)])
    })?;
    rows.finish()
}
