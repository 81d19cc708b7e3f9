//! SQL over the staged dataset, by DataFusion: one query, one task, all of its threads and the memory of its worker; or,
//! by Ballista, those of all workers ([`ballista`]), as [`engine`] says.
//!
//! ```text
//! job file ─► SqlSpec ─► Script: views, query ─┐
//! split, keys ─► Table: files, partitions ─────┴─► Session ─► plan ─► output: files
//! ```
//!
//! A table is a list of exact files. No directory is listed, and what is not in the manifest is not read. Of a snapshot
//! that was staged for some columns, [`needed_columns`] tells which a query reads before it is staged, [`check_staged`]
//! whether they are held, and the session's object store refuses to read what is not.

mod ahead;
mod bad;
pub mod ballista;
mod blame;
mod distributed;
mod drift;
pub mod engine;
mod execute;
mod failure;
mod held;
mod known;
mod memory;
mod needed;
mod options;
mod output;
pub(crate) mod partitions;
mod provider;
mod script;
mod session;
mod splits;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod views;

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::TableReference, datasource::MemTable, error::DataFusionError, execution::runtime_env::RuntimeEnv,
    physical_plan::displayable, prelude::SessionContext,
};
use forebay_datasets::{split::Split, volume::Volume};

pub use self::{
    ahead::explain_ahead,
    engine::refused_by,
    execute::execute,
    held::NotHeld,
    known::{KnownTable, Scan},
    memory::default_memory,
    needed::needed_columns,
    options::check_option,
    script::{changes_each_time, type_of},
    splits::NotBySplit,
};
use self::{
    failure::{cause, passing, readable},
    options::config,
    script::Script,
    session::{Over, Session},
};
use super::TaskError;
use crate::spec::{Engine, JobSpec, SqlSpec, Work};

/// Finds what is wrong with a query without knowing its tables.
///
/// # Errors
/// What is wrong, for people.
pub fn check_syntax(query: &str) -> Result<(), String> {
    Script::parse(query).map(drop)
}

/// Finds what is wrong with a query over tables of these columns.
///
/// # Errors
/// What is wrong, for people.
pub async fn check_columns(query: &str, tables: BTreeMap<String, SchemaRef>) -> Result<(), String> {
    let context = SessionContext::new_with_config(config(1));
    for (name, schema) in tables {
        let table = MemTable::try_new(schema, vec![vec![]]).map_err(|error| readable(&error))?;
        context.register_table(table_reference(&name), Arc::new(table)).map_err(|error| readable(&error))?;
    }
    Script::parse(query)?.frame(&context).await.map(drop).map_err(|error| readable(&error))
}

/// Finds what is wrong with a job's query over what is staged. Of a query by splits, gives what it is to be planned from.
///
/// # Errors
/// [`TaskError::BadInput`] with what is wrong; [`TaskError::NotHeld`] if the query reads columns that are not staged;
/// [`TaskError::NotBySplit`] if it was to run by splits and cannot.
pub async fn check_staged(volume: &Volume, job: &JobSpec, split: &Split) -> Result<Option<Scan>, TaskError> {
    let engine = engine::choose_over(job, split).engine;
    let session = planned(volume, job, split, (engine, 1)).await?;
    let failed = |error: &DataFusionError| execute::failed(error, volume.root(), None);
    let frame = session.frame().await.map_err(|error| failed(&error))?;
    output::check_output(frame.schema().as_arrow(), &job.output)?;
    if engine == Engine::Ballista {
        let plan = frame.clone().create_physical_plan().await.map_err(|error| failed(&error))?;
        let encoded = ballista::encoded(&plan, &ballista::Codec::new(volume, job));
        if let Some(refusal) = encoded.err().and_then(|why| distributed::refusal(job, &why)) {
            return Err(refusal);
        }
    }
    session.check_held(frame)?;
    match engine {
        Engine::Splits => splits::check(volume, job, &session).await.map(Some),
        Engine::Datafusion | Engine::Ballista => Ok(None),
    }
}

/// How a job's query would be executed over what is staged by so many threads of each worker: DataFusion's physical plan.
/// Of a query by splits, whose plan tells the table, a split of it and then what is left.
///
/// # Errors
/// As those of [`check_staged`].
pub async fn explain(
    volume: &Volume,
    job: &JobSpec,
    (split, table): (&Split, Option<&KnownTable>),
    threads: usize,
) -> Result<String, TaskError> {
    if let Some(table) = table {
        return splits::explain(volume, job, split, table).await;
    }
    let engine = engine::choose_over(job, split).engine;
    let session = planned(volume, job, split, (engine, threads)).await?;
    let plan = async { session.frame().await?.create_physical_plan().await };
    let plan = plan.await.map_err(|error| execute::failed(&error, volume.root(), None))?;
    Ok(displayable(plan.as_ref()).indent(false).to_string())
}

/// A session in which a job's query can be planned.
async fn planned(
    volume: &Volume,
    job: &JobSpec,
    split: &Split,
    (engine, threads): (Engine, usize),
) -> Result<Session, TaskError> {
    let sql = query_of(job)?;
    let config = engine::config_of(engine, job, threads).map_err(|error| TaskError::BadInput(readable(&error)))?;
    let over = Over { volume, sql, split, on_bad_record: job.dataset.on_bad_record };
    Session::open(over, &config, &Arc::new(RuntimeEnv::default())).await
}

fn query_of(job: &JobSpec) -> Result<&SqlSpec, TaskError> {
    match &job.work {
        Work::Sql(sql) => Ok(sql),
        _ => Err(TaskError::BadInput("the job is no query".to_owned())),
    }
}

/// Quoted, so that a table keeps the case it is written in; and lower-cased as an unquoted name in a query is.
fn table_reference(name: &str) -> TableReference {
    TableReference::bare(name.to_ascii_lowercase())
}

/// Something wrong with the query or its data.
fn bad_query(error: &DataFusionError) -> TaskError {
    TaskError::BadInput(readable(error))
}
