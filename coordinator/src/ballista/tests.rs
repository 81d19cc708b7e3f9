//! The scheduler as a query's driver and an executor see it, which the tests play.

use std::{sync::Arc, time::Duration};

use ballista_core::{
    BALLISTA_PROTOCOL_VERSION,
    serde::{
        protobuf::{
            ExecuteQueryParams, ExecutorRegistration, GetJobStatusResult, OperatorMetricsSet, PollWorkParams,
            SuccessfulTask, TaskDefinition, TaskStatus, execute_query_params::Query, job_status::Status,
            scheduler_grpc_client::SchedulerGrpcClient, task_status,
        },
        scheduler::{ExecutorOperatingSystemSpecification, ExecutorSpecification},
    },
    version,
};
use datafusion::{
    arrow::datatypes::{DataType, Field, Schema},
    physical_plan::{ExecutionPlan, empty::EmptyExec, union::UnionExec},
};
use datafusion_proto::physical_plan::AsExecutionPlan;
use forebay_jobs::spec::parse::job_file;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

use super::*;

struct Scene {
    _volume: tempfile::TempDir,
    scheduler: Scheduler,
    client: SchedulerGrpcClient<Channel>,
    plan: Vec<u8>,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        let text = "name = 'j'\n[dataset]\nsource = 's3://b'\n[sql]\nquery = 'select 1'\nengine = 'ballista'\n";
        let job = job_file(text, dir.path(), &[]).unwrap();
        let scheduler = Scheduler::start([127, 0, 0, 1].into(), &volume, &job).unwrap();
        let address = Endpoint::from_shared(scheduler.cluster().address.clone()).unwrap();
        let channel = endpoint(scheduler.cluster(), &address).unwrap().connect_lazy();
        let schema = Schema::new(vec![Field::new("a", DataType::Int64, true)]);
        let part: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(Arc::new(schema)));
        let plan = UnionExec::try_new(vec![Arc::clone(&part), part]).unwrap();
        let mut bytes = Vec::new();
        let node = PhysicalPlanNode::try_from_physical_plan(plan, &Codec::new(&volume, &job)).unwrap();
        node.try_encode(&mut bytes).unwrap();
        Self { _volume: dir, scheduler, client: SchedulerGrpcClient::new(channel), plan: bytes }
    }

    async fn submit(&mut self, name: &str) -> Streaming<GetJobStatusResult> {
        let mut request = Request::new(ExecuteQueryParams {
            session_id: name.to_owned(),
            settings: Vec::new(),
            operation_id: name.to_owned(),
            query: Some(Query::PhysicalPlan(self.plan.clone())),
        });
        version::insert_version_header(request.metadata_mut());
        self.client.execute_query_push(request).await.unwrap().into_inner()
    }

    /// An executor of two cores asks, of which so many are free, and tells what became of tasks.
    async fn ask(&mut self, executor: &str, free: u32, task_status: Vec<TaskStatus>) -> Vec<TaskDefinition> {
        let metadata = ExecutorRegistration {
            id: executor.to_owned(),
            host: Some("127.0.0.1".to_owned()),
            port: 1,
            grpc_port: 1,
            specification: Some(ExecutorSpecification::default().with_vcores(2).into()),
            os_info: Some(ExecutorOperatingSystemSpecification::default().into()),
            ballista_protocol_version: BALLISTA_PROTOCOL_VERSION,
        };
        let asked = PollWorkParams { metadata: Some(metadata), num_free_vcores: free, task_status };
        self.client.poll_work(asked).await.unwrap().into_inner().tasks
    }

    /// Asks for work for one core until there is a task.
    async fn take(&mut self, executor: &str) -> TaskDefinition {
        let task = async {
            loop {
                if let Some(task) = self.ask(executor, 1, Vec::new()).await.pop() {
                    return task;
                }
            }
        };
        tokio::time::timeout(LONG, task).await.unwrap()
    }

    /// Asks as one that has nothing to do, until a query has ended: gives how.
    async fn ask_on(&mut self, executor: &str, told: Streaming<GetJobStatusResult>) -> String {
        let end = tokio::spawn(end_of(told));
        while !end.is_finished() {
            self.ask(executor, 2, Vec::new()).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        end.await.unwrap()
    }
}

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(40);

/// What the query's driver is told last.
async fn end_of(mut told: Streaming<GetJobStatusResult>) -> String {
    let end = async {
        while let Some(status) = told.message().await.unwrap() {
            if let Some(Status::Failed(failed)) = status.status.and_then(|status| status.status) {
                return failed.error;
            }
        }
        "the stream ended".to_owned()
    };
    tokio::time::timeout(LONG, end).await.unwrap_or_else(|_| "no end".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_given_up_of_whose_task_its_executor_knows_nothing() {
    let mut scene = Scene::new().await;
    let told = scene.submit("q.1").await;
    scene.take("w.1").await;
    // As if the answer with the task, or what became of it, had been lost.
    assert_eq!(scene.ask_on("w.1", told).await, "Cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_given_up_of_whose_task_the_scheduler_fails_to_note_what_became_of_it() {
    let mut scene = Scene::new().await;
    let told = scene.submit("q.1").await;
    let tasks = [scene.take("w.1").await, scene.take("w.1").await];
    // Figures of another plan than those of the task before are refused, and all else that was told with them.
    let done = tasks.into_iter().zip(1..).map(|(task, figures)| TaskStatus {
        task_id: task.task_id,
        job_id: task.job_id,
        stage_id: task.stage_id,
        metrics: vec![OperatorMetricsSet::default(); figures],
        status: Some(task_status::Status::Successful(SuccessfulTask::default())),
        ..TaskStatus::default()
    });
    for done in done {
        scene.ask("w.1", 2, vec![done]).await;
    }
    assert_eq!(scene.ask_on("w.1", told).await, "Cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_whose_task_takes_long_is_left_alone_until_its_worker_is_lost() {
    let mut scene = Scene::new().await;
    let told = scene.submit("q.1").await;
    scene.take("w.1").await;
    let end = tokio::spawn(end_of(told));
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(14) {
        scene.ask("w.1", 1, Vec::new()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!end.is_finished());
    scene.scheduler.lost(&"w".parse().unwrap());
    assert_eq!(end.await.unwrap(), "Cancelled");
}
