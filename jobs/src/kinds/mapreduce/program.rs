//! Map and reduce as programs that read and write lines, as Hadoop's streaming does.
//!
//! A map program reads its split's lines and writes `key<TAB>value` lines; a line without a tab is a key with an empty
//! value. A reduce program reads the `key<TAB>value` lines of its partition, ordered by key, and what it writes is
//! published as it is.

use std::io::{self, BufRead, BufWriter, Write};

use forebay_datasets::{
    format::Format,
    read::Parts,
    volume::{NewFile, VolumeError},
};

use super::{
    shuffle::{self, Pairs},
    spec,
};
use crate::{
    kinds::{TaskContext, TaskError, TaskOutput, Written},
    task::TaskInput,
};

/// So much is read at a time, and written to the pipe without another copy.
const READ: u64 = 256 << 10;

/// Feeds a task's input to a program.
///
/// A program that ends without reading everything is no error: the pipe breaks, and its exit code tells.
pub fn feed(ctx: &TaskContext<'_>, stdin: impl Write) -> Result<(), TaskError> {
    let mut stdin = BufWriter::with_capacity(64 << 10, stdin);
    let fed = match &ctx.spec.input {
        TaskInput::Split(split) => {
            let mut feed = || {
                for piece in &split.pieces {
                    let mut parts = Parts::open(ctx.volume, piece)?;
                    let mut last = b'\n';
                    while let Some(records) = parts.next(READ)? {
                        stdin.write_all(records.bytes).map_err(pipe)?;
                        last = records.bytes.last().copied().unwrap_or(last);
                    }
                    // The next piece begins a line of its own, where there are lines.
                    let lines = matches!(Format::of(&piece.key), Format::Text | Format::Csv | Format::Ndjson);
                    if lines && last != b'\n' {
                        stdin.write_all(b"\n").map_err(pipe)?;
                    }
                }
                stdin.flush().map_err(pipe)
            };
            feed()
        }
        TaskInput::Shuffle(files) => {
            let merged = shuffle::merge(ctx, files, |key, value| {
                stdin.write_all(key).and_then(|()| stdin.write_all(b"\t")).map_err(pipe)?;
                stdin.write_all(value).and_then(|()| stdin.write_all(b"\n")).map_err(pipe)
            });
            merged.and_then(|()| stdin.flush().map_err(pipe))
        }
    };
    match fed {
        Err(TaskError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        fed => fed,
    }
}

fn pipe(source: io::Error) -> TaskError {
    TaskError::Io { path: "the program's standard input".into(), source }
}

/// Takes what a program writes to its standard output, until its end.
pub fn take(ctx: &TaskContext<'_>, stdout: impl BufRead) -> Result<TaskOutput, TaskError> {
    let files = match ctx.spec.input {
        TaskInput::Split(_) => take_pairs(ctx, stdout)?,
        TaskInput::Shuffle(_) => vec![take_text(ctx, stdout)?],
    };
    Ok(TaskOutput { files, ..TaskOutput::default() })
}

fn take_pairs(ctx: &TaskContext<'_>, mut stdout: impl BufRead) -> Result<Vec<Written>, TaskError> {
    let mut pairs = Pairs::new(ctx, spec(ctx)?.partitions);
    // Of a line whose end is still to come.
    let mut begun = Vec::new();
    loop {
        let read = match stdout.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|source| TaskError::Io { path: "the program's standard output".into(), source })?,
        };
        if read.is_empty() {
            break;
        }
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', read) {
            if begun.is_empty() {
                push(&mut pairs, &read[start..end])?;
            } else {
                begun.extend_from_slice(&read[start..end]);
                push(&mut pairs, &begun)?;
                begun.clear();
            }
            start = end + 1;
        }
        begun.extend_from_slice(&read[start..]);
        let taken = read.len();
        stdout.consume(taken);
    }
    if !begun.is_empty() {
        push(&mut pairs, &begun)?;
    }
    pairs.finish()
}

/// Adds a line's pair.
fn push(pairs: &mut Pairs<'_>, line: &[u8]) -> Result<(), TaskError> {
    let (key, value) = match memchr::memchr(b'\t', line) {
        Some(tab) => (&line[..tab], &line[tab + 1..]),
        None => (line, &[][..]),
    };
    pairs.push(key, &[value])
}

fn take_text(ctx: &TaskContext<'_>, mut stdout: impl BufRead) -> Result<Written, TaskError> {
    let name = format!("part-{:05}.txt", ctx.spec.task.index);
    let path = ctx.out_dir.join(&name);
    let mut file = NewFile::create(&path)?;
    io::copy(&mut stdout, &mut file).map_err(|error| VolumeError::io("write", &path, error))?;
    let (size, checksum) = file.finish()?;
    Ok(Written { path, publish_as: Some(name), partition: None, size, checksum, rows: None })
}
