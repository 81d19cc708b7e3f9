//! Tables into and out of files.

use std::{
    fs::File,
    io::{BufReader, Cursor},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::RecordBatch,
    csv,
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
    json::{self, LineDelimitedWriter},
};
use forebay_datasets::{
    format::Format,
    read::{piece_bytes, whole_path},
    split::{Part, Piece},
    volume::{NewFile, Volume, VolumeError},
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

use super::{TaskError, Written};
use crate::spec::OutputFormat;

/// Rows of a CSV or NDJSON object by which its columns' types are told.
pub const ROWS_FOR_TYPES: usize = 100_000;

/// Writes record batches to one new file.
pub struct TableWriter {
    path: PathBuf,
    publish_as: String,
    rows: u64,
    sink: Sink,
}

enum Sink {
    Parquet(Box<ArrowWriter<NewFile>>),
    Csv(Box<csv::Writer<NewFile>>),
    Ndjson(Box<LineDelimitedWriter<NewFile>>),
}

impl TableWriter {
    /// Begins `part-<index>.<format>` in a directory.
    pub fn create(dir: &Path, index: u32, schema: &SchemaRef, format: OutputFormat) -> Result<Self, TaskError> {
        let extension = match format {
            OutputFormat::Parquet => "parquet",
            OutputFormat::Csv => "csv",
            OutputFormat::Ndjson => "ndjson",
        };
        let publish_as = format!("part-{index:05}.{extension}");
        let path = dir.join(&publish_as);
        let file = NewFile::create(&path)?;
        let sink = match format {
            OutputFormat::Parquet => {
                let level = ZstdLevel::try_new(3).expect("3 is a level");
                let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
                let writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties));
                Sink::Parquet(Box::new(writer.map_err(|error| table(&path, error.into()))?))
            }
            OutputFormat::Csv => {
                let mut writer = csv::WriterBuilder::new().with_header(true).build(file);
                // An empty result still has its header.
                let header = writer.write(&RecordBatch::new_empty(Arc::clone(schema)));
                header.map_err(|error| table(&path, error))?;
                Sink::Csv(Box::new(writer))
            }
            OutputFormat::Ndjson => Sink::Ndjson(Box::new(LineDelimitedWriter::new(file))),
        };
        Ok(Self { path, publish_as, rows: 0, sink })
    }

    /// Adds rows.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), TaskError> {
        self.rows += batch.num_rows() as u64;
        match &mut self.sink {
            Sink::Parquet(writer) => writer.write(batch).map_err(ArrowError::from),
            Sink::Csv(writer) => writer.write(batch),
            Sink::Ndjson(writer) => writer.write(batch),
        }
        .map_err(|error| table(&self.path, error))
    }

    /// Syncs the file and gives it its name.
    pub fn finish(self) -> Result<Written, TaskError> {
        let file = match self.sink {
            Sink::Parquet(writer) => writer.into_inner().map_err(|error| table(&self.path, error.into()))?,
            Sink::Csv(writer) => writer.into_inner(),
            Sink::Ndjson(mut writer) => {
                writer.finish().map_err(|error| table(&self.path, error))?;
                writer.into_inner()
            }
        };
        let (size, checksum) = file.finish()?;
        let (path, publish_as) = (self.path, Some(self.publish_as));
        Ok(Written { path, publish_as, partition: None, size, checksum, rows: Some(self.rows) })
    }
}

fn table(path: &Path, source: ArrowError) -> TaskError {
    match source {
        ArrowError::IoError(_, source) => VolumeError::io("write", path, source).into(),
        source => TaskError::Table { what: path.display().to_string(), source },
    }
}

/// The columns of a CSV file, by its header and its first rows.
pub(super) fn csv_schema(path: &Path) -> Result<Schema, ArrowError> {
    let format = csv::reader::Format::default().with_header(true);
    format.infer_schema(File::open(path)?, Some(ROWS_FOR_TYPES)).map(|(schema, _)| schema)
}

/// The rows of a CSV, NDJSON or Parquet piece, in batches.
pub fn read(
    volume: &Volume,
    piece: &Piece,
) -> Result<Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>, TaskError> {
    let path = whole_path(volume, piece)?;
    let open = || File::open(&path).map_err(|source| TaskError::Io { path: path.clone(), source });
    let bad = |source| TaskError::Table { what: piece.key.clone(), source };
    match Format::of(&piece.key) {
        Format::Parquet => {
            let builder = ParquetRecordBatchReaderBuilder::try_new(open()?).map_err(|error| bad(error.into()))?;
            let builder = match piece.part {
                Part::RowGroups { first, count } => {
                    builder.with_row_groups((first as usize..(first + count) as usize).collect())
                }
                Part::Whole | Part::Bytes { .. } => builder,
            };
            Ok(Box::new(builder.build().map_err(|error| bad(error.into()))?))
        }
        Format::Csv => {
            let schema = csv_schema(&path).map_err(bad)?;
            let reader = csv::ReaderBuilder::new(Arc::new(schema)).with_header(true).build(open()?).map_err(bad)?;
            Ok(Box::new(reader))
        }
        Format::Ndjson => {
            let whole = BufReader::new(open()?);
            let (schema, _) = json::reader::infer_json_schema(whole, Some(ROWS_FOR_TYPES)).map_err(bad)?;
            let records = Cursor::new(piece_bytes(volume, piece)?);
            Ok(Box::new(json::ReaderBuilder::new(Arc::new(schema)).build(records).map_err(bad)?))
        }
        Format::Text | Format::Opaque => Err(TaskError::BadInput(format!(
            "`{}` is no table: its name ends in none of .parquet, .csv, .ndjson",
            piece.key
        ))),
    }
}
