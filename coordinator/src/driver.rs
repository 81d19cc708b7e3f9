//! Coordinates a run: takes its lease, replays its journals, and brings it to its end.
//!
//! 1. The lease is claimed, which seals every epoch before. Whoever holds it already is reported as
//!    [`CoordinateError::Held`].
//! 2. The journals are replayed, this epoch's own is begun, the link is opened and announced.
//! 3. The loop hears workers and the fleet, lets the machine decide, journals what it decided, and does what is then
//!    wanted: stage and plan, assign and kill, start workers, publish, copy.
//! 4. When the run has ended its result is written, the workers are stopped, and the lease is given back.
//!
//! Beside it all the lease is renewed. A coordinator that loses it stops at once: its successor has sealed its
//! directory, so that nothing which it still might do could arrive.
//!
//! A run whose first coordinator fails before there is a plan is forgotten: its source was wrong or out of reach, and its
//! id is free for a corrected job. Any later error that may pass (storage out of reach, a full disk, an interrupt) ends the coordinator and not the run: it
//! can be resumed. What can never succeed ends the run.

mod absent;
mod earlier;
mod early;
mod error;
mod fleet;
mod keep;
mod others;
mod prepare;
mod progress;
mod reading;
mod rendezvous;
mod result;
mod session;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod work;
mod workers;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use forebay_datasets::{output, volume::Volume};
use forebay_jobs::{
    host::Host,
    id::Epoch,
    kept::REPORTS,
    kinds::sql::{self, ballista::SHUFFLE},
    plan::Plan,
    spec::FleetKind,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use self::{
    error::CoordinateError,
    others::{Attached, Cancelled, LinkError, Observed, attach, cancel, finish, history, observe},
    progress::{RunProgress, Tell},
    result::{FailureKind, Figures, OutputFigures, PhaseFigures, RunResult, StagedFigures, TaskFigures},
};
use self::{reading::Reading, session::Session, work::Work};
use crate::{
    ballista::Scheduler,
    commit::chain,
    journal::JournalError,
    lease::{self, Claim, LeaseError},
    reuse,
    run::EndState,
    rundir::{ATTEMPTS, INPUTS, RunDir, SLOTS},
    server::{self, Advertised, Server, ServerConfig},
};

/// Of the coordinator that a run began with.
const FIRST: Epoch = Epoch(1);
/// Messages of workers that wait for the loop; more make the workers wait.
const INBOX: usize = 4096;

/// How a run is coordinated.
#[derive(Clone)]
pub struct CoordinateOptions {
    /// The program whose subcommand `worker` the fleet starts.
    pub worker_program: PathBuf,
    /// Where the link listens; port 0 is any free one.
    pub listen: SocketAddr,
    /// Where workers reach it, in the order in which they try; none: where it listens.
    pub advertise: Vec<Advertised>,
    /// Is told what happens.
    pub tell: Tell,
    /// Once cancelled, the coordinator stops its workers, gives the lease back, and ends.
    pub interrupt: CancellationToken,
    /// Whether the workers only say that they have done their tasks: to measure what coordinating costs.
    pub pretend: bool,
}

impl std::fmt::Debug for CoordinateOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("CoordinateOptions");
        shown.field("worker_program", &self.worker_program).field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// Brings a run to its end. One that has ended already gives its result.
///
/// # Errors
/// [`CoordinateError::Held`] if another coordinator is alive. Any error leaves the run to be resumed.
pub async fn coordinate(
    volume: &Volume,
    run: &RunDir,
    options: &CoordinateOptions,
) -> Result<RunResult, CoordinateError> {
    if let Some(result) = run.result()? {
        // Its coordinator may have died before it could.
        sweep(volume, run).await;
        return Ok(result);
    }
    let claim = claim(run).await?;
    // A task of its own: whatever the conducting does, the lease is renewed.
    let mut kept = AbortOnDropHandle::new(tokio::spawn(keep::keep(Arc::clone(&claim))));
    let ended = tokio::select! {
        ended = conduct(volume, run, &claim, options) => ended,
        lost = &mut kept => Err(lost.unwrap_or_else(CoordinateError::from)),
    };
    drop(kept);
    let ended = match ended {
        // What failed may have failed because the run is somebody else's now.
        Err(error) if keep::is_deposed(&claim).await => {
            tracing::debug!(%error, "after the lease was lost");
            Err(CoordinateError::Deposed)
        }
        // It leaves no name that a corrected job could not have.
        Err(error) if claim.epoch == FIRST && may_forget(run, &error) && keep::holds(&claim).await => {
            forget(volume, run).await;
            return Err(CoordinateError::NeverBegan(Box::new(error)));
        }
        ended => ended,
    };
    keep::release(claim).await;
    ended
}

fn may_forget(run: &RunDir, error: &CoordinateError) -> bool {
    !matches!(error, CoordinateError::Interrupted | CoordinateError::Deposed)
        && matches!(run.plan_path().try_exists(), Ok(false))
}

async fn forget(volume: &Volume, run: &RunDir) {
    let (volume, its) = (volume.clone(), run.clone());
    let forget = move || {
        reading::end(&volume, &its);
        volume.trash(its.path())
    };
    if let Ok(Err(error)) = tokio::task::spawn_blocking(forget).await {
        tracing::warn!(run = %run.id(), %error, "could not be removed");
    }
}

async fn claim(run: &RunDir) -> Result<Arc<Claim>, CoordinateError> {
    let dir = run.path().to_owned();
    match tokio::task::spawn_blocking(move || lease::claim(&dir)).await? {
        Ok(claim) => Ok(Arc::new(claim)),
        Err(LeaseError::Held { holder }) => Err(CoordinateError::Held { holder: holder.to_string() }),
        Err(error) => Err(error.into()),
    }
}

/// Everything between claim and release.
async fn conduct(
    volume: &Volume,
    run: &RunDir,
    claim: &Arc<Claim>,
    options: &CoordinateOptions,
) -> Result<RunResult, CoordinateError> {
    // The coordinator before may have ended between the result and its lease.
    if let Some(result) = run.result()? {
        sweep(volume, run).await;
        return Ok(result);
    }
    let wanted = &run.job().workers;
    let host = Host::here();
    let fit = match wanted.fleet {
        FleetKind::Local => host.holds(wanted)?,
        FleetKind::Slurm | FleetKind::Ecs | FleetKind::Kubernetes | FleetKind::External => u32::MAX,
    };
    (options.tell)(RunProgress::Coordinating { epoch: claim.epoch });
    let (epoch, epoch_dir) = (claim.epoch, claim.dir.clone());
    let session = open(run, epoch, epoch_dir.clone()).await?;
    let reading = Reading::default();
    if let Some(snapshot) = reads(&session) {
        reading.take(volume, run, snapshot).await?;
    }
    let plan = match session.figures.planned {
        true => Some(Arc::new(plan_of(run, session.figures.snapshot.as_deref(), &session.figures.phases).await?)),
        false => None,
    };
    if let Some(plan) = &plan {
        plan.fits(run.job(), &host)?;
    }
    let (sender, inbox) = mpsc::channel(INBOX);
    let scheduler = match sql::engine::may_distribute(run.job()) {
        true => Some(Arc::new(Scheduler::start(options.listen.ip(), volume, run.job())?)),
        false => None,
    };
    let config = ServerConfig {
        scheduler,
        listen: options.listen,
        advertise: options.advertise.clone(),
        run: run.id().clone(),
        epoch,
        job: run.job().clone(),
        volume: volume.clone(),
    };
    let mut server = Server::start(config, &epoch_dir, sender).await?;
    server.announce()?;
    let mut fleet = fleet::open(volume, run, (epoch, &epoch_dir), (&host, fit), options).await?;
    let tell = Arc::clone(&options.tell);
    let mut work = Work::new((volume, run), (epoch, epoch_dir.clone()), (session, plan), inbox, tell, reading.clone());
    let ended = tokio::select! {
        ended = work.until_ended(&mut *fleet, &mut server) => ended,
        gone = reading.keep(run) => Err(gone),
        () = options.interrupt.cancelled() => Err(CoordinateError::Interrupted),
    };
    let ended = match ended {
        Ok(state) => conclude(run, &epoch_dir, &work.session, state).await,
        // Its workers are another coordinator's now, or will be.
        Err(_) if keep::is_deposed(claim).await => return Err(CoordinateError::Deposed),
        Err(error) => Err(error),
    };
    // Whatever else happened, no worker stays.
    work.workers.shut_down();
    work.stop().await;
    let (session, plan) = work.into_parts();
    fleet.stop_all().await;
    server.stop().await;
    if ended.is_ok() {
        keep_results(volume, run, session, plan).await;
        sweep(volume, run).await;
    }
    ended
}

/// Leaves what the tasks of a run that has ended have made to later runs.
async fn keep_results(volume: &Volume, run: &RunDir, session: Session, plan: Option<Arc<Plan>>) {
    let Some(plan) = plan else { return };
    let (of, its) = (volume.clone(), run.clone());
    let keep = tokio::task::spawn_blocking(move || reuse::keep(&of, &its, &session.machine, &plan));
    if let Ok(Err(error)) = keep.await {
        tracing::warn!(run = %run.id(), error = chain(&error), "what its tasks have made is not kept for later runs");
    }
}

/// Ends the lease of a run that has ended, and removes what its attempts wrote, which is linked from its output where it
/// counts, and the second names of its inputs.
async fn sweep(volume: &Volume, run: &RunDir) {
    let (of, its) = (volume.clone(), run.clone());
    if let Err(error) = tokio::task::spawn_blocking(move || reading::end(&of, &its)).await {
        tracing::debug!(run = %run.id(), %error, "its lease on the snapshot could not be ended");
    }
    let (of, its) = (volume.clone(), run.clone());
    if let Err(error) = tokio::task::spawn_blocking(move || server::clear(&of, its.path())).await {
        tracing::debug!(run = %run.id(), %error, "what came and went with its link could not be removed");
    }
    for what in [ATTEMPTS, SLOTS, INPUTS, REPORTS, SHUFFLE] {
        let (volume, dir) = (volume.clone(), run.path().join(what));
        if !dir.exists() {
            continue;
        }
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || volume.trash(&dir)).await {
            tracing::warn!(run = %run.id(), %error, "its {what} could not be removed");
        }
    }
}

/// The snapshot that what is left of a planned run reads; what is only to be published or copied reads none.
fn reads(session: &Session) -> Option<&str> {
    let tasks = session.figures.tasks();
    let works = tasks.succeeded < tasks.total && !session.machine.is_stopping();
    session.figures.snapshot.as_deref().filter(|_| works)
}

async fn open(run: &RunDir, epoch: Epoch, epoch_dir: PathBuf) -> Result<Session, CoordinateError> {
    let run = run.clone();
    tokio::task::spawn_blocking(move || Session::open(&run, epoch, &epoch_dir)).await?
}

/// The plan that the journal tells of, and no other.
async fn plan_of(run: &RunDir, snapshot: Option<&str>, phases: &[PhaseFigures]) -> Result<Plan, CoordinateError> {
    let path = run.plan_path();
    let plan = tokio::task::spawn_blocking(move || Plan::read(&path)).await??;
    let planned = plan.phases().into_iter().map(u64::from);
    // A plan that was made ahead of the snapshot never learns which that is.
    let same = plan.snapshot.is_none() || plan.snapshot.as_deref() == snapshot;
    match same && planned.eq(phases.iter().map(|phase| phase.total)) {
        true => Ok(plan),
        false => {
            let why = "the plan is another one than they were written for".to_owned();
            Err(JournalError::Impossible { run: run.path().to_owned(), why }.into())
        }
    }
}

/// Writes the result of a run whose machine has ended.
async fn conclude(
    run: &RunDir,
    epoch_dir: &std::path::Path,
    session: &Session,
    state: EndState,
) -> Result<RunResult, CoordinateError> {
    let (run, epoch_dir, figures) = (run.clone(), epoch_dir.to_owned(), session.figures.clone());
    let write = move || {
        let output = match figures.published {
            Some((bytes, rows)) => {
                let dir = run.output_dir();
                let manifest = output::read_published(&dir).map_err(CoordinateError::Published)?;
                let files = manifest.objects.into_iter().map(|object| object.key).collect();
                let (path, skipped_records) = (dir.display().to_string(), figures.skipped_records);
                Some(OutputFigures { path, files, rows, bytes, skipped_records })
            }
            None => None,
        };
        let (error, failure) = figures.error(state).unzip();
        let result = RunResult {
            version: 1,
            run: run.id().clone(),
            state,
            snapshot: figures.snapshot.clone(),
            staged: run.staged()?,
            tasks: figures.tasks(),
            workers: figures.most_workers,
            seconds: figures.seconds(),
            output,
            error,
            failure,
        };
        run.write_result(&epoch_dir, &result)?;
        Ok(result)
    };
    tokio::task::spawn_blocking(write).await?
}
