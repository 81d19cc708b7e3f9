//! `forebay explain RUN TASK`: where a task is, why, and what became of each attempt at it.

use std::collections::BTreeMap;

use forebay_coordinator::{
    driver::{self, Observed},
    lease::LeaseState,
    run::{Event, Millis, TaskState},
};
use forebay_jobs::id::{AttemptId, RunId, TaskId};
use serde_json::json;

use super::{open_run, runs::task_state};
use crate::{
    cli::Global,
    error::{CliError, Exit},
    render::{self, Table},
};

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
    let (_, run) = open_run(global, id)?;
    let observed = driver::observe(&run).await?;
    let Some(known) = observed.machine.task(task) else {
        let help = format!("`forebay runs tasks {id}` lists them");
        return Err(CliError::new(Exit::NotFound, format!("run `{id}` has no task {task}")).help(help));
    };
    let live = matches!(observed.lease, LeaseState::Live { .. });
    let (_, state) = task_state(known, live);
    let why = why(&observed, task, &known.state, live, id);
    let mut attempts = BTreeMap::new();
    driver::history(&run, task).await?.iter().for_each(|event| note(&mut attempts, task, event));
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
            json!({ "version": 1, "run": id, "task": task.to_string(), "state": state, "why": why, "attempts": attempts })
        );
        return Ok(Exit::Done);
    }
    println!("task {task} is {state}: {why}");
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

/// Why it is where it is.
fn why(observed: &Observed, task: TaskId, state: &TaskState, live: bool, run: &RunId) -> String {
    let machine = &observed.machine;
    let earlier = machine.tasks().take_while(|(id, _)| id.phase < task.phase);
    let open = earlier.filter(|(_, task)| !matches!(task.state, TaskState::Committed { .. } | TaskState::Failed(_)));
    match state {
        TaskState::Committed { attempt, outputs } => {
            format!(
                "attempt {attempt} was the first that was done, with {}",
                render::count(outputs.len() as u64, "file")
            )
        }
        TaskState::Failed(failure) => format!("it has no try left; the last one: {failure}"),
        _ if !live => format!("nobody coordinates the run: `forebay resume {run}` goes on"),
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
                _ => "it waits for a slot".to_owned(),
            },
            open => format!("it begins when the phases before are done: {} open", render::count(open, "task")),
        },
    }
}

fn note(attempts: &mut BTreeMap<AttemptId, Attempt>, task: TaskId, event: &Event) {
    let mut end = |id: &AttemptId, at: Option<Millis>, outcome: String| {
        let attempt = attempts.entry(*id).or_default();
        (attempt.ended, attempt.outcome) = (at.map(shown), Some(outcome));
    };
    match event {
        Event::Committed { attempt, at, metrics, .. } => {
            end(attempt, Some(*at), "done".to_owned());
            attempts.entry(*attempt).or_default().metrics.clone_from(metrics);
        }
        Event::AttemptFailed { attempt, failure, at, .. } => end(attempt, Some(*at), failure.to_string()),
        Event::AttemptReturned { attempt, lost: true, .. } => end(attempt, None, "lost with its worker".to_owned()),
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
