//! `forebay check JOB`: everything that can be found out before any data moves.

use std::ops::ControlFlow;

use forebay_coordinator::fleet::kubernetes::Kubernetes;
use forebay_datasets::{
    snapshot::{self, Snapshot},
    source::{Listed, Source},
    volume::Volume,
};
use forebay_jobs::{
    host::Host,
    kinds::{
        TaskError,
        mapreduce::native::Natives,
        sql::{self, engine::Choice},
    },
    plan::{self, PlanError},
    spec::{ColumnsSpec, FleetKind, Work},
};
use serde_json::json;

use crate::{
    cli::{Global, JobArgs},
    commands::job,
    error::{CliError, Exit},
    render,
};

pub async fn execute(global: &Global, args: &JobArgs, natives: &Natives) -> Result<Exit, CliError> {
    let (text, job) = job::read(args)?;
    job::check_native(&args.job, &text, &job, natives)?;
    if job.workers.fleet == FleetKind::Local {
        Host::here().holds(&job.workers)?;
    }
    if job.workers.fleet == FleetKind::Kubernetes {
        let refused = |why| CliError::new(Exit::OutOfReach, format!("no worker can be started: {why}"));
        Kubernetes::check(&job, &global.volume).await.map_err(refused)?;
    }
    let request = job.dataset.stage_request()?;
    let mut source = Source::connect(&request.url, &request.options).await?;
    let (mut objects, mut bytes) = (0, 0);
    let mut count = |page: Vec<Listed>| {
        objects += page.len();
        bytes += page.iter().map(|object| object.size).sum::<u64>();
        ControlFlow::Continue(())
    };
    source.list(&mut count).await?;
    // What is staged already tells the columns and the cuts; what is not, no listing can tell.
    let staged = Volume::open(&global.volume).ok();
    let staged = staged.and_then(|volume| Some((snapshot::open(&volume, &job.dataset.name, None).ok()?, volume)));
    let (mut tasks, mut explanation, mut engine) = (None, None, None);
    let threads = job.workers.slots_of(Host::here().cores) as usize;
    let wrong = |error: &TaskError| {
        let error = CliError::new(Exit::Usage, error.to_string()).help("correct [sql] in the job file");
        error.in_query(&args.job.display().to_string(), &text)
    };
    // What holds some columns alone is no more than a job takes that chooses them.
    let serves = |snapshot: &Snapshot| {
        snapshot.record.source == job.dataset.source
            && (!snapshot.manifest.is_partial() || job.dataset.columns != ColumnsSpec::All)
    };
    if let Some((snapshot, volume)) = staged.filter(|(snapshot, _)| serves(snapshot)) {
        let plan = plan::plan(&job, &snapshot, &volume);
        let plan = plan.and_then(|plan| plan.fits(&job, &Host::here()).map(|()| plan));
        let unplanned = |error: PlanError| CliError::new(Exit::Usage, error.to_string());
        let mut plan = plan.map_err(unplanned)?;
        let mut is_planned = true;
        if let Work::Sql(_) = &job.work {
            engine = Some(sql::engine::choose_over(&job, &plan.splits[0]));
            match sql::check_staged(&volume, &job, &plan.splits[0]).await {
                // They would be staged.
                Err(TaskError::NotHeld(_)) => is_planned = !job.is_by_splits(),
                Err(error) => return Err(wrong(&error)),
                Ok(scan) => {
                    if let Some(scan) = scan {
                        plan = plan.over_scan(&job, &volume, scan).map_err(unplanned)?;
                    }
                    let of = (&plan.splits[0], plan.table.as_ref());
                    explanation = Some(sql::explain(&volume, &job, of, threads).await.map_err(|error| wrong(&error))?);
                }
            }
        }
        tasks = is_planned.then(|| plan.phases());
    }
    if engine.is_none() && matches!(job.work, Work::Sql(_)) {
        // What is in no table is counted too: the tables' objects are told apart once they are staged.
        engine = Some(sql::engine::choose(&job, bytes));
    }
    if explanation.is_none() && matches!(job.work, Work::Sql(_)) {
        // One object of each table may lack what others have, so that this is no verdict.
        match sql::explain_ahead(&mut source, &job, threads).await {
            Ok(explained) => explanation = explained,
            // Which columns there are makes no difference to that.
            Err(error @ TaskError::NotBySplit(_)) => return Err(wrong(&error)),
            Err(error) => render::note(global.quiet, &format!("by the first object of each table: {error}")),
        }
    }
    if global.json {
        let source = json!({ "url": job.dataset.source, "objects": objects, "bytes": bytes });
        let engine = engine.map(|Choice { engine, why }| json!({ "name": engine, "why": why }));
        println!(
            "{}",
            json!({
                "version": 1, "job": job, "source": source, "tasks": tasks, "engine": engine, "plan": explanation
            })
        );
        return Ok(Exit::Done);
    }
    println!("{}: {} objects, {}", job.dataset.source, objects, render::bytes(bytes));
    match tasks {
        Some(tasks) => {
            let phases: Vec<_> = tasks.iter().map(ToString::to_string).collect();
            println!("tasks: {}", phases.join(", then "));
        }
        None => render::note(global.quiet, "not staged yet: columns and cuts are checked once it is"),
    }
    if let Some(Choice { engine, why }) = engine {
        println!("engine: {}, since {why}", engine.name());
    }
    if let Some(explanation) = explanation {
        println!("plan:\n{}", explanation.trim_end());
    }
    Ok(Exit::Done)
}
