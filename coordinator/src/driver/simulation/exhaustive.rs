//! Every history of a small run, up to a depth: one task, two workers, and one coordinator that takes over from another,
//! which may be dead or just not know. States that were met before are not gone through again.

use std::{
    collections::{BTreeSet, HashSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

use super::{
    Action, Ending, NoticedBy,
    world::{World, config},
};

/// Steps of a history at most.
const DEPTH: usize = 6;
/// Messages under way at most; where there are more, the next step delivers one.
const UNDER_WAY: usize = 4;

/// Every step that can make a difference.
fn steps(world: &World) -> Vec<Action> {
    let under_way = world.under_way();
    let mut steps: Vec<_> = (0..under_way).map(Action::Deliver).collect();
    if under_way > UNDER_WAY {
        return steps;
    }
    for worker in 0..2 {
        steps.extend([Action::Call(worker, false), Action::Crash(worker)]);
        steps.extend([NoticedBy::Worker, NoticedBy::Coordinator].map(|noticed| Action::Cut(worker, noticed)));
    }
    steps.extend((0..2).map(|attempt| Action::Finish(attempt, Ending::Done)));
    // Of the newest coordinator, and of the one before.
    steps.extend([Action::Look(1), Action::Look(0), Action::Wait(6_000)]);
    if world.epochs() < 2 {
        steps.push(Action::TakeOver);
        // Of what it was writing half arrives, or all.
        steps.extend([Action::Kill(1, 30), Action::Kill(1, usize::MAX)]);
    }
    steps
}

fn after(history: &[Action]) -> Result<World, String> {
    let mut world = World::new(vec![1], false, BTreeSet::new(), config());
    // The task is in a slot, which its worker has yet to tell.
    for action in [Action::Join(1), Action::Join(1), Action::Deliver(0)].iter().chain(history) {
        world.take(action.clone())?;
        world.check().map_err(|error| format!("{error}, after {history:?}"))?;
        world.lose_what_nobody_hears();
    }
    Ok(world)
}

#[test]
#[ignore = "takes a minute; .ci/run has it"]
fn no_history_of_one_task_two_workers_and_two_coordinators_doubles_or_withdraws_a_commit() {
    let mut met = HashSet::new();
    let mut histories = vec![Vec::new()];
    let mut committed = 0;
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for history in histories {
            for step in steps(&after(&history).unwrap()) {
                let longer = [&history[..], &[step]].concat();
                let world = after(&longer).unwrap();
                let mut hasher = DefaultHasher::new();
                world.state().hash(&mut hasher);
                if met.insert(hasher.finish()) {
                    committed += usize::from(world.has_committed());
                    next.push(longer);
                }
            }
        }
        histories = next;
    }
    println!("{} states, in {committed} of which the task is committed", met.len());
    assert!(committed > 100);
    // From the last of them on all ends well, too.
    for history in histories.iter().step_by(histories.len().div_ceil(500)) {
        after(history).unwrap().heal().unwrap_or_else(|error| panic!("{error}, after {history:?}"));
    }
}
