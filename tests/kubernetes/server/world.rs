//! The objects of one namespace, and the rules by which they come and go.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{Event, ObjectReference, Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Time},
    jiff::{SignedDuration, Timestamp},
};
use serde_json::{Value, json};

use super::{kubelet::Container, settings::Settings};

/// The controller of Jobs counts what has ended before it lets it go.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";

/// An answer that is no object.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: u16,
    pub reason: String,
    pub message: String,
    pub retry_after: Option<u32>,
}

impl Refusal {
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), retry_after: None }
    }

    pub fn body(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        })
    }
}

/// A pod, and what runs in it.
#[derive(Debug)]
pub struct Live {
    pub pod: Pod,
    pub container: Option<Container>,
    /// What its container printed, once it has ended.
    pub log: String,
    /// When its container gets no more time.
    pub kill_at: Option<Instant>,
    /// When its deletion was asked for.
    pub deleted: Option<Instant>,
    /// When it was counted out.
    pub ended: Option<Instant>,
}

#[derive(Debug, Default)]
pub struct World {
    pub settings: Settings,
    pub jobs: BTreeMap<String, Job>,
    /// When a Job has ended.
    pub finished: BTreeMap<String, Instant>,
    pub pods: BTreeMap<String, Live>,
    pub secrets: BTreeMap<String, Secret>,
    pub events: Vec<Event>,
    /// What runs on where no pod is any more.
    pub adrift: Vec<Container>,
    /// Nodes that were lost, and when.
    pub lost: BTreeMap<String, Instant>,
    /// Objects that were made.
    made: u64,
}

impl World {
    /// Takes a Job in, by the rules that the API server has for Indexed ones.
    pub fn create_job(&mut self, sent: &[u8], is_dry: bool) -> Result<Value, Refusal> {
        let value: Value = serde_json::from_slice(sent).map_err(|e| Refusal::new(400, "BadRequest", e.to_string()))?;
        let mut job: Job =
            serde_json::from_value(value.clone()).map_err(|e| Refusal::new(400, "BadRequest", e.to_string()))?;
        // What is sent and not known would be left out without a word.
        let known = serde_json::to_value(&job).unwrap();
        assert_eq!(without_nulls(&value), without_nulls(&known), "a field that Kubernetes does not know");
        let name = job.metadata.name.clone().unwrap_or_default();
        validate(&name, &job)
            .map_err(|why| Refusal::new(422, "Invalid", format!("Job.batch \"{name}\" is invalid: {why}")))?;
        if self.jobs.contains_key(&name) {
            let message = format!("jobs.batch \"{name}\" already exists");
            return Err(Refusal::new(409, "AlreadyExists", message));
        }
        if let Some(most) = self.settings.jobs.filter(|most| self.jobs.len() >= *most) {
            let message = format!(
                "jobs.batch \"{name}\" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1, \
                 used: count/jobs.batch={most}, limited: count/jobs.batch={most}"
            );
            return Err(Refusal::new(403, "Forbidden", message));
        }
        self.own(&mut job.metadata);
        if is_dry {
            return Ok(serde_json::to_value(&job).unwrap());
        }
        let made = serde_json::to_value(&job).unwrap();
        // One of the same name may have ended, and been deleted a moment ago.
        self.finished.remove(&name);
        self.jobs.insert(name, job);
        Ok(made)
    }

    /// Takes a Secret in.
    pub fn create_secret(&mut self, sent: &[u8]) -> Result<Value, Refusal> {
        let mut secret: Secret =
            serde_json::from_slice(sent).map_err(|e| Refusal::new(400, "BadRequest", e.to_string()))?;
        let name = secret.metadata.name.clone().unwrap_or_default();
        let size: usize = secret.data.iter().flatten().map(|(_, value)| value.0.len()).sum();
        if size > 1 << 20 {
            return Err(Refusal::new(422, "Invalid", "data: Too long: may not be more than 1048576 bytes"));
        }
        if self.secrets.contains_key(&name) {
            return Err(Refusal::new(409, "AlreadyExists", format!("secrets \"{name}\" already exists")));
        }
        self.own(&mut secret.metadata);
        let made = serde_json::to_value(&secret).unwrap();
        self.secrets.insert(name, secret);
        Ok(made)
    }

    /// What every object has from the server.
    pub fn own(&mut self, meta: &mut ObjectMeta) {
        self.made += 1;
        meta.uid = Some(format!("00000000-0000-4000-8000-{:012x}", self.made));
        meta.creation_timestamp = Some(Time(Timestamp::now()));
    }

    pub fn delete_job(&mut self, name: &str, options: &DeleteOptions) -> Result<Value, Refusal> {
        let job = self.jobs.get(name).ok_or_else(|| not_found("jobs.batch", name))?;
        check(options, &job.metadata)?;
        if options.propagation_policy.as_deref() != Some("Background") {
            // The default of Jobs leaves pods that nobody deletes.
            return Err(Refusal::new(400, "BadRequest", "who deletes a Job says what becomes of its pods"));
        }
        let job = self.jobs.remove(name).expect("it is there");
        self.orphaned();
        Ok(serde_json::to_value(job).unwrap())
    }

    /// What belongs to no Job any more is deleted, and nobody counts it.
    pub fn orphaned(&mut self) {
        let owners: Vec<_> = self.jobs.values().filter_map(|job| job.metadata.uid.clone()).collect();
        self.secrets.retain(|_, secret| {
            let mut of = secret.metadata.owner_references.iter().flatten();
            of.any(|owner| owners.contains(&owner.uid))
        });
        let orphans =
            self.pods.iter_mut().filter(|(_, live)| owner(&live.pod).is_none_or(|uid| !owners.contains(&uid)));
        let names: Vec<_> = orphans
            .map(|(name, live)| {
                live.pod.metadata.finalizers = None;
                name.clone()
            })
            .collect();
        names.iter().for_each(|name| self.begin_to_delete(name));
    }

    pub fn delete_pod(&mut self, name: &str, options: &DeleteOptions) -> Result<Value, Refusal> {
        let live = self.pods.get(name).ok_or_else(|| not_found("pods", name))?;
        check(options, &live.pod.metadata)?;
        self.begin_to_delete(name);
        Ok(serde_json::to_value(&self.pods[name].pod).unwrap())
    }

    /// Sets a pod's deletion time. What runs is asked to end by its node.
    pub fn begin_to_delete(&mut self, name: &str) {
        let Some(live) = self.pods.get_mut(name) else { return };
        if live.deleted.is_some() {
            return;
        }
        let spec = live.pod.spec.as_ref();
        let own = spec.and_then(|spec| u64::try_from(spec.termination_grace_period_seconds?).ok()).unwrap_or(30);
        // What no node has, and what has ended, needs no time.
        let is_on_node = spec.is_some_and(|spec| spec.node_name.is_some());
        let grace = match is_on_node && live.ended.is_none() {
            true => Duration::from_secs(own),
            false => Duration::ZERO,
        };
        let meta = &mut live.pod.metadata;
        let after = SignedDuration::try_from(grace).unwrap();
        meta.deletion_timestamp = Some(Time(Timestamp::now() + after));
        live.deleted = Some(Instant::now());
        live.kill_at = Some(Instant::now() + grace);
    }

    /// Notes that no pod was made for a Job.
    pub fn no_pod(&mut self, name: &str, message: &str) {
        let about = |event: &Event| {
            event.involved_object.name.as_deref() == Some(name) && event.message.as_deref() == Some(message)
        };
        let now = Some(Time(Timestamp::now()));
        if let Some(event) = self.events.iter_mut().find(|event| about(event)) {
            event.last_timestamp = now;
            return;
        }
        let mut event = Event {
            involved_object: ObjectReference { name: Some(name.to_owned()), ..Default::default() },
            reason: Some("FailedCreate".to_owned()),
            message: Some(message.to_owned()),
            type_: Some("Warning".to_owned()),
            last_timestamp: now,
            ..Default::default()
        };
        event.metadata.name = Some(format!("{name}.{:x}", self.events.len()));
        self.events.push(event);
    }
}

/// The uid of a pod's Job.
pub fn owner(pod: &Pod) -> Option<String> {
    Some(pod.metadata.owner_references.as_ref()?.first()?.uid.clone())
}

/// What a pod's status says it does.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// A pod's index.
pub fn index(pod: &Pod) -> u32 {
    let annotations = pod.metadata.annotations.as_ref().expect("pods of Jobs have some");
    annotations["batch.kubernetes.io/job-completion-index"].parse().expect("it is a number")
}

fn check(options: &DeleteOptions, meta: &ObjectMeta) -> Result<(), Refusal> {
    let wanted = options.preconditions.as_ref().and_then(|conditions| conditions.uid.clone());
    match wanted.is_some() && wanted != meta.uid {
        true => Err(Refusal::new(409, "Conflict", "the UID in the precondition is not the UID in the record")),
        false => Ok(()),
    }
}

pub fn not_found(what: &str, name: &str) -> Refusal {
    Refusal::new(404, "NotFound", format!("{what} \"{name}\" not found"))
}

fn validate(name: &str, job: &Job) -> Result<(), String> {
    let spec = job.spec.as_ref().ok_or("spec: Required value")?;
    let is_label = |name: &str| {
        (1..=63).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && name.as_bytes()[0].is_ascii_alphanumeric()
    };
    let completions = spec.completions.ok_or("spec.completions: Required value: when completion mode is Indexed")?;
    if spec.completion_mode.as_deref() != Some("Indexed") {
        return Err("this server has Indexed Jobs alone".to_owned());
    }
    // The last pod's host is called so.
    if !is_label(name) || !is_label(&format!("{name}-{}", completions - 1)) {
        return Err("metadata.name: Invalid value: must be a DNS label with the index behind it".to_owned());
    }
    if spec.parallelism.is_none_or(|parallelism| parallelism < 1) || completions < 1 {
        return Err("spec.parallelism: Invalid value: must be greater than 0".to_owned());
    }
    let pod = spec.template.spec.as_ref().ok_or("spec.template.spec: Required value")?;
    if pod.restart_policy.as_deref() != Some("Never") {
        return Err("spec.template.spec.restartPolicy: Unsupported value: only Never with podFailurePolicy".to_owned());
    }
    if spec.backoff_limit_per_index.is_some() && spec.backoff_limit.is_some_and(|limit| limit < i32::MAX) {
        return Err("spec.backoffLimit: this server has limits per index alone".to_owned());
    }
    let volumes: Vec<_> = pod.volumes.iter().flatten().map(|volume| volume.name.as_str()).collect();
    for container in &pod.containers {
        let mounts = container.volume_mounts.iter().flatten();
        if let Some(mount) = mounts.into_iter().find(|mount| !volumes.contains(&mount.name.as_str())) {
            return Err(format!("spec.template.spec.containers[0].volumeMounts: Not found: {}", mount.name));
        }
        let empty = BTreeMap::new();
        let resources = container.resources.clone().unwrap_or_default();
        let (requests, limits) = (resources.requests.unwrap_or_default(), resources.limits.unwrap_or(empty));
        let is_device = |name: &&String| name.contains('/');
        if let Some(device) = limits.keys().find(|name| is_device(name) && requests.get(*name) != limits.get(*name)) {
            return Err(format!("spec.template.spec.containers[0].resources.requests: {device} must equal its limit"));
        }
    }
    Ok(())
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}
