//! The Job that one call makes: one pod an index, none of which is tried again by Kubernetes unless it was disrupted.

use std::{collections::BTreeMap, time::Duration};

use forebay_jobs::spec::{
    JobSpec as ForebayJob, WorkersSpec,
    kubernetes::{KubernetesSpec, Toleration},
};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule},
        core::v1::{
            self as core, Capabilities, Container, EmptyDirVolumeSource, EnvVar, LocalObjectReference,
            PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, ResourceRequirements,
            SeccompProfile, SecurityContext, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use crate::fleet::{
    command::WorkerCommand,
    engine::{Call, Tag},
};

/// The label that tells a run's Jobs and pods.
pub(super) const RUN: &str = "app.kubernetes.io/instance";
/// What a worker reads its Job's name from; its index is told by Kubernetes.
pub(super) const JOB_VARIABLE: &str = "FOREBAY_KUBERNETES_JOB";
/// What a worker's own process needs beside the memory that its slots share.
const OVERHEAD: u64 = 256 << 20;
/// How much longer than its worker a pod may exist: its time begins before its image is pulled.
const BEFORE_THE_WORKER: Duration = Duration::from_secs(600);
/// The only directory beside the volume that can be written to.
const SCRATCH: &str = "/tmp";

/// What all Jobs of a run have in common.
#[derive(Clone, Debug)]
pub struct PodConfig {
    /// Where, and as what.
    pub spec: KubernetesSpec,
    /// How many, and of what size.
    pub workers: WorkersSpec,
    /// What runs in each; its volume is where pods have it.
    pub command: WorkerCommand,
    /// Marks what is made for the run.
    pub tag: Tag,
    /// The user and the group that workers run as.
    pub owner: (u32, u32),
}

impl PodConfig {
    /// What a job says, for the workers that `command` starts on this host.
    ///
    /// # Errors
    /// What a pod cannot be: why, and what to do.
    pub fn new(job: &ForebayJob, tag: &Tag, command: WorkerCommand) -> Result<Self, String> {
        let spec = job.kubernetes.clone().ok_or("the job has no [kubernetes]")?;
        let user = spec.user.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        let group = spec.group.unwrap_or_else(|| rustix::process::getegid().as_raw());
        if user == 0 {
            return Err("pods of workers do not run as root, as this process does: run it as the user to whom the \
                        volume belongs, or set user under [kubernetes]"
                .to_owned());
        }
        let volume = std::path::absolute(spec.mount(&command.volume)).map_err(|error| error.to_string())?;
        let command = WorkerCommand { program: spec.program.clone().into(), volume, ..command };
        Ok(Self { spec, workers: job.workers.clone(), command, tag: tag.clone(), owner: (user, group) })
    }

    /// The Job of a call.
    pub(super) fn job(&self, call: &Call) -> Job {
        let count = i32::try_from(call.count).unwrap_or(i32::MAX);
        Job {
            metadata: ObjectMeta { name: Some(call.token.as_str().to_owned()), ..self.metadata() },
            spec: Some(JobSpec {
                completion_mode: Some("Indexed".to_owned()),
                completions: Some(count),
                parallelism: Some(count),
                // Who has ended is replaced under another token, if it has to be.
                backoff_limit_per_index: Some(0),
                pod_failure_policy: Some(PodFailurePolicy { rules: vec![begun_anew_if_disrupted()] }),
                ttl_seconds_after_finished: Some(seconds(self.spec.ttl)),
                template: PodTemplateSpec { metadata: Some(self.metadata()), spec: Some(self.pod(call)) },
                ..JobSpec::default()
            }),
            status: None,
        }
    }

    fn metadata(&self) -> ObjectMeta {
        let own = [
            ("app.kubernetes.io/name", "forebay"),
            ("app.kubernetes.io/component", "worker"),
            ("app.kubernetes.io/managed-by", "forebay"),
            (RUN, self.tag.as_str()),
        ];
        let labels = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let run = [("forebay/run".to_owned(), self.command.run.to_string())];
        ObjectMeta {
            labels: Some(self.spec.labels.clone().into_iter().chain(labels).collect()),
            annotations: Some(self.spec.annotations.clone().into_iter().chain(run).collect()),
            ..ObjectMeta::default()
        }
    }

    fn pod(&self, call: &Call) -> PodSpec {
        let spec = &self.spec;
        let some = |name: &String| LocalObjectReference { name: name.clone() };
        let secrets: Vec<_> = spec.pull_secrets.iter().map(some).collect();
        let claim = PersistentVolumeClaimVolumeSource { claim_name: spec.claim.clone(), read_only: None };
        PodSpec {
            containers: vec![self.container(call)],
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: Some(seconds(spec.grace).into()),
            active_deadline_seconds: self.workers.time.map(|time| seconds(time + BEFORE_THE_WORKER).into()),
            // A worker has nothing to ask the cluster.
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            service_account_name: spec.service_account.clone(),
            image_pull_secrets: Some(secrets).filter(|secrets| !secrets.is_empty()),
            node_selector: Some(spec.node_selector.clone()).filter(|labels| !labels.is_empty()),
            tolerations: Some(spec.tolerations.iter().map(tolerated).collect()).filter(|all: &Vec<_>| !all.is_empty()),
            priority_class_name: spec.priority_class.clone(),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(self.owner.0.into()),
                run_as_group: Some(self.owner.1.into()),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
                ..PodSecurityContext::default()
            }),
            volumes: Some(vec![
                Volume { name: "volume".to_owned(), persistent_volume_claim: Some(claim), ..Volume::default() },
                Volume {
                    name: "scratch".to_owned(),
                    empty_dir: Some(EmptyDirVolumeSource::default()),
                    ..Volume::default()
                },
            ]),
            ..PodSpec::default()
        }
    }

    fn container(&self, call: &Call) -> Container {
        let mut args = self.command.arguments();
        if let Some(time) = self.workers.time {
            args.extend(["--time".to_owned(), format!("{}s", time.as_secs())]);
        }
        let mount = |name: &str, path: String, sub_path: Option<String>| VolumeMount {
            name: name.to_owned(),
            mount_path: path,
            sub_path,
            ..VolumeMount::default()
        };
        let volume = self.command.volume.display().to_string();
        Container {
            name: "worker".to_owned(),
            image: Some(self.spec.image.clone()),
            image_pull_policy: self.spec.pull_policy.map(|policy| policy.name().to_owned()),
            command: Some(vec![literally(&self.command.program.display().to_string())]),
            args: Some(args.iter().map(|arg| literally(arg)).collect()),
            env: Some(self.environment(call)),
            resources: Some(self.resources()),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
                read_only_root_filesystem: Some(true),
                ..SecurityContext::default()
            }),
            // What a worker said last is in its pod's status.
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            volume_mounts: Some(vec![
                mount("volume", volume, self.spec.sub_path.clone()),
                mount("scratch", SCRATCH.to_owned(), None),
            ]),
            ..Container::default()
        }
    }

    fn environment(&self, call: &Call) -> Vec<EnvVar> {
        let gpus: Vec<_> = (0..self.workers.gpus).map(|gpu| gpu.to_string()).collect();
        let variables = [
            (JOB_VARIABLE, call.token.as_str().to_owned()),
            ("HOME", SCRATCH.to_owned()),
            ("TMPDIR", SCRATCH.to_owned()),
        ];
        // A pod sees its own GPUs alone, and CUDA counts them from 0, whatever their device files are called.
        let cuda = (!gpus.is_empty()).then(|| ("CUDA_VISIBLE_DEVICES", gpus.join(",")));
        let variable =
            |(name, value): (&str, String)| EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
        variables.into_iter().chain(cuda).map(variable).collect()
    }

    /// Cores are asked for and not limited: what nobody else uses on a node is of use. Memory and GPUs are limited.
    fn resources(&self) -> ResourceRequirements {
        let memory = self.workers.memory.map(|memory| {
            let mebibytes = memory.saturating_add(OVERHEAD).div_ceil(1 << 20);
            ("memory".to_owned(), Quantity(format!("{mebibytes}Mi")))
        });
        let gpus =
            (self.workers.gpus > 0).then(|| (self.spec.gpu_resource.clone(), Quantity(self.workers.gpus.to_string())));
        let cpus = self.workers.cpus.map(|cpus| ("cpu".to_owned(), Quantity(cpus.to_string())));
        let limits: BTreeMap<_, _> = memory.into_iter().chain(gpus).collect();
        let requests: BTreeMap<_, _> = limits.clone().into_iter().chain(cpus).collect();
        ResourceRequirements {
            limits: Some(limits).filter(|limits| !limits.is_empty()),
            requests: Some(requests).filter(|requests| !requests.is_empty()),
            claims: None,
        }
    }
}

fn begun_anew_if_disrupted() -> PodFailurePolicyRule {
    PodFailurePolicyRule {
        action: "Ignore".to_owned(),
        on_exit_codes: None,
        on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
        }]),
    }
}

fn tolerated(toleration: &Toleration) -> core::Toleration {
    let operator = if toleration.value.is_some() { "Equal" } else { "Exists" };
    core::Toleration {
        key: toleration.key.clone(),
        operator: Some(operator.to_owned()),
        value: toleration.value.clone(),
        effect: toleration.effect.map(|effect| effect.name().to_owned()),
        toleration_seconds: toleration.time.map(|time| seconds(time).into()),
    }
}

/// `$(NAME)` in an argument stands for a variable, unless it is written with two dollars.
fn literally(text: &str) -> String {
    text.replace("$(", "$$(")
}

fn seconds(time: Duration) -> i32 {
    i32::try_from(time.as_secs()).unwrap_or(i32::MAX)
}
