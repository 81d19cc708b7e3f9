//! Map and reduce as programs that read and write lines, as Hadoop's streaming does.
//!
//! A map program reads its split's lines and writes `key<TAB>value` lines; a line without a tab is a key with an empty
//! value. A reduce program reads the `key<TAB>value` lines of its partition, ordered by key, and what it writes is
//! published as it is.

use std::{
    fs::File,
    io::{self, BufRead, BufWriter, Write},
    ops::Range,
    os::unix::fs::FileExt,
};

use forebay_datasets::{
    format::Format,
    read::{ReadError, piece_range},
    split::Piece,
    volume::{NewFile, VolumeError},
};
use rustix::{io::Errno, pipe::SpliceFlags};

use super::{
    shuffle::{self, Pairs},
    spec,
};
use crate::{
    kinds::{TaskContext, TaskError, TaskOutput, Written},
    task::TaskInput,
};

/// What goes through memory on its way to a program is read and written by so much at a time.
const WRITTEN: usize = 128 << 10;
/// Of a piece that is smaller, the pages are not worth being passed one by one.
const SPLICED: u64 = 64 << 10;
/// So much is passed at a time at most.
const PASSED: u64 = 1 << 20;

/// Feeds a task's input to a program.
///
/// A program that ends without reading everything is no error: the pipe breaks, and its exit code tells.
pub fn feed(ctx: &TaskContext<'_>, stdin: io::PipeWriter) -> Result<(), TaskError> {
    let mut stdin = BufWriter::with_capacity(WRITTEN, stdin);
    let fed = match &ctx.spec.input {
        TaskInput::Split(split) => split.pieces.iter().try_for_each(|piece| feed_piece(ctx, piece, &mut stdin)),
        TaskInput::Shuffle(files) => shuffle::merge(ctx, files, |key, value| {
            stdin.write_all(key).and_then(|()| stdin.write_all(b"\t")).map_err(pipe)?;
            stdin.write_all(value).and_then(|()| stdin.write_all(b"\n")).map_err(pipe)
        }),
    };
    match fed.and_then(|()| stdin.flush().map_err(pipe)) {
        Err(TaskError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        fed => fed,
    }
}

/// Feeds the records of a piece.
fn feed_piece(ctx: &TaskContext<'_>, piece: &Piece, stdin: &mut BufWriter<io::PipeWriter>) -> Result<(), TaskError> {
    let unread = |source| TaskError::Read(ReadError::Io { path: piece.path.clone().into(), source });
    let (file, mut range) = piece_range(ctx.volume, piece)?;
    let last = range.clone().next_back();
    if range.end - range.start >= SPLICED {
        stdin.flush().map_err(pipe)?;
        splice(&file, &mut range, stdin.get_ref()).map_err(pipe)?;
    }
    let mut buffer = vec![0; (range.end - range.start).min(WRITTEN as u64) as usize];
    while !range.is_empty() {
        let length = buffer.len().min((range.end - range.start) as usize);
        file.read_exact_at(&mut buffer[..length], range.start).map_err(unread)?;
        stdin.write_all(&buffer[..length]).map_err(pipe)?;
        range.start += length as u64;
    }
    // The next piece begins a line of its own, where there are lines.
    let lines = matches!(Format::of(&piece.key), Format::Text | Format::Csv | Format::Ndjson);
    if let Some(at) = last.filter(|_| lines) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).map_err(unread)?;
        if byte != *b"\n" {
            stdin.write_all(b"\n").map_err(pipe)?;
        }
    }
    Ok(())
}

/// Passes the pages of a file to a pipe without a copy, and takes them off the range. What is left then has to be written:
/// not every file system can do this, and what else is wrong with the file reading it will tell.
fn splice(file: &File, range: &mut Range<u64>, pipe: &io::PipeWriter) -> io::Result<()> {
    while !range.is_empty() {
        let most = (range.end - range.start).min(PASSED) as usize;
        match rustix::pipe::splice(file, Some(&mut range.start), pipe, None, most, SpliceFlags::empty()) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::PIPE) => return Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => break,
        }
    }
    Ok(())
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
    let (size, checksum) = file.finish_in_tree()?;
    Ok(Written { path, publish_as: Some(name), partition: None, size, checksum, rows: None })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_cannot_be_spliced_is_left() {
        static TEXT: [u8; 300_000] = [b'x'; 300_000];
        // The system reads it, and does not splice it.
        let memory = File::open("/proc/self/mem").unwrap();
        let start = TEXT.as_ptr() as u64;
        let mut range = start..start + TEXT.len() as u64;
        let (_read, write) = io::pipe().unwrap();
        splice(&memory, &mut range, &write).unwrap();
        assert_eq!(range.end - range.start, TEXT.len() as u64);
        let mut first = [0];
        memory.read_exact_at(&mut first, range.start).unwrap();
        assert_eq!(first, *b"x");
    }

    #[test]
    fn a_file_is_spliced_whole_however_slowly_it_is_read_and_a_pipe_that_breaks_is_told() {
        let mut file = tempfile::tempfile().unwrap();
        let text: Vec<u8> = (0..1_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
        file.write_all(&text).unwrap();
        let (mut read, write) = io::pipe().unwrap();
        let reader = std::thread::spawn(move || {
            let (mut all, mut some) = (Vec::new(), [0; 1000]);
            while let Ok(length @ 1..) = read.read(&mut some) {
                all.extend_from_slice(&some[..length]);
            }
            all
        });
        let mut range = 10..text.len() as u64 - 10;
        splice(&file, &mut range, &write).unwrap();
        drop(write);
        assert!(range.is_empty() && reader.join().unwrap() == text[10..text.len() - 10]);
        let (read, write) = io::pipe().unwrap();
        drop(read);
        let error = splice(&file, &mut (0..text.len() as u64), &write).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
