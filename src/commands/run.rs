//! `forebay run JOB` and `forebay resume RUN`: coordinate a run here, or wait for whoever does.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use forebay_coordinator::{
    driver::{self, CoordinateOptions, FailureKind, RunResult},
    run::EndState,
    rundir::{self, RunDir},
    server::everywhere,
};
use forebay_datasets::volume::Volume;
use forebay_jobs::{id::RunId, kinds::mapreduce::native::Natives, spec::FleetKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{gc, job, open_run, program};
use crate::{
    cli::{Global, RunArgs},
    error::{CliError, Exit},
    render::{self, RunView},
};

pub async fn run(global: &Global, args: &RunArgs, natives: &Natives) -> Result<Exit, CliError> {
    let (text, job) = job::read(&args.job)?;
    job::check_native(&args.job.job, &text, &job, natives)?;
    let volume = Volume::open_or_create(&global.volume)?;
    let id = args.id.clone().unwrap_or_else(|| rundir::fresh_id(&job));
    let run = rundir::create(&volume, &id, &text, &job)?.into_run();
    render::note(global.quiet, &format!("run {id}"));
    let result = coordinate(global, &volume, &run, args.pretend).await;
    let result = result.map_err(|error| error.in_query(&args.job.job.display().to_string(), &text))?;
    end(global, &result)
}

pub async fn resume(global: &Global, run: &RunId, natives: &Natives) -> Result<Exit, CliError> {
    let (volume, run) = open_run(global, run)?;
    if run.result()?.is_none() && !job::are_others(run.job()) {
        natives.check(run.job())?;
    }
    let result = coordinate(global, &volume, &run, false).await?;
    end(global, &result)
}

/// Brings a run to its end, and shows how it gets there.
pub async fn coordinate(global: &Global, volume: &Volume, run: &RunDir, pretend: bool) -> Result<RunResult, CliError> {
    let view = Arc::new(RunView::new(global.quiet, run.id(), run.job()));
    let told = Arc::clone(&view);
    let listen = match run.job().workers.fleet {
        FleetKind::Local => Ipv4Addr::LOCALHOST.into(),
        FleetKind::Slurm | FleetKind::Ecs | FleetKind::Kubernetes => everywhere(),
        FleetKind::External => {
            let program = program();
            let (root, id) = (volume.root().display(), volume.id());
            let start = format!("start workers: {program} --volume {root} worker --run {} (volume {id})", run.id());
            render::note(global.quiet, &start);
            everywhere()
        }
    };
    let listen = global.listen.unwrap_or(SocketAddr::new(listen, 0));
    let options = CoordinateOptions {
        worker_program: std::env::current_exe().map_err(CliError::runtime)?,
        listen,
        advertise: global.advertise.clone(),
        tell: Arc::new(move |progress| told.advance(progress)),
        interrupt: interrupted()?,
        pretend,
    };
    let result = driver::finish(volume, run, &options).await;
    // Here, or whatever command comes next.
    volume.empty_trash(Some(gc::AT_ONCE));
    view.finish();
    result.map_err(|error| CliError::coordinating(error, run.id()))
}

/// Cancelled by the first SIGINT or SIGTERM; the second ends the process at once.
fn interrupted() -> Result<CancellationToken, CliError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::runtime)?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        for again in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if again {
                std::process::exit(Exit::Interrupted as i32);
            }
            eprintln!("ending; once more to end at once");
            cancel.cancel();
        }
    });
    Ok(token)
}

/// Prints what a run came to, and gives its exit code.
pub fn end(global: &Global, result: &RunResult) -> Result<Exit, CliError> {
    let exit = exit(result);
    if global.json {
        println!("{}", serde_json::json!(result));
        return Ok(exit);
    }
    match result.state {
        EndState::Succeeded => {
            render::note(global.quiet, &summary(result));
            if let Some(output) = &result.output {
                println!("{}", output.path);
            }
            Ok(exit)
        }
        EndState::Cancelled => Err(CliError::new(exit, format!("run `{}` was cancelled", result.run))),
        EndState::Failed => {
            let why = result.error.as_deref().unwrap_or("it did not say why");
            let error = CliError::new(exit, format!("run `{}` failed: {why}", result.run));
            Err(match result.failure {
                Some(FailureKind::Tasks) | None => {
                    error.help(format!("`forebay runs logs {}` prints what its programs printed", result.run))
                }
                Some(FailureKind::Plan) => error.help("correct the job file and run it again; the dataset is staged"),
                Some(FailureKind::Coordination) => error.help(format!(
                    "`forebay runs tasks {}` shows what was done; mend the cause and run the job again",
                    result.run
                )),
            })
        }
    }
}

fn exit(result: &RunResult) -> Exit {
    match (result.state, result.failure) {
        (EndState::Succeeded, _) => Exit::Done,
        (EndState::Failed, Some(FailureKind::Plan)) => Exit::Usage,
        (EndState::Failed, Some(FailureKind::Coordination)) => Exit::OutOfReach,
        (EndState::Failed, Some(FailureKind::Tasks) | None) | (EndState::Cancelled, _) => Exit::TasksFailed,
    }
}

fn summary(result: &RunResult) -> String {
    let mut parts = vec![render::count(result.tasks.succeeded, "task")];
    if result.tasks.reused > 0 {
        parts.push(format!("{} reused", result.tasks.reused));
    }
    if result.tasks.failed > 0 {
        parts.push(format!("{} failed", result.tasks.failed));
    }
    parts.push(format!("{} in {:.1} s", render::count(u64::from(result.workers), "worker"), result.seconds));
    if let Some(output) = &result.output {
        let rows = output.rows.map(|rows| format!("{}, ", render::count(rows, "row"))).unwrap_or_default();
        let files = render::count(output.files.len() as u64, "file");
        parts.push(format!("{rows}{} in {files}", render::bytes(output.bytes)));
        if output.skipped_records > 0 {
            let skipped = render::count(output.skipped_records, "record");
            parts.push(format!("{skipped} left out, listed in _skipped/"));
        }
    }
    format!("run {} succeeded: {}", result.run, parts.join("; "))
}
