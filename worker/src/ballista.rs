//! The worker as an executor of stages, where all workers of a run execute its query: Ballista's, in the worker's process.
//!
//! It asks the scheduler for tasks, as many at once as the worker has slots, writes what they make into the run's
//! directory for it, and serves it to those who do not see it there. Its threads are its own and end with it, whatever
//! they do.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arrow_flight::flight_service_server::FlightServiceServer;
use async_trait::async_trait;
use ballista_core::{
    BALLISTA_PROTOCOL_VERSION, JobId,
    registry::BallistaFunctionRegistry,
    serde::{
        BallistaCodec, BallistaLogicalExtensionCodec,
        protobuf::{
            CancelTasksParams, CancelTasksResult, ExecutorRegistration, LaunchMultiTaskParams, LaunchMultiTaskResult,
            LaunchTaskParams, LaunchTaskResult, RemoveJobDataParams, RemoveJobDataResult, ShuffleWritePartition,
            StopExecutorParams, StopExecutorResult,
            executor_grpc_server::{ExecutorGrpc, ExecutorGrpcServer},
            scheduler_grpc_client::SchedulerGrpcClient,
        },
        scheduler::{ExecutorOperatingSystemSpecification, ExecutorSpecification},
    },
};
use ballista_executor::{
    execution_engine::{DefaultExecutionEngine, ExecutionEngine, QueryStageExecutor},
    execution_loop,
    executor::Executor,
    flight_service::BallistaFlightService,
    health::ExecutorHealth,
    metrics::LoggingMetricsCollector,
};
use datafusion::{
    error::{DataFusionError, Result as DataFusionResult},
    execution::TaskContext,
    physical_plan::{ExecutionPlan, metrics::MetricsSet},
    prelude::SessionConfig,
};
use forebay_datasets::volume::Volume;
use forebay_jobs::{
    id::WorkerId,
    kinds::sql::ballista::{Codec, LARGEST, SHUFFLE, Site, endpoint, server_tls, settings, told},
    spec::JobSpec,
    wire::Cluster,
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::Notify,
};
use tonic::{
    Request, Response, Status,
    transport::{Endpoint, Server, server::TcpIncoming},
};

/// Between two tries to be an executor.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the scheduler is asked by an executor that has something to do, or had until lately.
const ASK: Duration = Duration::from_millis(50);
/// After so long without a task it asks each second.
const IDLE: Duration = Duration::from_secs(5);

/// What a worker is to execute stages with.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) worker: WorkerId,
    pub(crate) volume: Volume,
    pub(crate) run_dir: PathBuf,
    pub(crate) job: JobSpec,
    pub(crate) slots: u32,
    pub(crate) memory: Option<u64>,
}

/// A worker that executes stages. Dropped, it executes nothing any more.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) cluster: Cluster,
    threads: Option<Runtime>,
}

impl Member {
    /// Begins to execute what the scheduler of this cluster has.
    pub(crate) fn join(cluster: &Cluster, post: Post) -> io::Result<Self> {
        let threads = post.slots.max(1) as usize;
        let threads =
            Builder::new_multi_thread().worker_threads(threads).thread_name("executor").enable_all().build()?;
        let its = cluster.clone();
        threads.spawn(async move {
            loop {
                let Err(error) = execute(&its, &post).await;
                tracing::warn!(%error, "this worker executes no stages");
                // What there is to wait for is elsewhere, and tells nobody.
                tokio::time::sleep(AGAIN).await;
            }
        });
        Ok(Self { cluster: cluster.clone(), threads: Some(threads) })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

/// Why a worker executes no stages.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it cannot be reached")]
    Listen(#[from] io::Error),
    #[error("the scheduler cannot be reached, or its own port cannot be served")]
    Transport(#[from] tonic::transport::Error),
    #[error("its loop ended: {0}")]
    Loop(String),
    #[error("its port is served no more")]
    Unserved,
}

/// Executes tasks until that breaks.
async fn execute(cluster: &Cluster, post: &Post) -> Result<std::convert::Infallible, Ended> {
    let address = Endpoint::from_shared(cluster.address.clone())?;
    let channel = endpoint(cluster, &address)?.connect().await?;
    let scheduler =
        SchedulerGrpcClient::new(channel).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
    let listener = TcpListener::bind(SocketAddr::new(here(&cluster.address)?, 0)).await?;
    let bound = listener.local_addr()?;
    let shuffle = post.run_dir.join(SHUFFLE).display().to_string();
    let executor = Arc::new(executor(cluster, post, bound, &shuffle));
    let flight = FlightServiceServer::new(BallistaFlightService::new(shuffle))
        .max_decoding_message_size(LARGEST)
        .max_encoding_message_size(LARGEST);
    let router = Server::builder()
        .tls_config(server_tls(cluster))?
        .add_service(flight)
        .add_service(ExecutorGrpcServer::new(Told(Arc::clone(&executor))));
    let codec = BallistaCodec::new(
        Arc::new(BallistaLogicalExtensionCodec::default()),
        Arc::new(Codec::new(&post.volume, &post.job)),
    );
    let asks = Arc::new(Notify::new());
    let polled = execution_loop::poll_loop::<
        datafusion_proto::protobuf::LogicalPlanNode,
        datafusion_proto::protobuf::PhysicalPlanNode,
        _,
    >(scheduler, Arc::clone(&executor), codec, Some(Arc::clone(&asks)), None, ExecutorHealth::new());
    tokio::select! {
        served = router.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))) => {
            served?;
            Err(Ended::Unserved)
        }
        ended = polled => Err(Ended::Loop(ended.err().map(|error| error.to_string()).unwrap_or_default())),
        never = ask(&executor, &asks) => match never {},
    }
}

/// Has the scheduler asked often while there is something to do.
async fn ask(executor: &Executor, asks: &Notify) -> std::convert::Infallible {
    let mut active = Instant::now();
    loop {
        if executor.active_task_count() > 0 {
            active = Instant::now();
        }
        if active.elapsed() < IDLE {
            asks.notify_one();
        }
        // The scheduler calls nobody: an executor that does not ask learns of no work.
        tokio::time::sleep(ASK).await;
    }
}

fn executor(cluster: &Cluster, post: &Post, bound: SocketAddr, shuffle: &str) -> Executor {
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let registration = ExecutorRegistration {
        id: format!("{}.{begun:x}", post.worker),
        host: Some(bound.ip().to_string()),
        port: bound.port().into(),
        grpc_port: bound.port().into(),
        specification: Some(ExecutorSpecification::default().with_vcores(post.slots.max(1)).into()),
        os_info: Some(ExecutorOperatingSystemSpecification::default().into()),
        ballista_protocol_version: BALLISTA_PROTOCOL_VERSION,
    };
    let scratch = post.run_dir.join("slots").join(format!("{}.stages", post.worker));
    let site = Arc::new(Site::new(&post.volume, post.run_dir.clone(), scratch, post.memory));
    let of_cluster = cluster.clone();
    Executor::new(
        registration,
        shuffle,
        Arc::new(move |_| site.runtime()),
        Arc::new(move || settings(SessionConfig::new(), &of_cluster)),
        Arc::new(BallistaFunctionRegistry::default()),
        Arc::new(LoggingMetricsCollector::default()),
        post.slots.max(1) as usize,
        Arc::new(Engine(DefaultExecutionEngine::new())),
    )
}

/// The address of this host by which the scheduler is reached: where others can reach it as well.
fn here(scheduler: &str) -> io::Result<IpAddr> {
    let host = scheduler.trim_start_matches("https://");
    let to = host.to_socket_addrs()?.next().ok_or_else(|| io::Error::other(format!("{host} has no address")))?;
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
    // Nothing is sent: the system only says which way it would go.
    let way = UdpSocket::bind((any, 0))?;
    way.connect(to)?;
    Ok(way.local_addr()?.ip())
}

/// Ballista's engine, with files that no other task has, and errors that say what they are.
struct Engine(DefaultExecutionEngine);

impl ExecutionEngine for Engine {
    fn create_query_stage_exec(
        &self,
        job: JobId,
        stage: usize,
        _: usize,
        partitions: Vec<usize>,
        plan: Arc<dyn ExecutionPlan>,
        work_dir: &str,
        config: &SessionConfig,
    ) -> DataFusionResult<Arc<dyn QueryStageExecutor>> {
        // All executors write into one directory, and a task that nobody waits for any more may still write.
        let file = usize::try_from(rand::random::<u64>() >> 1).unwrap_or_default();
        let inner = self.0.create_query_stage_exec(job, stage, file, partitions, plan, work_dir, config)?;
        Ok(Arc::new(Stage(inner)))
    }
}

#[derive(Debug)]
struct Stage(Arc<dyn QueryStageExecutor>);

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl QueryStageExecutor for Stage {
    async fn execute_query_stage(
        &self,
        task: usize,
        context: Arc<TaskContext>,
    ) -> Result<Vec<ShuffleWritePartition>, DataFusionError> {
        self.0.execute_query_stage(task, context).await.map_err(told)
    }

    /// None: the scheduler adds up those of a stage's tasks node by node, and where a task has no part of a UNION it has
    /// other nodes, which would leave the stage without an end.
    fn collect_plan_metrics(&self) -> Vec<MetricsSet> {
        Vec::new()
    }

    fn collect_runtime_stats_reports(&self) -> Vec<ballista_core::serde::protobuf::RuntimeStatsReport> {
        self.0.collect_runtime_stats_reports()
    }

    fn collect_window_state_reports(
        &self,
    ) -> Result<Vec<ballista_core::serde::protobuf::WindowStateReport>, DataFusionError> {
        self.0.collect_window_state_reports()
    }

    fn collect_column_stats(&self) -> Vec<ballista_core::serde::protobuf::TaskColumnStats> {
        self.0.collect_column_stats()
    }
}

/// What the scheduler tells an executor: to end tasks. All else an executor asks for.
struct Told(Arc<Executor>);

#[async_trait]
impl ExecutorGrpc for Told {
    async fn launch_task(&self, _: Request<LaunchTaskParams>) -> Result<Response<LaunchTaskResult>, Status> {
        Err(Status::unimplemented("tasks are asked for"))
    }

    async fn launch_multi_task(
        &self,
        _: Request<LaunchMultiTaskParams>,
    ) -> Result<Response<LaunchMultiTaskResult>, Status> {
        Err(Status::unimplemented("tasks are asked for"))
    }

    async fn stop_executor(&self, _: Request<StopExecutorParams>) -> Result<Response<StopExecutorResult>, Status> {
        Err(Status::unimplemented("an executor ends with its worker"))
    }

    async fn cancel_tasks(&self, request: Request<CancelTasksParams>) -> Result<Response<CancelTasksResult>, Status> {
        let mut cancelled = true;
        for task in request.into_inner().task_infos {
            let (stage, number) = (task.stage_id as usize, task.task_id as usize);
            cancelled &= self.0.cancel_task(task.job_id.into(), stage, number).await.unwrap_or(false);
        }
        Ok(Response::new(CancelTasksResult { cancelled }))
    }

    async fn remove_job_data(&self, _: Request<RemoveJobDataParams>) -> Result<Response<RemoveJobDataResult>, Status> {
        Err(Status::unimplemented("what stages have left goes with the run"))
    }
}
