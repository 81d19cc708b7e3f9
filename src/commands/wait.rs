//! `forebay wait RUN`

use std::time::{Duration, Instant};

use forebay_coordinator::{
    driver::{self, Attached},
    rundir::RunDir,
};
use forebay_jobs::id::RunId;
use tokio_util::sync::CancellationToken;

use super::{open_run, run::end, submit};
use crate::{
    cli::{Global, WaitArgs},
    error::{CliError, Exit},
};

/// From the beginning of a coordinator that was submitted to its run's being there, and seen here.
const APPEARS: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

pub async fn execute(global: &Global, args: &WaitArgs) -> Result<Exit, CliError> {
    let never = CancellationToken::new();
    let attached = async {
        let run = appeared(global, &args.run, args.soon).await?;
        Ok::<_, CliError>((driver::attach(&run, &never).await?, run))
    };
    let (attached, run) = in_time(&args.run, args.timeout, attached).await??;
    match attached {
        Attached::Ended(result) => end(global, &result),
        Attached::Abandoned => {
            let error = CliError::new(Exit::OutOfReach, format!("run `{}` has no coordinator any more", run.id()));
            // Who waits from where the volume is not cannot coordinate there.
            let how = if args.soon { "submit JOB --id" } else { "resume" };
            Err(error.help(format!("nothing is lost: bring it to its end with `forebay {how} {}`", run.id())))
        }
    }
}

/// Does something in the time that was typed; without one there is no limit.
pub async fn in_time<T>(run: &RunId, timeout: Option<Duration>, what: impl Future<Output = T>) -> Result<T, CliError> {
    let Some(timeout) = timeout else { return Ok(what.await) };
    tokio::time::timeout(timeout, what).await.map_err(|_| {
        CliError::new(Exit::TimedOut, format!("run `{run}` has not ended yet"))
            .help(format!("`forebay runs show {run}` shows how far it is"))
    })
}

/// The run, which may have been submitted and not have begun.
async fn appeared(global: &Global, run: &RunId, soon: bool) -> Result<RunDir, CliError> {
    let error = match open_run(global, run) {
        Err(error) if error.code() == Exit::NotFound => error,
        opened => return opened.map(|(_, run)| run),
    };
    match submit::record::find(&global.volume, Some(run))? {
        Some(submission) => submit::has_begun(global, &submission).await?,
        None if soon => {}
        None => return Err(error),
    }
    let begun = Instant::now();
    loop {
        match open_run(global, run) {
            Err(error) if error.code() == Exit::NotFound && begun.elapsed() < APPEARS => {}
            opened => return opened.map(|(_, run)| run),
        }
        // No file server tells of a new name.
        tokio::time::sleep(LOOK).await;
    }
}
