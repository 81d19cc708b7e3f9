//! The Job that one call makes: one pod an index, none of which is tried again by Kubernetes unless it was disrupted.

use std::{collections::BTreeMap, time::Duration};

use forebay_jobs::spec::{
    JobSpec as ForebayJob, WorkersSpec,
    coordinator::CoordinatorSpec,
    kubernetes::{KubernetesSpec, Toleration},
};
use k8s_openapi::{
    api::{
        batch::v1::{
            Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
            PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
        },
        core::v1::{
            self as core, Capabilities, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, LocalObjectReference,
            ObjectFieldSelector, PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec,
            ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
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
/// Where a coordinator finds its job, and by what name.
const SECRET: &str = "/run/forebay";
pub(super) const PARCEL: &str = "job";
/// How often a coordinator is begun again that was interrupted, or could not reach something.
const AGAIN: i32 = 6;

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
        let mut args = self.command.arguments();
        if let Some(time) = self.workers.time {
            args.extend(["--time".to_owned(), format!("{}s", time.as_secs())]);
        }
        self.made(Shape {
            component: "worker",
            count: i32::try_from(call.count).unwrap_or(i32::MAX),
            // Who has ended is replaced under another token, if it has to be.
            again: 0,
            rules: vec![begun_anew_if_disrupted()],
            deadline: self.workers.time.map(|time| time + BEFORE_THE_WORKER),
            // A worker has nothing to ask the cluster.
            account: (self.spec.service_account.clone(), false),
            secret: None,
            name: call.token.as_str().to_owned(),
            container: self.container("worker", args, self.environment(call), self.resources()),
        })
    }

    /// The Job of one pod that coordinates what the Secret of the same name holds.
    pub(super) fn coordinator(&self, name: &str, own: &CoordinatorSpec) -> Job {
        let volume = self.command.volume.display().to_string();
        let args = ["--volume", &volume, "coordinate", &format!("{SECRET}/{PARCEL}")].map(str::to_owned);
        let at = EnvVarSource {
            field_ref: Some(ObjectFieldSelector { api_version: None, field_path: "status.podIP".to_owned() }),
            ..EnvVarSource::default()
        };
        let listen = EnvVar { name: "FOREBAY_LISTEN".to_owned(), value: None, value_from: Some(at) };
        let memory = own.memory.map(|bytes| ("memory".to_owned(), mebibytes(bytes)));
        let cpus = ("cpu".to_owned(), Quantity(own.cpus.to_string()));
        let limits: BTreeMap<_, _> = memory.into_iter().collect();
        let resources = needs(limits.clone(), limits.into_iter().chain([cpus]).collect());
        let environment = [listen].into_iter().chain(scratch()).collect();
        self.made(Shape {
            component: "coordinator",
            count: 1,
            again: AGAIN,
            rules: vec![begun_anew_if_disrupted(), failed_if_it_would_fail_again()],
            deadline: own.time,
            account: (own.service_account.clone(), true),
            secret: Some(name.to_owned()),
            name: name.to_owned(),
            container: self.container("coordinator", args.to_vec(), environment, resources),
        })
    }

    /// The Job of one pod that executes a command over the volume.
    pub(super) fn command(&self, name: &str, arguments: &[String]) -> Job {
        let volume = ["--volume".to_owned(), self.command.volume.display().to_string()];
        let args = volume.into_iter().chain(arguments.iter().cloned()).collect();
        self.made(Shape {
            component: "command",
            count: 1,
            again: 0,
            rules: vec![begun_anew_if_disrupted()],
            deadline: None,
            account: (self.spec.service_account.clone(), false),
            secret: None,
            name: name.to_owned(),
            container: self.container("command", args, scratch().collect(), ResourceRequirements::default()),
        })
    }

    fn made(&self, shape: Shape) -> Job {
        Job {
            metadata: ObjectMeta { name: Some(shape.name.clone()), ..self.metadata(shape.component) },
            spec: Some(JobSpec {
                completion_mode: Some("Indexed".to_owned()),
                completions: Some(shape.count),
                parallelism: Some(shape.count),
                backoff_limit_per_index: Some(shape.again),
                pod_failure_policy: Some(PodFailurePolicy { rules: shape.rules.clone() }),
                ttl_seconds_after_finished: Some(seconds(self.spec.ttl)),
                template: PodTemplateSpec {
                    metadata: Some(self.metadata(shape.component)),
                    spec: Some(self.pod(shape)),
                },
                ..JobSpec::default()
            }),
            status: None,
        }
    }

    fn metadata(&self, component: &str) -> ObjectMeta {
        let own = [
            ("app.kubernetes.io/name", "forebay"),
            ("app.kubernetes.io/component", component),
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

    fn pod(&self, shape: Shape) -> PodSpec {
        let spec = &self.spec;
        let some = |name: &String| LocalObjectReference { name: name.clone() };
        let secrets: Vec<_> = spec.pull_secrets.iter().map(some).collect();
        let claim = PersistentVolumeClaimVolumeSource { claim_name: spec.claim.clone(), read_only: None };
        let secret = shape.secret.map(|name| Volume {
            name: "job".to_owned(),
            secret: Some(SecretVolumeSource { secret_name: Some(name), ..SecretVolumeSource::default() }),
            ..Volume::default()
        });
        let mut container = shape.container;
        if secret.is_some() {
            container.volume_mounts.get_or_insert_default().push(mount("job", SECRET.to_owned(), None));
        }
        let (service_account, asks) = shape.account;
        PodSpec {
            containers: vec![container],
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: Some(seconds(spec.grace).into()),
            active_deadline_seconds: shape.deadline.map(|time| seconds(time).into()),
            automount_service_account_token: Some(asks),
            enable_service_links: Some(false),
            service_account_name: service_account,
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
            volumes: Some(
                [
                    Volume { name: "volume".to_owned(), persistent_volume_claim: Some(claim), ..Volume::default() },
                    Volume {
                        name: "scratch".to_owned(),
                        empty_dir: Some(EmptyDirVolumeSource::default()),
                        ..Volume::default()
                    },
                ]
                .into_iter()
                .chain(secret)
                .collect(),
            ),
            ..PodSpec::default()
        }
    }

    fn container(&self, name: &str, args: Vec<String>, env: Vec<EnvVar>, resources: ResourceRequirements) -> Container {
        let volume = self.command.volume.display().to_string();
        Container {
            name: name.to_owned(),
            image: Some(self.spec.image.clone()),
            image_pull_policy: self.spec.pull_policy.map(|policy| policy.name().to_owned()),
            command: Some(vec![literally(&self.command.program.display().to_string())]),
            args: Some(args.iter().map(|arg| literally(arg)).collect()),
            env: Some(env),
            resources: Some(resources),
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
        // A pod sees its own GPUs alone, and CUDA counts them from 0, whatever their device files are called.
        let cuda = (!gpus.is_empty()).then(|| variable("CUDA_VISIBLE_DEVICES", &gpus.join(",")));
        [variable(JOB_VARIABLE, call.token.as_str())].into_iter().chain(scratch()).chain(cuda).collect()
    }

    /// Cores are asked for and not limited: what nobody else uses on a node is of use. Memory and GPUs are limited.
    fn resources(&self) -> ResourceRequirements {
        let memory =
            self.workers.memory.map(|memory| ("memory".to_owned(), mebibytes(memory.saturating_add(OVERHEAD))));
        let gpus =
            (self.workers.gpus > 0).then(|| (self.spec.gpu_resource.clone(), Quantity(self.workers.gpus.to_string())));
        let cpus = self.workers.cpus.map(|cpus| ("cpu".to_owned(), Quantity(cpus.to_string())));
        let limits: BTreeMap<_, _> = memory.into_iter().chain(gpus).collect();
        let requests: BTreeMap<_, _> = limits.clone().into_iter().chain(cpus).collect();
        needs(limits, requests)
    }
}

/// What makes one Job another one than others of the run.
struct Shape {
    name: String,
    component: &'static str,
    count: i32,
    /// How often a pod is made anew that has failed.
    again: i32,
    rules: Vec<PodFailurePolicyRule>,
    deadline: Option<Duration>,
    /// Who its pods are for the cluster, and whether they ask it for anything.
    account: (Option<String>, bool),
    /// What is mounted beside the volume.
    secret: Option<String>,
    container: Container,
}

fn needs(limits: BTreeMap<String, Quantity>, requests: BTreeMap<String, Quantity>) -> ResourceRequirements {
    let some = |all: BTreeMap<_, _>| Some(all).filter(|all| !all.is_empty());
    ResourceRequirements { limits: some(limits), requests: some(requests), claims: None }
}

fn mebibytes(bytes: u64) -> Quantity {
    Quantity(format!("{}Mi", bytes.div_ceil(1 << 20)))
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}

/// Where programs write what is nobody's.
fn scratch() -> impl Iterator<Item = EnvVar> {
    ["HOME", "TMPDIR"].into_iter().map(|name| variable(name, SCRATCH))
}

fn mount(name: &str, path: String, sub_path: Option<String>) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path, sub_path, ..VolumeMount::default() }
}

/// Exit codes of a coordinator after which another try would end the same.
fn failed_if_it_would_fail_again() -> PodFailurePolicyRule {
    PodFailurePolicyRule {
        action: "FailIndex".to_owned(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: None,
            operator: "In".to_owned(),
            values: vec![1, 2, 3, 5],
        }),
        on_pod_conditions: None,
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
