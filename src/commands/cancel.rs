//! `forebay cancel RUN`

use forebay_coordinator::{
    driver::{self, Attached, Cancelled, RunResult},
    run::EndState,
};
use forebay_jobs::id::RunId;
use tokio_util::sync::CancellationToken;

use super::open_run;
use crate::{
    cli::Global,
    error::{CliError, Exit},
    render,
};

/// Ends a run, and returns once it has ended.
pub async fn execute(global: &Global, run: &RunId) -> Result<Exit, CliError> {
    let (volume, run) = open_run(global, run)?;
    loop {
        match driver::cancel(&volume, &run).await? {
            Cancelled::Ended(result) => {
                print(global, &result);
                return Ok(Exit::Done);
            }
            Cancelled::TooLate => {
                let error = CliError::new(Exit::Usage, format!("all tasks of run `{}` are done", run.id()));
                return Err(error.help(format!("`forebay resume {}` publishes its output", run.id())));
            }
            Cancelled::Noted => {
                if let Attached::Ended(result) = driver::attach(&run, &CancellationToken::new()).await? {
                    print(global, &result);
                    return Ok(Exit::Done);
                }
                // Its coordinator died with the wish in its journal; without one, the run ends here.
            }
        }
    }
}

fn print(global: &Global, result: &RunResult) {
    if global.json {
        println!("{}", serde_json::json!(result));
        return;
    }
    let state = match result.state {
        EndState::Cancelled => "is cancelled",
        EndState::Succeeded => "had succeeded already",
        EndState::Failed => "had failed already",
    };
    render::note(global.quiet, &format!("run {} {state}", result.run));
}
