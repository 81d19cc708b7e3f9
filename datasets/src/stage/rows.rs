//! Rows of a listing or a plan in a file: Arrow IPC, a record batch a chunk.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, RecordBatch, StringArray, UInt64Array},
    datatypes::{DataType, Field, Schema},
    error::ArrowError,
    ipc::{reader::FileReader, writer::FileWriter},
};
use serde::{Deserialize, Serialize};

use super::StageError;
use crate::{
    checksum::Crc64,
    columns::{self, Columns},
    snapshot::{HeldRange, held},
    source::Listed,
    volume::{NewFile, VolumeError},
};

/// Rows of a chunk, and of a batch: few enough that several stagers find their share, and many against what a claim
/// costs.
const MOST_ROWS: usize = 128;
/// A chunk that has so many bytes is long enough.
const MOST_BYTES: u64 = 64 << 20;
const FACTS: &str = "forebay";

/// An object on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub object: Listed,
    /// Below `data/`.
    pub path: String,
    /// Where the same bytes are already.
    pub shared: Option<Shared>,
}

/// An unchanged object that is on the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shared {
    /// Relative to the volume's root.
    pub from: String,
    pub checksum: Crc64,
    pub version_id: Option<String>,
    /// If it is held in part: what of it.
    pub held: Option<Vec<HeldRange>>,
}

/// What a plan comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub objects: u64,
    pub bytes: u64,
    pub fetch_objects: u64,
    /// Of objects of which some columns are taken only their footers tell, which are read later.
    pub fetch_bytes: u64,
    /// Directories that the paths name.
    pub directories: u64,
}

impl Facts {
    /// What of an object `wanted` columns take, its footer tells when it is fetched.
    pub(super) fn add(&mut self, row: &Row, wanted: Option<&Columns>) {
        self.objects += 1;
        self.bytes += row.object.size;
        if row.shared.is_none() {
            self.fetch_objects += 1;
            self.fetch_bytes += match columns::taken_of(wanted, &row.object) {
                Some(_) => 0,
                None => row.object.size,
            };
        }
    }
}

/// An error of the file under Arrow is the volume's.
fn failed(path: &Path) -> impl Fn(ArrowError) -> StageError + use<'_> {
    |source| match source {
        ArrowError::IoError(_, error) => VolumeError::io("write", path, error).into(),
        source => StageError::Plan { path: path.to_owned(), source },
    }
}

/// Writes rows in order, and cuts them into chunks.
pub(super) struct RowWriter {
    path: PathBuf,
    writer: FileWriter<NewFile>,
    rows: Vec<Row>,
    bytes: u64,
    chunks: usize,
}

impl RowWriter {
    pub(super) fn create(path: &Path) -> Result<Self, StageError> {
        let writer = FileWriter::try_new(NewFile::create(path)?, &schema());
        let writer = writer.map_err(failed(path))?;
        Ok(Self { path: path.to_owned(), writer, rows: Vec::new(), bytes: 0, chunks: 0 })
    }

    pub(super) fn push(&mut self, row: Row) -> Result<(), StageError> {
        self.bytes += row.object.size;
        self.rows.push(row);
        if self.rows.len() == MOST_ROWS || self.bytes >= MOST_BYTES { self.flush() } else { Ok(()) }
    }

    /// Ends a chunk here. Returns how many there are.
    pub(super) fn cut(&mut self) -> Result<usize, StageError> {
        self.flush()?;
        Ok(self.chunks)
    }

    fn flush(&mut self) -> Result<(), StageError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        self.chunks += 1;
        let written = batch(&self.rows).and_then(|batch| self.writer.write(&batch));
        written.map_err(failed(&self.path))?;
        self.rows.clear();
        self.bytes = 0;
        Ok(())
    }

    /// Gives the file its name.
    pub(super) fn finish(mut self, facts: &Facts) -> Result<(), StageError> {
        self.flush()?;
        self.writer.write_metadata(FACTS, serde_json::to_string(facts).expect("plain numbers serialise"));
        self.writer.finish().map_err(failed(&self.path))?;
        self.writer.into_inner().map_err(failed(&self.path))?.finish_unsynced()?;
        Ok(())
    }
}

/// Rows in a file, found chunk by chunk.
pub(super) struct RowFile {
    path: PathBuf,
    reader: FileReader<BufReader<File>>,
    pub(super) facts: Facts,
}

impl RowFile {
    pub(super) fn open(path: &Path) -> Result<Self, StageError> {
        let file = File::open(path).map_err(|error| VolumeError::io("open", path, error))?;
        let reader = FileReader::try_new_buffered(file, None);
        let reader = reader.map_err(|source| StageError::Plan { path: path.to_owned(), source })?;
        let facts = reader.custom_metadata().get(FACTS).and_then(|facts| serde_json::from_str(facts).ok());
        let facts = facts.ok_or_else(|| StageError::Plan {
            path: path.to_owned(),
            source: ArrowError::IpcError("it does not say what it comes to".to_owned()),
        })?;
        Ok(Self { path: path.to_owned(), reader, facts })
    }

    pub(super) fn chunks(&self) -> usize {
        self.reader.num_batches()
    }

    /// The rows of a chunk.
    pub(super) fn chunk(&mut self, index: usize) -> Result<Vec<Row>, StageError> {
        let bad = |source| StageError::Plan { path: self.path.clone(), source };
        self.reader.set_index(index).map_err(bad)?;
        let batch = self.reader.next().unwrap_or_else(|| Err(ArrowError::IpcError("a chunk is missing".to_owned())));
        batch.and_then(|batch| rows(&batch)).map_err(bad)
    }

    /// All rows, in order.
    pub(super) fn rows(mut self) -> impl Iterator<Item = Result<Row, StageError>> {
        let chunks = self.chunks();
        (0..chunks).flat_map(move |index| match self.chunk(index) {
            Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        })
    }
}

fn batch(rows: &[Row]) -> Result<RecordBatch, ArrowError> {
    let text = |of: fn(&Row) -> Option<&str>| Arc::new(rows.iter().map(of).collect::<StringArray>()) as Arc<dyn Array>;
    let number = |of: fn(&Row) -> Option<u64>| Arc::new(rows.iter().map(of).collect::<UInt64Array>()) as Arc<dyn Array>;
    let columns = vec![
        text(|row| Some(&row.object.key)),
        number(|row| Some(row.object.size)),
        text(|row| row.object.etag.as_deref()),
        text(|row| row.object.version_id.as_deref()),
        text(|row| (row.path != row.object.key).then_some(&row.path)),
        text(|row| row.shared.as_ref().map(|shared| &*shared.from)),
        number(|row| row.shared.as_ref().map(|shared| shared.checksum.0)),
        text(|row| row.shared.as_ref().and_then(|shared| shared.version_id.as_deref())),
        Arc::new(held::column(rows.iter().map(|row| row.shared.as_ref()?.held.as_ref()))?),
    ];
    RecordBatch::try_new(schema(), columns)
}

fn rows(batch: &RecordBatch) -> Result<Vec<Row>, ArrowError> {
    let bad = || ArrowError::SchemaError("its columns are others".to_owned());
    let text = |at: usize| batch.column(at).as_any().downcast_ref::<StringArray>().ok_or_else(bad);
    let number = |at: usize| batch.column(at).as_any().downcast_ref::<UInt64Array>().ok_or_else(bad);
    if *batch.schema() != *schema() {
        return Err(bad());
    }
    let (keys, sizes, etags, versions) = (text(0)?, number(1)?, text(2)?, text(3)?);
    let (paths, froms, checksums, shared_versions) = (text(4)?, text(5)?, number(6)?, text(7)?);
    let held = held::ranges_of(batch).ok_or_else(bad)?;
    let optional = |column: &StringArray, row| column.is_valid(row).then(|| column.value(row).to_owned());
    let row = |(row, held)| Row {
        object: Listed {
            key: keys.value(row).to_owned(),
            size: sizes.value(row),
            etag: optional(etags, row),
            version_id: optional(versions, row),
        },
        path: optional(paths, row).unwrap_or_else(|| keys.value(row).to_owned()),
        shared: optional(froms, row).map(|from| Shared {
            from,
            checksum: Crc64(checksums.value(row)),
            version_id: optional(shared_versions, row),
            held,
        }),
    };
    Ok((0..batch.num_rows()).zip(held).map(row).collect())
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("size", DataType::UInt64, false),
        Field::new("etag", DataType::Utf8, true),
        Field::new("version_id", DataType::Utf8, true),
        Field::new("path", DataType::Utf8, true),
        Field::new("shared_from", DataType::Utf8, true),
        Field::new("shared_checksum", DataType::UInt64, true),
        Field::new("shared_version_id", DataType::Utf8, true),
        held::field(),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: u64, size: u64) -> Row {
        let key = format!("{n:06}");
        let held = n.is_multiple_of(2).then(|| vec![HeldRange { offset: n, length: 1, checksum: Crc64(n) }]);
        let shared = Shared { from: "x".to_owned(), checksum: Crc64(n), version_id: Some("v".to_owned()), held };
        Row {
            path: if n.is_multiple_of(2) { key.clone() } else { "%/y.key".to_owned() },
            object: Listed { key, size, etag: n.is_multiple_of(3).then(|| "e".to_owned()), version_id: None },
            shared: n.is_multiple_of(5).then_some(shared),
        }
    }

    #[test]
    fn rows_survive_their_file_and_are_cut_by_number_and_by_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        for (count, size, chunks) in
            [(0, 1, 0), (MOST_ROWS as u64 + 1, 1, 2), (4, MOST_BYTES / 2, 2), (2, MOST_BYTES, 2)]
        {
            let written: Vec<_> = (0..count).map(|n| row(n, size)).collect();
            let mut writer = RowWriter::create(&path).unwrap();
            written.iter().for_each(|row| writer.push(row.clone()).unwrap());
            let facts = Facts { objects: count, ..Facts::default() };
            writer.finish(&facts).unwrap();
            let mut file = RowFile::open(&path).unwrap();
            assert_eq!((file.chunks(), &file.facts), (chunks, &facts));
            if chunks > 1 {
                assert_eq!(file.chunk(1).unwrap()[0], written[written.len() - file.chunk(1).unwrap().len()]);
            }
            assert_eq!(file.rows().collect::<Result<Vec<_>, _>>().unwrap(), written);
        }
    }

    #[test]
    fn a_file_that_was_cut_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let mut writer = RowWriter::create(&path).unwrap();
        (0..10).for_each(|n| writer.push(row(n, 1)).unwrap());
        writer.finish(&Facts::default()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
        assert!(matches!(RowFile::open(&path), Err(StageError::Plan { .. })));
    }
}
