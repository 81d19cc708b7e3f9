//! Whole runs in one thread: the machine, its journal and what is sent to workers as they are, and all that is around
//! them simulated: time, the volume, the network, workers, and coordinators that take over from each other.
//!
//! A history is a list of [`Action`]s, which pick among what is there when they are taken. The network is worse than any
//! that there is: of the encoded messages in it any may be delivered next, twice, or never, within one stream too; only
//! at the end, when all faults heal, does it keep their order. After every action [`World::check`] compares the journal
//! with what it was and with what workers truly did. A history that fails shrinks, and is kept in
//! `proptest-regressions/`. `tests/mutations.py` breaks the machine in many ways, one at a time, and expects this to see
//! each.

mod coordinator;
mod exhaustive;
mod worker;
mod world;

use std::collections::BTreeSet;

use proptest::prelude::*;

use self::world::{World, config};
use crate::run::{EndState, RunConfig};

/// A step of a history. Numbers pick among what is there; where there is nothing, nothing happens.
#[derive(Clone, Debug)]
enum Action {
    /// A worker of so many slots is started.
    Join(u32),
    /// A worker is told to end.
    Drain(usize),
    /// A worker's process is killed.
    Crash(usize),
    /// A worker's stream breaks; who of the two sides notices.
    Cut(usize, NoticedBy),
    /// A worker without a stream calls the coordinator; `true`: and the answer is lost.
    Call(usize, bool),
    /// No stream of this worker's can be made, or again.
    Partition(usize, bool),
    /// A message arrives.
    Deliver(usize),
    /// A message arrives, and will once more.
    Duplicate(usize),
    /// A message is lost.
    Lose(usize),
    /// An attempt in a slot ends.
    Finish(usize, Ending),
    /// A worker says that an attempt is done that it has not done.
    Lie(usize),
    /// What a worker has reported is looked at on the volume.
    Look(usize),
    /// Time goes by, in milliseconds.
    Wait(u64),
    /// The newest coordinator, or any, is killed, and of what it was writing so many bytes arrive.
    Kill(usize, usize),
    /// Another coordinator takes the run over, whatever becomes of the one before, which may never know.
    TakeOver,
    /// The volume is full, or has room again.
    Fill(bool),
    /// The inputs of a task are staged; with the last one the dataset is.
    Stage(u32),
    /// Someone asks for the run's end.
    Cancel,
}

#[derive(Clone, Copy, Debug)]
enum NoticedBy {
    Worker,
    Coordinator,
    Both,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Done,
    /// It left something unread, as one on a worker that drains.
    InPart,
    Failed,
    GivenBack,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let n = || any::<usize>();
    let noticed = prop_oneof![Just(NoticedBy::Worker), Just(NoticedBy::Coordinator), Just(NoticedBy::Both)];
    let ending = prop_oneof![6 => Just(Ending::Done), 1 => Just(Ending::InPart), 1 => Just(Ending::Failed), 1 => Just(Ending::GivenBack)];
    let action = prop_oneof![
        4 => (1u32..4).prop_map(Action::Join),
        1 => n().prop_map(Action::Drain),
        1 => n().prop_map(Action::Crash),
        3 => (n(), noticed).prop_map(|(n, noticed)| Action::Cut(n, noticed)),
        8 => (n(), prop::bool::weighted(0.1)).prop_map(|(n, lost)| Action::Call(n, lost)),
        1 => (n(), any::<bool>()).prop_map(|(n, cut)| Action::Partition(n, cut)),
        30 => n().prop_map(Action::Deliver),
        3 => n().prop_map(Action::Duplicate),
        2 => n().prop_map(Action::Lose),
        12 => (n(), ending).prop_map(|(n, ending)| Action::Finish(n, ending)),
        1 => n().prop_map(Action::Lie),
        10 => n().prop_map(Action::Look),
        8 => prop_oneof![3 => 0u64..300, 2 => 300u64..5_000, 1 => 5_000u64..40_000].prop_map(Action::Wait),
        1 => (n(), n()).prop_map(|(n, bytes)| Action::Kill(n, bytes)),
        2 => Just(Action::TakeOver),
        1 => any::<bool>().prop_map(Action::Fill),
        4 => (0u32..12).prop_map(Action::Stage),
        // Most histories go on to their end.
        1 => (0u32..100).prop_map(|n| if n == 0 { Action::Cancel } else { Action::Wait(1) }),
    ];
    prop::collection::vec(action, 0..1200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_commit_is_doubled_or_withdrawn_and_in_the_end_all_is_done(
        actions in actions(),
        tasks in 1u32..10,
        reduces in 0u32..3,
        early in any::<bool>(),
        (speculate, resplit) in any::<(bool, bool)>(),
        timeout in prop::option::weighted(0.2, 5_000u64..20_000),
        readers in prop::option::weighted(0.2, 1u32..4),
        ramp in prop_oneof![4 => Just(0), 1 => 1u64..10_000],
        done_before in prop::option::weighted(0.5, prop::collection::btree_set(0u32..10, 0..10)),
    ) {
        let phases = if reduces > 0 { vec![tasks, reduces] } else { vec![tasks] };
        let reuse = done_before.is_some();
        let config = RunConfig { speculate, resplit, timeout, readers, ramp, reuse, ..config() };
        live_through(World::new(phases, early, done_before.unwrap_or_default(), config), actions)?;
    }

    #[test]
    fn of_a_gang_all_members_of_one_try_are_committed_or_none(
        actions in actions(),
        // No more than there are workers, so that whichever come have a slot for each.
        members in 1u32..=3,
        early in any::<bool>(),
    ) {
        let config = RunConfig { gang: true, speculate: false, resplit: false, max_failures: 0, ..config() };
        live_through(World::new(vec![members], early, BTreeSet::new(), config), actions)?;
    }
}

fn live_through(mut world: World, actions: Vec<Action>) -> Result<(), TestCaseError> {
    for action in actions {
        world.take(action).map_err(TestCaseError::fail)?;
        world.check().map_err(TestCaseError::fail)?;
    }
    let ended = world.heal().map_err(TestCaseError::fail)?;
    prop_assert!(world.was_cancelled() || ended != EndState::Cancelled);
    Ok(())
}
