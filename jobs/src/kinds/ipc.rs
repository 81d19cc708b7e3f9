//! What one phase of a run leaves to the next: Arrow IPC streams.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use arrow::{array::RecordBatch, datatypes::Schema, error::ArrowError};
use arrow_ipc::{
    CompressionType,
    reader::StreamReader,
    writer::{IpcWriteOptions, StreamWriter},
};
use forebay_datasets::volume::{Volume, VolumeError};

use super::TaskError;

const BUFFER: usize = 64 << 10;

/// How batches are written on a volume: compressed where their bytes go to another host. A disk takes them sooner than they
/// are compressed.
pub(super) fn compression(volume: &Volume) -> Option<CompressionType> {
    volume.mount().is_network().then_some(CompressionType::LZ4_FRAME)
}

/// Writes batches in the order in which they come.
pub(super) struct BatchWriter<W: Write> {
    path: PathBuf,
    stream: StreamWriter<BufWriter<W>>,
}

impl<W: Write> BatchWriter<W> {
    pub(super) fn new(
        path: PathBuf,
        file: W,
        schema: &Schema,
        compression: Option<CompressionType>,
    ) -> Result<Self, TaskError> {
        let options = IpcWriteOptions::default().try_with_compression(compression);
        let buffered = BufWriter::with_capacity(BUFFER, file);
        let stream = options.and_then(|options| StreamWriter::try_new_with_options(buffered, schema, options));
        let stream = stream.map_err(|error| failed(&path, error))?;
        Ok(Self { path, stream })
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), TaskError> {
        self.stream.write(batch).map_err(|error| failed(&self.path, error))
    }

    /// The file, with everything written to it.
    pub(super) fn finish(mut self) -> Result<W, TaskError> {
        self.stream.finish().map_err(|error| failed(&self.path, error))?;
        let buffered = self.stream.into_inner().map_err(|error| failed(&self.path, error))?;
        let written = buffered.into_inner();
        Ok(written.map_err(|error| VolumeError::io("write", &self.path, error.into_error()))?)
    }
}

fn failed(path: &Path, error: ArrowError) -> TaskError {
    match error {
        ArrowError::IoError(_, source) => VolumeError::io("write", path, source).into(),
        source => TaskError::Table { what: path.display().to_string(), source },
    }
}

/// Opens a stream before its first batch.
pub(super) fn open(path: &Path) -> Result<StreamReader<BufReader<File>>, TaskError> {
    let opened = File::open(path).map_err(|source| TaskError::Io { path: path.to_owned(), source })?;
    let reader = StreamReader::try_new(BufReader::with_capacity(BUFFER, opened), None);
    reader.map_err(|source| TaskError::Table { what: path.display().to_string(), source })
}
