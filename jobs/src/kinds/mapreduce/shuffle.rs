//! Between map and reduce: keys and values in Arrow IPC streams, one a partition, ordered by key.

use std::{cmp::Reverse, collections::BinaryHeap, fs::File, io::BufReader, sync::Arc};

use arrow::{
    array::{Array, BinaryArray, RecordBatch},
    datatypes::{DataType, Field, Schema},
    error::ArrowError,
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use forebay_datasets::volume::{NewFile, VolumeError};

use crate::{
    kinds::{TaskContext, TaskError, Written},
    task::OutputFile,
};

const ROWS: usize = 16 << 10;

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
    let failed = |error| match error {
        ArrowError::IoError(_, source) => VolumeError::io("write", &path, source).into(),
        source => TaskError::Table { what: path.display().to_string(), source },
    };
    let field = |name| Field::new(name, DataType::Binary, false);
    let schema = Arc::new(Schema::new(vec![field("key"), field("value")]));
    let mut writer = StreamWriter::try_new_buffered(NewFile::create(&path)?, &schema).map_err(failed)?;
    for chunk in pairs.chunks(ROWS) {
        let keys = BinaryArray::from_iter_values(chunk.iter().map(|pair| &pair.0));
        let values = BinaryArray::from_iter_values(chunk.iter().map(|pair| &pair.1));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(keys), Arc::new(values)]);
        writer.write(&batch.map_err(failed)?).map_err(failed)?;
    }
    writer.finish().map_err(failed)?;
    let buffered = writer.into_inner().map_err(failed)?;
    let file = buffered.into_inner().map_err(|error| VolumeError::io("write", &path, error.into_error()))?;
    let (size, checksum) = file.finish()?;
    Ok(Written { path, publish_as: None, partition: Some(partition), size, checksum, rows: Some(pairs.len() as u64) })
}

/// Calls `take` with every pair of a partition, ordered by key, then by map task, then as the task wrote them.
pub(super) fn merge(
    ctx: &TaskContext<'_>,
    files: &[OutputFile],
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), TaskError>,
) -> Result<(), TaskError> {
    let mut cursors = files.iter().map(|file| Cursor::open(ctx, file)).collect::<Result<Vec<_>, _>>()?;
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
    fn open(ctx: &TaskContext<'_>, file: &OutputFile) -> Result<Self, TaskError> {
        let path = ctx.volume.resolve(&file.path)?;
        let opened = File::open(&path).map_err(|source| TaskError::Io { path: path.clone(), source })?;
        let reader = StreamReader::try_new(BufReader::with_capacity(1 << 20, opened), None);
        let reader = reader.map_err(|source| TaskError::Table { what: file.path.clone(), source })?;
        let typed = reader.schema().fields().iter().all(|field| *field.data_type() == DataType::Binary);
        if !typed || reader.schema().fields().len() != 2 {
            return Err(TaskError::BadInput(format!("`{}` holds no keys and values", file.path)));
        }
        Ok(Self { name: file.path.clone(), reader, batch: None, next: 0 })
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
