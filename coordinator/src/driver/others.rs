//! What others do with a run that this process does not coordinate: watch it, wait for it, end it.

use std::{fs, path::Path, time::Duration};

use forebay_datasets::volume::Volume;
use forebay_jobs::{
    id::{RunId, TaskId},
    link::{LinkClient, Unreachable},
    mail,
    wire::{CancelRequest, LinkFile},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    CoordinateError, CoordinateOptions, RunProgress, RunResult, claim, conclude, coordinate, keep, open,
    result::Figures,
    session::{fold, replay},
    sweep,
};
use crate::{
    lease::{self, LeaseState},
    run::{Event, Input, Run},
    rundir::RunDir,
};

/// How often a result is looked for: no file server tells its clients of a new name.
const LOOK: Duration = Duration::from_millis(200);
/// How often a lease is looked at, which creates a file on the volume.
const LOOK_AT_LEASE: Duration = Duration::from_secs(2);

/// How long a coordinator may take to say how it is reached.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to note that its run is to end.
const ANSWER: Duration = Duration::from_secs(30);

/// Why another coordinator could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// How it is reached cannot be read.
    #[error("the run's coordinator does not say how it is reached")]
    Unknown(#[source] std::io::Error),
    /// How it is reached cannot be understood.
    #[error("the run's coordinator says in an unknown way how it is reached")]
    Malformed(#[source] serde_json::Error),
    /// No connection.
    #[error("cannot reach the run's coordinator")]
    Unreachable(#[from] Unreachable),
    /// It refused.
    #[error("the run's coordinator did not do it: {}", .0.message())]
    Refused(Box<Status>),
}

/// What waiting for another coordinator came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Attached {
    /// The run has ended.
    Ended(Box<RunResult>),
    /// The run has no live coordinator: this process may take it over.
    Abandoned,
}

/// Waits for a run that another process coordinates.
pub async fn attach(run: &RunDir, interrupt: &CancellationToken) -> Result<Attached, CoordinateError> {
    let mut looked_at_lease = Instant::now();
    loop {
        if let Some(result) = run.result()? {
            return Ok(Attached::Ended(Box::new(result)));
        }
        if looked_at_lease.elapsed() >= LOOK_AT_LEASE {
            if !matches!(lease_of(run).await?, LeaseState::Live { .. }) {
                // It may have ended in the order result, lease.
                let result = run.result()?.map(Box::new);
                return Ok(result.map_or(Attached::Abandoned, Attached::Ended));
            }
            looked_at_lease = Instant::now();
        }
        tokio::select! {
            // Until the next look: nothing tells when another host has written the result.
            () = tokio::time::sleep(LOOK) => {}
            () = interrupt.cancelled() => return Err(CoordinateError::Interrupted),
        }
    }
}

async fn lease_of(run: &RunDir) -> Result<LeaseState, CoordinateError> {
    let dir = run.path().to_owned();
    Ok(tokio::task::spawn_blocking(move || lease::observe(&dir)).await??)
}

/// Coordinates a run, or waits for whoever does, and takes over if they die.
pub async fn finish(volume: &Volume, run: &RunDir, options: &CoordinateOptions) -> Result<RunResult, CoordinateError> {
    loop {
        match coordinate(volume, run, options).await {
            Err(CoordinateError::Held { holder }) => (options.tell)(RunProgress::Attached { holder }),
            ended => return ended,
        }
        if let Attached::Ended(result) = attach(run, &options.interrupt).await? {
            return Ok(*result);
        }
    }
}

/// What asking for a run's end came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Cancelled {
    /// Its coordinator took note, and ends it.
    Noted,
    /// It has ended: now, since it had no coordinator, or long ago.
    Ended(Box<RunResult>),
    /// All of its tasks are done: what is being published is not called back. A resume ends it.
    TooLate,
}

/// Ends a run, through its coordinator if it has one.
pub async fn cancel(volume: &Volume, run: &RunDir) -> Result<Cancelled, CoordinateError> {
    let asked = Instant::now();
    loop {
        if let Some(result) = run.result()? {
            return Ok(Cancelled::Ended(Box::new(result)));
        }
        match claim(run).await {
            Ok(claim) => {
                let ended = end_unattended(run, &claim).await;
                if let Ok(Some(_)) = ended {
                    sweep(volume, run).await;
                }
                keep::release(claim).await;
                return ended
                    .map(|result| result.map_or(Cancelled::TooLate, |result| Cancelled::Ended(Box::new(result))));
            }
            Err(CoordinateError::Held { .. }) => {}
            Err(error) => return Err(error),
        }
        match ask_to_cancel(run.id(), &run.path().join("epochs")).await {
            Ok(()) => return Ok(Cancelled::Noted),
            // It may have ended at this moment, or died; the lease tells which.
            Err(error) => match (lease_of(run).await?, error) {
                // It has claimed the run, and is about to say how it is reached.
                (LeaseState::Live { .. }, LinkError::Unknown(_)) if asked.elapsed() < PATIENCE => {
                    // Nothing tells when it has.
                    tokio::time::sleep(LOOK).await;
                }
                (LeaseState::Live { .. }, error) if run.result()?.is_none() => return Err(error.into()),
                _ => {}
            },
        }
    }
}

async fn ask_to_cancel(run: &RunId, epochs: &Path) -> Result<(), LinkError> {
    let entries = fs::read_dir(epochs).map_err(LinkError::Unknown)?.flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let newest = epochs.join(numbers.max().unwrap_or(0).to_string());
    let text = fs::read(newest.join(LinkFile::NAME)).map_err(LinkError::Unknown)?;
    let link: LinkFile = serde_json::from_slice(&text).map_err(LinkError::Malformed)?;
    let request = CancelRequest { run: run.clone() };
    let answered = match LinkClient::connect(&link).await {
        Ok(client) => client.cancel(request, ANSWER).await.map(drop),
        Err(_) if link.mail => mail::ask_to_cancel(newest, &link.token, request, ANSWER).await,
        Err(unreachable) => return Err(unreachable.into()),
    };
    answered.map_err(|status| LinkError::Refused(Box::new(status)))
}

/// Ends a run that nobody coordinates. Its workers, if there still are any, need not be waited for: they end once they see
/// that the run has. None if there is nothing left of it to end but publishing.
async fn end_unattended(run: &RunDir, claim: &lease::Claim) -> Result<Option<RunResult>, CoordinateError> {
    if let Some(result) = run.result()? {
        return Ok(Some(result));
    }
    let mut session = open(run, claim.epoch, claim.dir.clone()).await?;
    session.take(&Input::Opened { epoch: claim.epoch });
    session.take(&Input::Cancel);
    if session.machine.is_stopping() {
        let gone: Vec<_> = session.machine.workers().map(|worker| Input::Gone { worker: worker.clone() }).collect();
        session.take_all(&gone);
    }
    session.commit().await?;
    match session.machine.ended() {
        Some(state) => conclude(run, &claim.dir, &session, state).await.map(Some),
        None => Ok(None),
    }
}

/// A run as its journals tell it, whether or not it is being coordinated.
#[derive(Debug)]
pub struct Observed {
    /// Its machine.
    pub machine: Run,
    /// Its figures.
    pub figures: Figures,
    /// Who coordinates it.
    pub lease: LeaseState,
    /// Its result, once it has ended.
    pub result: Option<RunResult>,
}

/// The events of a run that are about a task, in order.
pub async fn history(run: &RunDir, task: TaskId) -> Result<Vec<Event>, CoordinateError> {
    let run = run.clone();
    let is_about = move |event: &Event| match event {
        Event::Assigned { attempts, .. } | Event::Started { attempts, .. } => {
            attempts.iter().any(|attempt| attempt.task == task)
        }
        Event::Finished { finished, .. } => finished.attempt.task == task,
        Event::GangBroke | Event::GangReady => true,
        Event::Sought { phase, .. } => *phase == task.phase,
        Event::Reused { tasks, .. } => tasks.iter().any(|reused| reused.attempt.task == task),
        Event::Committed { attempt, .. }
        | Event::AttemptFailed { attempt, .. }
        | Event::AttemptReturned { attempt, .. } => attempt.task == task,
        _ => false,
    };
    let look = move || Ok(replay(&run, None)?.events.into_iter().filter(is_about).collect());
    tokio::task::spawn_blocking(look).await?
}

/// Looks at a run, and changes nothing.
pub async fn observe(run: &RunDir) -> Result<Observed, CoordinateError> {
    let run = run.clone();
    let look = move || {
        let (machine, figures) = fold(&run, &replay(&run, None)?.events)?;
        Ok(Observed { machine, figures, lease: lease::observe(run.path())?, result: run.result()? })
    };
    tokio::task::spawn_blocking(look).await?
}
