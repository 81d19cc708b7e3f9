//! `forebay explain RUN TASK`: where a task is, why, and what became of each attempt at it.

use std::collections::BTreeMap;

use forebay_coordinator::{
    driver::{self, Observed},
    lease::LeaseState,
    reuse,
    run::{Event, Millis, TaskState},
    rundir::RunDir,
};
use forebay_datasets::volume::Volume;
use forebay_jobs::{
    id::{AttemptId, RunId, TaskId},
    plan::Plan,
};
use serde_json::json;

use super::{open_run, runs::task_state};
use crate::{
    cli::Global,
    error::{CliError, Exit},
    render::{self, Table},
};

/// Until the rest of its gang is done, or begins again.
const FINISHED: &str = "done, as one of its gang";

/// One attempt, as the journal tells it.
#[derive(Default)]
struct Attempt {
    worker: String,
    given: Option<String>,
    begun: Option<String>,
    ended: Option<String>,
    outcome: Option<String>,
    metrics: BTreeMap<String, f64>,
}

pub async fn execute(global: &Global, id: &RunId, task: TaskId) -> Result<Exit, CliError> {
    let (volume, run) = open_run(global, id)?;
    let observed = driver::observe(&run).await?;
    let Some(known) = observed.machine.task(task) else {
        let help = format!("`forebay runs tasks {id}` lists them");
        return Err(CliError::new(Exit::NotFound, format!("run `{id}` has no task {task}")).help(help));
    };
    let live = matches!(observed.lease, LeaseState::Live { .. });
    let (_, state) = task_state(known, live);
    let why = why(&observed, (task, &known.state), live, &run);
    let mut attempts = BTreeMap::new();
    let mut gang_is_broken = false;
    let history = driver::history(&run, task).await?;
    let reuse = reused(&volume, &run, &observed, task, &history);
    for event in &history {
        match event {
            Event::GangBroke => gang_is_broken = true,
            Event::GangReady => gang_is_broken = false,
            _ => {}
        }
        note(&mut attempts, task, event, gang_is_broken);
    }
    if global.json {
        let attempts: Vec<_> = attempts
            .iter()
            .map(|(id, attempt)| {
                json!({ "attempt": id.to_string(), "worker": attempt.worker, "given": attempt.given,
                "begun": attempt.begun, "ended": attempt.ended, "outcome": attempt.outcome, "metrics": attempt.metrics })
            })
            .collect();
        println!(
            "{}",
            json!({ "version": 1, "run": id, "task": task.to_string(), "state": state, "why": why, "reuse": reuse,
                     "attempts": attempts })
        );
        return Ok(Exit::Done);
    }
    println!("task {task} is {state}: {why}");
    println!("{reuse}");
    let mut table = Table::new(["attempt", "worker", "given", "begun", "ended", "outcome"]);
    for (id, attempt) in attempts {
        let Attempt { worker, given, begun, ended, outcome, metrics } = attempt;
        let [given, begun, ended, mut outcome] = [given, begun, ended, outcome].map(Option::unwrap_or_default);
        metrics.iter().for_each(|(name, value)| outcome.push_str(&format!("; {name} {value}")));
        let [given, begun, ended] = [given, begun, ended].map(|time| render::time(&time));
        table.row([id.to_string(), worker, given, begun, ended, outcome]);
    }
    table.print();
    Ok(Exit::Done)
}

/// Why it was reused, or not.
fn reused(volume: &Volume, run: &RunDir, observed: &Observed, task: TaskId, history: &[Event]) -> String {
    let plan = match Plan::read(&run.plan_path()) {
        Ok(plan) => plan,
        Err(error) => return error.to_string(),
    };
    reuse::why(volume, run, (&observed.machine, &plan), task, history)
        .unwrap_or_else(|error| format!("why it was reused or not cannot be told any more: {error}"))
}

/// Why it is where it is.
fn why(observed: &Observed, (task, state): (TaskId, &TaskState), live: bool, run: &RunDir) -> String {
    let (machine, gang) = (&observed.machine, run.job().is_gang());
    let earlier = machine.tasks().take_while(|(id, _)| id.phase < task.phase);
    let open = earlier.filter(|(_, task)| !matches!(task.state, TaskState::Committed { .. } | TaskState::Failed(_)));
    match state {
        TaskState::Committed { attempt, outputs } => {
            format!(
                "attempt {attempt} was the first that was done, with {}",
                render::count(outputs.len() as u64, "file")
            )
        }
        TaskState::Finished(finished) => {
            format!("attempt {} is done, and counts once all of its gang are", finished.attempt)
        }
        TaskState::Failed(failure) => format!("it has no try left; the last one: {failure}"),
        _ if !live => format!("nobody coordinates the run: `forebay resume {}` goes on", run.id()),
        TaskState::Held { .. } => {
            let absent: BTreeMap<_, _> = machine.absent().map(|(worker, since, _)| (worker, since)).collect();
            let on = |holding: &forebay_coordinator::run::Holding| {
                let begun = holding.started.map_or("given to".to_owned(), |at| format!("begun at {} by", shown(at)));
                let heard = absent
                    .get(&holding.worker)
                    .map(|since| format!(", of which nothing is heard since {}", shown(*since)));
                format!("attempt {} is {begun} {}{}", holding.attempt, holding.worker, heard.unwrap_or_default())
            };
            state.holdings().map(on).collect::<Vec<_>>().join("; ")
        }
        TaskState::Awaiting => "its inputs are being staged".to_owned(),
        TaskState::Ready(_) => match open.count() as u64 {
            0 if machine.workers().next().is_none() => "no worker is there".to_owned(),
            // What may be begun now and is not has no slot, or no time left on its worker.
            0 => match state {
                TaskState::Ready(at) if *at > observed.figures.latest => {
                    format!("it is tried again, not before {}", shown(*at))
                }
                _ if machine.recalls_all() => "it begins again once the rest of its gang has ended".to_owned(),
                _ if gang => "it waits until there is a slot for each of its gang".to_owned(),
                _ => "it waits for a slot".to_owned(),
            },
            open => format!("it begins when the phases before are done: {} open", render::count(open, "task")),
        },
    }
}

fn note(attempts: &mut BTreeMap<AttemptId, Attempt>, task: TaskId, event: &Event, gang_is_broken: bool) {
    let mut end = |id: &AttemptId, at: Option<Millis>, outcome: String| {
        let attempt = attempts.entry(*id).or_default();
        attempt.ended = attempt.ended.take().or(at.map(shown));
        attempt.outcome = Some(outcome);
    };
    match event {
        Event::Finished { finished, at } => {
            end(&finished.attempt, Some(*at), FINISHED.to_owned());
            attempts.entry(finished.attempt).or_default().metrics.clone_from(&finished.metrics);
        }
        Event::GangReady => {
            let undone = attempts.values_mut().filter(|attempt| attempt.outcome.as_deref() == Some(FINISHED));
            undone.for_each(|attempt| attempt.outcome = Some("done, and begun again with its gang".to_owned()));
        }
        Event::Committed { attempt, rest, metrics, at, .. } => {
            let outcome = match rest.len() as u64 {
                0 => "done".to_owned(),
                count => format!("done in part: what it had not read became {}", render::count(count, "task")),
            };
            end(attempt, Some(*at), outcome);
            attempts.entry(*attempt).or_default().metrics.clone_from(metrics);
        }
        Event::AttemptFailed { attempt, failure, at, .. } => end(attempt, Some(*at), failure.to_string()),
        Event::AttemptReturned { attempt, lost: true, .. } => end(attempt, None, "lost with its worker".to_owned()),
        Event::Reused { tasks, at } => {
            for reused in tasks.iter().filter(|reused| reused.attempt.task == task) {
                end(&reused.attempt, Some(*at), format!("made by run {}", reused.from));
            }
        }
        Event::AttemptReturned { attempt, .. } if gang_is_broken => {
            end(attempt, None, "ended with its gang".to_owned())
        }
        Event::AttemptReturned { attempt, .. } => end(attempt, None, "given back, or taken back".to_owned()),
        Event::Assigned { worker, attempts: given, at } => {
            for id in given.iter().filter(|id| id.task == task) {
                let attempt = attempts.entry(*id).or_default();
                (attempt.worker, attempt.given) = (worker.to_string(), Some(shown(*at)));
            }
        }
        Event::Started { attempts: begun, at } => {
            for id in begun.iter().filter(|id| id.task == task) {
                attempts.entry(*id).or_default().begun = Some(shown(*at));
            }
        }
        _ => {}
    }
}

fn shown(at: Millis) -> String {
    let at = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    at.map(|at| at.to_string()).unwrap_or_default()
}
