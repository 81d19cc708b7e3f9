//! What is always true of a run. Each has a name, and is used in tests and in debug builds alike.

use std::collections::BTreeSet;

use super::{DEEPEST, Run, TaskState};

/// Checks all of them.
///
/// # Errors
/// The first that does not hold, by name.
pub fn check(run: &Run) -> Result<(), String> {
    no_task_is_lost(run)?;
    nothing_waits_for_what_is_staged(run)?;
    held_attempts_are_held_once(run)?;
    no_worker_holds_more_than_it_can(run)?;
    no_task_fails_too_often(run)
}

/// A task is ready, held, committed or failed, and the counts and indices agree.
fn no_task_is_lost(run: &Run) -> Result<(), String> {
    run.tasks.agree().map_err(|error| format!("no_task_is_lost: {error}"))
}

fn nothing_waits_for_what_is_staged(run: &Run) -> Result<(), String> {
    match run.tasks.awaiting().first().filter(|_| run.snapshot.is_some()) {
        Some(id) => Err(format!("nothing_waits_for_what_is_staged: {id}")),
        None => Ok(()),
    }
}

/// What a task says of its worker, the worker says of its task.
fn held_attempts_are_held_once(run: &Run) -> Result<(), String> {
    let by_tasks: BTreeSet<_> = run
        .tasks()
        .filter_map(|(_, task)| match &task.state {
            TaskState::Held { attempt, worker, .. } => Some((worker.clone(), *attempt)),
            _ => None,
        })
        .collect();
    let by_workers = run.workers.holdings().map(|(id, attempt)| (id.clone(), attempt)).collect();
    run.workers.agree().map_err(|error| format!("held_attempts_are_held_once: {error}"))?;
    match by_tasks == by_workers {
        true => Ok(()),
        false => Err(format!("held_attempts_are_held_once: {by_tasks:?} and {by_workers:?}")),
    }
}

fn no_worker_holds_more_than_it_can(run: &Run) -> Result<(), String> {
    match run.workers.fuller_than(DEEPEST) {
        Some(id) => Err(format!("no_worker_holds_more_than_it_can: {id}")),
        None => Ok(()),
    }
}

fn no_task_fails_too_often(run: &Run) -> Result<(), String> {
    match run.tasks().find(|(_, task)| task.failures > run.config.attempts) {
        Some((id, _)) => Err(format!("no_task_fails_too_often: {id}")),
        None => Ok(()),
    }
}
