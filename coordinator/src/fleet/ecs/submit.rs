//! A coordinator as a task of its own, and commands as others.
//!
//! What it coordinates is in the environment of its task definition, since a call that starts a task has no room for it. The
//! definition's family and `startedBy` are named by a digest of the run's name and of where its volume is: by the one a
//! coordinator is found that is to run, by the other one that has stopped. Two that were started at the same moment are one
//! that works and one that waits.

use std::time::Duration;

use aws_sdk_ecs::{
    config::retry::RetryConfig,
    types::{ContainerOverride, DesiredStatus, Tag as EcsTag, Task, TaskOverride},
};
use forebay_jobs::{
    id::RunId,
    spec::{
        coordinator::CoordinatorSpec,
        ecs::{EcsSpec, Storage},
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use super::{
    RUN, answers,
    cluster::{Cluster, id_of, tag},
    definition::{COMMAND, COORDINATOR, LOG_PREFIX, Shape},
    log::Log,
};
use crate::{
    fleet::engine::{Class, EngineError, State, Tag},
    submit::{PARCEL, Standing, Submission, SubmitError, Submitted, digest},
};

/// What the environment takes of the 64 KiB of a task definition, which holds image, roles and volumes too.
const LARGEST: usize = 60_000;
/// What tells of a task which job it coordinates.
const JOB: &str = "forebay:job";
/// How often a call is made whose answer was lost, or that was throttled.
const TRIES: u32 = 5;
/// Between two looks at a task, at first and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));
/// A task that was started may be unknown so long.
const UNKNOWN: Duration = Duration::from_secs(60);
/// Lists tell of it by then, or it does not matter any more.
const LISTED: Duration = Duration::from_secs(20);
/// The exit code of a command that was given up.
const INTERRUPTED: i32 = 130;

/// A submission's tasks, and who makes them.
struct Place {
    cluster: Cluster,
    own: CoordinatorSpec,
    size: (u32, u32),
    run: RunId,
    tag: Tag,
}

fn never(why: impl Into<String>) -> EngineError {
    EngineError::new(Class::Permanent, why)
}

fn retries() -> RetryConfig {
    RetryConfig::standard().with_max_attempts(TRIES)
}

/// Where a volume is, in words that are the same wherever it is asked.
fn place(spec: &EcsSpec) -> String {
    let (file_system, access_point, root) = match &spec.storage {
        Storage::Efs { file_system, access_point, root, .. } | Storage::S3Files { file_system, access_point, root } => {
            (file_system.as_str(), access_point.as_deref().unwrap_or_default(), root)
        }
        Storage::HostPath(path) => ("", "", path),
    };
    format!("{file_system}/{access_point}/{root}/{}", spec.directory)
}

impl Place {
    async fn of(submission: &Submission) -> Result<Self, EngineError> {
        let spec = submission.job.ecs.as_ref().ok_or_else(|| never("the job has no [ecs]"))?;
        let own = submission.job.coordinator.clone().unwrap_or_default();
        let size = spec.smallest(own.cpus, own.memory);
        Ok(Self {
            size: size.ok_or_else(|| never("Fargate has no task of the coordinator's size"))?,
            cluster: Cluster::open(spec, retries()).await?,
            own,
            run: submission.run.clone(),
            tag: Tag::of(&place(spec), &submission.run),
        })
    }

    /// The name of the coordinator's family, and who starts it.
    fn name(&self) -> String {
        format!("{}-{COORDINATOR}", self.tag.as_str())
    }

    fn shape(&self, container: &'static str) -> Shape {
        let (cpu, memory) = self.size;
        Shape { container, cpu, memory, role: self.cluster.spec.task_role.clone(), ..Shape::default() }
    }

    fn coordinator(&self, parcel: &str) -> Result<Shape, EngineError> {
        let shape = self.shape(COORDINATOR);
        let role = self.own.task_role.clone().or(shape.role);
        if role.is_none() && self.cluster.spec.is_fargate() {
            return Err(never("the coordinator may do nothing: set task_role under [coordinator]"));
        }
        // Where no metadata service tells it, this does.
        let environment = [("AWS_REGION", self.cluster.region.as_str()), (PARCEL, parcel)];
        Ok(Shape {
            family: Some(self.name()),
            role,
            arguments: ["--volume", &self.cluster.volume(), "coordinate"].map(str::to_owned).to_vec(),
            environment: environment.map(|(name, value)| (name, value.to_owned())).to_vec(),
            ..shape
        })
    }

    /// The coordinator that is to run.
    async fn found(&self) -> Result<Option<Task>, EngineError> {
        let listed = self.cluster.started_by(&self.name()).await?;
        let is_there = |task: &Task| matches!(answers::state(task), State::Queued | State::Running);
        Ok(self.cluster.describe(&listed).await?.into_iter().find(is_there))
    }

    /// Waits until lists tell of a coordinator that was started, so that whoever asks next finds it.
    async fn is_listed(&self, task: &str) {
        let (begun, is_it) = (Instant::now(), |other: &String| other == task);
        // It was started, whatever comes of these calls.
        while begun.elapsed() < LISTED
            && !self.cluster.started_by(&self.name()).await.is_ok_and(|all| all.iter().any(is_it))
        {
            let described = self.cluster.describe(&[task.to_owned()]).await.unwrap_or_default();
            if described.iter().any(|task| !matches!(answers::state(task), State::Queued | State::Running)) {
                return;
            }
            // Nothing tells when lists do.
            tokio::time::sleep(LOOK.0).await;
        }
    }

    /// The last one that has stopped: ECS tells of it for an hour at least.
    async fn last(&self) -> Result<Option<Task>, EngineError> {
        let ask = self.cluster.client.list_tasks().family(self.name()).desired_status(DesiredStatus::Stopped);
        let stopped = self.cluster.describe(&self.cluster.listed(ask).await?).await?;
        Ok(stopped.into_iter().max_by_key(|task| task.created_at().map(|at| (at.secs(), at.subsec_nanos()))))
    }

    /// Starts one task; its id. The token is this call's alone: what has stopped is not taken for what it starts.
    async fn start(
        &self,
        definition: &str,
        groups: &[String],
        started_by: &str,
        tags: Vec<EcsTag>,
        overrides: Option<TaskOverride>,
    ) -> Result<String, EngineError> {
        let token = format!("{}-{:016x}", self.tag.as_str(), rand::random::<u64>());
        let run = self.cluster.run_task(definition, groups, true).count(1).client_token(token);
        let run = run.started_by(started_by).set_tags(Some(tags)).set_overrides(overrides);
        let answer = run.send().await.map_err(|error| answers::error(&error))?;
        match (answer.tasks().first().and_then(|task| task.task_arn()), answer.failures().first()) {
            (Some(arn), _) => Ok(id_of(arn).to_owned()),
            (None, Some(failure)) => Err(answers::failure(failure)),
            (None, None) => Err(EngineError::new(Class::Unknown, "ECS does not say which task it started")),
        }
    }
}

fn named(id: &str) -> String {
    format!("ECS's task {id}")
}

fn name_of(task: &Task) -> String {
    named(id_of(task.task_arn().unwrap_or_default()))
}

pub(crate) async fn submit(submission: &Submission, parcel: &str) -> Result<Submitted, SubmitError> {
    if parcel.len() > LARGEST {
        let why = format!(
            "the job and the files that it ships take {} bytes, and a task definition takes {LARGEST}: put files into \
             the image",
            parcel.len()
        );
        return Err(never(why).into());
    }
    let (place, digest) = (Place::of(submission).await?, digest(parcel));
    if let Some(task) = place.found().await? {
        return submission.there(name_of(&task), tag(&task, JOB) == Some(&digest));
    }
    let definition = place.cluster.definition(&place.coordinator(parcel)?).await?;
    let groups = if place.own.security_groups.is_empty() { place.cluster.groups() } else { &place.own.security_groups };
    let tags = place.cluster.tags(&[(RUN, place.run.as_str()), (JOB, &digest)]);
    let task = place.start(&definition, groups, &place.name(), tags, None).await?;
    place.is_listed(&task).await;
    Ok(Submitted { coordinator: named(&task), is_old: false })
}

pub(crate) async fn standing(submission: &Submission) -> Result<Standing, EngineError> {
    let place = Place::of(submission).await?;
    if let Some(task) = place.found().await? {
        return Ok(match answers::state(&task) {
            State::Running => Standing::Works,
            _ => Standing::Waits(format!("{} is {}", name_of(&task), task.last_status().unwrap_or("unknown"))),
        });
    }
    match place.last().await? {
        Some(task) if task.started_at().is_none() => match answers::state(&task) {
            State::Ended { why } | State::Evicted { why } => {
                let again = format!("`forebay submit --id {}` starts another one", place.run);
                Err(never(format!("{} has not begun to coordinate: {why}; {again}", name_of(&task))))
            }
            _ => Ok(Standing::Waits(format!("{} is {}", name_of(&task), task.last_status().unwrap_or("unknown")))),
        },
        _ => Ok(Standing::Gone),
    }
}

pub(crate) async fn execute(submission: &Submission, arguments: &[String]) -> Result<i32, EngineError> {
    let place = Place::of(submission).await?;
    let Some(group) = place.cluster.spec.log_group.clone() else {
        return Err(never("what a command prints is nowhere to be read: set log_group under [ecs]"));
    };
    let listen = |kind| signal(kind).map_err(|error| never(format!("cannot listen for signals: {error}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let definition = place.cluster.definition(&Shape { waits_for_log: true, ..place.shape(COMMAND) }).await?;
    let volume = ["--volume".to_owned(), place.cluster.volume()];
    let words = volume.into_iter().chain(arguments.iter().cloned()).collect();
    let container = ContainerOverride::builder().name(COMMAND).set_command(Some(words)).build();
    let overrides = TaskOverride::builder().container_overrides(container).build();
    let tags = place.cluster.tags(&[(RUN, place.run.as_str())]);
    let started_by = format!("{}-{COMMAND}", place.tag.as_str());
    let task = place.start(&definition, place.cluster.groups(), &started_by, tags, Some(overrides)).await?;
    let stream = format!("{LOG_PREFIX}/{COMMAND}/{task}");
    let followed = async {
        let log = Log::open(&place.cluster.region, retries(), &group, stream).await?;
        followed(&place.cluster, &task, log).await
    };
    let (ended, is_over) = tokio::select! {
        ended = followed => { let is_over = ended.is_ok(); (ended, is_over) }
        _ = interrupt.recv() => (Ok(INTERRUPTED), false),
        _ = terminate.recv() => (Ok(INTERRUPTED), false),
    };
    if !is_over {
        let stopped = place.cluster.stop(&task, "forebay's command was given up").await;
        return ended.and_then(|code| stopped.map(|()| code));
    }
    ended
}

/// Prints what a task prints until it has ended; gives its exit code.
async fn followed(cluster: &Cluster, task: &str, mut log: Log) -> Result<i32, EngineError> {
    let (mut look, mut seen) = (LOOK.0, Instant::now());
    loop {
        let described = cluster.describe(&[task.to_owned()]).await?.pop();
        if let Some(State::Ended { why } | State::Evicted { why }) = described.as_ref().map(answers::state) {
            let code = described.as_ref().and_then(answers::exit_code);
            if code.is_some() {
                log.rest().await?;
            }
            return code.ok_or_else(|| never(format!("{} was to execute the command: {why}", named(task))));
        }
        match described {
            Some(_) => seen = Instant::now(),
            None if seen.elapsed() > UNKNOWN => {
                return Err(EngineError::new(Class::Unknown, format!("ECS knows nothing of {}", named(task))));
            }
            None => {}
        }
        look = if log.print().await? { LOOK.0 } else { LOOK.1.min(look * 2) };
        // No call waits for a task or for what it prints.
        tokio::time::sleep(look).await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use forebay_jobs::spec::parse::job_file;

    use super::*;

    #[test]
    fn a_volume_is_the_same_however_it_is_mounted_and_another_one_elsewhere() {
        let of = |more: &str, efs: &str| {
            let text = format!(
                "name = 'j'\n[dataset]\nsource = 's3://b'\n[command]\nargv = ['x']\n[workers]\nfleet = 'ecs'\n[ecs]\n\
                 image = 'i:1'\nsubnets = ['subnet-0123456789abcdef0']\ntask_role = 'arn:aws:iam::1:role/w'\n{more}\n\
                 efs = {{ file_system = 'fs-0123456789abcdef0', {efs} }}"
            );
            place(&job_file(&text, Path::new("/"), &[]).unwrap().ecs.unwrap())
        };
        let plain = of("", "root_directory = '/'");
        assert_eq!(of("cluster = 'c'\nvcpus = 4", "iam = true"), plain);
        for (more, efs) in [
            ("directory = 'a'", "root_directory = '/'"),
            ("", "root_directory = '/a'"),
            ("", "access_point = 'fsap-0123456789abcdef0'"),
        ] {
            assert_ne!(of(more, efs), plain, "{more} {efs}");
        }
    }
}
