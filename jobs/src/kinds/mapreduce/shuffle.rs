//! Between map and reduce: keys and values in Arrow IPC streams, one a partition, ordered by key.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::{self, File},
    io::{BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayBuilder, ArrayRef, BinaryArray, BinaryBuilder, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use forebay_datasets::volume::{NewFile, VolumeError};

use crate::{
    kinds::{TaskContext, TaskError, Written},
    task::OutputFile,
};

/// A batch holds so many pairs at most, and hardly more than so many bytes.
const ROWS: usize = 16 << 10;
const BATCH_BYTES: usize = 1 << 20;
/// Files that are read at once. Each costs a descriptor, a buffer and a batch, in every slot.
const FAN_IN: usize = 128;
const BUFFER: usize = 64 << 10;

/// The partition of a key: FNV-1a, 64 bits. It must never change, or reused outputs would disagree.
pub(super) fn partition(key: &[u8], partitions: u32) -> u32 {
    let hash = key
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash % u64::from(partitions)) as u32
}

/// Writes a map task's pairs. Those of equal keys stay in the order given.
pub(super) fn write<K, V>(ctx: &TaskContext<'_>, pairs: Vec<(K, V)>, partitions: u32) -> Result<Vec<Written>, TaskError>
where
    K: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    let mut parts: Vec<Vec<(K, V)>> = (0..partitions).map(|_| Vec::new()).collect();
    for pair in pairs {
        parts[partition(pair.0.as_ref(), partitions) as usize].push(pair);
    }
    let mut files = Vec::new();
    for (partition, mut pairs) in (0..).zip(parts) {
        if ctx.cancel.is_cancelled() {
            return Err(TaskError::Cancelled);
        }
        if !pairs.is_empty() {
            pairs.sort_by(|a, b| a.0.as_ref().cmp(b.0.as_ref()));
            files.push(write_one(ctx, partition, &pairs)?);
        }
    }
    Ok(files)
}

fn write_one<K, V>(ctx: &TaskContext<'_>, partition: u32, pairs: &[(K, V)]) -> Result<Written, TaskError>
where
    K: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    let path = ctx.out_dir.join(format!("shuffle-{partition:05}.arrows"));
    let mut writer = Writer::new(&path, NewFile::create(&path)?)?;
    for (key, value) in pairs {
        writer.push(key.as_ref(), value.as_ref())?;
    }
    let (size, checksum) = writer.finish()?.finish()?;
    Ok(Written { path, publish_as: None, partition: Some(partition), size, checksum, rows: Some(pairs.len() as u64) })
}

/// Writes pairs in the order in which they come.
struct Writer<'a, W: Write> {
    path: &'a Path,
    schema: SchemaRef,
    stream: StreamWriter<BufWriter<W>>,
    keys: BinaryBuilder,
    values: BinaryBuilder,
}

impl<'a, W: Write> Writer<'a, W> {
    fn new(path: &'a Path, file: W) -> Result<Self, TaskError> {
        let field = |name| Field::new(name, DataType::Binary, false);
        let schema = Arc::new(Schema::new(vec![field("key"), field("value")]));
        let stream = StreamWriter::try_new_buffered(file, &schema).map_err(|error| failed(path, error))?;
        Ok(Self { path, schema, stream, keys: BinaryBuilder::new(), values: BinaryBuilder::new() })
    }

    fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), TaskError> {
        self.keys.append_value(key);
        self.values.append_value(value);
        let held = self.keys.values_slice().len() + self.values.values_slice().len();
        if self.keys.len() == ROWS || held >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), TaskError> {
        let columns: Vec<ArrayRef> = vec![Arc::new(self.keys.finish()), Arc::new(self.values.finish())];
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns);
        batch.and_then(|batch| self.stream.write(&batch)).map_err(|error| failed(self.path, error))
    }

    /// The file, with everything written to it.
    fn finish(mut self) -> Result<W, TaskError> {
        if !self.keys.is_empty() {
            self.flush()?;
        }
        self.stream.finish().map_err(|error| failed(self.path, error))?;
        let buffered = self.stream.into_inner().map_err(|error| failed(self.path, error))?;
        let written = buffered.into_inner();
        Ok(written.map_err(|error| VolumeError::io("write", self.path, error.into_error()))?)
    }
}

fn failed(path: &Path, error: ArrowError) -> TaskError {
    match error {
        ArrowError::IoError(_, source) => VolumeError::io("write", path, source).into(),
        source => TaskError::Table { what: path.display().to_string(), source },
    }
}

/// Calls `take` with every pair of a partition, ordered by key, then by map task, then as the task wrote them.
///
/// However many files there are, few are open at once: neighbours are merged into one, until few are left.
pub(super) fn merge(
    ctx: &TaskContext<'_>,
    files: &[OutputFile],
    take: impl FnMut(&[u8], &[u8]) -> Result<(), TaskError>,
) -> Result<(), TaskError> {
    let files = files.iter().map(|file| ctx.volume.resolve(&file.path)).collect::<Result<Vec<_>, _>>()?;
    let merged = narrow(ctx, &files)?;
    merge_open(ctx, merged.as_deref().unwrap_or(&files), take)
}

/// Merges neighbours in the scratch directory until as few are left as may be open; none if they are already.
fn narrow(ctx: &TaskContext<'_>, files: &[PathBuf]) -> Result<Option<Vec<PathBuf>>, TaskError> {
    let mut merged: Option<Vec<PathBuf>> = None;
    for pass in 0.. {
        let from = merged.as_deref().unwrap_or(files);
        if from.len() <= FAN_IN {
            break;
        }
        let mut to = Vec::new();
        for (group, files) in from.chunks(FAN_IN).enumerate() {
            let path = ctx.scratch_dir.join(format!("merge-{pass}-{group}.arrows"));
            let file = File::create(&path).map_err(|source| TaskError::Io { path: path.clone(), source })?;
            let mut writer = Writer::new(&path, file)?;
            merge_open(ctx, files, |key, value| writer.push(key, value))?;
            writer.finish()?;
            to.push(path);
        }
        for done in merged.replace(to).into_iter().flatten() {
            fs::remove_file(&done).map_err(|source| TaskError::Io { path: done.clone(), source })?;
        }
    }
    Ok(merged)
}

fn merge_open(
    ctx: &TaskContext<'_>,
    files: &[PathBuf],
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), TaskError>,
) -> Result<(), TaskError> {
    let mut cursors = files.iter().map(|path| Cursor::open(path)).collect::<Result<Vec<_>, _>>()?;
    let mut heads = BinaryHeap::new();
    for (index, cursor) in cursors.iter_mut().enumerate() {
        heads.extend(cursor.next_key()?.map(|key| Reverse((key, index))));
    }
    let mut since_check = 0_u32;
    while let Some(Reverse((key, index))) = heads.pop() {
        since_check += 1;
        if since_check.is_multiple_of(4096) && ctx.cancel.is_cancelled() {
            return Err(TaskError::Cancelled);
        }
        let cursor = &mut cursors[index];
        take(&key, cursor.value())?;
        heads.extend(cursor.next_key()?.map(|key| Reverse((key, index))));
    }
    Ok(())
}

struct Cursor {
    name: String,
    reader: StreamReader<BufReader<File>>,
    batch: Option<RecordBatch>,
    /// The row after the one that was given out.
    next: usize,
}

impl Cursor {
    fn open(path: &Path) -> Result<Self, TaskError> {
        let name = path.display().to_string();
        let opened = File::open(path).map_err(|source| TaskError::Io { path: path.to_owned(), source })?;
        let reader = StreamReader::try_new(BufReader::with_capacity(BUFFER, opened), None);
        let reader = reader.map_err(|source| TaskError::Table { what: name.clone(), source })?;
        let typed = reader.schema().fields().iter().all(|field| *field.data_type() == DataType::Binary);
        if !typed || reader.schema().fields().len() != 2 {
            return Err(TaskError::BadInput(format!("`{name}` holds no keys and values")));
        }
        Ok(Self { name, reader, batch: None, next: 0 })
    }

    fn next_key(&mut self) -> Result<Option<Vec<u8>>, TaskError> {
        while self.batch.as_ref().is_none_or(|batch| self.next >= batch.num_rows()) {
            match self.reader.next() {
                None => return Ok(None),
                Some(batch) => {
                    let batch = batch.map_err(|source| TaskError::Table { what: self.name.clone(), source })?;
                    (self.batch, self.next) = (Some(batch), 0);
                }
            }
        }
        let key = self.column(0).value(self.next).to_vec();
        self.next += 1;
        Ok(Some(key))
    }

    /// The value of the key given out last.
    fn value(&self) -> &[u8] {
        self.column(1).value(self.next - 1)
    }

    fn column(&self, index: usize) -> &BinaryArray {
        let batch = self.batch.as_ref().expect("a key was given out");
        batch.column(index).as_any().downcast_ref().expect("checked when it was opened")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_of_a_key_never_changes() {
        assert_eq!(partition(b"", 1000), (0xcbf2_9ce4_8422_2325_u64 % 1000) as u32);
        // FNV-1a of "a", http://www.isthe.com/chongo/tech/comp/fnv/
        assert_eq!(partition(b"a", u32::MAX), (0xaf63_dc4c_8601_ec8c_u64 % u64::from(u32::MAX)) as u32);
    }
}
