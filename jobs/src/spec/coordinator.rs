//! `[coordinator]`: what a coordinator is given that a fleet starts, for `forebay submit`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `[coordinator]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorSpec {
    /// Cores.
    pub cpus: u32,
    /// Bytes of memory; none: what its fleet gives by itself.
    pub memory: Option<u64>,
    /// How long it may take; none: as long as its fleet lets it.
    pub time: Option<Duration>,
    /// Slurm's partition; none: that of the workers.
    pub partition: Option<String>,
    /// Further options of `sbatch`.
    pub options: Vec<String>,
    /// Who it is for Kubernetes; none: the namespace's default.
    #[serde(default)]
    pub service_account: Option<String>,
    /// What it may do as a task of ECS; none: what workers may.
    #[serde(default)]
    pub task_role: Option<String>,
    /// Its security groups as a task of ECS; none: those of the workers.
    #[serde(default)]
    pub security_groups: Vec<String>,
}

impl Default for CoordinatorSpec {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: None,
            time: None,
            partition: None,
            options: Vec::new(),
            service_account: None,
            task_role: None,
            security_groups: Vec::new(),
        }
    }
}
