//! The command line: parse, run, exit code, in one place.

mod cli;
mod commands;
mod error;
mod render;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::{cli::Cli, error::CliError};

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    let outcome = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::runtime).and_then(
        |runtime| {
            let outcome = runtime.block_on(commands::execute(&cli));
            // What still runs in here is abandoned work of a command that has ended; waiting for it helps nobody.
            runtime.shutdown_background();
            outcome
        },
    );
    match outcome {
        Ok(code) => code.into(),
        Err(error) => {
            error.print(cli.global.json);
            error.code().into()
        }
    }
}

/// `FOREBAY_LOG=debug` shows what goes on inside; without it only warnings are shown.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("FOREBAY_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
