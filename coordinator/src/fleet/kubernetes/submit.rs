//! A coordinator as the one pod of a Job, and commands as those of others.
//!
//! The Job is named by a digest of the run's name and of where its volume is, so that asking again makes no second one. What it
//! coordinates is in a Secret of the same name, which goes with it. A pod that was disrupted, or could not reach something,
//! is made anew and goes on with the run; one that says that the run has failed ends the Job.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use futures::{AsyncReadExt, io::AsyncBufRead};
use k8s_openapi::{
    ByteString,
    api::{
        batch::v1::Job,
        core::v1::{Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use super::{
    cluster::Cluster,
    manifest::{PARCEL, PodConfig},
    sight::{has_ended, is_terminal, phase},
    trouble,
};
use crate::{
    fleet::{
        command::WorkerCommand,
        engine::{Class, EngineError, Tag},
    },
    submit::{Standing, Submission, SubmitError, Submitted, digest},
};

/// What a Secret holds at most, less than the 1 MiB that Kubernetes takes of an object and its names.
const LARGEST: usize = 1_000_000;
/// What tells of a Job which job it coordinates.
const DIGEST: &str = "forebay/job";
/// Between two looks at a pod.
const LOOK: Duration = Duration::from_millis(500);

/// A submission's pods, and who makes them.
struct Place {
    pods: PodConfig,
    cluster: Cluster,
}

impl Place {
    async fn of(submission: &Submission) -> Result<Self, EngineError> {
        let never = |why: String| EngineError::new(Class::Permanent, why);
        let spec = submission.job.kubernetes.as_ref().ok_or_else(|| never("the job has no [kubernetes]".to_owned()))?;
        if spec.user.is_none() {
            let why = "whom the pods run as is not said: set user under [kubernetes] to whom the volume belongs";
            return Err(never(why.to_owned()));
        }
        let volume = spec.mount(&submission.volume).to_owned();
        let place = format!("{}/{}/{}", spec.claim, spec.sub_path.as_deref().unwrap_or_default(), volume.display());
        let tag = Tag::of(&place, &submission.run);
        let (program, run) = (submission.program.clone(), submission.run.clone());
        let command = WorkerCommand { program, volume, run, slots: 1, pretend: false };
        let pods = PodConfig::new(&submission.job, &tag, command).map_err(never)?;
        let cluster = Cluster::open(&pods.spec).await.map_err(never)?;
        Ok(Self { pods, cluster })
    }

    fn name(&self) -> String {
        format!("{}-coordinator", self.pods.tag.as_str())
    }

    /// The coordinator's Job, and its pods.
    async fn found(&self) -> Result<Option<(Job, Vec<Pod>)>, EngineError> {
        let name = self.name();
        let (jobs, pods) = self.cluster.of_run(&self.pods.tag).await?;
        let Some(job) = jobs.into_iter().find(|job| job.metadata.name.as_ref() == Some(&name)) else { return Ok(None) };
        let owner = job.metadata.uid.clone().unwrap_or_default();
        let is_its = |pod: &Pod| pod.metadata.owner_references.iter().flatten().any(|it| it.uid == owner);
        Ok(Some((job, pods.into_iter().filter(is_its).collect())))
    }
}

pub(crate) async fn submit(submission: &Submission, parcel: &str) -> Result<Submitted, SubmitError> {
    if parcel.len() > LARGEST {
        let why = format!(
            "the job and the files that it ships take {} bytes, and a Secret takes {LARGEST}: put files into the image",
            parcel.len()
        );
        return Err(EngineError::new(Class::Permanent, why).into());
    }
    let place = Place::of(submission).await?;
    let (name, digest) = (place.name(), digest(parcel));
    let mut job = place.found().await?.map(|(job, _)| job);
    if job.as_ref().is_some_and(has_ended) {
        // Its run may go on: that the volume says.
        place.cluster.delete_job(&name).await?;
        job = None;
    }
    let coordinator = format!("Kubernetes' Job {name}");
    let there = |job: &Job| job.metadata.annotations.as_ref().and_then(|all| all.get(DIGEST)) == Some(&digest);
    let mut submitted = job.as_ref().map(|job| submission.there(coordinator.clone(), there(job))).transpose()?;
    if job.is_none() {
        submitted = Some(Submitted { coordinator, is_old: false });
        let own = submission.job.coordinator.clone().unwrap_or_default();
        let mut made = place.pods.coordinator(&name, &own);
        made.metadata.annotations.get_or_insert_default().insert(DIGEST.to_owned(), digest.clone());
        place.cluster.create(&made).await?;
        job = place.found().await?.map(|(job, _)| job);
    }
    let (Some(job), Some(submitted)) = (job, submitted) else {
        let why = format!("the Job {name} is gone as soon as it was made");
        return Err(EngineError::new(Class::Unknown, why).into());
    };
    // A pod waits for its Secret: whoever died between the two is helped by asking again.
    place.cluster.create_secret(&secret(&name, &job, parcel)).await?;
    Ok(submitted)
}

/// What goes when its Job goes.
fn secret(name: &str, job: &Job, parcel: &str) -> Secret {
    let owner = OwnerReference {
        api_version: "batch/v1".to_owned(),
        kind: "Job".to_owned(),
        name: name.to_owned(),
        uid: job.metadata.uid.clone().unwrap_or_default(),
        controller: None,
        block_owner_deletion: None,
    };
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: job.metadata.labels.clone(),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(PARCEL.to_owned(), ByteString(parcel.as_bytes().to_vec()))])),
        immutable: Some(true),
        ..Secret::default()
    }
}

pub(crate) async fn standing(submission: &Submission) -> Result<Standing, EngineError> {
    let place = Place::of(submission).await?;
    let Some((job, pods)) = place.found().await? else { return Ok(Standing::Gone) };
    if has_ended(&job) {
        return Ok(Standing::Gone);
    }
    if pods.iter().any(|pod| phase(pod) == "Running" || is_terminal(pod)) {
        return Ok(Standing::Works);
    }
    let trouble = pods.iter().find_map(trouble::of_pod).or_else(|| trouble::of_job(&job));
    let why = trouble.map_or_else(|| "its pod is being made".to_owned(), |trouble| trouble.why);
    Ok(Standing::Waits(format!("Kubernetes' Job {}: {why}", place.name())))
}

pub(crate) async fn execute(submission: &Submission, arguments: &[String]) -> Result<i32, EngineError> {
    let place = Place::of(submission).await?;
    let name = format!("{}-command-{:08x}", place.pods.tag.as_str(), rand::random::<u32>());
    place.cluster.create(&place.pods.command(&name, arguments)).await?;
    let ended = followed(&place, &name).await;
    let deleted = place.cluster.delete_job(&name).await;
    let code = ended?;
    deleted.map(|()| code)
}

/// Prints what a Job's pod prints until it has ended; gives its exit code.
async fn followed(place: &Place, name: &str) -> Result<i32, EngineError> {
    let (mut printed, mut told) = (0, String::new());
    loop {
        let pods = place.cluster.pods_of(name).await?;
        if let Some(pod) = pods.iter().find(|pod| phase(pod) == "Running" || is_terminal(pod)) {
            let of_pod = pod.metadata.name.clone().unwrap_or_default();
            // Once it has ended its log is whole.
            match place.cluster.log(&of_pod, !is_terminal(pod)).await {
                Ok(log) => printed = print(log, printed).await?,
                Err(error) if is_terminal(pod) => return Err(error),
                Err(_) => {}
            }
            if is_terminal(pod) {
                let unclear =
                    || EngineError::new(Class::Unknown, format!("the command was ended: {}", trouble::end(pod)));
                return trouble::exit_code(pod).ok_or_else(unclear);
            }
        } else if let Some(trouble) = pods.iter().find_map(trouble::of_pod) {
            if trouble.class == Class::Permanent {
                return Err(EngineError::new(Class::Permanent, trouble.why));
            }
            if told != trouble.why {
                tracing::warn!("the command waits: {}", trouble.why);
                told = trouble.why;
            }
        }
        // A log that ends says nothing of its pod.
        tokio::time::sleep(LOOK).await;
    }
}

/// Prints a log but for what was printed of it already; gives how much of it is printed now. One that breaks off is begun
/// anew by its caller.
async fn print(log: impl AsyncBufRead, printed: u64) -> Result<u64, EngineError> {
    let mut log = std::pin::pin!(log);
    let (mut at, mut buffer) = (0_u64, vec![0; 1 << 16]);
    let mut stdout = io::stdout();
    while let Ok(read @ 1..) = log.read(&mut buffer).await {
        let end = at + read as u64;
        let new = usize::try_from(printed.clamp(at, end) - at).unwrap_or(read);
        let written = stdout.write_all(&buffer[new..read]).and_then(|()| stdout.flush());
        written.map_err(|error| EngineError::new(Class::Permanent, format!("cannot print: {error}")))?;
        at = end;
    }
    Ok(at.max(printed))
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    #[tokio::test]
    async fn a_log_that_is_read_again_is_not_printed_again() {
        assert_eq!(print(Cursor::new(b"one\n"), 0).await.unwrap(), 4);
        assert_eq!(print(Cursor::new(b"one\ntwo\n"), 4).await.unwrap(), 8);
        // It broke off before what was printed.
        assert_eq!(print(Cursor::new(b"one"), 8).await.unwrap(), 8);
    }
}
