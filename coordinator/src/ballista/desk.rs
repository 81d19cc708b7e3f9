//! What of the scheduler is served: what executors ask, and who has a query executed. All else is refused.
//!
//! It also hears which executors have nothing to do. What became of a task is told once: where that is lost on its way,
//! or the scheduler fails to note it, the task is under way for ever in the scheduler's eyes, and so is its query
//! ([`Desk::stalled`]).

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ballista_core::{
    JobId,
    serde::protobuf::{
        CancelJobParams, CancelJobResult, CleanJobDataParams, CleanJobDataResult, CreateUpdateSessionParams,
        CreateUpdateSessionResult, ExecuteQueryParams, ExecuteQueryResult, ExecutorStoppedParams,
        ExecutorStoppedResult, GetJobMetricsParams, GetJobMetricsResult, GetJobStatusParams, GetJobStatusResult,
        HeartBeatParams, HeartBeatResult, PollWorkParams, PollWorkResult, RegisterExecutorParams,
        RegisterExecutorResult, RemoveSessionParams, RemoveSessionResult, UpdateTaskStatusParams,
        UpdateTaskStatusResult, scheduler_grpc_server::SchedulerGrpc,
    },
    serde::scheduler::ExecutorSpecification,
};
use futures::{Stream, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::Ballista;

/// Nothing is done for a query for so long: nothing will be any more. An executor asks each second.
const STALLED: Duration = Duration::from_secs(10);

/// The scheduler, as it is served.
#[derive(Clone)]
pub(super) struct Desk {
    scheduler: Ballista,
    /// Executors that have nothing to do, and since when.
    idle: Arc<Mutex<BTreeMap<String, Instant>>>,
    /// The scheduler takes nothing up any more.
    broken: CancellationToken,
}

impl Desk {
    pub(super) fn new(scheduler: Ballista) -> Self {
        Self { scheduler, idle: Arc::default(), broken: CancellationToken::new() }
    }

    /// An executor asks for work: until it is known whether it gets some, it is not idle. Gives since when it was.
    fn asks(&self, executor: &str) -> Option<Instant> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).remove(executor)
    }

    fn is_idle(&self, executor: String, since: Option<Instant>) {
        let since = since.unwrap_or_else(Instant::now);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).insert(executor, since);
    }

    /// An executor is no more.
    pub(super) fn forget(&self, executor: &str) {
        self.asks(executor);
    }

    /// Gives a query up: whoever has it executed is told, and begins it again.
    pub(super) async fn give_up(&self, job: JobId) {
        if let Err(error) = self.scheduler.cancel_job(job).await {
            tracing::error!(%error, "the scheduler takes nothing up any more");
            self.broken.cancel();
        }
    }

    /// The queries of which nothing will come any more: one of their tasks is with an executor that has had nothing to do
    /// for long, or none is with any executor, nor could be. `seen` is what was so before.
    pub(super) async fn stalled(&self, seen: &mut BTreeMap<JobId, Instant>) -> Vec<JobId> {
        let long: Vec<String> = {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.iter().filter(|(_, since)| since.elapsed() > STALLED).map(|(executor, _)| executor.clone()).collect()
        };
        let jobs = self.scheduler.state.task_manager.get_running_job_cache();
        seen.retain(|job, _| jobs.contains_key(job));
        let mut stalled = Vec::new();
        for (job, info) in jobs.iter() {
            let graph = info.execution_graph.read().await;
            let (tasks, ready) = (graph.running_tasks(), graph.available_tasks());
            drop(graph);
            let is_lost = tasks.iter().any(|task| long.contains(&task.executor_id));
            let rests = tasks.is_empty() && ready == 0;
            let since = match rests {
                true => Some(*seen.entry(job.clone()).or_insert_with(Instant::now)),
                false => {
                    seen.remove(job);
                    None
                }
            };
            if is_lost || since.is_some_and(|since| since.elapsed() > STALLED) {
                stalled.push(job.clone());
            }
        }
        stalled
    }
}

fn refused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("nobody in a run asks for this"))
}

#[tonic::async_trait]
impl SchedulerGrpc for Desk {
    type ExecuteQueryPushStream = Pin<Box<dyn Stream<Item = Result<GetJobStatusResult, Status>> + Send>>;

    async fn poll_work(&self, request: Request<PollWorkParams>) -> Result<Response<PollWorkResult>, Status> {
        let asked = request.get_ref();
        let executor = asked.metadata.clone().unwrap_or_default();
        let cores = executor.specification.map(|all| {
            let all: ExecutorSpecification = all.into();
            all.vcores
        });
        let has_nothing = asked.task_status.is_empty() && cores.is_some_and(|cores| asked.num_free_vcores >= cores);
        let since = self.asks(&executor.id);
        let reply = self.scheduler.poll_work(request).await?;
        if has_nothing && reply.get_ref().tasks.is_empty() {
            self.is_idle(executor.id, since);
        }
        Ok(reply)
    }

    async fn execute_query_push(
        &self,
        request: Request<ExecuteQueryParams>,
    ) -> Result<Response<Self::ExecuteQueryPushStream>, Status> {
        let reply = self.scheduler.execute_query_push(request).await?;
        let broken = self.broken.clone().cancelled_owned();
        Ok(reply.map(|told| -> Self::ExecuteQueryPushStream { Box::pin(told.take_until(broken)) }))
    }

    async fn get_job_status(
        &self,
        request: Request<GetJobStatusParams>,
    ) -> Result<Response<GetJobStatusResult>, Status> {
        self.scheduler.get_job_status(request).await
    }

    async fn cancel_job(&self, request: Request<CancelJobParams>) -> Result<Response<CancelJobResult>, Status> {
        SchedulerGrpc::cancel_job(&self.scheduler, request).await
    }

    async fn register_executor(
        &self,
        _: Request<RegisterExecutorParams>,
    ) -> Result<Response<RegisterExecutorResult>, Status> {
        refused()
    }

    async fn heart_beat_from_executor(&self, _: Request<HeartBeatParams>) -> Result<Response<HeartBeatResult>, Status> {
        refused()
    }

    async fn update_task_status(
        &self,
        _: Request<UpdateTaskStatusParams>,
    ) -> Result<Response<UpdateTaskStatusResult>, Status> {
        refused()
    }

    async fn create_update_session(
        &self,
        _: Request<CreateUpdateSessionParams>,
    ) -> Result<Response<CreateUpdateSessionResult>, Status> {
        refused()
    }

    async fn remove_session(&self, _: Request<RemoveSessionParams>) -> Result<Response<RemoveSessionResult>, Status> {
        refused()
    }

    async fn execute_query(&self, _: Request<ExecuteQueryParams>) -> Result<Response<ExecuteQueryResult>, Status> {
        refused()
    }

    async fn get_job_metrics(&self, _: Request<GetJobMetricsParams>) -> Result<Response<GetJobMetricsResult>, Status> {
        refused()
    }

    async fn executor_stopped(
        &self,
        _: Request<ExecutorStoppedParams>,
    ) -> Result<Response<ExecutorStoppedResult>, Status> {
        refused()
    }

    async fn clean_job_data(&self, _: Request<CleanJobDataParams>) -> Result<Response<CleanJobDataResult>, Status> {
        refused()
    }
}
