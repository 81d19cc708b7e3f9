//! The footer of a Parquet file: where its columns lie.

use std::ops::Range;

use arrow::datatypes::Schema;
use parquet::{
    arrow::parquet_to_arrow_schema,
    errors::ParquetError,
    file::metadata::{ColumnChunkMetaData, FooterTail, ParquetMetaData, ParquetMetaDataReader},
};

use super::{Columns, ColumnsError, Held, REQUEST, worthwhile};

/// How much of an object's end is read first; few footers are longer.
pub const TAIL: u64 = 64 << 10;
/// No footer is read that is longer: nobody's columns take so much, and lanes hold theirs in memory.
const MOST: u64 = 64 << 20;
/// Length and magic number at the very end.
const END: u64 = 8;

/// Why a footer does not tell where the columns are.
#[derive(Debug, thiserror::Error)]
pub enum FooterError {
    /// The file ends in something else.
    #[error("it is no Parquet file, by its last bytes")]
    NotParquet,
    /// It can be read with a key only.
    #[error("its footer is encrypted, so that its columns cannot be found: stage it whole")]
    Encrypted,
    /// It says that it takes more than any does.
    #[error("its footer has {length} bytes, and none of more than {MOST} is read: stage it whole")]
    TooLong {
        /// Its length.
        length: u64,
    },
    /// It cannot be understood.
    #[error("its footer is broken")]
    Malformed(#[source] ParquetError),
    /// It places something where the file has no room for it.
    #[error("its footer is broken: it places {what} at byte {offset} of a file with {size}")]
    OutOfBounds {
        /// A column's chunk, or an index.
        what: String,
        /// Where that would begin.
        offset: i64,
        /// The file's bytes.
        size: u64,
    },
}

/// The footer of a Parquet file.
#[derive(Clone, Debug)]
pub struct Footer {
    size: u64,
    /// Where in the file it begins.
    start: u64,
    metadata: ParquetMetaData,
}

/// What looking for a footer in the end of a file gives.
#[derive(Clone, Debug)]
pub enum Found {
    /// All of it.
    Footer(Box<Footer>),
    /// It is longer: it takes the end of the file from here on.
    From(u64),
}

impl Footer {
    /// Finds the footer in the last bytes of a file of `size` bytes, at least eight of them.
    pub fn find(size: u64, tail: &[u8]) -> Result<Found, FooterError> {
        let end = tail.last_chunk::<{ END as usize }>().ok_or(FooterError::NotParquet)?;
        match &end[4..] {
            b"PARE" => return Err(FooterError::Encrypted),
            b"PAR1" => {}
            _ => return Err(FooterError::NotParquet),
        }
        let length = FooterTail::try_new(end).map_err(FooterError::Malformed)?.metadata_length() as u64;
        let beyond = || FooterError::OutOfBounds { what: "itself".to_owned(), offset: -(length as i64), size };
        let start = size.checked_sub(END + length).ok_or_else(beyond)?;
        if length > MOST {
            return Err(FooterError::TooLong { length });
        }
        let Some(from) = (tail.len() as u64).checked_sub(END + length) else { return Ok(Found::From(start)) };
        let encoded = &tail[from as usize..tail.len() - END as usize];
        let metadata = ParquetMetaDataReader::decode_metadata(encoded).map_err(FooterError::Malformed)?;
        Ok(Found::Footer(Box::new(Self { size, start, metadata })))
    }

    /// Reads the footer of a file of `size` bytes: the last `tail` bytes, and if they do not hold it, as many as it
    /// takes.
    pub fn read<E: std::error::Error + 'static>(
        size: u64,
        tail: u64,
        read: &mut dyn FnMut(Range<u64>) -> Result<Vec<u8>, E>,
    ) -> Result<Self, ColumnsError<E>> {
        let mut from = size.saturating_sub(tail.max(END));
        loop {
            match Self::find(size, &read(from..size).map_err(ColumnsError::Read)?)? {
                Found::Footer(footer) => return Ok(*footer),
                // It asks for less than it was given: what it was given is not what it asked for.
                Found::From(start) if start >= from => return Err(FooterError::NotParquet.into()),
                Found::From(start) => from = start,
            }
        }
    }

    /// The file's columns.
    pub fn schema(&self) -> Result<Schema, FooterError> {
        let file = self.metadata.file_metadata();
        parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata()).map_err(FooterError::Malformed)
    }

    /// The names of its top-level columns.
    pub fn columns(&self) -> Columns {
        let schema = self.metadata.file_metadata().schema_descr().root_schema();
        schema.get_fields().iter().map(|field| field.name()).collect()
    }

    /// What of the file is to be fetched for the wanted columns.
    pub fn held(&self, wanted: &Columns) -> Result<Held, FooterError> {
        self.held_with(wanted, REQUEST)
    }

    /// The same where one more request costs as much as `request` bytes.
    pub(super) fn held_with(&self, wanted: &Columns, request: u64) -> Result<Held, FooterError> {
        if self.chunks().any(|chunk| chunk.file_path().is_some()) {
            // The columns lie in files of their own, and this one is hardly more than a footer.
            return Ok(Held::Whole);
        }
        let mut ranges = self.columns_at(wanted)?;
        ranges.push(self.indexes()?);
        ranges.push(self.start..self.size);
        Ok(worthwhile(ranges, self.size, request))
    }

    /// Where the chunks of the wanted columns lie, and their Bloom filters.
    pub(super) fn columns_at(&self, wanted: &Columns) -> Result<Vec<Range<u64>>, FooterError> {
        let mut ranges = Vec::new();
        for chunk in self.chunks().filter(|chunk| wanted.contains(top_level(chunk))) {
            let offset = begin(chunk);
            ranges.push(self.range(chunk, offset, chunk.compressed_size())?);
            if let Some(offset) = chunk.bloom_filter_offset() {
                ranges.push(match chunk.bloom_filter_length() {
                    Some(length) => self.range(chunk, offset, length.into())?,
                    // Older writers do not tell: it ends where the next thing begins, at the latest.
                    None => self.range(chunk, offset, self.next_after(offset).saturating_sub(offset))?,
                });
            }
        }
        Ok(ranges)
    }

    /// From the first of all page indexes to the end of the last: readers take them by one read.
    fn indexes(&self) -> Result<Range<u64>, FooterError> {
        let mut all: Option<Range<u64>> = None;
        for chunk in self.chunks() {
            let column = chunk.column_index_offset().zip(chunk.column_index_length());
            let offset = chunk.offset_index_offset().zip(chunk.offset_index_length());
            for (offset, length) in column.into_iter().chain(offset) {
                let range = self.range(chunk, offset, length.into())?;
                all = Some(all.map_or(range.clone(), |all| all.start.min(range.start)..all.end.max(range.end)));
            }
        }
        Ok(all.unwrap_or(self.start..self.start))
    }

    fn chunks(&self) -> impl Iterator<Item = &ColumnChunkMetaData> {
        self.metadata.row_groups().iter().flat_map(|group| group.columns())
    }

    /// Where the thing that follows an offset begins, at the latest the footer.
    fn next_after(&self, offset: i64) -> i64 {
        let start = i64::try_from(self.start).unwrap_or(i64::MAX);
        let starts = self.chunks().flat_map(|chunk| {
            let indexes = [chunk.column_index_offset(), chunk.offset_index_offset(), chunk.bloom_filter_offset()];
            indexes.into_iter().flatten().chain([begin(chunk)])
        });
        starts.filter(|start| *start > offset).min().map_or(start, |next| next.min(start))
    }

    /// A range as the footer gives it, which is not taken on trust.
    fn range(&self, chunk: &ColumnChunkMetaData, offset: i64, length: i64) -> Result<Range<u64>, FooterError> {
        let start = u64::try_from(offset).ok();
        let range = start.zip(u64::try_from(length).ok()).map(|(start, length)| start..start.saturating_add(length));
        range.filter(|range| range.end <= self.start).ok_or_else(|| {
            let what = format!("a part of the column `{}`", top_level(chunk));
            FooterError::OutOfBounds { what, offset, size: self.size }
        })
    }
}

fn top_level(chunk: &ColumnChunkMetaData) -> &str {
    chunk.column_path().parts().first().map_or("", String::as_str)
}

/// Where a chunk begins: with its dictionary, if it has one.
fn begin(chunk: &ColumnChunkMetaData) -> i64 {
    chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset())
}
