//! Streams of pairs: written in the order in which they come, and read back.

use std::{
    fs::File,
    io::{BufReader, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayBuilder, ArrayRef, BinaryArray, BinaryBuilder, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use arrow_ipc::{CompressionType, reader::StreamReader};

use super::prefix;
use crate::kinds::{
    TaskError,
    ipc::{self, BatchWriter},
};

/// A batch holds so many pairs at most, and hardly more than so many bytes.
const ROWS: usize = 16 << 10;
const BATCH_BYTES: usize = 1 << 20;
/// Arrow's offsets have 31 bits.
const MOST_BYTES: usize = 1 << 30;

/// Writes pairs in the order in which they come.
pub(super) struct Writer<W: Write> {
    schema: SchemaRef,
    stream: BatchWriter<W>,
    keys: BinaryBuilder,
    values: BinaryBuilder,
    rows: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(path: PathBuf, file: W, compression: Option<CompressionType>) -> Result<Self, TaskError> {
        let field = |name| Field::new(name, DataType::Binary, false);
        let schema = Arc::new(Schema::new(vec![field("key"), field("value")]));
        let stream = BatchWriter::new(path, file, &schema, compression)?;
        let (keys, values) = (BinaryBuilder::new(), BinaryBuilder::new());
        Ok(Self { schema, stream, keys, values, rows: 0 })
    }

    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), TaskError> {
        if key.len().max(value.len()) > MOST_BYTES {
            return Err(TaskError::BadInput("a key or a value has more than 1 GiB".to_owned()));
        }
        self.keys.append_value(key);
        self.values.append_value(value);
        self.rows += 1;
        let held = self.keys.values_slice().len() + self.values.values_slice().len();
        if self.keys.len() == ROWS || held >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    /// How many it was given.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    fn flush(&mut self) -> Result<(), TaskError> {
        let columns: Vec<ArrayRef> = vec![Arc::new(self.keys.finish()), Arc::new(self.values.finish())];
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns);
        self.stream.write(&batch.expect("as many keys as values"))
    }

    /// The file, with everything written to it.
    pub(super) fn finish(mut self) -> Result<W, TaskError> {
        if !self.keys.is_empty() {
            self.flush()?;
        }
        self.stream.finish()
    }
}

/// Reads pairs, one after the other.
pub(super) struct Cursor {
    name: String,
    reader: StreamReader<BufReader<File>>,
    keys: BinaryArray,
    values: BinaryArray,
    at: usize,
    /// Of the key that it stands at.
    prefix: u64,
}

impl Cursor {
    /// Opens a stream before its first pair.
    pub(super) fn open(path: &Path) -> Result<Self, TaskError> {
        let name = path.display().to_string();
        let reader = ipc::open(path)?;
        let typed = reader.schema().fields().iter().all(|field| *field.data_type() == DataType::Binary);
        if !typed || reader.schema().fields().len() != 2 {
            return Err(TaskError::BadInput(format!("`{name}` holds no keys and values")));
        }
        let none = || BinaryArray::from_iter_values([[0; 0]; 0]);
        Ok(Self { name, reader, keys: none(), values: none(), at: 0, prefix: 0 })
    }

    /// Goes to the next pair; whether there is one.
    pub(super) fn advance(&mut self) -> Result<bool, TaskError> {
        self.at += 1;
        while self.at >= self.keys.len() {
            let Some(batch) = self.reader.next() else { return Ok(false) };
            let batch = batch.map_err(|source| TaskError::Table { what: self.name.clone(), source })?;
            let column = |index| -> &BinaryArray {
                batch.column(index).as_any().downcast_ref().expect("checked when it was opened")
            };
            (self.keys, self.values, self.at) = (column(0).clone(), column(1).clone(), 0);
        }
        self.prefix = prefix(self.keys.value(self.at));
        Ok(true)
    }

    pub(super) fn key(&self) -> &[u8] {
        self.keys.value(self.at)
    }

    pub(super) fn value(&self) -> &[u8] {
        self.values.value(self.at)
    }

    /// Whether its key is before another's.
    pub(super) fn order(&self, other: &Self) -> std::cmp::Ordering {
        self.prefix.cmp(&other.prefix).then_with(|| self.key().cmp(other.key()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_back_compressed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let lengths = [None, Some(CompressionType::LZ4_FRAME)].map(|compression| {
            let path = dir.path().join(format!("{compression:?}"));
            let mut writer = Writer::new(path.clone(), File::create(&path).unwrap(), compression).unwrap();
            (0..50_000_u32).for_each(|n| writer.push(&n.to_be_bytes(), b"the same for all").unwrap());
            writer.finish().unwrap();
            let mut cursor = Cursor::open(&path).unwrap();
            for n in 0..50_000_u32 {
                assert!(cursor.advance().unwrap());
                assert_eq!((cursor.key(), cursor.value()), (&n.to_be_bytes()[..], &b"the same for all"[..]));
            }
            assert!(!cursor.advance().unwrap());
            path.metadata().unwrap().len()
        });
        assert!(lengths[1] * 2 < lengths[0], "{lengths:?}");
    }
}
