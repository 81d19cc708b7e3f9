//! A query by splits: aggregates over one table, of which each task makes states of its split's rows, and the last task
//! one result of all states.
//!
//! ```text
//! all files ──────────► Session ─► Scan: KnownTable, keys ─► Plan: splits           once, before the run
//! split, KnownTable ──► Session ─► Halves ─► first: partial aggregate ─► states     a task a split
//! states, KnownTable ─► Session ─► Halves ─► last: final aggregate, … ─► files      one task
//! ```
//!
//! Every task plans the same query over the same columns, so that the halves fit together. One thread reads a split, and
//! states are put together in the order of the splits: who was first, and where, makes no difference to the result, be
//! it in the last digit of a sum of floats.

mod combines;
mod halves;
mod states;

use std::sync::Arc;

use datafusion::{error::DataFusionError, execution::runtime_env::RuntimeEnv, physical_plan::execute_stream};
use forebay_datasets::{split::Split, volume::Volume};
use futures::StreamExt;

pub use self::combines::NotBySplit;
pub(super) use self::halves::Halves;
use self::states::{StateWriter, reader};
use super::{
    blame,
    execute::{Stopped, failed},
    known::{KnownTable, Scan},
    memory,
    options::{config, with_options},
    output::{check_output, list_skipped, metrics, written},
    query_of,
    session::{Over, Session},
};
use crate::{
    kinds::{TaskContext, TaskError, TaskOutput},
    spec::JobSpec,
    task::{OutputFile, TaskInput},
};

/// Finds out whether a query can run by splits; its session knows all files.
pub(super) async fn check(volume: &Volume, job: &JobSpec, whole: &Session) -> Result<Scan, TaskError> {
    let Some(scan) = whole.scan() else { return Err(combines::not("no single table").into()) };
    let session = known(volume, job, &Split::default(), &scan.table)?;
    let halves = async { Halves::of(session.frame().await?).await };
    halves.await.map(|_| scan).map_err(|error| failed(&error, volume.root(), None))
}

/// How a split, and then the states of all splits, would be executed.
pub(super) async fn explain(
    volume: &Volume,
    job: &JobSpec,
    split: &Split,
    table: &KnownTable,
) -> Result<String, TaskError> {
    let session = known(volume, job, split, table)?;
    let halves = async { Halves::of(session.frame().await?).await?.explain() };
    halves.await.map_err(|error| failed(&error, volume.root(), None))
}

fn known(volume: &Volume, job: &JobSpec, split: &Split, table: &KnownTable) -> Result<Session, TaskError> {
    let sql = query_of(job)?;
    let config = with_options(config(1), &sql.options).map_err(|error| super::bad_query(&error))?;
    let over = Over { volume, sql, split, on_bad_record: job.dataset.on_bad_record };
    Session::known(over, table, &config, &Arc::new(RuntimeEnv::default()))
}

/// Executes a task: states of a split, or the result of all states.
pub(super) async fn execute(ctx: &TaskContext<'_>) -> Result<TaskOutput, TaskError> {
    let (sql, none) = (query_of(ctx.job)?, Split::default());
    let unknown = || TaskError::BadInput("the run's plan does not tell the columns of its table".to_owned());
    let table = ctx.table.ok_or_else(unknown)?;
    let failed = |error: &DataFusionError| failed(error, ctx.scratch_dir, ctx.memory);
    let mut config = with_options(config(1), &sql.options).map_err(|error| failed(&error))?;
    memory::fit(&mut config, 1, ctx.memory, &sql.options);
    let runtime = memory::runtime(ctx.memory, ctx.scratch_dir).map_err(|error| failed(&error))?;
    let split = match &ctx.spec.input {
        TaskInput::Split(split) => split,
        TaskInput::Shuffle(_) => &none,
    };
    let over = Over { volume: ctx.volume, sql, split, on_bad_record: ctx.job.dataset.on_bad_record };
    let session = Session::known(over, table, &config, &runtime)?;
    let done = match &ctx.spec.input {
        TaskInput::Split(_) => first(ctx, &session).await,
        TaskInput::Shuffle(files) => last(ctx, &session, files).await,
    };
    match done {
        Ok(output) => Ok(output),
        Err(Stopped::Task(error)) => Err(error),
        Err(Stopped::Query(error)) => Err(blame::of(&error, &session).await.unwrap_or_else(|| failed(&error))),
    }
}

async fn first(ctx: &TaskContext<'_>, session: &Session) -> Result<TaskOutput, Stopped> {
    let halves = Halves::of(session.frame().await?).await?;
    let plan = halves.first()?;
    let mut stream = execute_stream(Arc::clone(&plan), halves.context())?;
    let mut states = StateWriter::create(ctx.volume, ctx.out_dir, &stream.schema())?;
    while let Some(batch) = stream.next().await {
        states.write(&batch?)?;
    }
    let mut output = TaskOutput { files: vec![states.finish()?], metrics: metrics(&plan), rest: None };
    list_skipped(ctx, &session.bad, &mut output)?;
    Ok(output)
}

async fn last(ctx: &TaskContext<'_>, session: &Session, files: &[OutputFile]) -> Result<TaskOutput, Stopped> {
    let frame = session.frame().await?;
    check_output(frame.schema().as_arrow(), &ctx.job.output)?;
    let halves = Halves::of(frame).await?;
    let mut paths = Vec::new();
    for file in files {
        paths.push(ctx.volume.resolve(&file.path).map_err(TaskError::from)?);
    }
    let plan = halves.last(reader(&halves.states(), paths)?)?;
    written(ctx, &plan, halves.context()).await
}
