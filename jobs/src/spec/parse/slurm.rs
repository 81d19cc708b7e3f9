//! `[slurm]`: where Slurm starts workers.

use std::path::PathBuf;

use toml::Spanned;

use super::{SpecError, raw::RawSlurm};
use crate::spec::{FleetKind, SlurmSpec};

/// Options of `sbatch` that forebay itself gives, or has no use for, and what says the same in a job file.
const OURS: [(&[&str], &str); 9] = [
    (&["array", "a"], "[workers] count says how many workers there are"),
    (&["parsable", "wrap", "job-name", "J"], "remove it"),
    (&["requeue", "no-requeue", "signal"], "remove it: workers end in time, and their tasks go on elsewhere"),
    (
        &["nodes", "N", "ntasks", "n", "ntasks-per-node"],
        "a worker is one task on one node; [workers] count says how many",
    ),
    (&["cpus-per-task", "c"], "write cpus in its place"),
    (&["mem", "mem-per-cpu"], "write memory in its place"),
    (&["time", "t", "time-min"], "write time in its place"),
    (&["gpus", "G", "gpus-per-node", "gpus-per-task"], "write [workers] gpus"),
    (&["partition", "p", "account", "A", "qos", "q", "gres"], "write it as a key of [slurm]"),
];

pub(super) fn slurm(raw: Option<Spanned<RawSlurm>>, fleet: FleetKind) -> Result<Option<SlurmSpec>, SpecError> {
    let raw = match (raw, fleet) {
        (Some(raw), FleetKind::Slurm) => raw.into_inner(),
        (Some(raw), _) => {
            let error = SpecError::at(&raw, "[slurm] means nothing to this fleet");
            return Err(error.help("write fleet = \"slurm\" under [workers], or remove it"));
        }
        (None, FleetKind::Slurm) => RawSlurm::default(),
        (None, _) => return Ok(None),
    };
    let named = |name: Option<&Spanned<String>>| name.map(word).transpose();
    Ok(Some(SlurmSpec {
        partition: named(raw.partition.as_ref())?,
        account: named(raw.account.as_ref())?,
        qos: named(raw.qos.as_ref())?,
        gres: named(raw.gres.as_ref())?,
        options: raw.options.iter().map(workers_option).collect::<Result<_, _>>()?,
        setup: raw.setup.iter().map(line).collect::<Result<_, _>>()?,
        program: raw.program.as_ref().map(program).transpose()?,
    }))
}

/// Those of the files of workers, which belong on the volume.
const FILES: [&str; 7] = ["output", "o", "error", "e", "open-mode", "chdir", "D"];

/// What Slurm takes for a name, or for a list of them.
pub(super) fn word(text: &Spanned<String>) -> Result<String, SpecError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.,:=+@/()*-".contains(&byte);
    match text.get_ref() {
        word if !word.is_empty() && !word.starts_with('-') && word.bytes().all(is_plain) => Ok(word.clone()),
        word => {
            let error = SpecError::at(text, format!("`{word}` is no name that Slurm knows"));
            Err(error.help("names are of letters, digits and `_.,:=+@/()*-`"))
        }
    }
}

fn workers_option(text: &Spanned<String>) -> Result<String, SpecError> {
    let given = option(text)?;
    let name = given.trim_start_matches('-').split('=').next().unwrap_or_default();
    match FILES.contains(&name) {
        true => Err(SpecError::at(text, format!("`--{name}` is not an option to give here")).help("remove it")),
        false => Ok(given),
    }
}

pub(super) fn option(text: &Spanned<String>) -> Result<String, SpecError> {
    let given = text.get_ref();
    let Some(long) = given.strip_prefix("--").filter(|long| !long.is_empty()) else {
        let error = SpecError::at(text, format!("`{given}` is no long option of sbatch"));
        return Err(error.help("write it as \"--name=value\": \"--constraint=c5\""));
    };
    let name = long.split('=').next().unwrap_or(long);
    match OURS.iter().find(|(names, _)| names.contains(&name)) {
        Some((_, help)) => Err(SpecError::at(text, format!("`--{name}` is not an option to give here")).help(*help)),
        None => line(text),
    }
}

fn line(text: &Spanned<String>) -> Result<String, SpecError> {
    match text.get_ref() {
        line if line.contains(['\n', '\0']) => {
            Err(SpecError::at(text, "this is more than one line").help("write each line as an element of the array"))
        }
        line => Ok(line.clone()),
    }
}

fn program(text: &Spanned<String>) -> Result<PathBuf, SpecError> {
    let path = PathBuf::from(text.get_ref());
    match path.is_absolute() && line(text).is_ok() {
        true => Ok(path),
        false => Err(SpecError::at(text, "nodes cannot find the program by this path")
            .help("write the absolute path that it has on the nodes")),
    }
}
