//! From a job file's text to a [`JobSpec`], or to an error that points at the line.
//!
//! What is typed and what it means are two types: serde reads the first with the place of every value, and the modules
//! here make the second of it, a table each, with every default written out. Nothing that is typed is ignored: what
//! has no effect is an error, and so is what a later version will bring.

mod coordinator;
mod dataset;
mod ecs;
mod error;
mod kubernetes;
mod limits;
mod params;
mod raw;
mod slurm;
mod tables;
mod work;

use std::path::Path;

use toml::Spanned;

pub use self::error::SpecError;
use self::{raw::RawJob, work::Context};
use super::{JobSpec, Work};
use crate::plan::starts_early;

/// Reads a job file. Relative paths in it are relative to `base`; `overrides` replace `[params]`.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn job_file(text: &str, base: &Path, overrides: &[(String, String)]) -> Result<JobSpec, SpecError> {
    let raw: RawJob = toml::from_str(text).map_err(|error| error::syntax(&error, text))?;
    let name = name(&raw.name, 40)?;
    let params = params::params(raw.params, overrides)?;
    let early_start = raw.dataset.early_start.clone();
    let columns = raw.dataset.columns.as_ref().map(Spanned::span);
    let bad_records = raw.dataset.on_bad_record.as_ref().map(Spanned::span);
    let dataset = dataset::dataset(raw.dataset, base)?;
    let context = Context { text, base, params: &params };
    let work = match (raw.command, raw.mapreduce, raw.sql) {
        (Some(command), None, None) => Work::Command(context.command(command)?),
        (None, Some(mapreduce), None) => Work::Mapreduce(context.mapreduce(mapreduce.into_inner())?),
        (None, None, Some(sql)) => Work::Sql(context.sql(sql.into_inner(), &dataset)?),
        (None, None, None) => {
            let error = SpecError::at(&raw.name, "the job does nothing: it has no kind of work");
            return Err(error.help("add one of [sql], [command], [mapreduce]"));
        }
        (command, mapreduce, sql) => {
            let spans = [command.map(|c| c.span()), mapreduce.map(|m| m.span()), sql.map(|s| s.span())];
            let last = spans.into_iter().flatten().max_by_key(|span| span.start);
            let message = "the job has two kinds of work".to_owned();
            return Err(SpecError { message, help: Some("a job does one: make two jobs of it".into()), span: last });
        }
    };
    dataset::check_columns(&dataset, &work, columns)?;
    dataset::check_bad_records(&work, bad_records)?;
    let split = limits::split(raw.split, &work)?;
    if matches!(&work, Work::Command(command) if command.gang) {
        limits::check_gang(&raw.workers, &raw.retry)?;
    }
    let fleet = raw.workers.fleet.as_ref().map(Spanned::span);
    let time = raw.workers.time.as_ref().map(Spanned::span);
    limits::check_link(raw.workers.link.as_ref(), &work)?;
    let workers = limits::workers(raw.workers)?;
    let slurm = slurm::slurm(raw.slurm, workers.fleet)?;
    let ecs = ecs::table(raw.ecs, &workers, fleet.clone(), time)?;
    let coordinator = coordinator::coordinator(raw.coordinator, workers.fleet, ecs.as_ref())?;
    let kubernetes = kubernetes::kubernetes(raw.kubernetes, (workers.fleet, fleet), base)?;
    let retry = limits::retry(raw.retry, &work)?;
    let output = dataset::output(raw.output, base, &dataset, &work)?;
    let reuse = limits::reuse(raw.reuse.as_ref())?;
    let job = JobSpec {
        name,
        dataset,
        work,
        split,
        workers,
        coordinator,
        slurm,
        ecs,
        kubernetes,
        retry,
        params,
        output,
        reuse,
    };
    match early_start.filter(|early| *early.get_ref() && !starts_early(&job)) {
        None => Ok(job),
        Some(early) => Err(SpecError::at(&early, "no task of this job can start before all of its dataset is staged")
            .help("early_start takes no version and no gang, and a split by file or by bytes")),
    }
}

fn name(text: &Spanned<String>, longest: usize) -> Result<String, SpecError> {
    let name = text.get_ref();
    match is_name(name, longest) {
        true => Ok(name.clone()),
        false => Err(SpecError::at(text, format!("`{name}` is no name")).help(format!(
            "a name takes 1 to {longest} letters, digits, `.`, `_` or `-`, and begins with a letter or a digit"
        ))),
    }
}

/// Whether a text can be the name of a job, and of what has the same names.
pub(crate) fn is_name(name: &str, longest: usize) -> bool {
    (1..=longest).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

fn positive(number: Option<&Spanned<u32>>, default: u32, most: u32) -> Result<u32, SpecError> {
    match number {
        None => Ok(default),
        Some(number) if (1..=most).contains(number.get_ref()) => Ok(*number.get_ref()),
        Some(number) => Err(SpecError::at(number, format!("{} is out of range", number.get_ref()))
            .help(format!("it is from 1 to {most}"))),
    }
}

fn sized<T>(text: &Spanned<String>, parse: fn(&str) -> Result<T, String>) -> Result<T, SpecError> {
    parse(text.get_ref()).map_err(|message| SpecError::at(text, message))
}

#[cfg(test)]
mod tests;
