//! What the controllers of Kubernetes do with Indexed Jobs: make pods, count them, end Jobs, and clear away what has ended.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition},
        core::v1::{EnvVar, Pod, PodCondition},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use super::world::{Live, TRACKING, World, index, owner, phase};

/// From the end of a pod that was disrupted to the next of its index.
const BACKOFF: Duration = Duration::from_millis(100);
/// How long pods are there that are deleted and nobody runs.
const COLLECT: Duration = Duration::from_millis(200);
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

impl World {
    /// One round of all controllers.
    pub fn control(&mut self) {
        self.collect_pods();
        for name in self.jobs.keys().cloned().collect::<Vec<_>>() {
            self.control_job(&name);
        }
        self.remove_deleted();
        self.remove_old();
    }

    fn control_job(&mut self, name: &str) {
        let job = self.jobs[name].clone();
        if self.finished.contains_key(name) {
            return;
        }
        let spec = job.spec.as_ref().expect("it was checked");
        let completions = u32::try_from(spec.completions.unwrap_or(0)).unwrap();
        let limit = spec.backoff_limit_per_index.unwrap_or(i32::MAX);
        let status = job.status.clone().unwrap_or_default();
        let (mut completed, mut failed) = (read(&status.completed_indexes), read(&status.failed_indexes));
        let uid = job.metadata.uid.clone();
        let mut make = Vec::new();
        for at in 0..completions {
            let its = self.pods.iter().filter(|(_, live)| owner(&live.pod) == uid && index(&live.pod) == at);
            let its: Vec<(String, Pod, Option<Instant>)> =
                its.map(|(name, live)| (name.clone(), live.pod.clone(), live.ended)).collect();
            if its.iter().any(|(_, pod, _)| phase(pod) == "Succeeded") {
                completed.insert(at);
            }
            let is_over = completed.contains(&at) || failed.contains(&at);
            // Where failures are looked at, a pod that is leaving is waited for.
            let there = its.iter().any(|(_, pod, _)| !matches!(phase(pod), "Succeeded" | "Failed"));
            let mut failures = (0, 0);
            let mut last = None;
            for (pod_name, pod, ended) in its.iter().filter(|(_, pod, _)| phase(pod) == "Failed") {
                let before = (count(pod, FAILURES), count(pod, IGNORED));
                let after = match is_ignored(&job, pod) {
                    true => (before.0, before.1 + 1),
                    false => (before.0 + 1, before.1),
                };
                failures = (failures.0.max(after.0), failures.1.max(after.1));
                last = last.max(*ended);
                if is_over || there {
                    self.release(pod_name);
                }
            }
            if its.iter().any(|(_, pod, _)| phase(pod) == "Failed" && is_final(&job, pod)) {
                failed.insert(at);
            }
            if failures.0 > u32::try_from(limit).unwrap_or(u32::MAX) {
                failed.insert(at);
            }
            let is_over = completed.contains(&at) || failed.contains(&at);
            if is_over {
                for (pod_name, pod, _) in &its {
                    match phase(pod) {
                        "Succeeded" | "Failed" => self.release(pod_name),
                        // Of two, the other one has ended: this one is of no use.
                        _ => self.begin_to_delete(pod_name),
                    }
                }
            } else if !there && last.is_none_or(|at| at + BACKOFF <= Instant::now()) {
                make.push((at, failures));
            }
        }
        for (at, failures) in make {
            if !self.make_pod(name, &job, at, failures) {
                break;
            }
        }
        self.note(name, &completed, &failed, completions);
    }

    /// It was counted, and nobody waits for it any more.
    fn release(&mut self, name: &str) {
        if let Some(live) = self.pods.get_mut(name) {
            live.pod.metadata.finalizers = None;
        }
    }

    /// Makes a pod of an index, if the namespace takes it.
    pub fn make_pod(&mut self, name: &str, job: &Job, at: u32, failures: (u32, u32)) -> bool {
        let pod_name = format!("{name}-{at}-{}", random());
        let there = self.pods.values().filter(|live| !matches!(phase(&live.pod), "Succeeded" | "Failed")).count();
        if let Some(most) = self.settings.pods.filter(|most| there >= *most) {
            let message = format!(
                "Error creating: pods \"{pod_name}\" is forbidden: exceeded quota: pods, requested: pods=1, \
                 used: pods={there}, limited: pods={most}"
            );
            self.no_pod(name, &message.replace(&pod_name, &format!("{name}-{at}")));
            return false;
        }
        if let Some(why) = self.settings.admission.clone() {
            let message = format!("Error creating: pods \"{name}-{at}\" is forbidden: {why}");
            self.no_pod(name, &message);
            return false;
        }
        let template = job.spec.as_ref().expect("it was checked").template.clone();
        let mut spec = template.spec.expect("it was checked");
        for container in &mut spec.containers {
            let index =
                EnvVar { name: "JOB_COMPLETION_INDEX".to_owned(), value: Some(at.to_string()), value_from: None };
            container.env.get_or_insert_default().push(index);
        }
        let mut metadata: ObjectMeta = template.metadata.unwrap_or_default();
        let labels = metadata.labels.get_or_insert_default();
        labels.insert("batch.kubernetes.io/job-name".to_owned(), name.to_owned());
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert("batch.kubernetes.io/job-completion-index".to_owned(), at.to_string());
        annotations.insert(FAILURES.to_owned(), failures.0.to_string());
        if failures.1 > 0 {
            annotations.insert(IGNORED.to_owned(), failures.1.to_string());
        }
        self.own(&mut metadata);
        metadata.name = Some(pod_name.clone());
        metadata.finalizers = Some(vec![TRACKING.to_owned()]);
        metadata.owner_references = Some(vec![OwnerReference {
            api_version: "batch/v1".to_owned(),
            kind: "Job".to_owned(),
            name: name.to_owned(),
            uid: job.metadata.uid.clone().unwrap_or_default(),
            ..Default::default()
        }]);
        let pod = Pod { metadata, spec: Some(spec), status: None };
        let live = Live { pod, container: None, log: String::new(), kill_at: None, deleted: None, ended: None };
        self.pods.insert(pod_name, live);
        true
    }

    fn note(&mut self, name: &str, completed: &BTreeSet<u32>, failed: &BTreeSet<u32>, completions: u32) {
        let uid = self.jobs[name].metadata.uid.clone();
        let its = self.pods.values().filter(|live| owner(&live.pod) == uid);
        let active = its.filter(|live| !matches!(phase(&live.pod), "Succeeded" | "Failed")).count();
        let job = self.jobs.get_mut(name).expect("it is there");
        let status = job.status.get_or_insert_default();
        status.failed = Some(i32::try_from(failed.len()).unwrap());
        status.completed_indexes = Some(written(completed));
        status.failed_indexes = Some(written(failed));
        if active == 0 && completed.union(failed).count() == completions as usize {
            let (type_, message) = match failed.is_empty() {
                true => ("Complete", None),
                false => ("Failed", Some("Job has failed indexes".to_owned())),
            };
            status.conditions = Some(vec![JobCondition {
                type_: type_.to_owned(),
                status: "True".to_owned(),
                message,
                ..Default::default()
            }]);
            self.finished.insert(name.to_owned(), Instant::now());
        }
    }

    /// Pods that no node will ever end.
    fn collect_pods(&mut self) {
        for live in self.pods.values_mut() {
            let is_unscheduled = live.pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none());
            if is_unscheduled && live.ended.is_none() && live.deleted.is_some_and(|at| at.elapsed() >= COLLECT) {
                live.pod.status.get_or_insert_default().phase = Some("Failed".to_owned());
                live.ended = Some(Instant::now());
            }
        }
    }

    /// What is deleted, has ended, and was counted.
    fn remove_deleted(&mut self) {
        self.pods.retain(|_, live| {
            let may_go = live.pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty);
            let never_ran = live.pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none());
            !(live.deleted.is_some() && may_go && (live.ended.is_some() || never_ran))
        });
    }

    /// Jobs that ended long ago.
    fn remove_old(&mut self) {
        let is_old = |name: &String, at: &Instant| {
            let spec = self.jobs.get(name).and_then(|job| job.spec.as_ref());
            let ttl = spec.and_then(|spec| u64::try_from(spec.ttl_seconds_after_finished?).ok());
            ttl.is_some_and(|ttl| at.elapsed().as_secs() >= ttl)
        };
        let old: Vec<_> = self.finished.iter().filter(|(name, at)| is_old(name, at)).collect();
        for name in old.into_iter().map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.jobs.remove(&name);
        }
        self.finished.retain(|name, _| self.jobs.contains_key(name));
        self.orphaned();
    }
}

/// Says that somebody has disrupted a pod.
pub fn disrupt(pod: &mut Pod, reason: &str) {
    let condition = PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        ..Default::default()
    };
    set(pod, condition);
}

/// Sets a condition, in place of what it was.
pub fn set(pod: &mut Pod, condition: PodCondition) {
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|old| old.type_ != condition.type_);
    conditions.push(condition);
}

/// Whether the Job's policy says that this end is none.
fn is_ignored(job: &Job, pod: &Pod) -> bool {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    policy.iter().flat_map(|policy| &policy.rules).filter(|rule| rule.action == "Ignore").any(|rule| {
        rule.on_pod_conditions.iter().flatten().any(|pattern| {
            let conditions = conditions.into_iter().flatten();
            conditions.into_iter().any(|it| it.type_ == pattern.type_ && it.status == pattern.status)
        })
    })
}

/// Whether the Job's policy says that no other try is to be made after this end. The first rule that matches counts.
fn is_final(job: &Job, pod: &Pod) -> bool {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let codes: Vec<_> = statuses.filter_map(|it| Some(it.state.as_ref()?.terminated.as_ref()?.exit_code)).collect();
    let fails = policy.iter().flat_map(|policy| &policy.rules).filter(|rule| rule.action == "FailIndex").any(|rule| {
        rule.on_exit_codes.as_ref().is_some_and(|wanted| codes.iter().any(|code| wanted.values.contains(code)))
    });
    fails && !is_ignored(job, pod)
}

fn count(pod: &Pod, key: &str) -> u32 {
    pod.metadata.annotations.as_ref().and_then(|all| all.get(key)?.parse().ok()).unwrap_or(0)
}

fn random() -> String {
    (0..5).map(|_| fastrand::alphanumeric().to_ascii_lowercase()).collect()
}

fn read(list: &Option<String>) -> BTreeSet<u32> {
    let parts = list.iter().flat_map(|list| list.split(',')).filter(|part| !part.is_empty());
    parts
        .flat_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse::<u32>().unwrap()..=last.parse().unwrap()
        })
        .collect()
}

/// As Kubernetes writes it: `1,3-5,7`.
fn written(indices: &BTreeSet<u32>) -> String {
    let mut spans: Vec<(u32, u32)> = Vec::new();
    for index in indices {
        match spans.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => spans.push((*index, *index)),
        }
    }
    let text = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    spans.iter().map(text).collect::<Vec<_>>().join(",")
}
