//! The task definition of workers: one for all runs with the same `[ecs]`, registered by whoever comes first.
//!
//! The name of its family ends with a digest of what it holds, so that it is found again, and never changed under
//! somebody. Two who register it at once make two revisions of the same.

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

/// The name of the one container.
pub(super) const CONTAINER: &str = "worker";
/// Where the container has the storage.
pub(super) const MOUNT: &str = "/mnt/forebay";
/// What the names of its logs begin with.
pub(super) const LOG_PREFIX: &str = "forebay";
/// What a container may write besides the volume: its root is not to be written.
const SCRATCH: &str = "/tmp";
/// From SIGTERM to SIGKILL, in seconds: the most that Fargate gives, and what Spot gives.
const STOP_TIMEOUT: i32 = 120;

/// What is to be registered.
pub(super) fn of(spec: &EcsSpec, gpus: u32, region: &str) -> RegisterTaskDefinitionInputBuilder {
    let mount = |volume: &str, at: &str| MountPoint::builder().source_volume(volume).container_path(at).build();
    let variable = |name: &str, value: &str| KeyValuePair::builder().name(name).value(value).build();
    let mut container = ContainerDefinition::builder()
        .name(CONTAINER)
        .image(&spec.image)
        .essential(true)
        .readonly_root_filesystem(true)
        .stop_timeout(STOP_TIMEOUT)
        // What programs leave behind is reaped, and the worker is not process 1, to which signals are special.
        .linux_parameters(LinuxParameters::builder().init_process_enabled(true).build())
        .environment(variable("HOME", SCRATCH))
        .environment(variable("TMPDIR", SCRATCH))
        .mount_points(mount("volume", MOUNT))
        .mount_points(mount("scratch", SCRATCH));
    if gpus > 0 {
        let gpus = ResourceRequirement::builder().r#type(ResourceType::Gpu).value(gpus.to_string()).build();
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
        .cpu(spec.cpu.to_string())
        .memory(spec.memory.to_string())
        .runtime_platform(platform.build())
        .set_execution_role_arn(spec.execution_role.clone())
        .set_task_role_arn(spec.task_role.clone())
        .volumes(volume(&spec.storage))
        .volumes(Volume::builder().name("scratch").build());
    let log = log(spec, region);
    let held = format!("{definition:?} {container:?} {log:?}");
    let digest: String = Sha256::digest(held.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let container = match log.is_empty() {
        true => container,
        false => {
            let log =
                LogConfiguration::builder().log_driver(LogDriver::Awslogs).set_options(Some(HashMap::from_iter(log)));
            container.log_configuration(log.build().expect("it has a driver"))
        }
    };
    definition.family(format!("forebay-{digest}")).container_definitions(container.build())
}

fn log(spec: &EcsSpec, region: &str) -> BTreeMap<String, String> {
    let Some(group) = &spec.log_group else { return BTreeMap::new() };
    let options =
        [("awslogs-group", group.as_str()), ("awslogs-region", region), ("awslogs-stream-prefix", LOG_PREFIX)];
    options.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
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
