//! What is always true of a run. Each has a name, and is used in tests and in debug builds alike.

use std::collections::BTreeSet;

use super::{Run, TaskState, assign::DEEPEST};

/// Checks all of them.
///
/// # Errors
/// The first that does not hold, by name.
pub fn check(run: &Run) -> Result<(), String> {
    no_task_is_lost(run)?;
    nothing_waits_for_what_is_staged(run)?;
    held_attempts_are_held_once(run)?;
    no_worker_holds_more_than_it_can(run)?;
    a_gang_is_whole(run)?;
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

/// What a task says of its workers, the workers say of their tasks; two attempts of one task have two workers.
fn held_attempts_are_held_once(run: &Run) -> Result<(), String> {
    run.workers.agree().map_err(|error| format!("held_attempts_are_held_once: {error}"))?;
    let mut by_tasks = BTreeSet::new();
    for (id, task) in run.tasks() {
        let workers: BTreeSet<_> = task.state.holdings().map(|holding| &holding.worker).collect();
        if workers.len() != task.state.holdings().count() || task.state.holdings().any(|held| held.attempt.task != id) {
            return Err(format!("held_attempts_are_held_once: {id} is {:?}", task.state));
        }
        by_tasks.extend(task.state.holdings().map(|holding| (holding.worker.clone(), holding.attempt)));
    }
    let by_workers = run.workers.holdings().map(|(id, attempt)| (id.clone(), attempt)).collect();
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

/// All members of a gang that goes on are at work in one try, or none is; and of all or of none what they made counts.
fn a_gang_is_whole(run: &Run) -> Result<(), String> {
    if !run.config.gang {
        return Ok(());
    }
    let (mut at_work, mut tries, mut committed) = (0, BTreeSet::new(), 0);
    for (_, task) in run.tasks() {
        let attempt = match &task.state {
            TaskState::Held { first, second: None } => first.attempt,
            TaskState::Held { .. } => return Err(format!("a_gang_is_whole: two at a time, {:?}", task.state)),
            TaskState::Finished(finished) => finished.attempt,
            TaskState::Committed { .. } => {
                committed += 1;
                continue;
            }
            TaskState::Awaiting | TaskState::Ready(_) | TaskState::Failed(_) => continue,
        };
        at_work += 1;
        tries.insert((attempt.number, attempt.epoch));
    }
    let all = run.tasks().count();
    let ends = run.recalls_all() || run.ended.is_some();
    match (at_work, committed) {
        _ if tries.len() > 1 => Err(format!("a_gang_is_whole: members of the tries {tries:?}")),
        (0, 0) => Ok(()),
        (_, 0) if at_work == all || ends => Ok(()),
        (0, _) if committed == all => Ok(()),
        _ => Err(format!("a_gang_is_whole: of {all} members {at_work} are at work and {committed} committed")),
    }
}

/// The failure of one of two attempts at a time does not end a task, so that it may have one more of them than it may
/// have tries; another such pair it does not get.
fn no_task_fails_too_often(run: &Run) -> Result<(), String> {
    match run.tasks().find(|(_, task)| task.failures > run.config.attempts.max(2)) {
        Some((id, _)) => Err(format!("no_task_fails_too_often: {id}")),
        None => Ok(()),
    }
}
