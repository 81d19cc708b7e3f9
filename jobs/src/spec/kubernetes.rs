//! `[kubernetes]`: the pods in which workers run.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// `[kubernetes]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesSpec {
    /// A kubeconfig file; none: `KUBECONFIG`, `~/.kube/config`, or, in a pod, its service account.
    pub kubeconfig: Option<PathBuf>,
    /// One of its contexts; none: the current one.
    pub context: Option<String>,
    /// Where pods are made; none: the context's, or that of the coordinator's pod.
    pub namespace: Option<String>,
    /// What their container is made of.
    pub image: String,
    /// The program in it: forebay, or one that is used as it is.
    pub program: String,
    /// When the image is pulled; none: as Kubernetes has it by default.
    pub pull_policy: Option<PullPolicy>,
    /// The secrets that the image is pulled with.
    pub pull_secrets: Vec<String>,
    /// The claim of what holds the volume, which many nodes can mount at once.
    pub claim: String,
    /// Where below the claim's root the volume is; none: there.
    pub sub_path: Option<String>,
    /// Where pods have the volume; none: where the coordinator has it.
    pub mount: Option<PathBuf>,
    /// Who the pods are for the cluster; none: the namespace's default.
    pub service_account: Option<String>,
    /// The user that workers run as; none: the coordinator's.
    pub user: Option<u32>,
    /// The group; none: the coordinator's.
    pub group: Option<u32>,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that a node may have.
    pub tolerations: Vec<Toleration>,
    /// How urgent pods are.
    pub priority_class: Option<String>,
    /// What a GPU is called.
    pub gpu_resource: String,
    /// Labels of Jobs and pods, beside forebay's own.
    pub labels: BTreeMap<String, String>,
    /// Annotations of Jobs and pods.
    pub annotations: BTreeMap<String, String>,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// How long a Job that has ended stays to be looked at.
    pub ttl: Duration,
}

impl KubernetesSpec {
    /// Where pods have the volume that the coordinator has at `volume`.
    pub fn mount<'a>(&'a self, volume: &'a Path) -> &'a Path {
        self.mount.as_deref().unwrap_or(volume)
    }
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Whenever a pod starts.
    Always,
    /// Unless its node has it.
    IfNotPresent,
    /// Its node has it.
    Never,
}

impl PullPolicy {
    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// A taint that a node may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toleration {
    /// Its key; none: any.
    pub key: Option<String>,
    /// Its value; none: any.
    pub value: Option<String>,
    /// Its effect; none: any.
    pub effect: Option<TaintEffect>,
    /// For so long, of the effect NoExecute; none: for ever.
    pub time: Option<Duration>,
}

/// What a taint does to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaintEffect {
    /// None is put there.
    NoSchedule,
    /// One is put there if there is no other place.
    PreferNoSchedule,
    /// Those that are there end.
    NoExecute,
}

impl TaintEffect {
    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}
