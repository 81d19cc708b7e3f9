//! `[coordinator]`

use toml::Spanned;

use super::{SpecError, limits::LEAST_MEMORY, positive, raw::RawCoordinator, sized, slurm};
use crate::spec::{FleetKind, coordinator::CoordinatorSpec, size};

pub(super) fn coordinator(
    raw: Option<Spanned<RawCoordinator>>,
    fleet: FleetKind,
) -> Result<Option<CoordinatorSpec>, SpecError> {
    let Some(raw) = raw else { return Ok(None) };
    if fleet != FleetKind::Slurm {
        let error = SpecError::at(&raw, "this fleet starts no coordinator: it is where `forebay run` is");
        return Err(error.help("write fleet = \"slurm\" under [workers], or remove it"));
    }
    let raw = raw.into_inner();
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
    }))
}
