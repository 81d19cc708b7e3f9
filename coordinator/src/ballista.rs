//! The scheduler of a run's query, where all of its workers execute it: Ballista's, in the coordinator's process.
//!
//! It keeps its state in memory: a new coordinator starts a new one, and the attempt whose query went with the old one
//! begins it again. It runs on threads of its own, which end with it. Executors ask it for work, so that it has to reach
//! none of them, except to end tasks of a query that is given up.
//!
//! An executor is lost when its worker's stream ends, or when it has not asked for long. Then every query under way is
//! given up, and whoever waits for it begins it again. Ballista would repeat the stages that are lost; but a stage of
//! which some tasks are done, and that is rolled back, hands on what they have made a second time. The same is done with a
//! query of which nothing will come any more (`desk`).

mod desk;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ballista_core::{
    config::TaskSchedulingPolicy,
    serde::{
        BallistaCodec, BallistaLogicalExtensionCodec,
        protobuf::{
            ExecutorStoppedParams, scheduler_grpc_server::SchedulerGrpc, scheduler_grpc_server::SchedulerGrpcServer,
        },
    },
};
use ballista_scheduler::{
    cluster::BallistaCluster, config::SchedulerConfig, metrics::default_metrics_collector,
    scheduler_server::SchedulerServer,
};
use datafusion::prelude::SessionConfig;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use forebay_datasets::volume::Volume;
use forebay_jobs::{
    id::WorkerId,
    kinds::sql::ballista::{Codec, LARGEST, endpoint, scheduling, server_tls, settings},
    spec::JobSpec,
    wire::{Cluster, SERVER_NAME},
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::mpsc,
};
use tonic::{
    Request,
    transport::{Server, server::TcpIncoming},
};

use self::desk::Desk;
use crate::server::{ServerError, reached_at};

/// An executor that has not asked for work for so long is lost; it asks each second, also while it has enough to do.
const SILENCE: Duration = Duration::from_secs(20);
/// Between two looks for such executors.
const LOOK: Duration = Duration::from_secs(2);

type Ballista = SchedulerServer<LogicalPlanNode, PhysicalPlanNode>;

/// The running scheduler. Dropped, it schedules nothing any more.
#[derive(Debug)]
pub(crate) struct Scheduler {
    cluster: Cluster,
    lost: mpsc::UnboundedSender<WorkerId>,
    threads: Option<Runtime>,
}

impl Scheduler {
    /// Listens for those who have the key that is made here.
    pub(crate) fn start(listen: IpAddr, volume: &Volume, job: &JobSpec) -> Result<Self, ServerError> {
        let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).map_err(ServerError::Certificate)?;
        let address = SocketAddr::new(listen, 0);
        let unable = |source| ServerError::Listen { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(unable)?;
        let bound = listener.local_addr().map_err(unable)?;
        listener.set_nonblocking(true).map_err(unable)?;
        let cluster = Cluster {
            address: format!("https://{}", reached_at(bound)),
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        };
        let threads = Builder::new_multi_thread().worker_threads(2).thread_name("scheduler").enable_all().build();
        let threads = threads.map_err(unable)?;
        let (lost, told) = mpsc::unbounded_channel();
        let codec = Arc::new(Codec::new(volume, job));
        let (its, volume) = (cluster.clone(), volume.clone());
        threads.spawn(async move {
            if let Err(error) = serve(listener, its, (volume, codec), told).await {
                tracing::error!(%error, "the scheduler of the run's query ended");
            }
        });
        Ok(Self { cluster, lost, threads: Some(threads) })
    }

    /// How it is reached.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A worker's stream ended: what it executed will not come.
    pub(crate) fn lost(&self, worker: &WorkerId) {
        // Nobody hears it once the scheduler has ended.
        let _ = self.lost.send(worker.clone());
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it cannot listen")]
    Listen(#[from] io::Error),
    #[error("it cannot begin: {0}")]
    Begin(String),
    #[error("its transport broke")]
    Transport(#[from] tonic::transport::Error),
}

async fn serve(
    listener: std::net::TcpListener,
    cluster: Cluster,
    (volume, codec): (Volume, Arc<Codec>),
    lost: mpsc::UnboundedReceiver<WorkerId>,
) -> Result<(), Ended> {
    let listener = TcpListener::from_std(listener)?;
    let begin = |error: ballista_core::error::BallistaError| Ended::Begin(error.to_string());
    let its = cluster.clone();
    let config = SchedulerConfig {
        scheduling_policy: TaskSchedulingPolicy::PullStaged,
        // Whoever reads what a query has left removes it, and the run removes the rest.
        finished_job_data_clean_up_interval_seconds: 0,
        // Lost executors are found here, so that no stage is repeated.
        executor_timeout_seconds: u64::from(u32::MAX),
        executor_termination_grace_period: 0,
        stage_max_failures: 1,
        grpc_server_max_decoding_message_size: LARGEST as u32,
        grpc_server_max_encoding_message_size: LARGEST as u32,
        use_tls: true,
        override_create_grpc_client_endpoint: Some(Arc::new(move |other| Ok(endpoint(&its, &other)?))),
        ..SchedulerConfig::default()
    };
    let of_cluster = cluster.clone();
    let sessions = Arc::new(move |config| scheduling(&volume, config));
    let produce = Arc::new(move || settings(SessionConfig::new(), &of_cluster));
    let members = BallistaCluster::new_memory("forebay", sessions, produce);
    let codec = BallistaCodec::new(Arc::new(BallistaLogicalExtensionCodec::default()), codec);
    let metrics = default_metrics_collector().map_err(begin)?;
    let address = cluster.address.trim_start_matches("https://").to_owned();
    let mut scheduler = Ballista::new(address, members, codec, Arc::new(config), metrics);
    scheduler.init().await.map_err(begin)?;
    let desk = Desk::new(scheduler.clone());
    let service =
        SchedulerGrpcServer::new(desk.clone()).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
    let router = Server::builder().tls_config(server_tls(&cluster))?.add_service(service);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::select! {
        served = router.serve_with_incoming(incoming) => Ok(served?),
        () = watch(&scheduler, &desk, lost) => Ok(()),
    }
}

/// Gives up what executors that are lost were to do.
async fn watch(scheduler: &Ballista, desk: &Desk, mut lost: mpsc::UnboundedReceiver<WorkerId>) {
    let mut look = tokio::time::interval(LOOK);
    let mut resting = BTreeMap::new();
    loop {
        let worker = tokio::select! {
            worker = lost.recv() => match worker {
                Some(worker) => Some(worker),
                None => return,
            },
            _ = look.tick() => None,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Ok(executors) = scheduler.state.executor_manager.get_executors_state().await else { continue };
        for (executor, heard, _) in executors {
            let is_its = worker.as_ref().is_some_and(|worker| executor.id.starts_with(&format!("{worker}.")));
            let is_silent = heard.is_none_or(|heard| now.saturating_sub(heard) > SILENCE);
            if is_its || is_silent {
                is_gone(scheduler, desk, executor.id).await;
            }
        }
        for job in desk.stalled(&mut resting).await {
            tracing::warn!(%job, "nobody tells what became of its tasks: it is begun again");
            desk.give_up(job).await;
        }
    }
}

async fn is_gone(scheduler: &Ballista, desk: &Desk, executor: String) {
    tracing::info!(executor, "is gone: what it executed is begun again");
    for job in scheduler.state.task_manager.get_running_job_cache().keys() {
        desk.give_up(job.clone()).await;
    }
    desk.forget(&executor);
    let stopped = ExecutorStoppedParams { executor_id: executor, reason: "its worker is lost".to_owned() };
    if let Err(error) = scheduler.executor_stopped(Request::new(stopped)).await {
        tracing::warn!(%error, "an executor could not be removed");
    }
}
