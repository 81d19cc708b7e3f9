//! Text files as DataFusion scans them.

use std::{collections::VecDeque, fmt, io, ops::Range, path::PathBuf, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use datafusion::{
    common::tree_node::TreeNodeRecursion,
    datasource::{
        listing::PartitionedFile,
        physical_plan::{FileOpenFuture, FileOpener, FileScanConfig, FileSource},
        projection::{ProjectionOpener, SplitProjection},
        table_schema::TableSchema,
    },
    error::{DataFusionError, Result},
    object_store::ObjectStore,
    physical_expr::projection::ProjectionExprs,
    physical_plan::{DisplayFormatType, PhysicalExpr, apply_expression_roots, metrics::ExecutionPlanMetricsSet},
};
use futures::StreamExt;

use super::{Chunk, Chunks, TextFile, TextFormat, is_of_record, next, sift, without_head};
use crate::kinds::sql::bad::BadRecords;

/// Where a file is, and what it is called.
#[derive(Clone, Debug)]
pub(in crate::kinds::sql) struct TextPlace {
    pub(in crate::kinds::sql) key: String,
    pub(in crate::kinds::sql) path: PathBuf,
}

/// The table whose files are text.
#[derive(Clone)]
pub(in crate::kinds::sql) struct TextTable {
    /// As a query names it without quotes.
    pub(in crate::kinds::sql) name: String,
    pub(in crate::kinds::sql) format: Arc<TextFormat>,
}

/// The text files of a table.
#[derive(Clone)]
pub(in crate::kinds::sql) struct TextSource {
    pub(in crate::kinds::sql) of: TextTable,
    /// All columns of a file, in its order.
    pub(in crate::kinds::sql) columns: SchemaRef,
    bad: Arc<BadRecords>,
    table_schema: TableSchema,
    projection: SplitProjection,
    batch_size: usize,
    metrics: ExecutionPlanMetricsSet,
}

impl TextSource {
    pub(in crate::kinds::sql) fn new(
        of: TextTable,
        columns: SchemaRef,
        table_schema: TableSchema,
        bad: Arc<BadRecords>,
    ) -> Self {
        let projection = SplitProjection::unprojected(&table_schema);
        let metrics = ExecutionPlanMetricsSet::new();
        Self { of, columns, bad, table_schema, projection, batch_size: 8192, metrics }
    }
}

impl FileSource for TextSource {
    fn create_file_opener(&self, _: Arc<dyn ObjectStore>, _: &FileScanConfig, _: usize) -> Result<Arc<dyn FileOpener>> {
        let schema = self.table_schema.file_schema();
        let place = |at: &usize| self.columns.index_of(schema.field(*at).name());
        let projection = self.projection.file_indices.iter().map(place).collect::<Result<_, _>>()?;
        let opener = TextOpener {
            format: Arc::clone(&self.of.format),
            columns: Arc::clone(&self.columns),
            projection,
            bad: Arc::clone(&self.bad),
            batch_size: self.batch_size,
        };
        ProjectionOpener::try_new(self.projection.clone(), Arc::new(opener), schema)
    }

    fn table_schema(&self) -> &TableSchema {
        &self.table_schema
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        Arc::new(Self { batch_size, ..self.clone() })
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> Result<Option<Arc<dyn FileSource>>> {
        let merged = self.projection.source.try_merge(projection)?;
        let projection = SplitProjection::new(self.table_schema.file_schema(), &merged);
        Ok(Some(Arc::new(Self { projection, ..self.clone() })))
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        Some(&self.projection.source)
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        &self.metrics
    }

    fn file_type(&self) -> &str {
        match *self.of.format {
            TextFormat::Csv { .. } => "csv",
            TextFormat::Ndjson => "ndjson",
        }
    }

    fn supports_repartitioning(&self) -> bool {
        self.of.format.is_lines()
    }

    fn fmt_extra(&self, _: DisplayFormatType, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }

    fn apply_expressions(
        &self,
        visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        apply_expression_roots(self.projection.source.iter(), visit)
    }
}

struct TextOpener {
    format: Arc<TextFormat>,
    columns: SchemaRef,
    projection: Vec<usize>,
    bad: Arc<BadRecords>,
    batch_size: usize,
}

impl FileOpener for TextOpener {
    fn open(&self, file: PartitionedFile) -> Result<FileOpenFuture> {
        let place = file.extension::<TextPlace>().cloned();
        let place = place.ok_or_else(|| DataFusionError::Internal("a text file without its key".to_owned()))?;
        let edge = |at: i64| u64::try_from(at).unwrap_or_default();
        let range = file.range.as_ref().map(|range| edge(range.start)..edge(range.end));
        let rows = Rows {
            format: Arc::clone(&self.format),
            columns: Arc::clone(&self.columns),
            projection: self.projection.clone(),
            bad: Arc::clone(&self.bad),
            batch_size: self.batch_size,
            place,
            chunks: None,
            ready: VecDeque::new(),
        };
        // What it reads is a file: reading it blocks, as DataFusion's own sources of files do.
        Ok(Box::pin(async move { Ok(futures::stream::iter(rows.open(range)?).boxed()) }))
    }
}

/// The rows of a file, or of a range of one.
struct Rows {
    format: Arc<TextFormat>,
    columns: SchemaRef,
    projection: Vec<usize>,
    bad: Arc<BadRecords>,
    batch_size: usize,
    place: TextPlace,
    /// None once all is read.
    chunks: Option<Chunks>,
    ready: VecDeque<RecordBatch>,
}

impl Rows {
    fn open(mut self, range: Option<Range<u64>>) -> Result<Self> {
        let path = &self.place.path;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let range = range.map(|range| without_head(path, range, &self.format)).transpose().map_err(named)?;
        self.chunks = Some(Chunks::open(path, range, &self.format).map_err(named)?);
        Ok(self)
    }

    /// Reads on; whether there was more.
    fn read(&mut self) -> Result<bool> {
        let file = TextFile { key: &self.place.key, path: &self.place.path };
        let Some(chunks) = &mut self.chunks else { return Ok(false) };
        let Some(Chunk { offset, bytes }) = next(chunks, file, &self.bad)? else { return Ok(false) };
        let begins = if offset == 0 { self.format.data_begins(&bytes) } else { 0 };
        let data = &bytes[begins..];
        let schema: (&Arc<Schema>, &[usize]) = (&self.columns, &self.projection);
        match self.format.decode(data, schema, self.batch_size) {
            Ok(batches) => self.ready.extend(batches),
            Err(error) if !is_of_record(&error) => return Err(error.into()),
            Err(_) => {
                let ready = &mut self.ready;
                let mut try_some = |bytes: &[u8]| self.format.decode(bytes, schema, self.batch_size);
                sift(
                    &self.format,
                    (data, offset + begins as u64),
                    &mut try_some,
                    &mut |batches| ready.extend(batches),
                    &mut |at, error| {
                        let why = self.format.why(error, &self.columns);
                        self.bad.note(file.key, file.path, at, why)
                    },
                )?;
            }
        }
        Ok(true)
    }
}

impl Iterator for Rows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Some(Ok(batch));
            }
            match self.read() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.chunks = None;
                    return Some(Err(error));
                }
            }
        }
    }
}
