//! The calls of ECS that workers, coordinators and commands have in common.

use aws_sdk_ecs::{
    Client,
    config::{self, retry::RetryConfig},
    error::ProvideErrorMetadata,
    operation::{list_tasks::builders::ListTasksFluentBuilder, run_task::builders::RunTaskFluentBuilder},
    types::{
        AssignPublicIp, AwsVpcConfiguration, CapacityProviderStrategyItem, LaunchType, NetworkConfiguration,
        Tag as EcsTag, Task, TaskField, builders::TagBuilder,
    },
};
use forebay_datasets::aws;
use forebay_jobs::spec::ecs::{Capacity, EcsSpec, LaunchType as WantedLaunchType};

use super::{
    answers,
    definition::{self, DIGEST, MOUNT, Shape},
};
use crate::fleet::engine::{Class, EngineError};

/// Tasks that are described by one call at most.
const DESCRIBED: usize = 100;

/// Where tasks are, and who asks for them.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) spec: EcsSpec,
    pub(super) region: String,
}

impl Cluster {
    /// Finds region, endpoint and credentials as the AWS SDK does, and asks nobody yet.
    pub(super) async fn open(spec: &EcsSpec, retries: RetryConfig) -> Result<Self, EngineError> {
        let never = |why: String| EngineError::new(Class::Permanent, why);
        let shared = aws::config(spec.region.as_deref()).await.map_err(|error| never(error.to_string()))?;
        let region = shared.region().map(ToString::to_string);
        let region =
            region.ok_or_else(|| never("no AWS region is set up: set AWS_REGION, or [ecs] region".to_owned()))?;
        let mut config = config::Builder::from(&shared).retry_config(retries);
        if let Some(endpoint) = &spec.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Ok(Self { client: Client::from_conf(config.build()), spec: spec.clone(), region })
    }

    /// Where a container has the volume.
    pub(super) fn volume(&self) -> String {
        [MOUNT, &self.spec.directory].join("/").trim_end_matches('/').to_owned()
    }

    /// The ARN of a task definition, which is there already unless this is the first of its kind.
    pub(super) async fn definition(&self, shape: &Shape) -> Result<String, EngineError> {
        let (wanted, digest) = definition::of(&self.spec, shape, &self.region);
        let family = wanted.get_family().clone().unwrap_or_default();
        match self.client.describe_task_definition().task_definition(&family).send().await {
            Ok(found) => {
                let found = found.task_definition();
                let containers = found.map(|found| found.container_definitions()).unwrap_or_default();
                let labels = containers.first().and_then(|container| container.docker_labels());
                if labels.and_then(|labels| labels.get(DIGEST)) == Some(&digest)
                    && let Some(arn) = found.and_then(|found| found.task_definition_arn())
                {
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
    }

    /// A call that starts tasks of a definition, in these security groups. Those that stay are not on Spot.
    pub(super) fn run_task(&self, definition: &str, groups: &[String], stays: bool) -> RunTaskFluentBuilder {
        let run = self.client.run_task().cluster(&self.spec.cluster).task_definition(definition);
        let run = run.set_network_configuration(self.network(groups));
        let run = run.set_platform_version(self.spec.platform_version.clone());
        match &self.spec.capacity {
            Capacity::Providers(_) if stays && self.spec.is_fargate() => run.launch_type(LaunchType::Fargate),
            Capacity::LaunchType(WantedLaunchType::Fargate) => run.launch_type(LaunchType::Fargate),
            Capacity::LaunchType(WantedLaunchType::Ec2) => run.launch_type(LaunchType::Ec2),
            Capacity::Providers(providers) => providers.iter().fold(run, |run, provider| {
                let number = |number| i32::try_from(number).unwrap_or(i32::MAX);
                let item = CapacityProviderStrategyItem::builder().capacity_provider(&provider.name);
                let item = item.weight(number(provider.weight)).base(number(provider.base)).build();
                run.capacity_provider_strategy(item.expect("it has a name"))
            }),
        }
    }

    fn network(&self, groups: &[String]) -> Option<NetworkConfiguration> {
        let network = self.spec.network.as_ref()?;
        let mut vpc = AwsVpcConfiguration::builder().set_subnets(Some(network.subnets.clone()));
        if !groups.is_empty() {
            vpc = vpc.set_security_groups(Some(groups.to_vec()));
        }
        if self.spec.is_fargate() {
            let public = if network.public_ip { AssignPublicIp::Enabled } else { AssignPublicIp::Disabled };
            vpc = vpc.assign_public_ip(public);
        }
        let vpc = vpc.build().expect("it has subnets");
        Some(NetworkConfiguration::builder().awsvpc_configuration(vpc).build())
    }

    /// The security groups of workers.
    pub(super) fn groups(&self) -> &[String] {
        self.spec.network.as_ref().map_or(&[], |network| &network.security_groups)
    }

    /// Tags of a task: forebay's own, and the job's.
    pub(super) fn tags(&self, own: &[(&str, &str)]) -> Vec<EcsTag> {
        let of_job = self.spec.tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        own.iter()
            .copied()
            .chain(of_job)
            .map(|(key, value)| TagBuilder::default().key(key).value(value).build())
            .collect()
    }

    pub(super) async fn describe(&self, tasks: &[String]) -> Result<Vec<Task>, EngineError> {
        let mut described = Vec::new();
        for tasks in tasks.chunks(DESCRIBED) {
            let ask = self.client.describe_tasks().cluster(&self.spec.cluster).set_tasks(Some(tasks.to_vec()));
            // Those that it calls missing may have been started a moment ago: they are in no answer, and no error.
            let answer = ask.include(TaskField::Tags).send().await.map_err(|error| answers::error(&error))?;
            described.extend(answer.tasks.unwrap_or_default());
        }
        Ok(described)
    }

    /// The ids of the tasks that were started by such a name, and are to run. It takes no other filter beside this one.
    pub(super) async fn started_by(&self, name: &str) -> Result<Vec<String>, EngineError> {
        self.listed(self.client.list_tasks().started_by(name)).await
    }

    /// The ids of the tasks that a list has.
    pub(super) async fn listed(&self, ask: ListTasksFluentBuilder) -> Result<Vec<String>, EngineError> {
        let (ask, mut found, mut next) = (ask.cluster(&self.spec.cluster), Vec::new(), None);
        loop {
            let page = ask.clone().set_next_token(next).send().await.map_err(|error| answers::error(&error))?;
            found.extend(page.task_arns().iter().map(|arn| id_of(arn).to_owned()));
            next = page.next_token;
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// Asks a task to end. One that does not exist is none to stop.
    pub(super) async fn stop(&self, task: &str, reason: &str) -> Result<(), EngineError> {
        match self.client.stop_task().cluster(&self.spec.cluster).task(task).reason(reason).send().await {
            Err(error) if answers::is_gone(&error) => Ok(()),
            stopped => stopped.map(drop).map_err(|error| answers::error(&error)),
        }
    }
}

/// The last part of a task's ARN.
pub(super) fn id_of(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

/// What a task is tagged with.
pub(super) fn tag<'a>(task: &'a Task, name: &str) -> Option<&'a str> {
    task.tags().iter().find(|tag| tag.key() == Some(name))?.value()
}
