//! Workers as tasks of Amazon ECS, on Fargate or on instances.
//!
//! A member is a task: `ecs-` and the task's id, which its worker learns from the container's metadata. All workers of an
//! `[ecs]` table, whatever the run, have one task definition (`definition`), and what is a run's own comes as overrides.
//! `startedBy` is the run's tag, by which tasks are listed, and a tag holds the token, which is the client token too: so
//! the same call again is the same tasks, even of another coordinator. What answers mean, `answers` says.

mod answers;
mod definition;

use std::time::Duration;

use aws_sdk_ecs::{
    Client, config,
    error::ProvideErrorMetadata,
    operation::run_task::RunTaskError,
    types::{
        AssignPublicIp, AwsVpcConfiguration, CapacityProviderStrategyItem, ContainerOverride, LaunchType,
        NetworkConfiguration, Tag as EcsTag, Task, TaskField, TaskOverride, TaskStopCode, builders::TagBuilder,
    },
};
use forebay_datasets::aws;
use forebay_jobs::{
    id::{MemberId, RunId},
    spec::{
        WorkersSpec,
        ecs::{Capacity, EcsSpec, LaunchType as WantedLaunchType},
    },
};
use futures::future;
use tokio::sync::OnceCell;

use self::definition::{CONTAINER, MOUNT};
use super::{
    command::WorkerCommand,
    engine::{Call, Class, Engine, EngineError, Limits, Sighting, Started, Tag},
};

/// Tasks of one call at most: <https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_RunTask.html>.
const BATCH: u32 = 10;
/// Fargate starts 20 tasks a second for an account, of which other runs want some too:
/// <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/throttling.html>.
const PAUSE: Duration = Duration::from_millis(500);
/// Tasks that are described by one call at most.
const DESCRIBED: usize = 100;
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
    client: Client,
    spec: EcsSpec,
    gpus: u32,
    region: String,
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
        let never = |why: String| EngineError::new(Class::Permanent, why);
        let shared = aws::config(spec.region.as_deref()).await.map_err(|error| never(error.to_string()))?;
        let region = shared.region().map(ToString::to_string);
        let region =
            region.ok_or_else(|| never("no AWS region is set up: set AWS_REGION, or [ecs] region".to_owned()))?;
        let mut config = config::Builder::from(&shared);
        if let Some(endpoint) = &spec.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Self::over(Client::from_conf(config.build()), region, spec, workers, command, tag)
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
        let volume = [MOUNT, &spec.directory].join("/").trim_end_matches('/').into();
        let (run, arguments) = (command.run.clone(), WorkerCommand { volume, ..command }.arguments());
        let overrides = serde_json::json!({ "containerOverrides": [{ "name": CONTAINER, "command": &arguments }] });
        let characters = overrides.to_string().chars().count();
        if characters > OVERRIDES {
            let why = format!("a worker's arguments take {characters} characters, and ECS takes {OVERRIDES}");
            return Err(EngineError::new(Class::Permanent, format!("{why}: shorten [ecs] directory")));
        }
        Ok(Self {
            client,
            spec: spec.clone(),
            gpus: workers.gpus,
            region,
            arguments,
            run,
            tag,
            definition: OnceCell::new(),
        })
    }

    /// The task definition, which is there already unless this is the first run of its kind.
    async fn definition(&self) -> Result<&str, EngineError> {
        let find = || async {
            let wanted = definition::of(&self.spec, self.gpus, &self.region);
            let family = wanted.get_family().clone().unwrap_or_default();
            match self.client.describe_task_definition().task_definition(&family).send().await {
                Ok(found) => {
                    if let Some(arn) = found.task_definition().and_then(|found| found.task_definition_arn()) {
                        return Ok(arn.to_owned());
                    }
                }
                // It says no more precisely that there is none.
                Err(error) if error.code() == Some("ClientException") => {}
                Err(error) => return Err(answers::error(&error)),
            }
            let made = wanted.send_with(&self.client).await.map_err(|error| answers::error(&error))?;
            let arn = made.task_definition().and_then(|made| made.task_definition_arn());
            arn.map(str::to_owned)
                .ok_or_else(|| EngineError::new(Class::Unknown, "ECS says nothing of the task definition it made"))
        };
        self.definition.get_or_try_init(find).await.map(String::as_str)
    }

    fn network(&self) -> Option<NetworkConfiguration> {
        let network = self.spec.network.as_ref()?;
        let mut vpc = AwsVpcConfiguration::builder().set_subnets(Some(network.subnets.clone()));
        if !network.security_groups.is_empty() {
            vpc = vpc.set_security_groups(Some(network.security_groups.clone()));
        }
        if self.spec.is_fargate() {
            let public = if network.public_ip { AssignPublicIp::Enabled } else { AssignPublicIp::Disabled };
            vpc = vpc.assign_public_ip(public);
        }
        let vpc = vpc.build().expect("it has subnets");
        Some(NetworkConfiguration::builder().awsvpc_configuration(vpc).build())
    }

    fn tags(&self, call: &Call) -> Vec<EcsTag> {
        let own = [(RUN, self.run.as_str()), (TOKEN, call.token.as_str())];
        let of_job = self.spec.tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        own.into_iter().chain(of_job).map(|(key, value)| TagBuilder::default().key(key).value(value).build()).collect()
    }

    async fn describe(&self, tasks: &[String]) -> Result<Vec<Task>, EngineError> {
        let mut described = Vec::new();
        for tasks in tasks.chunks(DESCRIBED) {
            let ask = self.client.describe_tasks().cluster(&self.spec.cluster).set_tasks(Some(tasks.to_vec()));
            // Those that it calls missing may have been started a moment ago: they are in no answer, and no error.
            let answer = ask.include(TaskField::Tags).send().await.map_err(|error| answers::error(&error))?;
            described.extend(answer.tasks.unwrap_or_default());
        }
        Ok(described)
    }

    /// The ids of the tasks that are to run, of every coordinator of the run.
    async fn running(&self) -> Result<Vec<String>, EngineError> {
        let (mut found, mut next) = (Vec::new(), None);
        loop {
            // It takes no other filter beside this one.
            let ask = self.client.list_tasks().cluster(&self.spec.cluster).started_by(self.tag.as_str());
            let page = ask.set_next_token(next).send().await.map_err(|error| answers::error(&error))?;
            found.extend(page.task_arns().iter().map(|arn| id_of(arn).to_owned()));
            next = page.next_token;
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    async fn stop_one(&self, member: &MemberId) -> Result<(), EngineError> {
        let Some(task) = task_of(member) else { return Ok(()) };
        let stop = self.client.stop_task().cluster(&self.spec.cluster).task(task);
        match stop.reason("forebay does not need it any more").send().await {
            Err(error) if answers::is_gone(&error) => Ok(()),
            stopped => stopped.map(drop).map_err(|error| answers::error(&error)),
        }
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
        let worker = ContainerOverride::builder().name(CONTAINER).set_command(Some(self.arguments.clone())).build();
        let mut run = self
            .client
            .run_task()
            .cluster(&self.spec.cluster)
            .task_definition(self.definition().await?)
            .count(i32::try_from(call.count).unwrap_or(i32::MAX))
            .client_token(call.token.as_str())
            .started_by(self.tag.as_str())
            .set_tags(Some(self.tags(call)))
            .set_network_configuration(self.network())
            .set_platform_version(self.spec.platform_version.clone())
            .overrides(TaskOverride::builder().container_overrides(worker).build());
        run = match &self.spec.capacity {
            Capacity::LaunchType(WantedLaunchType::Fargate) => run.launch_type(LaunchType::Fargate),
            Capacity::LaunchType(WantedLaunchType::Ec2) => run.launch_type(LaunchType::Ec2),
            Capacity::Providers(providers) => providers.iter().fold(run, |run, provider| {
                let number = |number| i32::try_from(number).unwrap_or(i32::MAX);
                let item = CapacityProviderStrategyItem::builder().capacity_provider(&provider.name);
                let item = item.weight(number(provider.weight)).base(number(provider.base)).build();
                run.capacity_provider_strategy(item.expect("it has a name"))
            }),
        };
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
        let mut tasks = self.running().await?;
        tasks.extend(known.iter().filter_map(task_of).map(str::to_owned));
        tasks.sort_unstable();
        tasks.dedup();
        let sighting = |task: &Task| {
            let token = task.tags().iter().find(|tag| tag.key() == Some(TOKEN))?.value()?;
            let (member, token) = (member_of(task.task_arn()?)?, self.tag.token(token)?);
            Some(Sighting { member, token, state: answers::state(task), life: 0 })
        };
        Ok(self.describe(&tasks).await?.iter().filter_map(sighting).collect())
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
        let (task, group) = (task_of(member)?, self.spec.log_group.as_ref()?);
        let described = self.describe(&[task.to_owned()]).await.ok()?;
        // What had no container has no log.
        let began = described.first()?.stop_code() != Some(&TaskStopCode::TaskFailedToStart);
        began.then(|| format!("its log in {group} is {}/{CONTAINER}/{task}", definition::LOG_PREFIX))
    }
}

/// The last part of a task's ARN.
fn id_of(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

fn member_of(arn: &str) -> Option<MemberId> {
    format!("{PREFIX}{}", id_of(arn)).parse().ok()
}

fn task_of(member: &MemberId) -> Option<&str> {
    member.as_str().strip_prefix(PREFIX)
}

#[cfg(test)]
mod tests;
