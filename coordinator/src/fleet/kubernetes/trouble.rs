//! What keeps a pod from its work or has ended it, in the words of Kubernetes, and what can be done about it.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerStateTerminated, ContainerStateWaiting, Event, Pod, PodCondition},
};

use crate::fleet::engine::Class;

/// What stands between a member and its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// [`Class::Permanent`] if it stays until somebody does something; [`Class::Unknown`] if it may pass by itself, and
    /// after a while is taken to stay.
    pub(super) class: Class,
    pub(super) why: String,
}

impl Trouble {
    fn new(class: Class, what: &str, message: Option<&str>, help: &str) -> Self {
        let message = message.map(|message| format!(": {}", message.trim())).unwrap_or_default();
        Self { class, why: format!("{what}{message}; {help}") }
    }
}

/// What a pod's status tells.
pub(super) fn of_pod(pod: &Pod) -> Option<Trouble> {
    if let Some(waiting) = waiting(pod) {
        return of_waiting(waiting);
    }
    if let Some(unscheduled) = condition(pod, "PodScheduled").filter(|condition| condition.status == "False") {
        return Some(of_unscheduled(unscheduled));
    }
    let status = pod.status.as_ref()?;
    if status.reason.as_deref() == Some("Evicted") {
        let help = "ask for what it needs, under [workers] memory";
        return Some(Trouble::new(Class::Capacity, "its node evicted it", status.message.as_deref(), help));
    }
    let terminated = terminated(pod)?;
    match terminated.reason.as_deref() {
        Some("OOMKilled") => {
            let limit = memory_limit(pod).map(|limit| format!(" of {limit}")).unwrap_or_default();
            let what = format!("it was killed for want of memory (OOMKilled), at its limit{limit}");
            let help = "raise [workers] memory, or take fewer slots";
            Some(Trouble { class: Class::Capacity, why: format!("{what}; {help}") })
        }
        _ if has_not_started(terminated) => {
            let help = "is [kubernetes] program in the image, and made for the nodes' processors?";
            Some(Trouble::new(Class::Permanent, "its program does not start", terminated.message.as_deref(), help))
        }
        _ => None,
    }
}

fn of_waiting(waiting: &ContainerStateWaiting) -> Option<Trouble> {
    let (reason, message) = (waiting.reason.as_deref()?, waiting.message.as_deref());
    let what = format!("its container does not start ({reason})");
    let image = "is [kubernetes] image right, and may the nodes pull it? see pull_secrets and pull_policy";
    match reason {
        "InvalidImageName" | "ErrImageNeverPull" => Some(Trouble::new(Class::Permanent, &what, message, image)),
        "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "RegistryUnavailable" => {
            let is_final = |message: &str| {
                let message = message.to_ascii_lowercase();
                ["not found", "does not exist", "unauthorized", "denied", "forbidden", "no match for platform"]
                    .iter()
                    .any(|word| message.contains(word))
            };
            let class = if message.is_some_and(is_final) { Class::Permanent } else { Class::Unknown };
            Some(Trouble::new(class, &what, message, image))
        }
        "CreateContainerConfigError" => {
            let help = "correct what it names in [kubernetes]: user, sub_path, claim";
            Some(Trouble::new(Class::Permanent, &what, message, help))
        }
        "CreateContainerError" | "RunContainerError" => {
            let help = "is [kubernetes] program in the image?";
            Some(Trouble::new(Class::Unknown, &what, message, help))
        }
        _ => None,
    }
}

fn of_unscheduled(condition: &PodCondition) -> Trouble {
    let (reason, message) = (condition.reason.as_deref().unwrap_or("not scheduled"), condition.message.as_deref());
    let what = format!("no node takes it ({reason})");
    let is_without_claim =
        message.is_some_and(|message| message.contains("persistentvolumeclaim") && message.contains("not found"));
    match is_without_claim {
        true => {
            let help = "[kubernetes] claim names a ReadWriteMany claim in the pods' namespace";
            Trouble::new(Class::Permanent, &what, message, help)
        }
        false => {
            let help = "it waits for room: if no node will ever have it, ask for less under [workers], or mend \
                        node_selector and tolerations under [kubernetes]";
            Trouble::new(Class::Capacity, &what, message, help)
        }
    }
}

/// What a Job without pods tells by itself.
pub(super) fn of_job(job: &Job) -> Option<Trouble> {
    let is_suspended = job.spec.as_ref().is_some_and(|spec| spec.suspend == Some(true));
    let help = "it waits until its queue lets it begin";
    is_suspended.then(|| Trouble::new(Class::Capacity, "its Job is suspended", None, help))
}

/// What the events of a Job or a pod tell.
pub(super) fn of_events(events: &[Event]) -> Option<Trouble> {
    let newest = |reason: &str| {
        let of_reason = events.iter().filter(|event| event.reason.as_deref() == Some(reason));
        of_reason.max_by_key(|event| event.last_timestamp.clone()).and_then(|event| event.message.as_deref())
    };
    if let Some(message) = newest("FailedCreate") {
        return Some(not_created(message));
    }
    let message = newest("FailedMount").or_else(|| newest("FailedAttachVolume"))?;
    let help = "does the claim's file system let this node mount it? see docs/kubernetes.md";
    Some(Trouble::new(Class::Capacity, "the volume is not mounted", Some(message), help))
}

/// What the Job's controller was told when it made a pod.
fn not_created(message: &str) -> Trouble {
    let what = "its pod is not made";
    if message.contains("exceeded quota") {
        let help = "it waits for room in the quota: raise that, or take fewer or smaller [workers]";
        return Trouble::new(Class::Capacity, what, Some(message), help);
    }
    let is_final = ["forbidden", "denied", "nvalid", "not found"].iter().any(|word| message.contains(word));
    let class = if is_final { Class::Permanent } else { Class::Unknown };
    Trouble::new(class, what, Some(message), "what the namespace admits is its administrators' to say")
}

/// Whether somebody has disrupted a pod: the scheduler, the node, whoever drains nodes.
pub(super) fn is_disrupted(pod: &Pod) -> bool {
    condition(pod, "DisruptionTarget").is_some_and(|condition| condition.status == "True")
}

/// How a pod has ended.
pub(super) fn end(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let mut parts = Vec::new();
    if let Some(condition) = condition(pod, "DisruptionTarget").filter(|condition| condition.status == "True") {
        parts.push(condition.reason.clone().unwrap_or_else(|| "disrupted".to_owned()));
    }
    parts.extend(status.and_then(|status| status.reason.clone()));
    if let Some(terminated) = terminated(pod) {
        let reason = terminated.reason.as_deref().filter(|reason| !matches!(*reason, "Completed" | "Error"));
        parts.extend(reason.map(str::to_owned));
        parts.push(format!("exit code {}", terminated.exit_code));
    }
    match (of_pod(pod), parts.is_empty()) {
        (Some(trouble), _) => format!("{} ({})", trouble.why, parts.join(", ")),
        (None, true) => "it says nothing of it".to_owned(),
        (None, false) => parts.join(", "),
    }
}

/// How a Job has ended that has no pod of an index.
pub(super) fn end_of_job(job: &Job) -> String {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
    let failed = conditions.into_iter().flatten().find(|condition| condition.type_ == "Failed");
    let told = failed.and_then(|condition| condition.message.clone());
    told.unwrap_or_else(|| "its Job has ended, and its pod is gone".to_owned())
}

/// The exit code of a pod's container, if it has ended by itself.
pub(super) fn exit_code(pod: &Pod) -> Option<i32> {
    terminated(pod).filter(|terminated| !has_not_started(terminated)).map(|terminated| terminated.exit_code)
}

/// Whether a container has ended without having begun.
pub(super) fn has_not_started(terminated: &ContainerStateTerminated) -> bool {
    matches!(terminated.reason.as_deref(), Some("StartError" | "ContainerCannotRun"))
}

/// What a pod's worker said last.
pub(super) fn last_words(pod: &Pod) -> Option<String> {
    let message = terminated(pod)?.message.as_deref()?.trim();
    Some(message.to_owned()).filter(|message| !message.is_empty())
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn waiting(pod: &Pod) -> Option<&ContainerStateWaiting> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find_map(|container| container.state.as_ref()?.waiting.as_ref())
}

fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find_map(|container| container.state.as_ref()?.terminated.as_ref())
}

fn memory_limit(pod: &Pod) -> Option<String> {
    let limits: &BTreeMap<_, _> = pod.spec.as_ref()?.containers.first()?.resources.as_ref()?.limits.as_ref()?;
    Some(limits.get("memory")?.0.clone())
}
