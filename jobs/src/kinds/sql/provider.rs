//! A [`Table`] as DataFusion scans it.
//!
//! DataFusion's own table of files lists directories and asks for each file; here the manifest has told what there is,
//! and with which partitions.

use std::{ops::Range, sync::Arc};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{DFSchema, Statistics, stats::Precision},
    datasource::{
        TableType,
        file_format::FileFormat,
        listing::{
            PartitionedFile,
            helpers::{expr_applicable_for_cols, filter_partitioned_file},
        },
        physical_plan::{
            FileGroup, FileScanConfigBuilder,
            parquet::{ParquetAccessPlan, metadata::DFParquetMetadata},
        },
        source::DataSourceExec,
    },
    error::{DataFusionError, Result},
    logical_expr::{Expr, TableProviderFilterPushDown},
    physical_plan::{ExecutionPlan, empty::EmptyExec},
};
use forebay_datasets::split::Part;
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    bad::BadRecords,
    held::volume_url,
    table::{Columns, Table, TableFile},
    text::{TextPlace, TextSource, TextTable},
};

/// A table whose columns are known.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) table: Arc<Table>,
    pub(super) columns: Columns,
    pub(super) bad: Arc<BadRecords>,
    /// Whether the files are here. If not, a plan is all that can be made.
    pub(super) are_here: bool,
}

impl Files {
    /// The files that filters on partitions let through.
    pub(super) fn chosen(&self, filters: &[Expr]) -> Result<Vec<usize>> {
        let filters = filters.iter().filter(|filter| self.is_on_partitions(filter));
        // DataFusion looks at the value of what is neither true nor false, which may be either.
        let filters: Vec<_> = filters.map(|filter| filter.clone().is_true()).collect();
        let all = 0..self.table.files.len();
        if filters.is_empty() {
            return Ok(all.collect());
        }
        let fields = self.table.partitions.iter().map(|field| field.as_ref().clone()).collect();
        let schema = DFSchema::from_unqualified_fields(fields, Default::default())?;
        let mut chosen = Vec::new();
        for at in all {
            let file = PartitionedFile::from(self.table.files[at].meta.clone());
            let file = file.with_partition_values(self.table.files[at].values.clone());
            if filter_partitioned_file(file, &filters, &schema)?.is_some() {
                chosen.push(at);
            }
        }
        Ok(chosen)
    }

    fn is_on_partitions(&self, filter: &Expr) -> bool {
        let names: Vec<_> = self.table.partitions.iter().map(|field| field.name().as_str()).collect();
        !names.is_empty() && expr_applicable_for_cols(&names, filter)
    }

    /// A file as it is scanned, with what its footer tells.
    async fn scanned(
        &self,
        state: &dyn Session,
        reader: Option<&Arc<dyn FileFormat>>,
        at: usize,
    ) -> Result<PartitionedFile> {
        let file = &self.table.files[at];
        let mut scanned = PartitionedFile::from(file.meta.clone()).with_partition_values(file.values.clone());
        match file.part {
            Part::Whole => {}
            Part::Bytes { offset, length } => {
                let edge = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
                scanned = scanned.with_range(edge(offset), edge(offset.saturating_add(length)));
            }
            Part::RowGroups { first, count } => {
                scanned = scanned.with_extension(row_groups(state, file, first..first.saturating_add(count)).await?);
            }
        }
        let Some(reader) = reader else {
            return Ok(scanned.with_extension(TextPlace { key: file.key.clone(), path: file.path.clone() }));
        };
        // What a file tells of itself is not true of a part of it.
        if !self.are_here || file.part != Part::Whole || !state.config().collect_statistics() {
            return Ok(scanned);
        }
        let store = state.runtime_env().object_store(volume_url())?;
        let own = Arc::clone(self.columns.table.file_schema());
        let told = reader.infer_stats_and_ordering(state, &store, own, &file.meta).await?;
        let mut scanned = scanned.with_statistics(Arc::new(told.statistics)).with_ordering(told.ordering);
        if let Some(statistics) = &mut scanned.statistics {
            let statistics = Arc::make_mut(statistics);
            let first = statistics.column_statistics.len() - file.values.len();
            let rows = statistics.num_rows;
            // DataFusion takes it for granted that a partition has a value.
            for (column, _) in
                statistics.column_statistics[first..].iter_mut().zip(&file.values).filter(|(_, v)| v.is_null())
            {
                column.null_count = rows;
                (column.min_value, column.max_value) = (Precision::Absent, Precision::Absent);
                column.distinct_count = Precision::Absent;
            }
        }
        Ok(scanned)
    }
}

/// Which row groups of a Parquet file are read. The footer is kept for when they are.
async fn row_groups(state: &dyn Session, file: &TableFile, wanted: Range<u32>) -> Result<ParquetAccessPlan> {
    let store = state.runtime_env().object_store(volume_url())?;
    // A first read of more than the footer would reach into what is not held.
    let hint = state.config_options().execution.parquet.metadata_size_hint.filter(|_| !file.partial);
    let footer = DFParquetMetadata::new(store.as_ref(), &file.meta)
        .with_metadata_size_hint(hint)
        .with_file_metadata_cache(Some(state.runtime_env().cache_manager.get_file_metadata_cache()));
    let count = footer.fetch_metadata().await?.num_row_groups();
    if wanted.end as usize > count {
        let Range { start, end } = wanted;
        let what = format!("`{}` has {count} row groups, and {start}..{end} were planned to be read", file.key);
        return Err(DataFusionError::Execution(what));
    }
    let mut plan = ParquetAccessPlan::new_none(count);
    wanted.for_each(|group| plan.scan(group as usize));
    Ok(plan)
}

#[async_trait]
impl TableProvider for Files {
    fn schema(&self) -> SchemaRef {
        Arc::clone(self.columns.table.table_schema())
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let kind = |filter: &&Expr| match self.is_on_partitions(filter) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(kind).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let chosen = self.chosen(filters)?;
        if chosen.is_empty() {
            let schema = datafusion::common::project_schema(&self.schema(), projection)?;
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let reader = self.table.reader(state);
        let at_once = state.config_options().execution.meta_fetch_concurrency.get();
        let scanned = stream::iter(chosen).map(|at| self.scanned(state, reader.as_ref(), at)).buffered(at_once);
        let scanned: Vec<_> = scanned.try_collect().await?;
        let statistics: Option<Vec<_>> = scanned.iter().map(|file| file.statistics.as_deref()).collect();
        let statistics = match statistics {
            Some(files) => Statistics::try_merge_iter(files, &self.schema())?,
            None => Statistics::new_unknown(&self.schema()),
        };
        let source = match (&reader, &self.table.text) {
            (Some(reader), _) => reader.file_source(self.columns.table.clone()),
            (None, Some(text)) => {
                let (all, own) = (Arc::clone(&self.columns.all), self.columns.table.clone());
                let of = TextTable { name: self.table.name.clone(), format: Arc::clone(text) };
                Arc::new(TextSource::new(of, all, own, Arc::clone(&self.bad)))
            }
            (None, None) => return Err(DataFusionError::Internal("a table that nothing reads".to_owned())),
        };
        let groups = FileGroup::new(scanned).split_files(state.config().target_partitions());
        let scan = FileScanConfigBuilder::new(volume_url(), source)
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        match reader {
            Some(reader) => reader.create_physical_plan(state, scan).await,
            None => Ok(DataSourceExec::from_data_source(scan)),
        }
    }
}
