//! `forebay wait RUN`

use std::time::Duration;

use forebay_coordinator::driver::{self, Attached};
use forebay_jobs::id::RunId;
use tokio_util::sync::CancellationToken;

use super::{open_run, run::end};
use crate::{
    cli::Global,
    error::{CliError, Exit},
};

pub async fn execute(global: &Global, run: &RunId, timeout: Option<Duration>) -> Result<Exit, CliError> {
    let (_, run) = open_run(global, run)?;
    // The limit that was typed; without one there is none.
    let timeout = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let never = CancellationToken::new();
    let attached = tokio::select! {
        biased;
        attached = driver::attach(&run, &never) => attached?,
        () = timeout => {
            let error = CliError::new(Exit::TimedOut, format!("run `{}` has not ended yet", run.id()));
            return Err(error.help(format!("`forebay runs show {}` shows how far it is", run.id())));
        }
    };
    match attached {
        Attached::Ended(result) => end(global, &result),
        Attached::Abandoned => {
            let error = CliError::new(Exit::OutOfReach, format!("run `{}` has no coordinator any more", run.id()));
            Err(error.help(format!("nothing is lost: bring it to its end with `forebay resume {}`", run.id())))
        }
    }
}
