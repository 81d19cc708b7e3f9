//! What the commands do. Each returns its exit code or one error.

mod check;
mod dataset;

use crate::{
    cli::{Cli, Command},
    error::{CliError, Exit},
};

/// Executes what was typed.
pub async fn execute(cli: &Cli) -> Result<Exit, CliError> {
    match &cli.command {
        Command::Check(args) => check::execute(&cli.global, args).await,
        Command::Dataset(command) => dataset::execute(&cli.global, command).await,
    }
}
