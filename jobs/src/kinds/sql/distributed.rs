//! A query's plan, executed by the cluster of its run.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use datafusion::prelude::SessionConfig;
use futures::StreamExt;

use super::{
    ballista::{self, Codec, Job, Lost, SHUFFLE, encoded},
    execute::Stopped,
    output::{Sink, check_output},
    session::Session,
};
use crate::{
    kinds::{TaskContext, TaskError, TaskOutput},
    spec::{Engine, JobSpec, Work},
    wire::Cluster,
};

/// Tries at one plan in one attempt.
const TRIES: u32 = 4;
/// A scheduler whose coordinator has been gone for so long is no longer waited for: the attempt fails.
const AWAY: Duration = Duration::from_secs(60);

/// What an attempt has at the scheduler.
#[derive(Default)]
pub(super) struct Current(Mutex<Option<Arc<Job>>>);

impl Current {
    fn set(&self, job: Job) -> Arc<Job> {
        let job = Arc::new(job);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&job));
        job
    }

    /// Ends it there.
    pub(super) async fn cancel(&self) {
        let job = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(job) = job {
            job.cancel().await;
        }
    }
}

/// Has the session's query executed, and writes its rows.
pub(super) async fn run(
    ctx: &TaskContext<'_>,
    session: &Session,
    config: &SessionConfig,
    current: &Current,
) -> Result<TaskOutput, Stopped> {
    let frame = session.frame().await?;
    check_output(frame.schema().as_arrow(), &ctx.job.output)?;
    let plan = frame.create_physical_plan().await?;
    let bytes = encoded(&plan, &Codec::new(ctx.volume, ctx.job)).map_err(TaskError::Unfit)?;
    // Ballista makes it where it writes, and no file is where nothing was written.
    let shuffle = ctx.run_dir.join(SHUFFLE);
    let mut tries = 0;
    loop {
        let cluster = cluster(ctx).await?;
        let job = current.set(Job::at(&cluster));
        let name = ctx.out_dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        tries += 1;
        let done = async {
            let done = job.run(bytes.clone(), config, &format!("{name}.{tries}")).await?;
            let rows = ballista::rows(done, plan.schema(), (config, &cluster, &shuffle))?;
            let mut rows = std::pin::pin!(rows);
            let mut sink = Sink::create(ctx, &plan.schema()).map_err(Lost::Task)?;
            while let Some(batch) = rows.next().await {
                let lost = |error| Lost::Passing(format!("what its stages have left: {error}"));
                sink.write(&batch.map_err(lost)?).map_err(Lost::Task)?;
            }
            sink.finish().map_err(Lost::Task)
        };
        let lost = match done.await {
            Ok(files) => {
                job.sweep(&shuffle);
                let metrics = [("queries".to_owned(), f64::from(tries))].into();
                return Ok(TaskOutput { files, metrics, rest: None });
            }
            Err(lost) => lost,
        };
        job.sweep(&shuffle);
        let why = match lost {
            Lost::Query(error) => return Err(error.into()),
            Lost::Task(error) => return Err(error.into()),
            Lost::Unfit(why) => return Err(TaskError::Unfit(why).into()),
            Lost::Passing(why) => why,
            Lost::Away(why) => {
                let mut watch = ctx.cluster.clone();
                let other = watch.wait_for(|other| other.as_ref().is_some_and(|other| *other != cluster));
                match tokio::time::timeout(AWAY, other).await {
                    // What a coordinator takes with it is no failure of the query's.
                    Ok(Ok(_)) => tries -= 1,
                    Ok(Err(_)) | Err(_) => return Err(TaskError::Cluster(why).into()),
                }
                why
            }
        };
        if tries >= TRIES {
            return Err(TaskError::Cluster(why).into());
        }
        tracing::warn!(%why, tries, "the query is begun again");
    }
}

/// The cluster, as soon as there is one.
async fn cluster(ctx: &TaskContext<'_>) -> Result<Cluster, TaskError> {
    let mut watch = ctx.cluster.clone();
    let there = tokio::time::timeout(AWAY, watch.wait_for(Option::is_some));
    let found = match there.await {
        Ok(Ok(cluster)) => cluster.clone(),
        Ok(Err(_)) | Err(_) => None,
    };
    found.ok_or_else(|| TaskError::Cluster("the run has no scheduler".to_owned()))
}

/// What to say of a plan that Ballista cannot execute; none where forebay has chosen it, and chooses the other one.
pub(super) fn refusal(job: &JobSpec, why: &str) -> Option<TaskError> {
    match &job.work {
        Work::Sql(sql) if sql.engine == Some(Engine::Ballista) => Some(TaskError::BadInput(format!(
            "Ballista cannot execute this query: {why}. In one worker DataFusion can: engine = \"datafusion\" in [sql]"
        ))),
        _ => None,
    }
}
