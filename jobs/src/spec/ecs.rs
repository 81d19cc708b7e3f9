//! `[ecs]`: the tasks of Amazon ECS in which workers run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `[ecs]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EcsSpec {
    /// The cluster.
    pub cluster: String,
    /// What their container is made of; its entry point is forebay, or a program that is used as it is.
    pub image: String,
    /// What they run on.
    pub capacity: Capacity,
    /// Which version of Fargate; none where it is not Fargate.
    pub platform_version: Option<String>,
    /// The processors that the image is built for.
    pub architecture: Architecture,
    /// The size of a task, in units of 1/1024 vCPU.
    pub cpu: u32,
    /// The size of a task, in MiB.
    pub memory: u32,
    /// Where they get their addresses; none where they have those of their instances.
    pub network: Option<Network>,
    /// What ECS is allowed to do for a task: to pull the image, to write its log.
    pub execution_role: Option<String>,
    /// What a task is allowed to do.
    pub task_role: Option<String>,
    /// What holds the volume.
    pub storage: Storage,
    /// Where in it the volume is: no segments, or some.
    pub directory: String,
    /// The group of the log in CloudWatch; none: no log.
    pub log_group: Option<String>,
    /// Tags of the tasks, beside forebay's own.
    pub tags: BTreeMap<String, String>,
    /// Base URL of an ECS-compatible server.
    pub endpoint: Option<String>,
    /// Region; none: as the AWS SDK finds it.
    pub region: Option<String>,
}

/// Of Fargate: units of CPU, and the first and last size of memory in MiB, with the step between.
/// <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-cpu-memory-error.html>
pub(super) const SIZES: [(u32, u32, u32, u32); 8] = [
    (256, 512, 512, 512),
    (256, 1024, 2048, 1024),
    (512, 1024, 4096, 1024),
    (1024, 2048, 8192, 1024),
    (2048, 4096, 16_384, 1024),
    (4096, 8192, 30_720, 1024),
    (8192, 16_384, 61_440, 4096),
    (16_384, 32_768, 122_880, 8192),
];
/// What a task of an instance has that needs no memory in particular, in MiB.
const MEMORY: u32 = 2048;

impl EcsSpec {
    /// The smallest task with so many cores and bytes of memory: its units of CPU and its MiB. None: Fargate has none.
    pub fn smallest(&self, cpus: u32, memory: Option<u64>) -> Option<(u32, u32)> {
        let wanted = memory.map(|bytes| u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX));
        let cpu = cpus.saturating_mul(1024);
        if !self.is_fargate() {
            return Some((cpu, wanted.unwrap_or(MEMORY)));
        }
        SIZES.iter().filter(|(units, ..)| *units >= cpu).find_map(|(units, first, last, step)| {
            let mut sizes = (*first..=*last).step_by(*step as usize);
            Some((*units, sizes.find(|size| *size >= wanted.unwrap_or(0))?))
        })
    }

    /// Whether tasks run on Fargate, so that its rules hold.
    pub fn is_fargate(&self) -> bool {
        match &self.capacity {
            Capacity::LaunchType(launch) => *launch == LaunchType::Fargate,
            Capacity::Providers(providers) => providers.iter().any(|provider| is_fargate(&provider.name)),
        }
    }
}

/// Whether a capacity provider is one of the two that every account has.
pub fn is_fargate(provider: &str) -> bool {
    matches!(provider, "FARGATE" | "FARGATE_SPOT")
}

/// What tasks run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capacity {
    /// One kind.
    LaunchType(LaunchType),
    /// By shares.
    Providers(Vec<Provider>),
}

/// The kinds of hosts that ECS has without capacity providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaunchType {
    /// AWS's own.
    Fargate,
    /// Instances of the cluster.
    Ec2,
}

/// One capacity provider, and its share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// `FARGATE`, `FARGATE_SPOT`, or one of the cluster's.
    pub name: String,
    /// Its part of the tasks beyond the base.
    pub weight: u32,
    /// So many tasks before the shares count.
    pub base: u32,
}

/// The processors that an image is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Intel's and AMD's.
    X86_64,
    /// Graviton.
    Arm64,
}

/// Where tasks get their addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Subnets of one VPC.
    pub subnets: Vec<String>,
    /// Security groups; none: the VPC's default one.
    pub security_groups: Vec<String>,
    /// Whether they get public addresses too.
    pub public_ip: bool,
}

/// What holds the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// EFS.
    Efs {
        /// Its id.
        file_system: String,
        /// Through this access point.
        access_point: Option<String>,
        /// What of it is mounted.
        root: String,
        /// Whether NFS goes through TLS.
        tls: bool,
        /// Whether the task role says who may mount it.
        iam: bool,
    },
    /// S3 Files.
    S3Files {
        /// Its ARN.
        file_system: String,
        /// The ARN of an access point.
        access_point: Option<String>,
        /// What of it is mounted.
        root: String,
    },
    /// What the instances mount there themselves.
    HostPath(String),
}
