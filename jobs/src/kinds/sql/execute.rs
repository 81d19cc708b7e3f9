//! A query, executed within its worker's memory.
//!
//! A plan that asks for more memory than there is, where nothing can be spilled any more, is made again in a way that
//! needs less ([`Thrift`]): sorts and merges of joins spill, the hash table of a join does not.

use std::{io, path::Path, sync::Arc};

use datafusion::{error::DataFusionError, prelude::SessionConfig};
use forebay_datasets::split::Split;

use super::{
    bad::BadRecord,
    blame, cause,
    distributed::{self, Current},
    engine,
    held::NotHeld,
    memory,
    output::{check_output, list_skipped, written},
    passing, query_of, readable,
    session::{Over, Session},
    splits::{self, NotBySplit},
};
use crate::{
    kinds::{TaskContext, TaskError, TaskOutput},
    spec::Engine,
    task::TaskInput,
};

/// How sparing of memory a plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thrift {
    /// As fast as it can be.
    None,
    /// Joins sort and merge.
    Merge,
    /// And few threads share the memory, in smaller batches.
    Small,
}

impl Thrift {
    fn next(self) -> Option<Self> {
        match self {
            Self::None => Some(Self::Merge),
            Self::Merge => Some(Self::Small),
            Self::Small => None,
        }
    }

    fn apply(self, mut config: SessionConfig) -> SessionConfig {
        if self != Self::None {
            config.options_mut().optimizer.prefer_hash_join = false;
        }
        match self {
            Self::None | Self::Merge => config,
            Self::Small => {
                // With one DataFusion would not merge.
                let batch = config.batch_size().min(1024);
                config.with_target_partitions(2).with_batch_size(batch)
            }
        }
    }
}

/// Executes the query of the task's job.
pub async fn execute(ctx: &TaskContext<'_>) -> Result<TaskOutput, TaskError> {
    let current = Current::default();
    tokio::select! {
        () = ctx.cancel.cancelled() => {
            current.cancel().await;
            Err(TaskError::Cancelled)
        }
        output = query(ctx, &current) => output,
    }
}

async fn query(ctx: &TaskContext<'_>, current: &Current) -> Result<TaskOutput, TaskError> {
    if ctx.job.is_by_splits() {
        return splits::execute(ctx).await;
    }
    let TaskInput::Split(split) = &ctx.spec.input else {
        return Err(TaskError::BadInput("the task is no query".to_owned()));
    };
    match engine::choose_over(ctx.job, split).engine {
        Engine::Datafusion | Engine::Splits => query_by(Engine::Datafusion, ctx, split, current).await,
        Engine::Ballista => match query_by(Engine::Ballista, ctx, split, current).await {
            Err(TaskError::Unfit(why)) => match distributed::refusal(ctx.job, &why) {
                Some(refusal) => Err(refusal),
                None => {
                    tracing::info!(%why, "Ballista cannot execute the query: DataFusion does, in this worker");
                    query_by(Engine::Datafusion, ctx, split, current).await
                }
            },
            output => output,
        },
    }
}

async fn query_by(
    engine: Engine,
    ctx: &TaskContext<'_>,
    split: &Split,
    current: &Current,
) -> Result<TaskOutput, TaskError> {
    let sql = query_of(ctx.job)?;
    let failed = |error: &DataFusionError| failed(error, ctx.scratch_dir, ctx.memory);
    let mut config = engine::config_of(engine, ctx.job, ctx.threads).map_err(|error| failed(&error))?;
    memory::fit(&mut config, ctx.threads, ctx.memory, &sql.options);
    let runtime = || memory::runtime(ctx.memory, ctx.scratch_dir).map_err(|error| failed(&error));
    let over = Over { volume: ctx.volume, sql, split, on_bad_record: ctx.job.dataset.on_bad_record };
    let mut session = Session::open(over, &config, &runtime()?).await?;
    let (mut thrift, mut plans) = (Thrift::None, 1.0);
    loop {
        let done = match engine {
            Engine::Datafusion | Engine::Splits => run(ctx, &session).await,
            Engine::Ballista => distributed::run(ctx, &session, &thrift.apply(config.clone()), current).await,
        };
        let error = match done {
            Ok(mut output) => {
                output.metrics.insert("plans".to_owned(), plans);
                return Ok(output);
            }
            Err(Stopped::Task(error)) => return Err(error),
            Err(Stopped::Query(error)) => error,
        };
        match thrift.next().filter(|_| is_exhausted(&error)) {
            Some(next) => {
                tracing::info!(%error, ?next, "the plan needs too much memory");
                session = session.with(next.apply(config.clone()), runtime()?);
                (thrift, plans) = (next, plans + 1.0);
            }
            None => {
                let blamed = blame::of(&error, &session).await;
                return Err(blamed.unwrap_or_else(|| failed(&error)));
            }
        }
    }
}

/// Why a plan did not come to its end.
pub(super) enum Stopped {
    Query(DataFusionError),
    Task(TaskError),
}

impl From<DataFusionError> for Stopped {
    fn from(error: DataFusionError) -> Self {
        Self::Query(error)
    }
}

impl From<TaskError> for Stopped {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}

async fn run(ctx: &TaskContext<'_>, session: &Session) -> Result<TaskOutput, Stopped> {
    let frame = session.frame().await?;
    check_output(frame.schema().as_arrow(), &ctx.job.output)?;
    let context = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await?;
    let mut output = written(ctx, &plan, context).await?;
    list_skipped(ctx, &session.bad, &mut output)?;
    Ok(output)
}

pub(super) fn is_exhausted(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::ResourcesExhausted(_))
}

/// What an error of a query's is. `path` is where it reads and writes.
pub(super) fn failed(error: &DataFusionError, path: &Path, memory: Option<u64>) -> TaskError {
    if let Some(not_held) = cause::<NotHeld>(error) {
        return not_held.into();
    }
    if let Some(not) = cause::<NotBySplit>(error) {
        return not.into();
    }
    if let Some(record) = cause::<BadRecord>(error) {
        return TaskError::BadInput(record.to_string());
    }
    if let Some(source) = passing(error) {
        let source = io::Error::new(source.kind(), readable(error));
        return TaskError::Io { path: path.to_owned(), source };
    }
    match (is_exhausted(error), memory) {
        (true, Some(memory)) => TaskError::BadInput(format!(
            "the query needs more memory than the {} MiB of its worker, and can spill no more of it: give [workers] \
             memory more ({})",
            memory >> 20,
            readable(error)
        )),
        _ => super::bad_query(error),
    }
}
