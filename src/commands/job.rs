//! The job file that is named on the command line.

use std::path::Path;

use forebay_jobs::{
    kinds::mapreduce::native::{NativeError, Natives},
    spec::{
        FleetKind, JobSpec,
        parse::{self, SpecError},
    },
};

use crate::{
    cli::JobArgs,
    error::{CliError, Exit},
};

/// Reads a job file, as text and as resolved; what is wrong with it is shown where it is.
pub fn read(args: &JobArgs) -> Result<(String, JobSpec), CliError> {
    let path = &args.job;
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Usage };
        CliError::new(exit, format!("cannot read the job file {shown}: {error}"))
    })?;
    let base = std::path::absolute(path).ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
    match parse::job_file(&text, &base, &args.set) {
        Ok(job) => Ok((text, job)),
        Err(error) => Err(CliError::in_job(&shown, text, error)),
    }
}

/// Whether its workers' program is not this one: whoever starts them has chosen it, or it is in an image.
pub fn are_others(job: &JobSpec) -> bool {
    matches!(job.workers.fleet, FleetKind::External | FleetKind::Ecs | FleetKind::Kubernetes)
}

/// Whether what a job file calls for is compiled into this program, where this program is what its workers will be.
pub fn check_native(path: &Path, text: &str, job: &JobSpec, natives: &Natives) -> Result<(), CliError> {
    match natives.check(job) {
        Err(NativeError::Absent { .. }) if are_others(job) => Ok(()),
        Err(error) => {
            let named = job.native().and_then(|name| Some((text.find("native")?, name)));
            let found = named.and_then(|(at, name)| Some((at + text[at..].find(name)?, name)));
            let span = found.map(|(at, name)| at..at + name.len());
            let error = CliError::from(error);
            let error = SpecError { message: error.to_string(), help: error.advice(), span };
            Err(CliError::in_job(&path.display().to_string(), text.to_owned(), error))
        }
        Ok(()) => Ok(()),
    }
}
