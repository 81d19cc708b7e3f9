//! What Jobs and their pods tell of a run's members.
//!
//! A member is an index of a Job, whether or not it has a pod: the Job's controller makes pods when it can. An index that
//! was disrupted gets another pod, and for a while both may be there, or the old one's worker without its pod. Any other
//! end of a pod is its member's.

use std::collections::BTreeMap;

use forebay_jobs::id::MemberId;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};

use super::trouble::{self, Trouble};
use crate::fleet::engine::{Sighting, State, Tag, Token};

/// Where a pod's index is written.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Where a pod's Job is written.
const JOB: &str = "batch.kubernetes.io/job-name";
/// How often an index has been begun before, if ends that are ignored are not counted, and by those that are.
const BEGUN_BEFORE: [&str; 2] =
    ["batch.kubernetes.io/job-index-failure-count", "batch.kubernetes.io/job-index-ignored-failure-count"];

/// All that was seen at one look.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) members: Vec<Member>,
    /// Whether any container of the run has ever run, so that what they are made of is right.
    pub(super) any_ran: bool,
}

/// One member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) sighting: Sighting,
    /// What keeps it from its work, or has ended it.
    pub(super) trouble: Option<Trouble>,
    /// Its newest pod; none where its Job has made none.
    pub(super) pod: Option<String>,
}

/// The id of an index.
pub(super) fn member_of(token: &Token, index: u32) -> Option<MemberId> {
    format!("{token}-{index}").parse().ok()
}

/// The Job and the index of a member.
pub(super) fn place(tag: &Tag, member: &MemberId) -> Option<(Token, u32)> {
    let (token, index) = member.as_str().rsplit_once('-')?;
    Some((tag.token(token)?, index.parse().ok()?))
}

/// The Job and the index of a pod.
pub(super) fn place_of(tag: &Tag, pod: &Pod) -> Option<(Token, u32)> {
    let meta = &pod.metadata;
    let job = meta.labels.as_ref()?.get(JOB)?;
    let index = meta.annotations.as_ref().and_then(|all| all.get(INDEX)).or(meta.labels.as_ref()?.get(INDEX))?;
    Some((tag.token(job)?, index.parse().ok()?))
}

/// What there is.
pub(super) fn seen(tag: &Tag, jobs: &[Job], pods: &[Pod]) -> Seen {
    let mut by_member: BTreeMap<(Token, u32), Vec<&Pod>> = BTreeMap::new();
    for pod in pods {
        if let Some(place) = place_of(tag, pod) {
            by_member.entry(place).or_default().push(pod);
        }
    }
    let mut members = Vec::new();
    for job in jobs {
        let Some(token) = job.metadata.name.as_deref().and_then(|name| tag.token(name)) else { continue };
        let count = job.spec.as_ref().and_then(|spec| spec.completions).unwrap_or(0);
        for index in 0..u32::try_from(count).unwrap_or(0) {
            let pods = by_member.remove(&(token.clone(), index)).unwrap_or_default();
            members.extend(member(&token, index, Some(job), pods));
        }
    }
    // Their Job is gone, and they are about to follow.
    members.extend(by_member.into_iter().filter_map(|((token, index), pods)| member(&token, index, None, pods)));
    Seen { members, any_ran: pods.iter().any(has_run) }
}

fn member(token: &Token, index: u32, job: Option<&Job>, mut pods: Vec<&Pod>) -> Option<Member> {
    let id = member_of(token, index)?;
    pods.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone()));
    let goes_on = job.is_some_and(|job| job.metadata.deletion_timestamp.is_none() && !has_ended(job));
    let over = !goes_on || job.is_some_and(|job| is_over(job, index));
    // Of two pods that are there the one is asked for that stays.
    let live: Vec<_> = pods.iter().copied().filter(|pod| !is_terminal(pod)).collect();
    let newest = live.iter().copied().rev().find(|pod| !is_leaving(pod)).or(live.last().copied());
    let newest = newest.or(pods.last().copied());
    let mut life = newest.map_or(0, begun_before);
    let mut trouble = newest.and_then(trouble::of_pod);
    let state = match newest {
        Some(pod) if !is_terminal(pod) => match (is_leaving(pod), phase(pod)) {
            // Its worker is still there, and its place is kept.
            (true, "Running") if goes_on && trouble::is_disrupted(pod) => State::Running,
            (true, _) if goes_on && trouble::is_disrupted(pod) => State::Queued,
            (true, _) => State::Ending,
            (false, _) if !goes_on => State::Ending,
            (false, "Running") => State::Running,
            (false, _) => State::Queued,
        },
        Some(pod) if !over && phase(pod) == "Failed" && trouble::is_disrupted(pod) => {
            life += 1;
            State::Queued
        }
        Some(pod) => State::Ended { why: trouble::end(pod) },
        None if over => State::Ended { why: job.map_or("its Job is gone".to_owned(), trouble::end_of_job) },
        None => {
            trouble = job.and_then(trouble::of_job);
            State::Queued
        }
    };
    let pod = newest.and_then(|pod| pod.metadata.name.clone());
    let sighting = Sighting { member: id, token: token.clone(), state, life };
    Some(Member { sighting, trouble, pod })
}

fn begun_before(pod: &Pod) -> u32 {
    let annotations = pod.metadata.annotations.as_ref();
    let count = |key: &str| annotations?.get(key)?.parse::<u32>().ok();
    BEGUN_BEFORE.iter().filter_map(|key| count(key)).sum()
}

pub(super) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether a pod has ended, and stays as a record.
pub(super) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether a pod is being deleted.
pub(super) fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn has_run(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().any(|container| {
        let state = container.state.as_ref();
        state.is_some_and(|state| {
            state.running.is_some() || state.terminated.as_ref().is_some_and(|end| !trouble::has_not_started(end))
        })
    })
}

/// Whether no index of a Job is begun any more.
pub(super) fn has_ended(job: &Job) -> bool {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| {
        condition.status == "True"
            && matches!(condition.type_.as_str(), "Complete" | "Failed" | "FailureTarget" | "SuccessCriteriaMet")
    })
}

/// Whether an index of a Job has ended for good.
fn is_over(job: &Job, index: u32) -> bool {
    let Some(status) = &job.status else { return false };
    let lists = [&status.completed_indexes, &status.failed_indexes];
    lists.into_iter().flatten().any(|list| is_listed(list, index))
}

/// Whether a list like `1,3-5,7` names an index.
fn is_listed(list: &str, index: u32) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.parse::<u32>(), last.parse::<u32>()), (Ok(first), Ok(last)) if (first..=last).contains(&index))
    })
}
