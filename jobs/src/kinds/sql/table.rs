//! A table of a query: exact files, the columns that their keys tell, and what is learnt of the files themselves.
//!
//! What the keys tell is known without opening a file ([`Table::of`]). Of the files, only those are opened that a query
//! can want ([`Table::opened`]): a file whose partition no filter lets through is never looked at.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    catalog::Session,
    datasource::{
        file_format::{FileFormat, arrow::ArrowFormat, parquet::ParquetFormat},
        table_schema::TableSchema,
    },
    error::DataFusionError,
    object_store::{ObjectMeta, path::Path},
    prelude::SessionContext,
    scalar::ScalarValue,
};
use forebay_datasets::{
    split::{Part, Split},
    volume::Volume,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    bad::{BadRecord, BadRecords},
    cause, drift,
    held::{NotHeld, location, volume_url},
    known::KnownTable,
    partitions::Partitions,
    passing, readable,
    script::type_of,
    text::{TextFile, TextFormat},
};
use crate::{
    kinds::TaskError,
    spec::table::{TableFormat, TableSpec},
};

/// Footers, or first lines, that are read side by side: each is a round trip on a network file system.
const OPENED_AT_ONCE: usize = 32;

/// A table as far as it is known.
#[derive(Debug)]
pub(super) struct Table {
    /// As a query names it without quotes.
    pub(super) name: String,
    pub(super) format: TableFormat,
    pub(super) text: Option<Arc<TextFormat>>,
    pub(super) files: Vec<TableFile>,
    /// Columns that the keys tell.
    pub(super) partitions: Vec<Arc<Field>>,
    /// Types of columns that the job gives.
    types: BTreeMap<String, DataType>,
}

/// One of its files.
#[derive(Debug)]
pub(super) struct TableFile {
    pub(super) key: String,
    pub(super) path: PathBuf,
    pub(super) meta: ObjectMeta,
    /// Whether it is held in part.
    pub(super) partial: bool,
    /// What of it is to be read.
    pub(super) part: Part,
    /// Of the partitions' columns.
    pub(super) values: Vec<ScalarValue>,
}

impl TableFile {
    /// Of a key, where it is, and where DataFusion takes it to be.
    pub(super) fn new(key: &str, path: PathBuf, location: Path, size: u64) -> Self {
        // A snapshot's file never changes, so that its time says nothing.
        let meta = ObjectMeta { location, last_modified: Default::default(), size, e_tag: None, version: None };
        Self { key: key.to_owned(), path, meta, partial: false, part: Part::Whole, values: Vec::new() }
    }
}

/// The columns of the files that were opened.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    /// All that are in the files, in their order: CSV is read by position.
    pub(super) all: SchemaRef,
    /// Those that are the table's, and its partitions.
    pub(super) table: TableSchema,
}

impl Columns {
    pub(super) fn new(all: SchemaRef, partitions: &[Arc<Field>]) -> Self {
        // What the key tells is what it says in the file as well, if it is there.
        let is_own = |field: &&Arc<Field>| !partitions.iter().any(|partition| partition.name() == field.name());
        let own = Schema::new(all.fields().iter().filter(is_own).cloned().collect::<Vec<_>>());
        let table = TableSchema::builder(Arc::new(own)).with_table_partition_cols(partitions.to_vec()).build();
        Self { all, table }
    }
}

impl Table {
    /// The table that some of a split's pieces make up.
    pub(super) fn of(volume: &Volume, name: &str, spec: &TableSpec, split: &Split) -> Result<Self, TaskError> {
        Self::of_files(name, spec, Self::files(volume, name, spec, split)?)
    }

    /// The part of a table that some of a split's pieces make up, be it nothing.
    pub(super) fn of_known(
        volume: &Volume,
        (name, spec, known): (&str, &TableSpec, &KnownTable),
        split: &Split,
    ) -> Result<Self, TaskError> {
        let mut files = Self::files(volume, name, spec, split)?;
        let partitions: Vec<_> = known.partitions.fields().iter().cloned().collect();
        if !partitions.is_empty() {
            let types = partitions.iter().map(|field| (field.name().clone(), field.data_type().clone())).collect();
            let keys: Vec<_> = files.iter().map(|file| file.key.as_str()).collect();
            let told = Partitions::of(&keys, &types).map_err(|what| bad_table(name, &what))?;
            files.iter_mut().zip(told.values).for_each(|(file, values)| file.values = values);
        }
        let text = TextFormat::of(spec, known.format).map(Arc::new);
        let (name, types) = (name.to_ascii_lowercase(), BTreeMap::new());
        Ok(Self { name, format: known.format, text, files, partitions, types })
    }

    fn files(volume: &Volume, name: &str, spec: &TableSpec, split: &Split) -> Result<Vec<TableFile>, TaskError> {
        let matches = spec.matcher().map_err(|error| bad_table(name, &error.to_string()))?;
        let mut files = Vec::new();
        for piece in split.pieces.iter().filter(|piece| matches(&piece.key)) {
            let path = volume.resolve(&piece.path)?;
            let file = TableFile::new(&piece.key, path, location(&piece.path)?, piece.size);
            files.push(TableFile { partial: piece.partial, part: piece.part, ..file });
        }
        Ok(files)
    }

    /// The table that some files make up, whose partitions are told here.
    pub(super) fn of_files(name: &str, spec: &TableSpec, mut files: Vec<TableFile>) -> Result<Self, TaskError> {
        let wrong = |what: String| bad_table(name, &what);
        let format = format(name, spec, files.iter().map(|file| file.key.as_str()))?;
        let mut types = BTreeMap::new();
        for (column, text) in &spec.schema {
            types.insert(column.clone(), type_of(text).map_err(|why| wrong(format!("`{text}` is no type: {why}")))?);
        }
        let keys: Vec<_> = files.iter().map(|file| file.key.as_str()).collect();
        let partitions = match spec.partitions {
            true => Partitions::of(&keys, &types).map_err(wrong)?,
            false => Partitions { fields: Vec::new(), values: vec![Vec::new(); files.len()] },
        };
        types.retain(|name, _| !partitions.fields.iter().any(|field| field.name() == name));
        files.iter_mut().zip(partitions.values).for_each(|(file, values)| file.values = values);
        let text = TextFormat::of(spec, format).map(Arc::new);
        let partitions = partitions.fields.into_iter().map(Arc::new).collect();
        Ok(Self { name: name.to_ascii_lowercase(), format, text, files, partitions, types })
    }

    /// DataFusion's own reader of the files, where that is what reads them.
    pub(super) fn reader(&self, session: &dyn Session) -> Option<Arc<dyn FileFormat>> {
        match self.format {
            TableFormat::Parquet => {
                let format = ParquetFormat::default().with_options(session.default_table_options().parquet);
                match self.files.iter().any(|file| file.partial) {
                    // A first read of more than the footer would reach into what is not held.
                    true => Some(Arc::new(format.with_metadata_size_hint(None))),
                    false => Some(Arc::new(format)),
                }
            }
            TableFormat::Arrow => Some(Arc::new(ArrowFormat)),
            TableFormat::Csv | TableFormat::Ndjson => None,
        }
    }

    /// Opens some of the files, for what columns they have.
    pub(super) async fn opened(
        &self,
        context: &SessionContext,
        files: &[usize],
        bad: &BadRecords,
    ) -> Result<Columns, TaskError> {
        let opened = stream::iter(files).map(|at| async move {
            let file = &self.files[*at];
            self.schema_of(context, file, bad).await.map(|schema| (file.key.as_str(), schema))
        });
        let schemas: Vec<_> = opened.buffered(OPENED_AT_ONCE).try_collect().await?;
        self.columns(schemas.iter().map(|(key, schema)| (*key, schema)))
    }

    /// Opens all of the files, and leaves out those that cannot be read.
    pub(super) async fn opened_if_readable(
        &self,
        context: &SessionContext,
        bad: &BadRecords,
    ) -> Result<Columns, TaskError> {
        let opened = stream::iter(&self.files).map(|file| async move {
            self.schema_of(context, file, bad).await.ok().map(|schema| (file.key.as_str(), schema))
        });
        let schemas: Vec<_> = opened.buffered(OPENED_AT_ONCE).filter_map(std::future::ready).collect().await;
        self.columns(schemas.iter().map(|(key, schema)| (*key, schema)))
    }

    /// The table's columns, by those of files.
    pub(super) fn columns<'a>(
        &self,
        files: impl IntoIterator<Item = (&'a str, &'a Schema)>,
    ) -> Result<Columns, TaskError> {
        let wrong = |what: String| bad_table(&self.name, &what);
        let files: Vec<_> = files.into_iter().collect();
        if let (TableFormat::Csv, Some((first, before))) = (self.format, files.first()) {
            let names = |schema: &Schema| schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
            let before = names(before);
            // CSV is read by position, whatever its header says.
            if let Some((key, schema)) = files.iter().find(|(_, schema)| names(schema) != before) {
                let (theirs, ours) = (before.join(", "), names(schema).join(", "));
                return Err(wrong(format!("`{first}` has the columns {theirs}, and `{key}` has {ours}")));
            }
        }
        let merged = drift::merged(files, &self.types, self.text.is_some()).map_err(wrong)?;
        let as_text = |field: &Arc<Field>| match (field.data_type(), &self.text) {
            // Nothing was there by which to tell: any value may come yet.
            (DataType::Null, Some(_)) => field.as_ref().clone().with_data_type(DataType::Utf8),
            _ => field.as_ref().clone(),
        };
        let all = Schema::new(merged.fields().iter().map(as_text).collect::<Vec<_>>());
        Ok(Columns::new(Arc::new(all), &self.partitions))
    }

    async fn schema_of(
        &self,
        context: &SessionContext,
        file: &TableFile,
        bad: &BadRecords,
    ) -> Result<Schema, TaskError> {
        let told = match (&self.text, self.reader(&context.state())) {
            (Some(text), _) => text.infer(TextFile { key: &file.key, path: &file.path }, bad),
            (None, Some(reader)) => {
                let state = context.state();
                let store =
                    state.runtime_env().object_store(volume_url()).map_err(|e| bad_table(&self.name, &readable(&e)))?;
                let schema = reader.infer_schema(&state, &store, std::slice::from_ref(&file.meta)).await;
                schema.map(|schema| schema.as_ref().clone())
            }
            (None, None) => unreachable!("what is no text has a reader"),
        };
        told.map_err(|error| self.unreadable(file, &error))
    }

    /// What an error of one file's is.
    fn unreadable(&self, file: &TableFile, error: &DataFusionError) -> TaskError {
        if let Some(not_held) = cause::<NotHeld>(error) {
            return not_held.into();
        }
        if let Some(record) = cause::<BadRecord>(error) {
            return bad_table(&self.name, &record.to_string());
        }
        match passing(error) {
            Some(source) => TaskError::Io { path: file.path.clone(), source },
            None => bad_table(&self.name, &format!("`{}`: {}", file.key, readable(error))),
        }
    }
}

/// What the objects of a table are.
pub(super) fn format<'a>(
    name: &str,
    spec: &TableSpec,
    keys: impl IntoIterator<Item = &'a str>,
) -> Result<TableFormat, TaskError> {
    let wrong = |what: String| bad_table(name, &what);
    let mut first: Option<(&str, TableFormat)> = None;
    for key in keys {
        let format = spec.format_of(key).ok_or_else(|| {
            wrong(format!(
                "`{key}` ends in none of .parquet, .csv, .ndjson, .arrow: narrow its globs, or say its format"
            ))
        })?;
        match first {
            None => first = Some((key, format)),
            Some((before, other)) if other != format => {
                return Err(wrong(format!(
                    "`{before}` and `{key}` are of different formats: narrow its globs in `tables`"
                )));
            }
            Some(_) => {}
        }
    }
    let (key, format) = first.ok_or_else(|| wrong("no object".to_owned()))?;
    match spec.without_effect(format) {
        Some(without) => Err(wrong(format!("`{without}` has no effect on `{key}`, which is {}", format.name()))),
        None => Ok(format),
    }
}

/// Something wrong with a table.
pub(super) fn bad_table(name: &str, what: &str) -> TaskError {
    TaskError::BadInput(format!("the table `{name}`: {what}"))
}
