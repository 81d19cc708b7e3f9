//! Task definitions, of one container each. That of workers is one for all runs with the same `[ecs]`, and so is that of
//! commands: registered by whoever comes first, and found again by all others.
//!
//! A label holds a digest of what is in it, and so does the name of its family, unless it has one of its own, like a
//! coordinator's. Two who register it at once make two revisions of the same.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_ecs::{
    operation::register_task_definition::builders::RegisterTaskDefinitionInputBuilder,
    types::{
        Compatibility, ContainerDefinition, CpuArchitecture, EfsAuthorizationConfig, EfsAuthorizationConfigIam,
        EfsTransitEncryption, EfsVolumeConfiguration, HostVolumeProperties, KeyValuePair, LinuxParameters,
        LogConfiguration, LogDriver, MountPoint, NetworkMode, OsFamily, ResourceRequirement, ResourceType,
        RuntimePlatform, S3FilesVolumeConfiguration, Volume,
    },
};
use forebay_jobs::spec::ecs::{Architecture, EcsSpec, Storage};
use sha2::{Digest, Sha256};

/// The names of containers.
pub(super) const WORKER: &str = "worker";
pub(super) const COORDINATOR: &str = "coordinator";
pub(super) const COMMAND: &str = "command";
/// The label that holds the digest.
pub(super) const DIGEST: &str = "forebay.digest";
/// Where the container has the storage.
pub(super) const MOUNT: &str = "/mnt/forebay";
/// What the names of its logs begin with.
pub(super) const LOG_PREFIX: &str = "forebay";
/// What a container may write besides the volume: its root is not to be written.
const SCRATCH: &str = "/tmp";
/// From SIGTERM to SIGKILL, in seconds: the most that Fargate gives, and what Spot gives.
const STOP_TIMEOUT: i32 = 120;

/// What one kind of task has of its own.
#[derive(Default)]
pub(super) struct Shape {
    /// The name of the container.
    pub(super) container: &'static str,
    /// The family; none: it is named by what it holds.
    pub(super) family: Option<String>,
    /// Units of CPU, MiB, GPUs.
    pub(super) cpu: u32,
    pub(super) memory: u32,
    pub(super) gpus: u32,
    /// What it is allowed to do.
    pub(super) role: Option<String>,
    /// What it executes, unless a call says otherwise.
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(&'static str, String)>,
    /// Whether it waits where the log is slow. Otherwise what the log does not take in time is lost.
    pub(super) waits_for_log: bool,
}

/// What is to be registered, and the digest of it.
pub(super) fn of(spec: &EcsSpec, shape: &Shape, region: &str) -> (RegisterTaskDefinitionInputBuilder, String) {
    let mount = |volume: &str, at: &str| MountPoint::builder().source_volume(volume).container_path(at).build();
    let variable = |name: &str, value: &str| KeyValuePair::builder().name(name).value(value).build();
    let mut container = ContainerDefinition::builder()
        .name(shape.container)
        .image(&spec.image)
        .essential(true)
        // All of its task's, as it would be by itself: not every server of this API knows that.
        .memory(i32::try_from(shape.memory).unwrap_or(i32::MAX))
        .readonly_root_filesystem(true)
        .stop_timeout(STOP_TIMEOUT)
        // What programs leave behind is reaped, and the worker is not process 1, to which signals are special.
        .linux_parameters(LinuxParameters::builder().init_process_enabled(true).build())
        .environment(variable("HOME", SCRATCH))
        .environment(variable("TMPDIR", SCRATCH))
        .mount_points(mount("volume", MOUNT))
        .mount_points(mount("scratch", SCRATCH));
    if !shape.arguments.is_empty() {
        container = container.set_command(Some(shape.arguments.clone()));
    }
    for (name, value) in &shape.environment {
        container = container.environment(variable(name, value));
    }
    if shape.gpus > 0 {
        let gpus = ResourceRequirement::builder().r#type(ResourceType::Gpu).value(shape.gpus.to_string()).build();
        container = container.resource_requirements(gpus.expect("it has a type and a value"));
    }
    let platform = RuntimePlatform::builder().operating_system_family(OsFamily::Linux);
    let platform = platform.cpu_architecture(match spec.architecture {
        Architecture::X86_64 => CpuArchitecture::X8664,
        Architecture::Arm64 => CpuArchitecture::Arm64,
    });
    let definition = RegisterTaskDefinitionInputBuilder::default()
        .requires_compatibilities(if spec.is_fargate() { Compatibility::Fargate } else { Compatibility::Ec2 })
        // Workers meet at their addresses, which are their hosts' unless they have some of their own.
        .network_mode(if spec.network.is_some() { NetworkMode::Awsvpc } else { NetworkMode::Host })
        .cpu(shape.cpu.to_string())
        .memory(shape.memory.to_string())
        .runtime_platform(platform.build())
        .set_execution_role_arn(spec.execution_role.clone())
        .set_task_role_arn(shape.role.clone())
        .volumes(volume(&spec.storage))
        .volumes(Volume::builder().name("scratch").build());
    let log = log(spec, region, shape.waits_for_log);
    let held = format!("{definition:?} {container:?} {log:?}");
    let digest: String = Sha256::digest(held.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    container = container.docker_labels(DIGEST, &digest);
    let container = match log.is_empty() {
        true => container,
        false => {
            let log =
                LogConfiguration::builder().log_driver(LogDriver::Awslogs).set_options(Some(HashMap::from_iter(log)));
            container.log_configuration(log.build().expect("it has a driver"))
        }
    };
    let family = shape.family.clone().unwrap_or_else(|| format!("forebay-{digest}"));
    (definition.family(family).container_definitions(container.build()), digest)
}

fn log(spec: &EcsSpec, region: &str, waits: bool) -> BTreeMap<String, String> {
    let Some(group) = &spec.log_group else { return BTreeMap::new() };
    let options =
        [("awslogs-group", group.as_str()), ("awslogs-region", region), ("awslogs-stream-prefix", LOG_PREFIX)];
    // Which of the two it is without saying hangs on the account and its age.
    let mode = waits.then_some(("mode", "blocking"));
    options.into_iter().chain(mode).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn volume(storage: &Storage) -> Volume {
    let volume = Volume::builder().name("volume");
    match storage {
        Storage::Efs { file_system, access_point, root, tls, iam } => {
            let mut efs = EfsVolumeConfiguration::builder().file_system_id(file_system).root_directory(root);
            efs = efs.transit_encryption(if *tls {
                EfsTransitEncryption::Enabled
            } else {
                EfsTransitEncryption::Disabled
            });
            if access_point.is_some() || *iam {
                let iam = if *iam { EfsAuthorizationConfigIam::Enabled } else { EfsAuthorizationConfigIam::Disabled };
                let may = EfsAuthorizationConfig::builder().iam(iam).set_access_point_id(access_point.clone());
                efs = efs.authorization_config(may.build());
            }
            volume.efs_volume_configuration(efs.build().expect("it has a file system")).build()
        }
        Storage::S3Files { file_system, access_point, root } => {
            let files = S3FilesVolumeConfiguration::builder().file_system_arn(file_system).root_directory(root);
            let files = files.set_access_point_arn(access_point.clone()).build().expect("it has a file system");
            volume.s3files_volume_configuration(files).build()
        }
        Storage::HostPath(path) => volume.host(HostVolumeProperties::builder().source_path(path).build()).build(),
    }
}
