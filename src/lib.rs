//! Batch and parallel data processing on shared storage: the command line, and what a crate needs that compiles a map and a
//! reduce of its own into it.
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use forebay::{Column, Emit, Job, Map, Record, Reduce, Result, Rows, Values};
//!
//! struct Words;
//!
//! impl Map for Words {
//!     fn map(&mut self, record: Record<'_>, out: &mut Emit<'_>) -> Result {
//!         record.text()?.split_whitespace().for_each(|word| out.emit(word, 1_u64));
//!         Ok(())
//!     }
//! }
//!
//! struct Sum;
//!
//! impl Reduce for Sum {
//!     fn reduce(&mut self, key: &[u8], values: &mut Values<'_>, out: &mut Rows<'_>) -> Result {
//!         out.row(&[key.into(), values.of::<u64>().sum::<u64>().into()]);
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     forebay::main([Job::named("words")
//!         .map(|_| Ok(Words))
//!         .combine(|some: u64, more: u64| some + more)
//!         .reduce([Column::text("word"), Column::uint("count")], |_| Ok(Sum))])
//! }
//! ```
//!
//! The program is `forebay` with one job more: `my-program run job.toml` coordinates, and starts itself as workers. On other
//! hosts it is `my-program --volume DIR worker --run RUN` that is started. The job file says
//!
//! ```toml
//! [mapreduce]
//! map = { native = "words" }
//! ```

mod cli;
mod commands;
mod error;
mod render;
pub mod s3_server;

use std::process::ExitCode;

use clap::Parser;
use forebay_jobs::kinds::mapreduce::native::Natives;
pub use forebay_jobs::{
    BoxError, Cell, Column, Decode, Emit, Encode, Encoder, Fixed, Job, Map, Params, Record, Reduce, Result, Rows,
    Values, decode,
};
use tracing_subscriber::EnvFilter;

use crate::{cli::Cli, error::CliError};

/// The command line: does what was typed, with these jobs beside what is built in.
pub fn main(jobs: impl IntoIterator<Item = Job>) -> ExitCode {
    run(jobs.into_iter().collect())
}

/// Not generic, so that all it calls is compiled here, and not once more in each crate that calls [`main`].
fn run(jobs: Vec<Job>) -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    let outcome = Natives::new(jobs).map_err(CliError::from).and_then(|natives| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::runtime)?;
        let outcome = runtime.block_on(commands::execute(&cli, &natives));
        // What still runs in here is abandoned work of a command that has ended; waiting for it helps nobody.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(code) => code.into(),
        Err(error) => {
            error.print(cli.global.json);
            error.code().into()
        }
    }
}

/// `FOREBAY_LOG=debug` shows what goes on inside; without it only warnings are shown. What a client of Kubernetes
/// makes of each answer, its caller tells.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("FOREBAY_LOG").unwrap_or_else(|_| EnvFilter::new("warn,kube_client=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
