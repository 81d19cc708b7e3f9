//! SQL over the staged dataset, by DataFusion: one query, one task, all of its threads, one output file.
//!
//! A table is a list of exact files. No directory is listed, and what is not in the manifest is not read. Of a snapshot
//! that was staged for some columns, [`needed_columns`] tells which a query reads before it is staged, [`check_staged`]
//! whether they are held, and the session's object store refuses to read what is not.

mod held;
mod needed;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, io, sync::Arc};

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::{
    datasource::{
        MemTable,
        file_format::{FileFormat, csv::CsvFormat, json::JsonFormat, parquet::ParquetFormat},
        listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl},
    },
    error::DataFusionError,
    execution::context::SQLOptions,
    prelude::{DataFrame, SessionConfig, SessionContext},
    sql::{
        parser::{DFParser, Statement},
        sqlparser::ast,
    },
};
use forebay_datasets::{
    format::Format,
    source::globs,
    split::{Piece, Split},
    volume::Volume,
};
use futures::StreamExt;

use self::held::HeldFiles;
pub use self::{held::NotHeld, needed::needed_columns};
use super::{
    TaskContext, TaskError, TaskOutput,
    table::{ROWS_FOR_TYPES, TableWriter, csv_schema},
};
use crate::{
    spec::{SqlSpec, Work},
    task::TaskInput,
};

/// Finds what is wrong with a query without knowing its tables.
///
/// # Errors
/// What is wrong, for people.
pub fn check_syntax(query: &str) -> Result<(), String> {
    let statements = DFParser::parse_sql(query).map_err(|error| readable(&error))?;
    match statements.iter().collect::<Vec<_>>()[..] {
        [Statement::Statement(statement)] if matches!(**statement, ast::Statement::Query(_)) => Ok(()),
        [] => Err("the query is empty".to_owned()),
        [_] => Err("only a query can be run: SELECT, WITH or VALUES".to_owned()),
        _ => Err("there are several statements; write one query".to_owned()),
    }
}

/// Finds what is wrong with a query over tables of these columns.
///
/// # Errors
/// What is wrong, for people.
pub async fn check_columns(query: &str, tables: BTreeMap<String, SchemaRef>) -> Result<(), String> {
    let context = SessionContext::new();
    for (name, schema) in tables {
        let table = MemTable::try_new(schema, vec![vec![]]).map_err(|error| readable(&error))?;
        context.register_table(table_reference(&name), Arc::new(table)).map_err(|error| readable(&error))?;
    }
    frame(&context, query).await.map(drop).map_err(|error| readable(&error))
}

/// Finds what is wrong with a query over what is staged.
///
/// # Errors
/// [`TaskError::BadInput`] with what is wrong; [`TaskError::NotHeld`] if the query reads columns that are not staged.
pub async fn check_staged(volume: &Volume, sql: &SqlSpec, split: &Split) -> Result<(), TaskError> {
    let context = SessionContext::new_with_config(config(1));
    let held = register(&context, volume, sql, split).await?;
    let wrong = |error: DataFusionError| TaskError::BadInput(readable(&error));
    let frame = frame(&context, &sql.query).await.map_err(wrong)?;
    let Some(held) = held else { return Ok(()) };
    let needed = needed::of_plan(&frame.into_optimized_plan().map_err(wrong)?).map_err(wrong)?;
    for (name, glob) in &sql.tables {
        if let Some(needed) = needed.get(&name.to_ascii_lowercase()) {
            held.check(&pieces(split, glob)?, needed)?;
        }
    }
    Ok(())
}

/// Executes the query of the task's job.
pub async fn execute(ctx: &TaskContext<'_>) -> Result<TaskOutput, TaskError> {
    tokio::select! {
        () = ctx.cancel.cancelled() => Err(TaskError::Cancelled),
        output = query(ctx) => output,
    }
}

async fn query(ctx: &TaskContext<'_>) -> Result<TaskOutput, TaskError> {
    let (Work::Sql(sql), TaskInput::Split(split)) = (&ctx.job.work, &ctx.spec.input) else {
        return Err(TaskError::BadInput("the task is no query".to_owned()));
    };
    let context = SessionContext::new_with_config(config(ctx.threads));
    register(&context, ctx.volume, sql, split).await?;
    let failed = |error: DataFusionError| match (passing(&error), error.find_root()) {
        _ if let Some(not_held) = held::behind(&error) => not_held.into(),
        (Some(source), _) => TaskError::Io { path: ctx.volume.root().to_owned(), source },
        (None, DataFusionError::ResourcesExhausted(_)) => {
            TaskError::Io { path: ctx.volume.root().to_owned(), source: io::Error::other(readable(&error)) }
        }
        (None, _) => TaskError::BadInput(readable(&error)),
    };
    let frame = frame(&context, &sql.query).await.map_err(failed)?;
    let mut stream = frame.execute_stream().await.map_err(failed)?;
    let schema = stream.schema();
    let mut writer = TableWriter::create(ctx.out_dir, ctx.spec.task.index, &schema, ctx.job.output.format)?;
    loop {
        match stream.next().await {
            Some(batch) => writer.write(&batch.map_err(failed)?)?,
            None => return Ok(TaskOutput { files: vec![writer.finish()?], ..TaskOutput::default() }),
        }
    }
}

fn config(threads: usize) -> SessionConfig {
    let mut config = SessionConfig::new().with_target_partitions(threads.max(1)).with_information_schema(false);
    let options = config.options_mut();
    // Views are fast inside, and a nuisance to whoever reads the output.
    options.execution.parquet.schema_force_view_types = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.pushdown_filters = true;
    config
}

async fn frame(context: &SessionContext, query: &str) -> Result<DataFrame, DataFusionError> {
    let nothing_else = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    context.sql_with_options(query, nothing_else).await
}

/// Quoted, so that a table keeps the case it is written in; and lower-cased as an unquoted name in a query is.
fn table_reference(name: &str) -> datafusion::common::TableReference {
    datafusion::common::TableReference::bare(name.to_ascii_lowercase())
}

/// Registers the query's tables, and if some of their objects are held in part, the store that knows which part.
async fn register(
    context: &SessionContext,
    volume: &Volume,
    sql: &SqlSpec,
    split: &Split,
) -> Result<Option<Arc<HeldFiles>>, TaskError> {
    let held = HeldFiles::of(volume, &split.pieces)?.map(Arc::new);
    if let Some(held) = &held {
        let files = url::Url::parse("file:///").expect("a constant URL");
        context.register_object_store(&files, Arc::<HeldFiles>::clone(held));
    }
    for (name, glob) in &sql.tables {
        let table = table(context, volume, name, &pieces(split, glob)?).await?;
        context.register_table(table_reference(name), Arc::new(table)).map_err(|error| bad(name, &error))?;
    }
    Ok(held)
}

/// The pieces that a table is made of.
fn pieces<'a>(split: &'a Split, glob: &String) -> Result<Vec<&'a Piece>, TaskError> {
    let matcher = globs(std::slice::from_ref(glob)).map_err(|error| TaskError::BadInput(error.to_string()))?;
    Ok(split.pieces.iter().filter(|piece| matcher.is_match(&piece.key)).collect())
}

fn bad(table: &str, error: &DataFusionError) -> TaskError {
    TaskError::BadInput(format!("the table `{table}`: {}", readable(error)))
}

async fn table(
    context: &SessionContext,
    volume: &Volume,
    name: &str,
    pieces: &[&Piece],
) -> Result<ListingTable, TaskError> {
    let wrong = |what: String| TaskError::BadInput(format!("the table `{name}`: {what}"));
    let first = pieces.first().ok_or_else(|| wrong("no object".to_owned()))?;
    let format = Format::of(&first.key);
    if let Some(other) = pieces.iter().find(|piece| Format::of(&piece.key) != format) {
        return Err(wrong(format!(
            "`{}` and `{}` are of different formats: narrow its glob in `tables`",
            first.key, other.key
        )));
    }
    let reader: Arc<dyn FileFormat> = match format {
        Format::Parquet => {
            let format = ParquetFormat::default().with_force_view_types(false);
            match pieces.iter().any(|piece| piece.partial) {
                // A first read of more than the footer would reach into what is not held.
                true => Arc::new(format.with_metadata_size_hint(None)),
                false => Arc::new(format),
            }
        }
        Format::Csv => Arc::new(CsvFormat::default().with_has_header(true).with_newlines_in_values(true)),
        Format::Ndjson => Arc::new(JsonFormat::default().with_schema_infer_max_rec(ROWS_FOR_TYPES)),
        Format::Text | Format::Opaque => {
            return Err(wrong(format!("`{}` ends in none of .parquet, .csv, .ndjson", first.key)));
        }
    };
    // Files are given by exact name, whatever their extension.
    let options = ListingOptions::new(reader).with_file_extension("");
    let (mut urls, mut schemas) = (Vec::new(), Vec::new());
    for piece in pieces {
        let path = volume.resolve(&piece.path)?;
        // A URL is taken as it is; a path would be searched for `*`, `?` and `[`.
        let url = url::Url::from_file_path(&path).map_err(|()| wrong(format!("{} is not absolute", path.display())))?;
        let url = ListingTableUrl::try_new(url, None).map_err(|error| bad(name, &error))?;
        let schema = match format {
            // DataFusion's own takes a newline in a quoted field for the end of a record.
            Format::Csv => csv_schema(&path).map(Arc::new).map_err(DataFusionError::from),
            _ => options.infer_schema(&context.state(), &url).await,
        };
        let schema = schema.map_err(|error| match passing(&error) {
            _ if let Some(not_held) = held::behind(&error) => not_held.into(),
            Some(source) => TaskError::Io { path, source },
            None => wrong(format!("`{}`: {}", piece.key, readable(&error))),
        })?;
        // CSV is read by position, whatever its header says.
        if let (Format::Csv, Some(before)) = (format, schemas.first())
            && !names(before).eq(names(&schema))
        {
            let list = |schema: &Schema| names(schema).collect::<Vec<_>>().join(", ");
            let (theirs, ours) = (list(before), list(&schema));
            return Err(wrong(format!("`{}` has the columns {theirs}, and `{}` has {ours}", first.key, piece.key)));
        }
        schemas.push(schema.as_ref().clone());
        urls.push(url);
    }
    let schema =
        Schema::try_merge(schemas).map_err(|error| wrong(format!("its objects do not fit together: {error}")))?;
    let config =
        ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(Arc::new(schema));
    ListingTable::try_new(config).map_err(|error| bad(name, &error))
}

fn names(schema: &Schema) -> impl Iterator<Item = &str> {
    schema.fields().iter().map(|field| field.name().as_str())
}

/// The error of the system behind one of DataFusion's, which another try may get past.
fn passing(error: &DataFusionError) -> Option<io::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(system) = error.downcast_ref::<io::Error>() {
            return Some(io::Error::new(system.kind(), system.to_string()));
        }
        cause = error.source();
    }
    None
}

/// DataFusion's message without its own classification of it.
fn readable(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    let prefixes = [
        "Error during planning: ",
        "Schema error: ",
        "SQL error: ",
        "Execution error: ",
        "This feature is not implemented: ",
        "Arrow error: ",
        "Parquet error: ",
    ];
    let mut text = text.trim();
    while let Some(rest) = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        text = rest;
    }
    match text.strip_prefix("ParserError(\"").and_then(|rest| rest.strip_suffix("\")")) {
        Some(inner) => inner.replace("\\\"", "\"").replace("\\'", "'"),
        None => text.to_owned(),
    }
}
