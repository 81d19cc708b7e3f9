//! A plan, executed by a cluster: handed to its scheduler, waited for, and read.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ballista_core::{
    error::BallistaError,
    execution_plans::ShuffleReaderExec,
    serde::{
        protobuf::{
            CancelJobParams, ExecuteQueryParams, FailedJob, GetJobStatusParams, JobStatus, KeyValuePair, SuccessfulJob,
            execute_query_params::Query, job_status::Status, scheduler_grpc_client::SchedulerGrpcClient,
        },
        scheduler::PartitionLocation,
    },
    version,
};
use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    error::DataFusionError,
    physical_plan::{ExecutionPlan, Partitioning},
    prelude::{SessionConfig, SessionContext},
};
use datafusion_proto::{physical_plan::AsExecutionPlan, protobuf::PhysicalPlanNode};
use futures::{Stream, StreamExt, TryStreamExt};
use tonic::transport::{Channel, Endpoint};

use super::{Codec, LARGEST, endpoint, fault::Fault, settings};
use crate::{kinds::TaskError, wire::Cluster};

/// What the scheduler says of a job that was given up.
const CANCELLED: &str = "Cancelled";
/// What a scheduler has not said for so long it is asked for: it says a thing once, and does not wait until it is heard.
const SILENCE: Duration = Duration::from_secs(10);
/// How long the scheduler is given to hear that a job is to end.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a job did not come to its end.
#[derive(Debug)]
pub(in crate::kinds::sql) enum Lost {
    /// The query, or what it read, failed as it would in one worker.
    Query(DataFusionError),
    /// The same, and what it is, is known.
    Task(TaskError),
    /// Ballista cannot execute such a plan.
    Unfit(String),
    /// A part of the cluster was lost: another try may find others.
    Passing(String),
    /// There is no scheduler, or it has ended: the next coordinator brings another one.
    Away(String),
}

/// A plan as it travels.
///
/// # Errors
/// Why it cannot.
pub(in crate::kinds::sql) fn encoded(plan: &Arc<dyn ExecutionPlan>, codec: &Codec) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let node = PhysicalPlanNode::try_from_physical_plan(Arc::clone(plan), codec);
    match node.and_then(|node| node.try_encode(&mut bytes)) {
        Ok(()) => Ok(bytes),
        Err(error) => {
            let text = error.strip_backtrace();
            // What there is beside the node's name is the whole plan, and where to tell DataFusion's authors of it.
            let name = text.split_once("Unsupported plan node, name: [").and_then(|(_, rest)| rest.split_once(']'));
            Err(match name {
                Some((name, _)) => format!("its plan has a {name}, which stays in one process"),
                None => text,
            })
        }
    }
}

/// A query at the scheduler of a cluster. Cancelled, it ends there as well.
pub(in crate::kinds::sql) struct Job {
    cluster: Cluster,
    id: Mutex<Option<String>>,
}

impl Job {
    pub(in crate::kinds::sql) fn at(cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone(), id: Mutex::default() }
    }

    async fn scheduler(&self) -> Result<SchedulerGrpcClient<Channel>, Lost> {
        let unreachable = |error: tonic::transport::Error| {
            Lost::Away(format!("the scheduler at {} cannot be reached: {error}", self.cluster.address))
        };
        let address = Endpoint::from_shared(self.cluster.address.clone()).map_err(unreachable)?;
        let channel = endpoint(&self.cluster, &address).map_err(unreachable)?.connect().await.map_err(unreachable)?;
        let client = SchedulerGrpcClient::new(channel);
        Ok(client.max_encoding_message_size(LARGEST).max_decoding_message_size(LARGEST))
    }

    /// Has a plan executed. Gives where its rows are.
    pub(in crate::kinds::sql) async fn run(
        &self,
        plan: Vec<u8>,
        config: &SessionConfig,
        name: &str,
    ) -> Result<SuccessfulJob, Lost> {
        let mut scheduler = self.scheduler().await?;
        let setting = |entry: datafusion::config::ConfigEntry| KeyValuePair { key: entry.key, value: entry.value };
        let query = ExecuteQueryParams {
            session_id: name.to_owned(),
            settings: config.options().entries().into_iter().map(setting).collect(),
            operation_id: name.to_owned(),
            query: Some(Query::PhysicalPlan(plan)),
        };
        let mut request = tonic::Request::new(query);
        version::insert_version_header(request.metadata_mut());
        let broken = |status: tonic::Status| match status.code() {
            tonic::Code::InvalidArgument => Lost::Unfit(status.message().to_owned()),
            _ => Lost::Away(format!("the scheduler: {}", status.message())),
        };
        let mut told = scheduler.execute_query_push(request).await.map_err(broken)?.into_inner();
        loop {
            let status = match tokio::time::timeout(SILENCE, told.message()).await {
                Ok(Ok(Some(status))) => status.status,
                Ok(Ok(None)) => return Err(Lost::Away("the scheduler ended".to_owned())),
                Ok(Err(status)) => return Err(broken(status)),
                Err(_) => self.asked(&mut scheduler).await.map_err(broken)?,
            };
            let Some(status) = status else { continue };
            *self.id.lock().unwrap_or_else(PoisonError::into_inner) = Some(status.job_id);
            match status.status {
                Some(Status::Successful(done)) => return Ok(done),
                Some(Status::Failed(failed)) => return Err(failure(&failed)),
                Some(Status::Running(_) | Status::Queued(_)) | None => {}
            }
        }
    }

    /// How the job stands; none if nothing was heard of it yet.
    async fn asked(&self, scheduler: &mut SchedulerGrpcClient<Channel>) -> Result<Option<JobStatus>, tonic::Status> {
        let id = self.id.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(job_id) = id else { return Ok(None) };
        Ok(scheduler.get_job_status(GetJobStatusParams { job_id }).await?.into_inner().status)
    }

    /// Ends the job at the scheduler, if it is there.
    pub(in crate::kinds::sql) async fn cancel(&self) {
        let id = self.id.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(job_id) = id else { return };
        let ended = async {
            let mut scheduler = self.scheduler().await.ok()?;
            scheduler.cancel_job(CancelJobParams { job_id }).await.ok()
        };
        if !matches!(tokio::time::timeout(FAREWELL, ended).await, Ok(Some(_))) {
            tracing::debug!("the scheduler does not hear that the query is to end");
        }
    }

    /// Removes what the stages of the job have left, as far as it can be seen.
    pub(in crate::kinds::sql) fn sweep(&self, shuffle: &Path) {
        if let Some(id) = &*self.id.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = std::fs::remove_dir_all(shuffle.join(id));
        }
    }
}

/// What the failure of a job is.
fn failure(failed: &FailedJob) -> Lost {
    let text = &failed.error;
    // It was to be cut into stages, and could not be: only then it ends as it begins.
    let never_began = failed.started_at == failed.ended_at && text != CANCELLED;
    match Fault::in_text(text) {
        Some(fault) => fault.error().map_or_else(Lost::Task, Lost::Query),
        None if never_began => Lost::Unfit(text.clone()),
        None if text == CANCELLED => Lost::Passing("a worker was lost that had a part in it".to_owned()),
        None => Lost::Passing(text.clone()),
    }
}

/// The rows that a job has left in this directory, or, where they are not seen there yet, at its executors.
pub(in crate::kinds::sql) fn rows(
    done: SuccessfulJob,
    schema: SchemaRef,
    (config, cluster, shuffle): (&SessionConfig, &Cluster, &Path),
) -> Result<impl Stream<Item = Result<RecordBatch, DataFusionError>> + Send + use<>, Lost> {
    let broken = |error: &dyn std::fmt::Display| Lost::Passing(format!("what its stages have left: {error}"));
    let mut partitions: BTreeMap<usize, PartitionLocation> = BTreeMap::new();
    for location in done.partition_location {
        let location: PartitionLocation = location.try_into().map_err(|error: BallistaError| broken(&error))?;
        if partitions.insert(location.partition_id.partition_id, location).is_some() {
            // One of them would be too much, and nothing says which is right.
            return Err(broken(&"a partition is there twice"));
        }
    }
    let stage = partitions.values().next().map_or(0, |location| location.partition_id.stage_id);
    let each: Vec<_> = partitions.into_values().map(|location| vec![location]).collect();
    let count = each.len();
    let reader = ShuffleReaderExec::try_new(stage, each, schema, Partitioning::UnknownPartitioning(count));
    let reader = reader.map_err(|error| broken(&error))?.with_work_dir(shuffle.display().to_string());
    let context = SessionContext::new_with_config(settings(config.clone(), cluster)).task_ctx();
    let partition = move |at| reader.execute(at, Arc::clone(&context));
    Ok(futures::stream::iter(0..count).map(partition).try_flatten())
}
