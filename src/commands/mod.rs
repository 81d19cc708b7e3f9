//! What the commands do. Each returns its exit code or one error.

mod cancel;
mod check;
mod dataset;
mod demo;
mod diff;
mod explain;
mod gc;
mod job;
mod preview;
mod repair;
mod run;
mod runs;
mod submit;
mod volume;
mod wait;
mod worker;

use forebay_coordinator::rundir::{self, RunDir};
use forebay_datasets::volume::Volume;
use forebay_jobs::{id::RunId, kinds::mapreduce::native::Natives};

use crate::{
    cli::{Cli, Command, Global},
    error::{CliError, Exit},
};

/// Executes what was typed.
pub async fn execute(cli: &Cli, natives: &Natives) -> Result<Exit, CliError> {
    let global = &cli.global;
    if let Some(run) = cli.command.about_runs()
        && let Some(submission) = submit::elsewhere(global, run)?
    {
        return submit::execute_there(global, &submission, &cli.command).await;
    }
    match &cli.command {
        Command::Run(args) => run::run(global, args, natives).await,
        Command::Submit(args) => submit::execute(global, args, natives).await,
        Command::Coordinate { parcel } => submit::coordinate(global, parcel.as_deref(), natives).await,
        Command::Resume { run } => run::resume(global, run, natives).await,
        Command::Cancel { run } => cancel::execute(global, run).await,
        Command::Wait(args) => wait::execute(global, args).await,
        Command::Explain { run, task } => explain::execute(global, run, *task).await,
        Command::Check(args) => check::execute(global, args, natives).await,
        Command::Runs(command) => runs::execute(global, command).await,
        Command::Dataset(command) => dataset::execute(global, command).await,
        Command::Volume(command) => volume::execute(global, command),
        Command::Demo => demo::execute(global).await,
        Command::Worker(args) => worker::execute(global, args, natives).await,
    }
}

/// The run of this id on the volume.
fn open_run(global: &Global, run: &RunId) -> Result<(Volume, RunDir), CliError> {
    let volume = Volume::open(&global.volume)?;
    let run = rundir::open(&volume, run)?;
    Ok((volume, run))
}

/// What the user typed to have this program, of which `forebay` is one.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "forebay".to_owned())
}
