//! `[coordinator]`

use toml::Spanned;

use super::{SpecError, kubernetes, limits::LEAST_MEMORY, positive, raw::RawCoordinator, sized, slurm};
use crate::spec::{FleetKind, coordinator::CoordinatorSpec, size};

pub(super) fn coordinator(
    raw: Option<Spanned<RawCoordinator>>,
    fleet: FleetKind,
) -> Result<Option<CoordinatorSpec>, SpecError> {
    let Some(raw) = raw else { return Ok(None) };
    if !matches!(fleet, FleetKind::Slurm | FleetKind::Kubernetes) {
        let error = SpecError::at(&raw, "this fleet starts no coordinator: it is where `forebay run` is");
        return Err(error.help("write fleet = \"slurm\" or \"kubernetes\" under [workers], or remove it"));
    }
    let raw = raw.into_inner();
    let of_slurm = [("partition", raw.partition.as_ref()), ("options", raw.options.first())];
    let of_kubernetes = [("service_account", raw.service_account.as_ref())];
    let foreign = if fleet == FleetKind::Slurm { &of_kubernetes[..] } else { &of_slurm[..] };
    if let Some((name, place)) = foreign.iter().find_map(|(name, place)| Some((name, (*place)?))) {
        let error = SpecError::at(place, format!("{name} means nothing to the fleet `{}`", fleet.name()));
        return Err(error.help("remove it"));
    }
    let memory = raw.memory.as_ref().map(|text| match sized(text, size::bytes)? {
        memory if memory < LEAST_MEMORY => {
            Err(SpecError::at(text, "a coordinator needs more memory than this").help("write \"4GiB\""))
        }
        memory => Ok(memory),
    });
    Ok(Some(CoordinatorSpec {
        cpus: positive(raw.cpus.as_ref(), 1, 1024)?,
        memory: memory.transpose()?,
        time: raw.time.as_ref().map(|text| sized(text, size::duration)).transpose()?,
        partition: raw.partition.as_ref().map(slurm::word).transpose()?,
        options: raw.options.iter().map(slurm::option).collect::<Result<_, _>>()?,
        service_account: raw.service_account.as_ref().map(kubernetes::object).transpose()?,
    }))
}
