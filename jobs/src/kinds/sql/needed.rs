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
    datatypes::{Field, Schema, SchemaRef},
    ipc::reader::StreamReader,
};
use datafusion::{
    common::tree_node::TreeNodeRecursion, datasource::MemTable, error::DataFusionError, logical_expr::LogicalPlan,
    prelude::SessionContext,
};
use forebay_datasets::{
    columns::{Columns, remote},
    format::Format,
    source::{Listed, Reader, Source},
};

use super::{
    drift,
    partitions::Partitions,
    script::{Script, type_of},
    table_reference,
    text::TextFormat,
};
use crate::spec::{
    SqlSpec,
    table::{TableFormat, TableSpec},
};

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
    let script = Script::parse(query).map_err(DataFusionError::Plan)?;
    of_plan(&script.frame(&context).await?.into_optimized_plan()?)
}

/// What one object of a table tells of it.
pub(super) struct Told {
    pub(super) columns: Schema,
    /// Columns that are read off its key.
    partitions: Vec<Field>,
    /// Whether some of its columns can be staged alone.
    is_parquet: bool,
}

/// The columns that a query reads of the Parquet objects of its source; none if it reads all, or that cannot be told
/// from one object of each table: a source that does not answer, or a query with an error. Both are for staging, and
/// for the check after it, to tell.
pub async fn needed_columns(source: &mut Source, sql: &SqlSpec) -> Option<Columns> {
    let told = first_of_each(source, sql).await?;
    let (mut tables, mut parquet) = (BTreeMap::new(), BTreeMap::new());
    for (name, _, Told { columns, partitions, is_parquet }) in told {
        let is_own = |field: &&Arc<Field>| !partitions.iter().any(|partition| partition.name() == field.name());
        let own: Vec<_> = columns.fields().iter().filter(is_own).cloned().collect();
        let all = own.iter().map(|field| field.as_ref().clone()).chain(partitions);
        if is_parquet {
            parquet.insert(name.to_ascii_lowercase(), own.iter().map(|field| field.name().clone()).collect());
        }
        tables.insert(name, Arc::new(Schema::new(all.collect::<Vec<_>>())));
    }
    let needed = of_query(&sql.query, &tables).await.ok()?;
    let none = Columns::default();
    // What the keys tell is read off no object.
    let read = |table: &String, own: &Columns| -> Columns {
        needed.get(table).unwrap_or(&none).iter().filter(|name| own.contains(name)).collect()
    };
    if parquet.iter().all(|(table, own)| read(table, own) == *own) {
        return None;
    }
    Some(
        parquet
            .iter()
            .flat_map(|(table, own)| read(table, own).iter().map(str::to_owned).collect::<Vec<_>>())
            .collect(),
    )
}

/// Of each table its name, the key of its first object, and what that tells; none if one of them does not.
pub(super) async fn first_of_each(source: &mut Source, sql: &SqlSpec) -> Option<Vec<(String, String, Told)>> {
    let objects = firsts(source, &sql.tables).await?;
    let readers = source.readers().await.ok()?;
    let tables = sql.tables.clone();
    let told = tokio::task::spawn_blocking(move || {
        let mut reader = readers.reader();
        let of = |(name, object): (String, Listed)| {
            let told = told(&mut reader, &object, tables.get(&name)?)?;
            Some((name, object.key, told))
        };
        objects.into_iter().map(of).collect()
    });
    told.await.ok()?
}

/// The first object of each table, in the order of the listing, which is gone through no further than that.
async fn firsts(source: &mut Source, tables: &BTreeMap<String, TableSpec>) -> Option<Vec<(String, Listed)>> {
    let mut open = Vec::new();
    for (name, table) in tables {
        open.push((name.clone(), table.matcher().ok()?));
    }
    let mut found = Vec::new();
    let mut page = |objects: Vec<Listed>| {
        for object in objects {
            for (name, _) in open.extract_if(.., |(_, is_of_table)| is_of_table(&object.key)) {
                found.push((name, object.clone()));
            }
        }
        if open.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    source.list(&mut page).await.ok()?;
    open.is_empty().then_some(found)
}

/// The columns of a table, by one of its objects.
fn told(reader: &mut Reader, object: &Listed, spec: &TableSpec) -> Option<Told> {
    let format = spec.format_of(&object.key)?;
    let types = spec.schema.iter().map(|(name, text)| Some((name.clone(), type_of(text).ok()?)));
    let mut types: BTreeMap<_, _> = types.collect::<Option<_>>()?;
    let partitions = match spec.partitions {
        true => Partitions::of(&[&object.key], &types).ok()?.fields,
        false => Vec::new(),
    };
    types.retain(|name, _| !partitions.iter().any(|field| field.name() == name));
    let mut text = || remote::first_lines(reader, object, FIRST_LINES).ok();
    let columns = match format {
        TableFormat::Parquet => remote::footer(reader, object).ok()?.schema().ok()?,
        TableFormat::Csv | TableFormat::Ndjson => TextFormat::of(spec, format)?.columns_of(&text()?).ok()?,
        TableFormat::Arrow => arrow_columns(&text()?)?,
    };
    let columns = drift::merged([(object.key.as_str(), &columns)], &types, true).ok()?;
    // What is staged in part, its name tells.
    let is_parquet = Format::of(&object.key) == Format::Parquet;
    Some(Told { columns, partitions, is_parquet })
}

/// The columns of Arrow IPC by its beginning: a file is a stream after eight bytes.
fn arrow_columns(bytes: &[u8]) -> Option<Schema> {
    let stream = bytes.strip_prefix(b"ARROW1\0\0").unwrap_or(bytes);
    Some(StreamReader::try_new(Cursor::new(stream), None).ok()?.schema().as_ref().clone())
}
