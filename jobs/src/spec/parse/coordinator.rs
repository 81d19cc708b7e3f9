//! `[coordinator]`

use toml::Spanned;

use super::{SpecError, ecs, kubernetes, limits::LEAST_MEMORY, positive, raw::RawCoordinator, sized, slurm};
use crate::spec::{FleetKind, coordinator::CoordinatorSpec, ecs::EcsSpec, size};

pub(super) fn coordinator(
    raw: Option<Spanned<RawCoordinator>>,
    fleet: FleetKind,
    ecs: Option<&EcsSpec>,
) -> Result<Option<CoordinatorSpec>, SpecError> {
    let Some(raw) = raw else { return Ok(None) };
    if matches!(fleet, FleetKind::Local | FleetKind::External) {
        let error = SpecError::at(&raw, "this fleet starts no coordinator: it is where `forebay run` is");
        return Err(error.help("write fleet = \"slurm\", \"ecs\" or \"kubernetes\" under [workers], or remove it"));
    }
    let place = Spanned::new(raw.span(), ());
    let raw = raw.into_inner();
    foreign(&raw, fleet)?;
    let memory = raw.memory.as_ref().map(|text| match sized(text, size::bytes)? {
        memory if memory < LEAST_MEMORY => {
            Err(SpecError::at(text, "a coordinator needs more memory than this").help("write \"4GiB\""))
        }
        memory => Ok(memory),
    });
    let spec = CoordinatorSpec {
        cpus: positive(raw.cpus.as_ref(), 1, 1024)?,
        memory: memory.transpose()?,
        time: raw.time.as_ref().map(|text| sized(text, size::duration)).transpose()?,
        partition: raw.partition.as_ref().map(slurm::word).transpose()?,
        options: raw.options.iter().map(slurm::option).collect::<Result<_, _>>()?,
        service_account: raw.service_account.as_ref().map(kubernetes::object).transpose()?,
        security_groups: ecs::security_groups(&raw.security_groups)?,
        task_role: ecs::role(raw.task_role)?,
    };
    if let Some(ecs) = ecs {
        if ecs.smallest(spec.cpus, spec.memory).is_none() {
            let error = SpecError::at(&place, "Fargate has no task of this size");
            return Err(error.help("the largest has 16 cores and 120 GiB"));
        }
        if let (Some(group), None) = (raw.security_groups.first(), &ecs.network) {
            return Err(SpecError::at(group, "without [ecs] subnets this has no effect").help("remove security_groups"));
        }
    }
    Ok(Some(spec))
}

/// Keys that mean nothing to the fleet.
fn foreign(raw: &RawCoordinator, fleet: FleetKind) -> Result<(), SpecError> {
    let keys = [
        ("time", raw.time.as_ref(), &[FleetKind::Slurm, FleetKind::Kubernetes][..]),
        ("partition", raw.partition.as_ref(), &[FleetKind::Slurm]),
        ("options", raw.options.first(), &[FleetKind::Slurm]),
        ("service_account", raw.service_account.as_ref(), &[FleetKind::Kubernetes]),
        ("task_role", raw.task_role.as_ref(), &[FleetKind::Ecs]),
        ("security_groups", raw.security_groups.first(), &[FleetKind::Ecs]),
    ];
    let wrong = keys.iter().filter(|(.., fleets)| !fleets.contains(&fleet));
    match wrong.filter_map(|(name, place, _)| Some((name, (*place)?))).next() {
        Some((name, place)) => {
            let message = format!("{name} means nothing to the fleet `{}`", fleet.name());
            Err(SpecError::at(place, message).help("remove it"))
        }
        None => Ok(()),
    }
}
