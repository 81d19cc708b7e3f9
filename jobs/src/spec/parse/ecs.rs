//! `[ecs]`

use std::{collections::BTreeMap, ops::Range};

use toml::Spanned;

use super::{
    SpecError, dataset, positive,
    raw::{RawEcs, RawEfs, RawProvider, RawS3Files},
    sized,
};
use crate::spec::{
    FleetKind, WorkersSpec,
    ecs::{Architecture, Capacity, EcsSpec, LaunchType, Network, Provider, SIZES, Storage, is_fargate},
    size,
};

/// What a worker's own process needs beside the memory that its slots share.
const OVERHEAD: u64 = 256;
/// What Fargate was when this was tried; `LATEST` changes under a job that works.
const PLATFORM: &str = "1.4.0";
/// Of all tags that a task can have, these are left to the job.
const MOST_TAGS: usize = 40;

/// The table, which is there if the fleet is ECS, and only then; `fleet` and `time` are where `[workers]` has these keys.
pub(super) fn table(
    raw: Option<Spanned<RawEcs>>,
    workers: &WorkersSpec,
    fleet: Option<Range<usize>>,
    time: Option<Range<usize>>,
) -> Result<Option<EcsSpec>, SpecError> {
    match (raw, workers.fleet) {
        (Some(_), FleetKind::Ecs) if time.is_some() => {
            let message = "a task of ECS has no end that is known before".to_owned();
            Err(SpecError { message, help: Some("remove time".to_owned()), span: time })
        }
        (Some(raw), FleetKind::Ecs) => ecs(raw.into_inner(), workers).map(Some),
        (Some(raw), _) => {
            let error = SpecError::at(&raw, "[ecs] has no effect with another fleet");
            Err(error.help("remove it, or write fleet = \"ecs\" under [workers]"))
        }
        (None, FleetKind::Ecs) => {
            let message = "the fleet is ecs, and the table [ecs] is missing".to_owned();
            Err(SpecError { message, help: Some("add it: docs/ecs.md has one".to_owned()), span: fleet })
        }
        (None, _) => Ok(None),
    }
}

fn ecs(raw: RawEcs, workers: &WorkersSpec) -> Result<EcsSpec, SpecError> {
    let capacity = capacity(&raw)?;
    let fargate = match &capacity {
        Capacity::LaunchType(launch) => *launch == LaunchType::Fargate,
        Capacity::Providers(providers) => is_fargate(&providers[0].name),
    };
    if fargate && workers.gpus > 0 {
        let message = "Fargate has no GPUs, and [workers] gpus asks for some".to_owned();
        let help = "use launch_type = \"EC2\", or a capacity provider of instances with GPUs".to_owned();
        return Err(SpecError { message, help: Some(help), span: raw.launch_type.as_ref().map(Spanned::span) });
    }
    let (cpu, memory) = task_size(&raw, workers, fargate)?;
    let network = network(&raw, fargate)?;
    let storage = storage(&raw, fargate)?;
    let platform_version = match (&raw.platform_version, fargate) {
        (Some(place), false) => {
            return Err(
                SpecError::at(place, "platform_version is Fargate's, and this is not Fargate").help("remove it")
            );
        }
        (version, true) => Some(version.as_ref().map_or(PLATFORM, |version| version.get_ref()).to_owned()),
        (None, false) => None,
    };
    let architecture = match raw.architecture.as_ref().map(|text| (text, text.get_ref().as_str())) {
        None | Some((_, "x86_64")) => Architecture::X86_64,
        Some((_, "arm64")) => Architecture::Arm64,
        Some((place, other)) => {
            return Err(SpecError::at(place, format!("there is no architecture `{other}`")).help("use x86_64 or arm64"));
        }
    };
    if let (Some(place), None) = (&raw.log_group, &raw.execution_role) {
        let error = SpecError::at(place, "who may write the log is not said");
        return Err(error.help("add execution_role = \"arn:aws:iam::…\""));
    }
    if raw.tags.len() > MOST_TAGS {
        return Err(SpecError { message: format!("[ecs] has more than {MOST_TAGS} tags"), help: None, span: None });
    }
    let reserved = |name: &str| ["aws:", "forebay:"].iter().any(|of| name.to_ascii_lowercase().starts_with(of));
    if let Some((name, place)) = raw.tags.iter().find(|(name, _)| reserved(name)) {
        return Err(SpecError::at(place, format!("`{name}` begins as others' tags do")).help("use another name"));
    }
    Ok(EcsSpec {
        cluster: raw.cluster.map_or_else(|| "default".to_owned(), Spanned::into_inner),
        image: raw.image.into_inner(),
        capacity,
        platform_version,
        architecture,
        cpu,
        memory,
        network,
        execution_role: role(raw.execution_role)?,
        task_role: role(raw.task_role)?,
        storage,
        directory: raw.directory.map(directory).transpose()?.unwrap_or_default(),
        log_group: raw.log_group.map(Spanned::into_inner),
        tags: raw.tags.into_iter().map(|(name, value)| (name, value.into_inner())).collect::<BTreeMap<_, _>>(),
        endpoint: raw.endpoint.as_ref().map(dataset::endpoint).transpose()?,
        region: raw.region,
    })
}

fn missing(key: &str, what: &str) -> SpecError {
    SpecError { message: format!("[ecs] has no {key}"), help: Some(format!("add {key}: {what}")), span: None }
}

fn capacity(raw: &RawEcs) -> Result<Capacity, SpecError> {
    let launch = raw.launch_type.as_ref().map(|text| match text.get_ref().as_str() {
        "FARGATE" => Ok(LaunchType::Fargate),
        "EC2" => Ok(LaunchType::Ec2),
        other => Err(SpecError::at(text, format!("there is no launch type `{other}`"))
            .help("use FARGATE or EC2; for FARGATE_SPOT use capacity = [{ provider = \"FARGATE_SPOT\" }]")),
    });
    match (launch.transpose()?, &raw.capacity) {
        (launch, None) => Ok(Capacity::LaunchType(launch.unwrap_or(LaunchType::Fargate))),
        (Some(_), Some(place)) => Err(SpecError::at(place, "[ecs] has both launch_type and capacity").help("keep one")),
        (None, Some(place)) => {
            let providers: Vec<_> = place.get_ref().iter().map(provider).collect::<Result<_, _>>()?;
            if providers.is_empty() || providers.iter().all(|provider| provider.weight == 0) {
                return Err(SpecError::at(place, "no capacity provider has a share").help("give one a weight of 1"));
            }
            let fargate = providers.iter().filter(|provider| is_fargate(&provider.name)).count();
            match fargate == 0 || fargate == providers.len() {
                true => Ok(Capacity::Providers(providers)),
                false => Err(SpecError::at(place, "Fargate and the cluster's own providers do not go together")),
            }
        }
    }
}

fn provider(raw: &RawProvider) -> Result<Provider, SpecError> {
    let weight = match &raw.weight {
        Some(weight) if *weight.get_ref() > 1000 => {
            return Err(SpecError::at(weight, "the weight is out of range").help("it is from 0 to 1000"));
        }
        weight => weight.as_ref().map_or(1, |weight| *weight.get_ref()),
    };
    let base = raw.base.as_ref().map_or(Ok(0), |base| positive(Some(base), 1, 10_000))?;
    Ok(Provider { name: raw.provider.get_ref().clone(), weight, base })
}

/// What is asked for, or else the smallest that holds what a worker is to have.
fn task_size(raw: &RawEcs, workers: &WorkersSpec, fargate: bool) -> Result<(u32, u32), SpecError> {
    let cpus = workers.cpus.unwrap_or(1);
    let cpu = match &raw.vcpus {
        None => cpus * 1024,
        Some(text) => {
            let vcpus = match text.get_ref() {
                toml::Value::Integer(whole) => *whole as f64,
                toml::Value::Float(part) => *part,
                _ => return Err(SpecError::at(text, "vcpus is no number").help("write 0.5, or 4")),
            };
            let cpu = vcpus * 1024.0;
            if !(128.0..=196_608.0).contains(&cpu) || cpu.fract() != 0.0 {
                return Err(SpecError::at(text, format!("a task cannot have {vcpus} vCPUs")).help(CPUS));
            }
            let cpu = cpu as u32;
            if workers.cpus.is_some_and(|cpus| cpu < cpus * 1024) {
                let message = format!("a task has {vcpus} vCPUs, and [workers] cpus asks for {cpus}");
                return Err(SpecError::at(text, message).help("remove vcpus: it is as many as [workers] cpus"));
            }
            cpu
        }
    };
    let least = workers.memory.map(|bytes| bytes.div_ceil(1 << 20) + OVERHEAD);
    let asked = raw.memory.as_ref().map(|text| sized(text, size::bytes).map(|bytes| (text, bytes.div_ceil(1 << 20))));
    let asked = asked.transpose()?;
    if let (Some((text, asked)), Some(least)) = (&asked, least)
        && *asked < least
    {
        let message = format!("a task of {asked} MiB cannot hold [workers] memory and the {OVERHEAD} MiB of a worker");
        return Err(
            SpecError::at(*text, message).help(format!("it needs {least} MiB, which is what it has without it"))
        );
    }
    let asked = asked.map(|(text, asked)| (Some(text), asked));
    let (place, wanted) = asked.unwrap_or((None, least.unwrap_or(if fargate { 0 } else { 1024 })));
    if !fargate {
        return Ok((cpu, u32::try_from(wanted).unwrap_or(u32::MAX)));
    }
    let at = |message: String| match (place, &raw.vcpus) {
        (Some(place), _) => SpecError::at(place, message),
        (None, Some(place)) => SpecError::at(place, message),
        (None, None) => SpecError { message, help: None, span: None },
    };
    let ranges: Vec<_> = SIZES.iter().filter(|(units, ..)| *units == cpu).collect();
    let (Some((_, first, ..)), Some((.., last, _))) = (ranges.first(), ranges.last()) else {
        return Err(at(format!("Fargate has no tasks with {} vCPUs", f64::from(cpu) / 1024.0)).help(CPUS));
    };
    let mut sizes = ranges.iter().flat_map(|(_, first, last, step)| (*first..=*last).step_by(*step as usize));
    let fits = |size: &u32| if place.is_some() { u64::from(*size) == wanted } else { u64::from(*size) >= wanted };
    let help = || format!("with these vCPUs it has from {first} to {last} MiB, in steps: more memory takes more vCPUs");
    let size = sizes.find(fits).ok_or_else(|| at(format!("Fargate has no tasks of {wanted} MiB")).help(help()))?;
    Ok((cpu, size))
}

const CPUS: &str = "Fargate has 0.25, 0.5, 1, 2, 4, 8 and 16";

/// Ids of a kind, and not more than so many.
fn ids(list: &[Spanned<String>], kind: &str, most: usize) -> Result<Vec<String>, SpecError> {
    if let Some(wrong) = list.iter().find(|id| !is_id(id.get_ref(), kind)) {
        let message = format!("`{}` is none of the ids that begin with {kind}-", wrong.get_ref());
        return Err(SpecError::at(wrong, message));
    }
    match list.get(most) {
        Some(over) => Err(SpecError::at(over, format!("ECS takes {most} at most"))),
        None => Ok(list.iter().map(|id| id.get_ref().clone()).collect()),
    }
}

pub(super) fn security_groups(list: &[Spanned<String>]) -> Result<Vec<String>, SpecError> {
    ids(list, "sg", 5)
}

fn network(raw: &RawEcs, fargate: bool) -> Result<Option<Network>, SpecError> {
    let subnets = ids(&raw.subnets, "subnet", 16)?;
    let security_groups = security_groups(&raw.security_groups)?;
    if subnets.is_empty() {
        if fargate {
            return Err(missing("subnets", "Fargate's tasks get their addresses from subnets = [\"subnet-…\"]"));
        }
        let other = raw.security_groups.first().map(Spanned::span);
        let other = other.or(raw.public_ip.as_ref().map(Spanned::span));
        return match other {
            Some(span) => Err(SpecError::at(&Spanned::new(span, ()), "without subnets this has no effect")),
            None => Ok(None),
        };
    }
    let public_ip = raw.public_ip.as_ref().is_some_and(|public| *public.get_ref());
    match (&raw.public_ip, fargate) {
        (Some(place), false) if public_ip => Err(SpecError::at(place, "only Fargate's tasks get public addresses")),
        _ => Ok(Some(Network { subnets, security_groups, public_ip })),
    }
}

fn is_id(text: &str, kind: &str) -> bool {
    let digits = text.strip_prefix(kind).and_then(|rest| rest.strip_prefix('-'));
    digits.is_some_and(|digits| (8..=40).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn storage(raw: &RawEcs, fargate: bool) -> Result<Storage, SpecError> {
    match (&raw.efs, &raw.s3files, &raw.host_path) {
        (Some(raw_efs), None, None) => efs(raw_efs, raw.task_role.is_some()),
        (None, Some(files), None) => s3files(files, raw.task_role.is_some()),
        (None, None, Some(path)) if fargate => {
            let error = SpecError::at(path, "Fargate's hosts have no directories of yours");
            Err(error.help("use efs = { file_system = \"fs-…\" }, or launch_type = \"EC2\""))
        }
        (None, None, Some(path)) => match path.get_ref().starts_with('/') {
            true => Ok(Storage::HostPath(path.get_ref().clone())),
            false => Err(SpecError::at(path, "host_path is no absolute path")),
        },
        (None, None, None) => {
            Err(missing("storage", "one of efs = { file_system = \"fs-…\" }, s3files = { … }, host_path = \"/…\""))
        }
        (efs, files, path) => {
            let spans =
                [efs.as_ref().map(Spanned::span), files.as_ref().map(Spanned::span), path.as_ref().map(Spanned::span)];
            let last = spans.into_iter().flatten().max_by_key(|span| span.start).unwrap_or_default();
            Err(SpecError::at(&Spanned::new(last, ()), "[ecs] has two kinds of storage").help("keep one"))
        }
    }
}

/// <https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_EFSVolumeConfiguration.html>
fn efs(raw: &Spanned<RawEfs>, has_role: bool) -> Result<Storage, SpecError> {
    let raw = raw.get_ref();
    if !is_id(raw.file_system.get_ref(), "fs") {
        let message = format!("`{}` is no id of a file system", raw.file_system.get_ref());
        return Err(SpecError::at(&raw.file_system, message).help("it begins with fs-"));
    }
    if let Some(point) = raw.access_point.as_ref().filter(|point| !is_id(point.get_ref(), "fsap")) {
        let message = format!("`{}` is no id of an access point", point.get_ref());
        return Err(SpecError::at(point, message).help("it begins with fsap-"));
    }
    let root = root(raw.root_directory.as_ref(), raw.access_point.is_some())?;
    let tls = raw.transit_encryption.as_ref().is_none_or(|tls| *tls.get_ref());
    let iam = raw.iam.as_ref().is_some_and(|iam| *iam.get_ref());
    if let (false, Some(place)) = (tls, &raw.transit_encryption)
        && (iam || raw.access_point.is_some())
    {
        return Err(SpecError::at(place, "an access point and IAM need encryption in transit").help("remove it"));
    }
    match (&raw.iam, iam && !has_role) {
        (Some(place), true) => {
            Err(SpecError::at(place, "there is no role that IAM could ask for").help("add task_role"))
        }
        _ => Ok(Storage::Efs {
            file_system: raw.file_system.get_ref().clone(),
            access_point: raw.access_point.as_ref().map(|point| point.get_ref().clone()),
            root,
            tls,
            iam,
        }),
    }
}

fn s3files(raw: &Spanned<RawS3Files>, has_role: bool) -> Result<Storage, SpecError> {
    if !has_role {
        return Err(SpecError::at(raw, "S3 Files needs a role").help("add task_role = \"arn:aws:iam::…\""));
    }
    let raw = raw.get_ref();
    for arn in [Some(&raw.file_system), raw.access_point.as_ref()].into_iter().flatten() {
        if !arn.get_ref().starts_with("arn:") {
            return Err(SpecError::at(arn, format!("`{}` is no ARN", arn.get_ref())).help("it begins with arn:"));
        }
    }
    Ok(Storage::S3Files {
        file_system: raw.file_system.get_ref().clone(),
        access_point: raw.access_point.as_ref().map(|point| point.get_ref().clone()),
        root: root(raw.root_directory.as_ref(), raw.access_point.is_some())?,
    })
}

fn root(raw: Option<&Spanned<String>>, has_point: bool) -> Result<String, SpecError> {
    match raw {
        None => Ok("/".to_owned()),
        Some(root) if !root.get_ref().starts_with('/') => {
            Err(SpecError::at(root, "root_directory is no absolute path"))
        }
        Some(root) if has_point && root.get_ref() != "/" => {
            let error = SpecError::at(root, "the access point says what is its root");
            Err(error.help("remove root_directory; where the volume is below it, directory says"))
        }
        Some(root) => Ok(root.get_ref().clone()),
    }
}

pub(super) fn role(raw: Option<Spanned<String>>) -> Result<Option<String>, SpecError> {
    match raw {
        Some(role) if !role.get_ref().starts_with("arn:") => {
            Err(SpecError::at(&role, format!("`{}` is no role's ARN", role.get_ref())).help("it begins with arn:"))
        }
        role => Ok(role.map(Spanned::into_inner)),
    }
}

fn directory(raw: Spanned<String>) -> Result<String, SpecError> {
    let is_segment = |part: &str| !part.is_empty() && part != "." && part != "..";
    match raw.get_ref().split('/').all(is_segment) {
        true => Ok(raw.into_inner()),
        false => Err(SpecError::at(&raw, format!("`{}` is no place below the storage's root", raw.get_ref()))
            .help("write it without a / at its ends")),
    }
}
