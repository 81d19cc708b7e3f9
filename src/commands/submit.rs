//! `forebay submit JOB`, and what its fleet then executes: `forebay coordinate [PARCEL]`.

pub(super) mod record;

use std::{
    io::{self, Read},
    path::Path,
    time::Duration,
};

use forebay_coordinator::{
    rundir,
    submit::{PARCEL, Standing, Submission, SubmitError},
};
use forebay_datasets::volume::{Volume, VolumeError};
use forebay_jobs::{
    id::RunId,
    kinds::mapreduce::native::Natives,
    parcel::Parcel,
    spec::{FleetKind, JobSpec, parse::SpecError},
};

use super::{job, program, run, wait};
use crate::{
    cli::{Command, Global, SubmitArgs},
    error::{CliError, Exit},
    render,
};

/// Between two looks at what an engine does with a coordinator.
const LOOK: Duration = Duration::from_secs(2);

/// Starts the run's coordinator on its fleet, and says which run it is.
pub async fn execute(global: &Global, args: &SubmitArgs, natives: &Natives) -> Result<Exit, CliError> {
    let (text, spec) = job::read(&args.job)?;
    job::check_native(&args.job.job, &text, &spec, natives)?;
    if let FleetKind::Local | FleetKind::External = spec.workers.fleet {
        let message = format!("the fleet `{}` starts no coordinator", spec.workers.fleet.name());
        let help = format!(
            "`{} run` coordinates here; or write fleet = \"slurm\", \"ecs\" or \"kubernetes\" under [workers]",
            program()
        );
        let error = SpecError { message, help: Some(help), span: text.find("fleet").map(|at| at..at + "fleet".len()) };
        return Err(CliError::in_job(&args.job.job.display().to_string(), text, error));
    }
    let run = args.id.clone().unwrap_or_else(|| rundir::fresh_id(&spec));
    let parcel = Parcel::pack(run.clone(), text, there(spec.clone())).map_err(SubmitError::from)?;
    let submission = Submission {
        run: run.clone(),
        job: spec,
        volume: std::path::absolute(&global.volume).map_err(CliError::runtime)?,
        program: std::env::current_exe().map_err(CliError::runtime)?,
    };
    // Before anybody is asked: what was started is never unknown here.
    let before = record::find(&global.volume, Some(&run))?;
    record::keep(&submission)?;
    let submitted = match submission.submit(&parcel.seal()).await {
        Err(error @ SubmitError::Conflict { .. }) => {
            // The run of this name is the other one.
            before.map_or_else(|| record::forget(&run), |before| record::keep(&before))?;
            return Err(error.into());
        }
        submitted => submitted?,
    };
    let how = if submitted.is_old { "coordinates it already" } else { "coordinates it" };
    render::note(
        global.quiet,
        &format!("{} {how}; `{} wait {run}` waits for its end", submitted.coordinator, program()),
    );
    match global.json {
        true => println!("{}", serde_json::json!({ "version": 1, "run": run, "coordinator": submitted.coordinator })),
        false => println!("{run}"),
    }
    Ok(Exit::Done)
}

/// The job without what is so only here: in the cluster a coordinator is who its pod is.
fn there(mut job: JobSpec) -> JobSpec {
    if let Some(kubernetes) = &mut job.kubernetes {
        (kubernetes.kubeconfig, kubernetes.context) = (None, None);
    }
    job
}

/// Coordinates a run that was submitted elsewhere.
pub async fn coordinate(global: &Global, parcel: Option<&Path>, natives: &Natives) -> Result<Exit, CliError> {
    let mut text = String::new();
    let read = match parcel {
        None => std::env::var(PARCEL)
            .map(|read| text = read)
            .map_err(|error| io::Error::other(format!("{PARCEL}: {error}"))),
        Some(path) if path == Path::new("-") => io::stdin().read_to_string(&mut text).map(drop),
        Some(path) => std::fs::read_to_string(path).map(|read| text = read),
    };
    let out_of_reach = |error: &dyn std::fmt::Display| CliError::new(Exit::OutOfReach, error.to_string());
    read.map_err(|error| out_of_reach(&format!("cannot read the job that was submitted: {error}")))?;
    let parcel = Parcel::open(&text).map_err(SubmitError::from)?;
    let (run, text) = (parcel.run.clone(), parcel.text.clone());
    let dir = tempfile::Builder::new().prefix("forebay-").tempdir().map_err(CliError::runtime)?;
    let job = parcel.unpack(dir.path()).map_err(SubmitError::from)?;
    if !job::are_others(&job) {
        natives.check(&job)?;
    }
    let volume = Volume::open_or_create(&global.volume)?;
    let created = rundir::create(&volume, &run, &text, &job)?.into_run();
    drop(dir);
    render::note(global.quiet, &format!("run {run}"));
    let result = run::coordinate(global, &volume, &created, false).await?;
    run::end(global, &result)
}

/// Where a command about a run is executed if not here: where the run was submitted to, if the volume is not here.
pub fn elsewhere(global: &Global, run: Option<&RunId>) -> Result<Option<Submission>, CliError> {
    match Volume::open(&global.volume) {
        Err(VolumeError::Missing { .. }) => record::find(&global.volume, run),
        _ => Ok(None),
    }
}

/// Has what was typed executed there, in the place of this process.
pub async fn execute_there(global: &Global, submission: &Submission, command: &Command) -> Result<Exit, CliError> {
    let mut arguments = without_volume(std::env::args().skip(1));
    if let Command::Wait(args) = command {
        wait::in_time(&args.run, args.timeout, has_begun(global, submission)).await??;
        arguments.push("--soon".to_owned());
    }
    let code = submission.execute(&arguments).await?;
    // Its words were printed already.
    std::process::exit(code)
}

/// Waits until a run that was submitted from here has begun, and says what keeps it waiting.
pub async fn has_begun(global: &Global, submission: &Submission) -> Result<(), CliError> {
    let mut told = String::new();
    while let Standing::Waits(why) = submission.standing().await? {
        if told != why {
            render::note(global.quiet, &format!("run {} waits: {why}", submission.run));
            told = why;
        }
        // No engine tells when it goes on.
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// The arguments without the volume, which has another path there.
fn without_volume(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut is_value = false;
    let stays = |argument: &String| {
        let was_value = std::mem::replace(&mut is_value, argument == "--volume");
        !was_value && !is_value && !argument.starts_with("--volume=")
    };
    arguments.filter(stays).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_lose_their_volume_and_nothing_else() {
        let left = |typed: &str| without_volume(typed.split(' ').map(str::to_owned)).join(" ");
        assert_eq!(left("--volume /v wait r --timeout 9s"), "wait r --timeout 9s");
        assert_eq!(left("runs show r --volume=/v --json"), "runs show r --json");
        assert_eq!(left("runs logs r --task 3 --volume v"), "runs logs r --task 3");
    }
}
