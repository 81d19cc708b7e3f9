//! Workers as tasks of Amazon ECS, on Fargate or on instances; `submit` has coordinators and commands as others.
//!
//! A member is a task: `ecs-` and the task's id, which its worker learns from the container's metadata. All workers of an
//! `[ecs]` table, whatever the run, have one task definition (`definition`), and what is a run's own comes as overrides.
//! `startedBy` is the run's tag, by which tasks are listed, and a tag holds the token, which is the client token too: so
//! the same call again is the same tasks, even of another coordinator. What answers mean, `answers` says.

mod answers;
mod cluster;
mod definition;
mod log;
pub(crate) mod submit;

use std::time::Duration;

use aws_sdk_ecs::{
    Client,
    config::retry::RetryConfig,
    operation::run_task::RunTaskError,
    types::{ContainerOverride, Task, TaskOverride, TaskStopCode},
};
use forebay_jobs::{
    id::{MemberId, RunId},
    spec::{WorkersSpec, ecs::EcsSpec},
};
use futures::future;
use tokio::sync::OnceCell;

use self::{
    cluster::{Cluster, id_of, tag},
    definition::{Shape, WORKER},
};
use super::{
    command::WorkerCommand,
    engine::{Call, Class, Engine, EngineError, Limits, Sighting, Started, Tag},
};

/// Tasks of one call at most: <https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_RunTask.html>.
const BATCH: u32 = 10;
/// Fargate starts 20 tasks a second for an account, of which other runs want some too:
/// <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/throttling.html>.
const PAUSE: Duration = Duration::from_millis(500);
/// Tasks that are stopped in a second: each takes a call, and an account has 40 of those that change tasks.
const STOPS: usize = 20;
/// Characters of all overrides, as JSON.
const OVERRIDES: usize = 8192;
/// What the tags of a task are called.
const RUN: &str = "forebay:run";
const TOKEN: &str = "forebay:token";
const PREFIX: &str = "ecs-";

/// ECS, for one run.
#[derive(Debug)]
pub struct Ecs {
    cluster: Cluster,
    gpus: u32,
    arguments: Vec<String>,
    run: RunId,
    tag: Tag,
    /// The ARN of the task definition, once it is known.
    definition: OnceCell<String>,
}

impl Ecs {
    /// Finds region, endpoint and credentials as the AWS SDK does, and asks nobody yet. `command` is what a worker is
    /// started with, but for its volume, which is where the container has it.
    ///
    /// # Errors
    /// No region, or arguments that are too long.
    pub async fn new(
        spec: &EcsSpec,
        workers: &WorkersSpec,
        command: WorkerCommand,
        tag: Tag,
    ) -> Result<Self, EngineError> {
        // Who calls it again decides when.
        let cluster = Cluster::open(spec, RetryConfig::disabled()).await?;
        Self::at(cluster, workers, command, tag)
    }

    /// The same, with a client that is there.
    ///
    /// # Errors
    /// Arguments that are too long.
    pub fn over(
        client: Client,
        region: String,
        spec: &EcsSpec,
        workers: &WorkersSpec,
        command: WorkerCommand,
        tag: Tag,
    ) -> Result<Self, EngineError> {
        Self::at(Cluster { client, spec: spec.clone(), region }, workers, command, tag)
    }

    fn at(cluster: Cluster, workers: &WorkersSpec, command: WorkerCommand, tag: Tag) -> Result<Self, EngineError> {
        let volume = cluster.volume().into();
        let (run, arguments) = (command.run.clone(), WorkerCommand { volume, ..command }.arguments());
        let overrides = serde_json::json!({ "containerOverrides": [{ "name": WORKER, "command": &arguments }] });
        let characters = overrides.to_string().chars().count();
        if characters > OVERRIDES {
            let why = format!("a worker's arguments take {characters} characters, and ECS takes {OVERRIDES}");
            return Err(EngineError::new(Class::Permanent, format!("{why}: shorten [ecs] directory")));
        }
        Ok(Self { cluster, gpus: workers.gpus, arguments, run, tag, definition: OnceCell::new() })
    }

    async fn definition(&self) -> Result<&str, EngineError> {
        let spec = &self.cluster.spec;
        let shape = Shape {
            container: WORKER,
            cpu: spec.cpu,
            memory: spec.memory,
            gpus: self.gpus,
            role: spec.task_role.clone(),
            ..Shape::default()
        };
        self.definition.get_or_try_init(|| self.cluster.definition(&shape)).await.map(String::as_str)
    }

    async fn stop_one(&self, member: &MemberId) -> Result<(), EngineError> {
        let Some(task) = task_of(member) else { return Ok(()) };
        self.cluster.stop(task, "forebay does not need it any more").await
    }
}

impl Engine for Ecs {
    fn limits(&self) -> Limits {
        Limits {
            batch: BATCH,
            pause: PAUSE,
            // AWS promises nothing; it advises to ask again for minutes.
            settle: Duration::from_secs(60),
            poll: (Duration::from_secs(2), Duration::from_secs(30)),
            call: Duration::from_secs(120),
        }
    }

    async fn start(&self, call: &Call) -> Result<Started, EngineError> {
        let worker = ContainerOverride::builder().name(WORKER).set_command(Some(self.arguments.clone())).build();
        let run = self
            .cluster
            .run_task(self.definition().await?, self.cluster.groups(), false)
            .count(i32::try_from(call.count).unwrap_or(i32::MAX))
            .client_token(call.token.as_str())
            .started_by(self.tag.as_str())
            .set_tags(Some(self.cluster.tags(&[(RUN, self.run.as_str()), (TOKEN, call.token.as_str())])))
            .overrides(TaskOverride::builder().container_overrides(worker).build());
        let answer = match run.send().await {
            Ok(answer) => answer,
            Err(error) => {
                return match error.as_service_error() {
                    // Another coordinator has called with this token, and something is different now.
                    Some(RunTaskError::ConflictException(known)) => {
                        let members = known.resource_ids().iter().filter_map(|arn| member_of(arn)).collect();
                        Ok(Started { members, refused: None })
                    }
                    _ => Err(answers::error(&error)),
                };
            }
        };
        let exists = |task: &&Task| task.last_status() != Some("STOPPED");
        let members = answer.tasks().iter().filter(exists).filter_map(|task| member_of(task.task_arn()?)).collect();
        let refused = answer.failures().first().map(answers::failure);
        Ok(Started { members, refused })
    }

    async fn list(&self, known: &[MemberId]) -> Result<Vec<Sighting>, EngineError> {
        let mut tasks = self.cluster.started_by(self.tag.as_str()).await?;
        tasks.extend(known.iter().filter_map(task_of).map(str::to_owned));
        tasks.sort_unstable();
        tasks.dedup();
        let sighting = |task: &Task| {
            let token = tag(task, TOKEN)?;
            let (member, token) = (member_of(task.task_arn()?)?, self.tag.token(token)?);
            Some(Sighting { member, token, state: answers::state(task), life: 0 })
        };
        Ok(self.cluster.describe(&tasks).await?.iter().filter_map(sighting).collect())
    }

    async fn stop(&self, members: &[MemberId]) -> Result<(), EngineError> {
        let mut stopped = Ok(());
        for (n, members) in members.chunks(STOPS).enumerate() {
            if n > 0 {
                // Within what an account may ask in a second.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let all = future::join_all(members.iter().map(|member| self.stop_one(member))).await;
            stopped = all.into_iter().fold(stopped, Result::and);
        }
        stopped
    }

    async fn explain(&self, member: &MemberId) -> Option<String> {
        let (task, group) = (task_of(member)?, self.cluster.spec.log_group.as_ref()?);
        let described = self.cluster.describe(&[task.to_owned()]).await.ok()?;
        // What had no container has no log.
        let began = described.first()?.stop_code() != Some(&TaskStopCode::TaskFailedToStart);
        began.then(|| format!("its log in {group} is {}/{WORKER}/{task}", definition::LOG_PREFIX))
    }
}

fn member_of(arn: &str) -> Option<MemberId> {
    format!("{PREFIX}{}", id_of(arn)).parse().ok()
}

fn task_of(member: &MemberId) -> Option<&str> {
    member.as_str().strip_prefix(PREFIX)
}

#[cfg(test)]
mod tests;
