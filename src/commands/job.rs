//! The job file that is named on the command line.

use std::path::Path;

use forebay_jobs::spec::{JobSpec, parse};

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
