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
    let (_, run) = open_run(global, run)?;
    let result = match driver::cancel(&run).await? {
        Cancelled::Ended(result) => result,
        Cancelled::Noted => match driver::attach(&run, &CancellationToken::new()).await? {
            Attached::Ended(result) => result,
            // Its coordinator died with the wish in its journal.
            Attached::Abandoned => match driver::cancel(&run).await? {
                Cancelled::Ended(result) => result,
                Cancelled::Noted => return Err(CliError::new(Exit::OutOfReach, "the run did not end; try again")),
            },
        },
    };
    print(global, &result);
    Ok(Exit::Done)
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
