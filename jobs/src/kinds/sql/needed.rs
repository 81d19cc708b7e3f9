//! Which columns a query reads, by DataFusion's own plan of it.
//!
//! The optimizer pushes projections down to the tables, through `SELECT *` in a subquery and into the branches of a
//! join; what each table's scan is left with is what will be read. Planning takes the tables' columns and no rows, so
//! that it can be done before anything is staged: one footer of each Parquet table tells them, and the first lines of
//! each other table.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Cursor,
    ops::ControlFlow,
    sync::Arc,
};

use arrow::{
    csv,
    datatypes::{Schema, SchemaRef},
    json,
};
use datafusion::{
    common::tree_node::TreeNodeRecursion, datasource::MemTable, error::DataFusionError, logical_expr::LogicalPlan,
    prelude::SessionContext,
};
use forebay_datasets::{
    columns::{Columns, remote},
    format::Format,
    source::{Listed, Reader, Source, globs},
};

use super::{frame, table_reference};
use crate::{kinds::table::ROWS_FOR_TYPES, spec::SqlSpec};

/// How much of a text object is read for its columns.
const FIRST_LINES: u64 = 1 << 20;

/// The columns of each table that an optimized plan reads.
pub(super) fn of_plan(plan: &LogicalPlan) -> Result<BTreeMap<String, Columns>, DataFusionError> {
    let mut needed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let schema = scan.source.schema();
            let columns = needed.entry(scan.table_name.table().to_owned()).or_default();
            match &scan.projection {
                Some(projection) => columns.extend(projection.iter().map(|at| schema.field(*at).name().clone())),
                None => columns.extend(schema.fields().iter().map(|field| field.name().clone())),
            }
            let filters = scan.filters.iter().flat_map(|filter| filter.column_refs());
            columns.extend(filters.map(|column| column.name.clone()));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(needed.into_iter().map(|(table, columns)| (table, columns.into_iter().collect())).collect())
}

/// The columns of each table, by its name in lower case, that a query over tables of these columns reads.
pub(super) async fn of_query(
    query: &str,
    tables: &BTreeMap<String, SchemaRef>,
) -> Result<BTreeMap<String, Columns>, DataFusionError> {
    let context = SessionContext::new_with_config(super::config(1));
    for (name, schema) in tables {
        let table = MemTable::try_new(Arc::clone(schema), vec![vec![]])?;
        context.register_table(table_reference(name), Arc::new(table))?;
    }
    of_plan(&frame(&context, query).await?.into_optimized_plan()?)
}

/// The columns that a query reads of the Parquet objects of its source; none if it reads all, or that cannot be told
/// from one object of each table: a source that does not answer, or a query with an error. Both are for staging, and
/// for the check after it, to tell.
pub async fn needed_columns(source: &mut Source, sql: &SqlSpec) -> Option<Columns> {
    let objects = firsts(source, &sql.tables).await?;
    let readers = source.readers().await.ok()?;
    let schemas = tokio::task::spawn_blocking(move || {
        let mut reader = readers.reader();
        let of = |(name, object): (String, Listed)| {
            Some((name, Format::of(&object.key), Arc::new(schema(&mut reader, &object)?)))
        };
        objects.into_iter().map(of).collect::<Option<Vec<_>>>()
    });
    let (mut tables, mut parquet) = (BTreeMap::new(), BTreeMap::new());
    for (name, format, schema) in schemas.await.ok()?? {
        if format == Format::Parquet {
            parquet.insert(name.to_ascii_lowercase(), Arc::clone(&schema));
        }
        tables.insert(name, schema);
    }
    let needed = of_query(&sql.query, &tables).await.ok()?;
    let none = Columns::default();
    let needed = |table: &String| needed.get(table).unwrap_or(&none);
    let all = |table: &String, schema: &SchemaRef| schema.fields().iter().all(|f| needed(table).contains(f.name()));
    if parquet.iter().all(|(table, schema)| all(table, schema)) {
        return None;
    }
    Some(parquet.keys().flat_map(|table| needed(table).iter()).collect())
}

/// The first object of each table, in the order of the listing, which is gone through no further than that.
async fn firsts(source: &mut Source, tables: &BTreeMap<String, String>) -> Option<Vec<(String, Listed)>> {
    let mut open = Vec::new();
    for (name, glob) in tables {
        open.push((name.clone(), globs(std::slice::from_ref(glob)).ok()?));
    }
    let mut found = Vec::new();
    let mut page = |objects: Vec<Listed>| {
        for object in objects.into_iter().filter(|object| !object.key.ends_with('/')) {
            for (name, _) in open.extract_if(.., |(_, glob)| glob.is_match(&object.key)) {
                found.push((name, object.clone()));
            }
        }
        if open.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    source.list(&mut page).await.ok()?;
    open.is_empty().then_some(found)
}

/// The columns of a table, by one of its objects.
fn schema(reader: &mut Reader, object: &Listed) -> Option<Schema> {
    let mut text = || remote::first_lines(reader, object, FIRST_LINES).ok();
    match Format::of(&object.key) {
        Format::Parquet => remote::footer(reader, object).ok()?.schema().ok(),
        Format::Csv => {
            let format = csv::reader::Format::default().with_header(true);
            format.infer_schema(Cursor::new(text()?), Some(ROWS_FOR_TYPES)).ok().map(|(schema, _)| schema)
        }
        Format::Ndjson => {
            json::reader::infer_json_schema(Cursor::new(text()?), Some(ROWS_FOR_TYPES)).ok().map(|(s, _)| s)
        }
        Format::Text | Format::Opaque => None,
    }
}
