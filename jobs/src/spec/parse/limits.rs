//! `[split]`, `[workers]` and `[retry]`: how much at once, by whom, how often.

use std::time::Duration;

use toml::Spanned;

use super::{
    SpecError, positive,
    raw::{RawRetry, RawSplit, RawWorkers},
    sized,
};
use crate::kinds::mapreduce;
use crate::spec::{
    Engine, FleetKind, LinkKind, Mapper, RetrySpec, Reuse, SplitBy, SplitSize, SplitSpec, Work, WorkersSpec, size,
};

/// Of map-reduce, of queries by splits, and of `by = "bytes"` without a size.
const SPLIT_BYTES: u64 = 128 << 20;

pub(super) fn split(raw: Option<Spanned<RawSplit>>, work: &Work) -> Result<SplitSpec, SpecError> {
    let default = match work {
        Work::Command(_) => SplitSpec { by: SplitBy::File, size: SplitSize::Each },
        Work::Mapreduce(_) => SplitSpec { by: SplitBy::Bytes, size: SplitSize::Bytes(SPLIT_BYTES) },
        Work::Sql(sql) if sql.engine == Some(Engine::Splits) => {
            SplitSpec { by: SplitBy::Bytes, size: SplitSize::Bytes(SPLIT_BYTES) }
        }
        Work::Sql(_) => SplitSpec { by: SplitBy::Whole, size: SplitSize::Each },
    };
    let Some(raw) = raw else { return Ok(default) };
    if matches!(work, Work::Sql(sql) if sql.engine != Some(Engine::Splits)) {
        let error = SpecError::at(&raw, "a query is one task, and takes no [split]");
        return Err(error.help("remove it, or aggregate by splits: engine = \"splits\" under [sql]"));
    }
    let raw = raw.into_inner();
    let by = match &raw.by {
        None => default.by,
        Some(by) => match by.get_ref().as_str() {
            "file" => SplitBy::File,
            "bytes" | "lines" => SplitBy::Bytes,
            "row-groups" => SplitBy::RowGroups,
            "whole" => SplitBy::Whole,
            other => {
                let error = SpecError::at(by, format!("`{other}` is no way to split"));
                return Err(error.help("use file, bytes, lines, row-groups or whole"));
            }
        },
    };
    if let (SplitBy::RowGroups, Work::Mapreduce(spec), Some(place)) = (by, work, &raw.by)
        && spec.map != Mapper::ColumnStats
    {
        let error = SpecError::at(place, "row groups are no lines: what maps lines cannot read them");
        return Err(error.help("use file or bytes, column-stats, or a [command]"));
    }
    if by == SplitBy::Whole
        && let Some(span) = raw.size.as_ref().map(Spanned::span).or(raw.count.as_ref().map(Spanned::span))
    {
        let error = SpecError::at(&Spanned::new(span, ()), "the whole dataset is one split, of no other size");
        return Err(error.help("remove it, or split by file, bytes, lines or row-groups"));
    }
    let size = match (&raw.size, &raw.count) {
        (Some(_), Some(count)) => return Err(SpecError::at(count, "[split] has both size and count").help("keep one")),
        (Some(size), None) => SplitSize::Bytes(sized(size, size::bytes)?),
        (None, Some(_)) => SplitSize::Count(positive(raw.count.as_ref(), 1, crate::plan::MOST_TASKS)?),
        (None, None) if by == SplitBy::Bytes => SplitSize::Bytes(SPLIT_BYTES),
        (None, None) => SplitSize::Each,
    };
    Ok(SplitSpec { by, size })
}

const FLEETS: &str = "use local, slurm, ecs, kubernetes, or external and start `forebay worker` yourself";
/// With less hardly a program starts.
pub(super) const LEAST_MEMORY: u64 = 16 << 20;
/// A worker drains 15 s before its time is up.
const SHORTEST: Duration = Duration::from_secs(20);
/// How long a worker goes on without a coordinator, unless the job says otherwise.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The tasks of a gang run all at once and end together, so that what says otherwise cannot be followed.
pub(super) fn check_gang(workers: &RawWorkers, retry: &RawRetry) -> Result<(), SpecError> {
    let together = |place: &Spanned<()>, key| {
        let error =
            SpecError::at(place, format!("a gang runs all at once and ends together, so that {key} means nothing"));
        Err(error.help("remove it, or gang = true"))
    };
    let at = |span| Spanned::new(span, ());
    if let Some(readers) = &workers.readers {
        return together(&at(readers.span()), "readers");
    }
    if let Some(ramp) = &workers.ramp {
        return together(&at(ramp.span()), "ramp");
    }
    if let Some(failures) = &retry.max_failures {
        return together(&at(failures.span()), "max_failures");
    }
    if let Some(speculate) = &retry.speculate {
        return together(&at(speculate.span()), "speculate");
    }
    Ok(())
}

/// `reuse`
pub(super) fn reuse(raw: Option<&Spanned<String>>) -> Result<Reuse, SpecError> {
    match raw.map(|raw| (raw, raw.get_ref().as_str())) {
        None | Some((_, "auto")) => Ok(Reuse::Auto),
        Some((_, "off")) => Ok(Reuse::Off),
        Some((raw, other)) => {
            Err(SpecError::at(raw, format!("`{other}` is no way to reuse what earlier runs did"))
                .help("use auto or off"))
        }
    }
}

pub(super) fn workers(raw: RawWorkers) -> Result<WorkersSpec, SpecError> {
    let fleet = match &raw.fleet {
        None => FleetKind::Local,
        Some(fleet) => match fleet.get_ref().as_str() {
            "local" => FleetKind::Local,
            "slurm" => FleetKind::Slurm,
            "external" => FleetKind::External,
            "ecs" => FleetKind::Ecs,
            "kubernetes" => FleetKind::Kubernetes,
            other => return Err(SpecError::at(fleet, format!("there is no fleet `{other}`")).help(FLEETS)),
        },
    };
    let slots = raw.slots.is_some().then(|| positive(raw.slots.as_ref(), 1, 1024)).transpose()?;
    let patience = raw.patience.as_ref().map_or(Ok(PATIENCE), |text| sized(text, size::duration))?;
    let time = raw.time.as_ref().map(|text| match sized(text, size::duration)? {
        time if time < SHORTEST => {
            Err(SpecError::at(text, "a worker needs more time than this to end what it has begun")
                .help("give it a minute, or remove it for workers that stay"))
        }
        time => Ok(time),
    });
    let (count, time) = (positive(raw.count.as_ref(), 1, 10_000)?, time.transpose()?);
    let some = |count: Option<&Spanned<u32>>| count.map(|count| positive(Some(count), 1, 1024)).transpose();
    let (cpus, gpus) = (some(raw.cpus.as_ref())?, some(raw.gpus.as_ref())?.unwrap_or(0));
    if let (Some(slots), Some(place)) = (slots, &raw.gpus)
        && gpus % slots != 0
    {
        let message = format!("{slots} slots cannot have the same number of {gpus} gpus each");
        return Err(SpecError::at(place, message).help("a gpu belongs to one slot: take fewer slots"));
    }
    let memory = raw.memory.as_ref().map(|text| match sized(text, size::bytes)? {
        memory if memory / u64::from(slots.unwrap_or(1)) < LEAST_MEMORY => {
            Err(SpecError::at(text, "a slot would have less than 16 MiB of memory").help("write \"4GiB\""))
        }
        memory => Ok(memory),
    });
    let memory = memory.transpose()?;
    let readers = raw.readers.is_some().then(|| positive(raw.readers.as_ref(), 1, 10_000_000)).transpose()?;
    let ramp = raw.ramp.as_ref().map_or(Ok(Duration::ZERO), |text| sized(text, size::duration))?;
    let link = link(raw.link.as_ref(), fleet)?;
    Ok(WorkersSpec { fleet, count, slots, cpus, memory, gpus, readers, ramp, time, patience, link })
}

/// Nobody here knows whether workers on other hosts can reach this one.
fn link(raw: Option<&Spanned<String>>, fleet: FleetKind) -> Result<LinkKind, SpecError> {
    match (raw.map(|raw| (raw, raw.get_ref().as_str())), fleet) {
        (None, FleetKind::Local) | (Some((_, "tcp")), _) => Ok(LinkKind::Tcp),
        (None, _) | (Some((_, "auto")), _) => Ok(LinkKind::Auto),
        (Some((_, "files")), _) => Ok(LinkKind::Files),
        (Some((raw, other)), _) => Err(SpecError::at(raw, format!("there is no link by `{other}`"))
            .help("use tcp, files, or auto: files for those workers that cannot connect")),
    }
}

/// Letters reach the coordinator, and no other worker.
pub(super) fn check_link(link: Option<&Spanned<String>>, work: &Work) -> Result<(), SpecError> {
    let Some(place) = link.filter(|link| link.get_ref() == "files") else { return Ok(()) };
    let message = match work {
        Work::Command(command) if command.gang => "the ranks of a gang meet over the network",
        Work::Sql(sql) if sql.engine == Some(Engine::Ballista) => "Ballista's stages go over the network",
        _ => return Ok(()),
    };
    Err(SpecError::at(place, format!("{message}, so that letters on the volume do not do"))
        .help("use link = \"tcp\", or another kind of work"))
}

pub(super) fn retry(raw: RawRetry, work: &Work) -> Result<RetrySpec, SpecError> {
    let resplit = raw.resplit;
    if let Some(place) = resplit.as_ref().filter(|resplit| *resplit.get_ref() && !mapreduce::can_yield(work)) {
        let error = SpecError::at(place, "what a task of this job has not read cannot become other tasks");
        return Err(error.help("word-count, line-count and grep can do that; remove it"));
    }
    let (backoff_first, backoff_last) = match &raw.backoff {
        None => (Duration::from_secs(1), Duration::from_secs(60)),
        Some(text) => {
            let (first, last) = text.get_ref().split_once("..").unwrap_or((text.get_ref(), text.get_ref()));
            let part = |part: &str| size::duration(part).map_err(|message| SpecError::at(text, message));
            let (first, last) = (part(first)?, part(last)?);
            if first > last {
                return Err(SpecError::at(text, "the first wait is longer than the last").help("write \"1s..60s\""));
            }
            (first, last)
        }
    };
    let timeout =
        raw.timeout.as_ref().map(|text| match sized(text, size::duration)? {
            Duration::ZERO => Err(SpecError::at(text, "a time-out of nothing ends every attempt")
                .help("remove it for attempts without one")),
            timeout => Ok(timeout),
        });
    Ok(RetrySpec {
        attempts: positive(raw.attempts.as_ref(), 3, 1000)?,
        backoff_first,
        backoff_last,
        timeout: timeout.transpose()?,
        max_failures: raw.max_failures.map_or(0, Spanned::into_inner),
        speculate: raw.speculate.is_none_or(Spanned::into_inner),
        resplit: resplit.is_none_or(Spanned::into_inner),
    })
}
