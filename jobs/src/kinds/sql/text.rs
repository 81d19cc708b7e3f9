//! CSV and NDJSON, read so that a record that cannot be read is known by its file and its line.
//!
//! A file is read a [`Chunk`] of whole records at a time and decoded by Arrow's decoders. Where one fails, the chunk is
//! halved until the records are found that are to blame; all others are kept. So the usual case costs nothing, and the
//! message is exact.

mod chunks;
mod source;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io::{self, Cursor},
    ops::Range,
    path::Path,
    sync::Arc,
};

use arrow::{
    array::RecordBatch,
    csv,
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
    json,
};
use datafusion::error::DataFusionError;
use regex::Regex;

use self::chunks::{Chunk, ChunkError, Chunks, records};
pub(super) use self::source::{TextPlace, TextSource, TextTable};
use super::{bad::BadRecords, drift};
use crate::{
    kinds::table::ROWS_FOR_TYPES,
    spec::table::{CsvSpec, TableFormat, TableSpec},
};

/// How a table's text is to be understood.
#[derive(Clone, Debug)]
pub(super) enum TextFormat {
    Csv { csv: CsvSpec, null: Option<Regex> },
    Ndjson,
}

/// A text file.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextFile<'a> {
    pub(super) key: &'a str,
    pub(super) path: &'a Path,
}

impl TextFormat {
    /// Of a table whose objects are text.
    pub(super) fn of(table: &TableSpec, format: TableFormat) -> Option<Self> {
        match format {
            TableFormat::Csv => {
                let any = table.csv.null.iter().map(|text| regex::escape(text)).collect::<Vec<_>>().join("|");
                // What is escaped is an expression, and the job file takes so few that it cannot be too large.
                let null = (!any.is_empty() || !table.csv.null.is_empty())
                    .then(|| Regex::new(&format!("^({any})$")).expect("some KiB of escaped texts are an expression"));
                Some(Self::Csv { csv: table.csv.clone(), null })
            }
            TableFormat::Ndjson => Some(Self::Ndjson),
            TableFormat::Parquet | TableFormat::Arrow => None,
        }
    }

    /// Of CSV whose quotes may hold newlines.
    fn quoted(&self) -> Option<&CsvSpec> {
        match self {
            Self::Csv { csv, .. } if csv.newlines => Some(csv),
            Self::Csv { .. } | Self::Ndjson => None,
        }
    }

    /// Where the first data record of a file begins, by its first chunk.
    fn data_begins(&self, bytes: &[u8]) -> usize {
        let mark = bytes.len() - without_mark(bytes).len();
        let Self::Csv { csv: CsvSpec { header: true, comment, .. }, .. } = self else { return mark };
        let is_header = |record: &&Range<usize>| {
            let record = &bytes[mark..][(*record).clone()];
            !record.iter().all(|byte| matches!(byte, b'\r' | b'\n')) && record.first().copied() != *comment
        };
        records(&bytes[mark..], self).iter().find(is_header).map_or(bytes.len(), |header| mark + header.end)
    }

    /// Whether each newline ends a record, so that a file can be read in ranges.
    pub(super) fn is_lines(&self) -> bool {
        self.quoted().is_none()
    }

    /// The columns that a chunk tells. `head` is what stands before its data in the file.
    fn guess(&self, head: &[u8], bytes: &[u8]) -> Result<Schema, ArrowError> {
        match self {
            Self::Csv { csv, null } => {
                let mut format = csv::reader::Format::default().with_header(csv.header);
                format = format.with_delimiter(csv.delimiter).with_quote(csv.quote);
                format = csv.escape.into_iter().fold(format, csv::reader::Format::with_escape);
                format = csv.comment.into_iter().fold(format, csv::reader::Format::with_comment);
                format = null.iter().cloned().fold(format, csv::reader::Format::with_null_regex);
                let (schema, _) = format.infer_schema(std::io::Read::chain(head, bytes), None)?;
                if csv.columns.is_empty() {
                    return Ok(schema);
                }
                if schema.fields().len() != csv.columns.len() {
                    let (found, named) = (schema.fields().len(), csv.columns.len());
                    return Err(ArrowError::CsvError(format!("it has {found} fields, and `columns` names {named}")));
                }
                let named = schema.fields().iter().zip(&csv.columns);
                Ok(Schema::new(named.map(|(field, name)| field.as_ref().clone().with_name(name)).collect::<Vec<_>>()))
            }
            Self::Ndjson => {
                let (schema, _) = json::reader::infer_json_schema(Cursor::new(bytes), None)?;
                // They come in no order.
                let fields: BTreeMap<_, _> =
                    schema.fields().iter().map(|field| (field.name().clone(), Arc::clone(field))).collect();
                Ok(Schema::new(fields.into_values().collect::<Vec<_>>()))
            }
        }
    }

    /// The columns of a file by its first lines.
    pub(super) fn columns_of(&self, first_lines: &[u8]) -> Result<Schema, ArrowError> {
        let (head, data) = first_lines.split_at(self.data_begins(first_lines));
        self.guess(without_mark(head), data)
    }

    /// The rows of whole records, of the columns at these places of a schema, in batches.
    fn decode(
        &self,
        bytes: &[u8],
        (schema, projection): (&SchemaRef, &[usize]),
        batch_size: usize,
    ) -> Result<Vec<RecordBatch>, ArrowError> {
        let mut batches = Vec::new();
        match self {
            Self::Csv { csv, null } => {
                let mut builder = csv::ReaderBuilder::new(Arc::clone(schema))
                    .with_delimiter(csv.delimiter)
                    .with_quote(csv.quote)
                    .with_batch_size(batch_size)
                    .with_projection(projection.to_vec());
                builder = csv.escape.into_iter().fold(builder, csv::ReaderBuilder::with_escape);
                builder = csv.comment.into_iter().fold(builder, csv::ReaderBuilder::with_comment);
                builder = null.iter().cloned().fold(builder, csv::ReaderBuilder::with_null_regex);
                let (mut decoder, mut at) = (builder.build_decoder(), 0);
                loop {
                    // At the end it is called with nothing, which ends a last record without a newline.
                    let read = decoder.decode(&bytes[at..])?;
                    at += read;
                    if decoder.capacity() == 0 || read == 0 {
                        batches.extend(decoder.flush()?);
                    }
                    if read == 0 {
                        return Ok(batches);
                    }
                }
            }
            Self::Ndjson => {
                let schema = Arc::new(schema.project(projection)?);
                let builder = json::ReaderBuilder::new(schema).with_batch_size(batch_size).with_coerce_primitive(true);
                let (mut decoder, mut at) = (builder.build_decoder()?, 0);
                while at < bytes.len() {
                    at += decoder.decode(&bytes[at..])?;
                    batches.extend(decoder.flush()?);
                }
                Ok(batches)
            }
        }
    }

    /// What is wrong with a record, in few words.
    fn why(&self, error: &ArrowError, schema: &Schema) -> String {
        let text = match error {
            ArrowError::CsvError(text) | ArrowError::JsonError(text) | ArrowError::ParseError(text) => text.clone(),
            error => error.to_string(),
        };
        let column = |at: usize| schema.fields().get(at).map_or("?", |field| field.name().as_str());
        let number = |text: &str| text.split(' ').next().and_then(|number| number.parse::<usize>().ok());
        if let Some((found, wanted)) = text
            .strip_prefix("incorrect number of fields for line ")
            .and_then(|rest| rest.split_once("expected ")?.1.split_once(" got "))
            .map(|(wanted, found)| (found, wanted))
        {
            return format!("it has {found} fields, and the table {wanted} columns");
        }
        if let Some((_, field)) = text.strip_prefix("Encountered invalid UTF-8").and_then(|t| t.split_once("field ")) {
            return format!("the column `{}` is not UTF-8", column(number(field).unwrap_or(1).saturating_sub(1)));
        }
        if let Some(rest) = text.strip_prefix("Error while parsing value ")
            && let Some((value, rest)) = rest.split_once("' as type '")
            && let Some((data_type, rest)) = rest.split_once("' for column ")
        {
            let value = value.trim_start_matches('\'');
            return format!("the column `{}`: `{value}` is no {data_type}", column(number(rest).unwrap_or(usize::MAX)));
        }
        if let Some(rest) = text.strip_prefix("whilst decoding field '")
            && let Some((column, rest)) = rest.split_once("': ")
        {
            return format!("the column `{column}`: {rest}");
        }
        text
    }

    /// The columns of a file, by its first records.
    ///
    /// # Errors
    /// [`super::bad::BadRecord`] behind DataFusion's, or what the system says.
    pub(super) fn infer(&self, file: TextFile<'_>, bad: &BadRecords) -> Result<Schema, DataFusionError> {
        let mut chunks = Chunks::open(file.path, None, self)?;
        let (mut head, mut rows, mut found): (Vec<u8>, usize, Vec<Schema>) = (Vec::new(), 0, Vec::new());
        while rows < ROWS_FOR_TYPES
            && let Some(Chunk { offset, bytes }) = next(&mut chunks, file, bad)?
        {
            let begins = if offset == 0 { self.data_begins(&bytes) } else { 0 };
            if offset == 0 {
                head = without_mark(&bytes[..begins]).to_vec();
            }
            let data = &bytes[begins..];
            rows += memchr::memchr_iter(b'\n', data).count();
            match self.guess(&head, data) {
                Ok(schema) => found.push(schema),
                Err(error) if !is_of_record(&error) => return Err(error.into()),
                Err(_) => found.extend(self.guess_some(&head, (data, offset + begins as u64), file, bad)?),
            }
        }
        let same = found.iter().map(|schema| (file.key, schema));
        drift::merged(same, &BTreeMap::new(), true).map_err(DataFusionError::Plan)
    }

    /// The same of a chunk in which some records are bad.
    fn guess_some(
        &self,
        head: &[u8],
        (data, offset): (&[u8], u64),
        file: TextFile<'_>,
        bad: &BadRecords,
    ) -> Result<Option<Schema>, DataFusionError> {
        // Of CSV nothing but the number of fields and the encoding can be wrong before types are known.
        let columns = match self {
            Self::Csv { csv, .. } if csv.header => self.guess(head, &[]).ok(),
            Self::Csv { .. } => records(data, self).into_iter().find_map(|record| self.guess(&[], &data[record]).ok()),
            Self::Ndjson => None,
        };
        let as_text = columns.map(|schema| {
            let text = |field: &Arc<Field>| field.as_ref().clone().with_data_type(DataType::Utf8);
            Arc::new(Schema::new(schema.fields().iter().map(text).collect::<Vec<_>>()))
        });
        let empty = Arc::new(Schema::empty());
        let mut good = Vec::new();
        let mut try_some = |records: &[u8]| match &as_text {
            Some(schema) => self.decode(records, (schema, &[]), 8192).map(|_| records.to_vec()),
            None => self.guess(head, records).map(|_| records.to_vec()),
        };
        let mut kept = |some: Vec<u8>| good.extend_from_slice(&some);
        let schema = as_text.as_ref().unwrap_or(&empty);
        sift(self, (data, offset), &mut try_some, &mut kept, &mut |at, error| {
            bad.note(file.key, file.path, at, self.why(error, schema))
        })?;
        Ok(self.guess(head, &good).ok())
    }
}

/// Where a range of a file begins that begins within what comes before the data, which is all in the first chunk.
fn without_head(file: &Path, range: Range<u64>, format: &TextFormat) -> io::Result<Range<u64>> {
    if range.start == 0 || range.start >= chunks::READ as u64 {
        return Ok(range);
    }
    let begins = match Chunks::open(file, None, format)?.next() {
        Ok(first) => first.map_or(0, |chunk| format.data_begins(&chunk.bytes) as u64),
        Err(ChunkError::Endless(_)) => 0,
        Err(ChunkError::Io(error)) => return Err(error),
    };
    Ok(range.start.max(begins)..range.end)
}

/// The next chunk; a record without an end is a bad one, after which nothing can be told from it.
fn next(chunks: &mut Chunks, file: TextFile<'_>, bad: &BadRecords) -> Result<Option<Chunk>, DataFusionError> {
    match chunks.next() {
        Ok(chunk) => Ok(chunk),
        Err(ChunkError::Io(error)) => Err(error.into()),
        Err(ChunkError::Endless(offset)) => {
            let why = "the record has no end: a quote that opens is not closed".to_owned();
            bad.note(file.key, file.path, offset, why).map(|()| None)
        }
    }
}

/// Without the mark of UTF-8 that a file may begin with.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Whether it is a record that is wrong, and not what is asked of it.
fn is_of_record(error: &ArrowError) -> bool {
    !matches!(
        error,
        ArrowError::NotYetImplemented(_)
            | ArrowError::IoError(..)
            | ArrowError::MemoryError(_)
            | ArrowError::SchemaError(_)
            | ArrowError::ExternalError(_)
    )
}

/// Tries records together, and halves those that fail until the bad ones are alone.
fn sift<T>(
    format: &TextFormat,
    (bytes, offset): (&[u8], u64),
    try_some: &mut dyn FnMut(&[u8]) -> Result<T, ArrowError>,
    good: &mut dyn FnMut(T),
    bad: &mut dyn FnMut(u64, &ArrowError) -> Result<(), DataFusionError>,
) -> Result<(), DataFusionError> {
    let records = records(bytes, format);
    // From the last to the first, so that the next one to be looked at is at the end.
    let mut open: Vec<Range<usize>> = Vec::new();
    open.push(0..records.len());
    while let Some(some) = open.pop() {
        let (Some(first), Some(last)) = (records.get(some.start), some.end.checked_sub(1).map(|at| &records[at]))
        else {
            continue;
        };
        match try_some(&bytes[first.start..last.end]) {
            Ok(rows) => good(rows),
            Err(error) if !is_of_record(&error) => return Err(error.into()),
            Err(error) if some.len() == 1 => bad(offset + first.start as u64, &error)?,
            Err(_) => {
                let middle = some.start + some.len() / 2;
                open.extend([middle..some.end, some.start..middle]);
            }
        }
    }
    Ok(())
}
