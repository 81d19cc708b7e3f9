//! Workers as pods of Kubernetes.
//!
//! A call is one Indexed Job, named by its token: asked for twice it is there already. Its indices are the members. None
//! is tried again by its Job when it fails, since [`Managed`] replaces who has ended. One that was disrupted (drained,
//! preempted, evicted, its node lost) and did not end in order is, and keeps its place. A member is stopped by deleting
//! its pod, an end after which its index is over; if all members that are left of a Job are to stop, the Job is deleted,
//! and its pods after it.
//!
//! [`Managed`]: super::managed::Managed

mod cluster;
mod manifest;
mod sight;
pub(crate) mod submit;
#[cfg(test)]
mod tests;
mod trouble;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use forebay_jobs::{
    id::{Epoch, IdError, MemberId, RunId},
    spec::JobSpec,
};
use futures::{StreamExt, future::BoxFuture, stream};
use tokio::time::Instant;

pub use self::manifest::PodConfig;
use self::{
    cluster::Cluster,
    sight::{Member, Seen},
    trouble::Trouble,
};
use super::{
    command::WorkerCommand,
    engine::{Call, Class, Engine, EngineError, Limits, Sighting, Started, State, Tag},
};

/// How long what may pass by itself may take to.
const MAY_PASS: Duration = Duration::from_secs(60);
/// How long a member may wait without a word before events are asked for one.
const SILENT: Duration = Duration::from_secs(5);
/// Requests that delete at once.
const DELETES: usize = 16;
/// Texts that are remembered, so as not to be told again.
const TOLD: usize = 100;

/// The Jobs of a run.
#[derive(Debug)]
pub struct Kubernetes {
    config: PodConfig,
    cluster: Cluster,
    view: Mutex<View>,
}

/// What is remembered from one list to the next.
#[derive(Debug, Default)]
struct View {
    /// Since when members have had a trouble that may pass.
    troubled: BTreeMap<MemberId, Instant>,
    /// Objects whose status does not say why they keep members waiting.
    silent: BTreeMap<String, Silence>,
    told: BTreeSet<String>,
    /// Why no pod like these will ever work, as the last list told.
    hopeless: Option<String>,
}

#[derive(Debug)]
struct Silence {
    /// When it began, or its events were last asked.
    since: Instant,
    /// What these said.
    trouble: Option<Trouble>,
}

impl Kubernetes {
    /// The cluster that a job names. Nothing is asked of it yet.
    ///
    /// # Errors
    /// How it is reached is not known: why, and what to do.
    pub async fn open(config: PodConfig) -> Result<Self, String> {
        let cluster = Cluster::open(&config.spec).await?;
        Ok(Self { config, cluster, view: Mutex::default() })
    }

    /// Asks whether the cluster would take the workers of a job on a volume, and makes none.
    ///
    /// # Errors
    /// It would not, or does not say: why, and what to do.
    pub async fn check(job: &JobSpec, volume: &Path) -> Result<(), String> {
        let run: RunId = "check".parse().map_err(|error: IdError| error.to_string())?;
        let tag = Tag::of("", &run);
        let (volume, slots) = (volume.to_owned(), job.workers.slots_of(0));
        let command = WorkerCommand { program: PathBuf::new(), volume, run, slots, pretend: false };
        let engine = Self::open(PodConfig::new(job, &tag, command)?).await?;
        let count = job.workers.count.min(engine.limits().batch);
        let job = engine.config.job(&Call { token: tag.fresh(Epoch(0), 0), count, again: false });
        engine.cluster.would_create(&job).await.map_err(|error| error.why)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the events of one object why it keeps members waiting, since its status does not say.
    async fn ask_events(&self, seen: &mut Seen) {
        let object = self.view().long_silent(seen, Instant::now());
        let events = match &object {
            Some(object) => self.cluster.events(object).await,
            None => Vec::new(),
        };
        let mut view = self.view();
        if let Some(silence) = object.and_then(|object| view.silent.get_mut(&object)) {
            silence.trouble = trouble::of_events(&events);
        }
        for member in &mut seen.members {
            let silence = waits_for(member).and_then(|object| view.silent.get(&object));
            member.trouble = member.trouble.take().or_else(|| silence?.trouble.clone());
        }
    }
}

impl Engine for Kubernetes {
    fn limits(&self) -> Limits {
        Limits {
            batch: 1000,
            pause: Duration::from_millis(200),
            // Lists are of what was there when they were asked for.
            settle: Duration::from_secs(1),
            poll: (Duration::from_secs(1), Duration::from_secs(15)),
            call: Duration::from_secs(60),
        }
    }

    async fn start(&self, call: &Call) -> Result<Started, EngineError> {
        if let Some(why) = &self.view().hopeless {
            return Err(EngineError::new(Class::Permanent, why));
        }
        self.cluster.create(&self.config.job(call)).await?;
        let members = (0..call.count).filter_map(|index| sight::member_of(&call.token, index));
        Ok(Started { members: members.collect(), refused: None })
    }

    async fn list(&self, _known: &[MemberId]) -> Result<Vec<Sighting>, EngineError> {
        let (jobs, pods) = self.cluster.of_run(&self.config.tag).await?;
        let mut seen = sight::seen(&self.config.tag, &jobs, &pods);
        self.ask_events(&mut seen).await;
        Ok(self.view().judge(seen, Instant::now()))
    }

    async fn stop(&self, members: &[MemberId]) -> Result<(), EngineError> {
        let (jobs, pods) = self.cluster.of_run(&self.config.tag).await?;
        let seen = sight::seen(&self.config.tag, &jobs, &pods);
        let asked: BTreeSet<_> = members.iter().filter_map(|member| sight::place(&self.config.tag, member)).collect();
        // Jobs of which somebody stays.
        let stays = |member: &&Member| {
            !matches!(member.sighting.state, State::Ended { .. }) && !members.contains(&member.sighting.member)
        };
        let stay: BTreeSet<_> = seen.members.iter().filter(stays).map(|member| &member.sighting.token).collect();
        let mut deletes: Vec<BoxFuture<'_, Result<(), EngineError>>> = Vec::new();
        let mut over = BTreeSet::new();
        for job in jobs.iter().filter_map(|job| job.metadata.name.as_deref()) {
            let Some(token) = self.config.tag.token(job).filter(|token| !stay.contains(token)) else { continue };
            if asked.iter().any(|(of, _)| *of == token) {
                deletes.push(Box::pin(self.cluster.delete_job(job)));
                over.insert(token);
            }
        }
        for pod in pods.iter().filter(|pod| !sight::is_terminal(pod) && !sight::is_leaving(pod)) {
            let place = sight::place_of(&self.config.tag, pod);
            if place.is_some_and(|place| asked.contains(&place) && !over.contains(&place.0)) {
                deletes.push(Box::pin(self.cluster.delete_pod(pod)));
            }
        }
        let deleted: Vec<_> = stream::iter(deletes).buffer_unordered(DELETES).collect().await;
        deleted.into_iter().collect()
    }

    async fn explain(&self, member: &MemberId) -> Option<String> {
        let place = sight::place(&self.config.tag, member)?;
        let pods = self.cluster.pods_of(place.0.as_str()).await.ok()?;
        let its = pods.iter().filter(|pod| sight::place_of(&self.config.tag, pod).as_ref() == Some(&place));
        its.max_by_key(|pod| pod.metadata.creation_timestamp.clone()).and_then(trouble::last_words)
    }
}

/// The object that could say why a member waits, if nothing else has said so.
fn waits_for(member: &Member) -> Option<String> {
    let waits = member.sighting.state == State::Queued && member.trouble.is_none();
    waits.then(|| member.pod.clone().unwrap_or_else(|| member.sighting.token.to_string()))
}

impl View {
    /// An object that has kept a member waiting for long without a word. The longest is asked first, and then is the last.
    fn long_silent(&mut self, seen: &Seen, now: Instant) -> Option<String> {
        let waiting: BTreeSet<_> = seen.members.iter().filter_map(waits_for).collect();
        self.silent.retain(|object, _| waiting.contains(object));
        for object in waiting {
            self.silent.entry(object).or_insert(Silence { since: now, trouble: None });
        }
        let (object, silence) = self.silent.iter_mut().min_by_key(|(_, silence)| silence.since)?;
        (silence.since + SILENT <= now).then(|| {
            silence.since = now;
            object.clone()
        })
    }

    /// What is made of a look: what is new is told, and who never will work counts as one that is ending.
    fn judge(&mut self, seen: Seen, now: Instant) -> Vec<Sighting> {
        let Seen { mut members, any_ran } = seen;
        let has_passing = |member: &&Member| member.trouble.as_ref().is_some_and(|it| it.class == Class::Unknown);
        let passing: BTreeSet<_> = members.iter().filter(has_passing).map(|it| it.sighting.member.clone()).collect();
        self.troubled.retain(|member, _| passing.contains(member));
        for member in passing {
            self.troubled.entry(member).or_insert(now);
        }
        self.hopeless = None;
        let mut news: BTreeMap<String, u32> = BTreeMap::new();
        for member in &mut members {
            let Some(trouble) = &member.trouble else { continue };
            let stays = match trouble.class {
                Class::Permanent => true,
                _ => self.troubled.get(&member.sighting.member).is_some_and(|since| *since + MAY_PASS <= now),
            };
            // What others run on is right: this one may have bad luck with its node.
            if stays && !any_ran {
                self.hopeless.get_or_insert_with(|| trouble.why.clone());
                if member.sighting.state == State::Queued {
                    member.sighting.state = State::Ending;
                }
            } else {
                *news.entry(trouble.why.clone()).or_default() += 1;
            }
        }
        for (why, count) in news {
            if self.told.insert(why.clone()) {
                tracing::warn!(workers = count, "{why}");
            }
        }
        while self.told.len() > TOLD {
            self.told.pop_first();
        }
        members.into_iter().map(|member| member.sighting).collect()
    }
}
