//! Tables into and out of files.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Cursor, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::RecordBatch,
    csv,
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
    ipc,
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
    Arrow(Box<ipc::writer::FileWriter<NewFile>>),
}

/// How a table is written.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The format.
    pub format: OutputFormat,
    /// About the bytes of a row group of Parquet; none: as many rows as the library takes.
    pub row_group: Option<u64>,
}

impl Layout {
    /// As the library lays it out.
    pub fn of(format: OutputFormat) -> Self {
        Self { format, row_group: None }
    }
}

/// The end of the name of a file.
pub(super) fn extension(format: OutputFormat) -> &'static str {
    match format {
        OutputFormat::Parquet => "parquet",
        OutputFormat::Csv => "csv",
        OutputFormat::Ndjson => "ndjson",
        OutputFormat::Arrow => "arrow",
    }
}

impl TableWriter {
    /// Begins `part-<index>.<format>` in a directory.
    pub fn create(dir: &Path, index: u32, schema: &SchemaRef, layout: Layout) -> Result<Self, TaskError> {
        let name = format!("part-{index:05}.{}", extension(layout.format));
        Self::begin(dir.join(&name), name, schema, layout)
    }

    /// Begins a file that is published under a name of its own.
    pub fn begin(path: PathBuf, publish_as: String, schema: &SchemaRef, layout: Layout) -> Result<Self, TaskError> {
        let file = NewFile::create(&path)?;
        let sink = match layout.format {
            OutputFormat::Parquet => {
                let level = ZstdLevel::try_new(3).expect("3 is a level");
                let bytes = layout.row_group.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(level))
                    .set_max_row_group_bytes(bytes)
                    .build();
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
            OutputFormat::Arrow => {
                let writer = ipc::writer::FileWriter::try_new(file, schema);
                Sink::Arrow(Box::new(writer.map_err(|error| table(&path, error))?))
            }
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
            Sink::Arrow(writer) => writer.write(batch),
        }
        .map_err(|error| table(&self.path, error))
    }

    /// Bytes that it holds in memory.
    pub fn held(&self) -> u64 {
        match &self.sink {
            Sink::Parquet(writer) => writer.memory_size() as u64,
            Sink::Csv(_) | Sink::Ndjson(_) | Sink::Arrow(_) => 0,
        }
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
            Sink::Arrow(writer) => writer.into_inner().map_err(|error| table(&self.path, error))?,
        };
        let (size, checksum) = file.finish()?;
        let (path, publish_as) = (self.path, Some(self.publish_as));
        Ok(Written { path, publish_as, partition: None, size, checksum, rows: Some(self.rows) })
    }
}

/// Writes JSON values to a new file, one a line; they are no records of the output.
pub fn write_lines(
    dir: &Path,
    publish_as: &str,
    lines: impl IntoIterator<Item = serde_json::Value>,
) -> Result<Written, TaskError> {
    let path = dir.join(publish_as.replace('/', "-"));
    let mut file = BufWriter::new(NewFile::create(&path)?);
    let written = lines.into_iter().try_for_each(|line| writeln!(file, "{line}"));
    let file = written.and_then(|()| file.into_inner().map_err(io::IntoInnerError::into_error));
    let (size, checksum) = file.map_err(|error| VolumeError::io("write", &path, error))?.finish()?;
    Ok(Written { path, publish_as: Some(publish_as.to_owned()), partition: None, size, checksum, rows: Some(0) })
}

fn table(path: &Path, source: ArrowError) -> TaskError {
    match source {
        ArrowError::IoError(_, source) => VolumeError::io("write", path, source).into(),
        source => TaskError::Table { what: path.display().to_string(), source },
    }
}

/// The columns of a CSV file, by its header and its first rows.
fn csv_schema(path: &Path) -> Result<Schema, ArrowError> {
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
