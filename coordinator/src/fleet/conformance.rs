//! What any engine, and any fleet, has to keep, as functions that are run over each.

mod rough;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use forebay_jobs::id::{Epoch, MemberId};
use tokio::time::Instant;

use self::rough::Rough;
use super::{
    Fleet,
    engine::{Call, Engine, State, Tag, Token},
    managed::Managed,
};

/// Long enough for any engine here to do what it still means to do.
const A_WHILE: Duration = Duration::from_millis(1500);

/// Members that exist, and what they are marked with, as lists tell it.
async fn exist<E: Engine>(engine: &E) -> BTreeMap<MemberId, Token> {
    let list = engine.list(&[]).await.unwrap();
    let exist =
        list.into_iter().filter(|sighting| !matches!(sighting.state, State::Ended { .. } | State::Evicted { .. }));
    exist.map(|sighting| (sighting.member, sighting.token)).collect()
}

/// Waits until exactly these exist.
async fn come_to<E: Engine>(engine: &E, members: &BTreeSet<MemberId>) {
    let began = Instant::now();
    loop {
        let exist = exist(engine).await.into_keys().collect::<BTreeSet<_>>();
        if exist == *members {
            return;
        }
        assert!(began.elapsed().as_secs() < 60, "{exist:?} exist, and not {members:?}");
        // Lists tell late.
        tokio::time::sleep(engine.limits().poll.0 / 4).await;
    }
}

/// Starts what it is asked for once under each token, marks it with it, and stops whom it is asked to. The engine has no
/// members of the run yet, its members stay until they are stopped, and four find room.
pub(super) async fn keeps_its_promises<E: Engine>(engine: &E, tag: &Tag) {
    come_to(engine, &BTreeSet::new()).await;
    let call = |nonce, count| Call { token: tag.fresh(Epoch(1), nonce), count, again: false };
    let (first, second) = (call(1, 3), call(2, 1));
    let started = engine.start(&first).await.unwrap();
    assert_eq!((started.members.len(), &started.refused), (3, &None));
    let mut members: BTreeSet<_> = started.members.iter().cloned().collect();
    assert_eq!(members.len(), 3, "each has a name of its own");
    come_to(engine, &members).await;

    let again = Call { again: true, ..first.clone() };
    let known: BTreeSet<_> = engine.start(&again).await.unwrap().members.into_iter().collect();
    assert_eq!(known, members, "the same token starts nothing twice");
    let other = engine.start(&second).await.unwrap().members;
    members.extend(other.iter().cloned());
    come_to(engine, &members).await;
    let marked = exist(engine).await;
    assert!(members.iter().all(|member| {
        let token = if other.contains(member) { &second.token } else { &first.token };
        marked[member] == *token
    }));

    let one = members.pop_first().unwrap();
    engine.stop(std::slice::from_ref(&one)).await.unwrap();
    come_to(engine, &members).await;
    engine.start(&again).await.unwrap();
    come_to(engine, &members).await;
    // Who has ended may be stopped again.
    let all: Vec<_> = members.iter().cloned().chain([one]).collect();
    engine.stop(&all).await.unwrap();
    come_to(engine, &BTreeSet::new()).await;
}

/// Lets a fleet do what it wants to do, until so many exist.
async fn has(fleet: &mut dyn Fleet, count: usize, exist: &dyn Fn() -> usize) {
    let began = Instant::now();
    while exist() != count {
        assert!(began.elapsed().as_secs() < 60, "{} exist, and not {count}", exist());
        // That one has ended is an event of some fleets, and of others only once it had said hello.
        let _ = tokio::time::timeout(Duration::from_millis(20), fleet.observe()).await;
    }
}

/// The same, and no more and no fewer come of it.
async fn keeps(fleet: &mut dyn Fleet, count: usize, exist: &dyn Fn() -> usize) {
    has(fleet, count, exist).await;
    let _ =
        tokio::time::timeout(A_WHILE, async { while fleet.observe().await != super::FleetEvent::Recognized {} }).await;
    assert_eq!(exist(), count, "they stay as many");
}

/// Ends one, and does not let the fleet do anything until it has.
async fn ends_one(exist: &dyn Fn() -> usize, kill: &dyn Fn()) {
    let (began, before) = (Instant::now(), exist());
    kill();
    while exist() == before {
        assert!(began.elapsed().as_secs() < 60, "it does not end");
        // No engine tells the test when.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Has as many workers as are wanted, one in the place of each that ends, stops none because fewer are wanted, and in the
/// end all. They stay until they are stopped, and say nothing. `exist` counts them, and `kill` ends one, behind its back.
pub(super) async fn a_fleet_keeps_its_promises(fleet: &mut dyn Fleet, exist: &dyn Fn() -> usize, kill: &dyn Fn()) {
    keeps(fleet, 0, exist).await;
    fleet.want(3);
    keeps(fleet, 3, exist).await;
    fleet.want(3);
    ends_one(exist, kill).await;
    keeps(fleet, 3, exist).await;
    fleet.want(1);
    keeps(fleet, 3, exist).await;
    ends_one(exist, kill).await;
    keeps(fleet, 2, exist).await;
    fleet.stop_all().await;
    assert_eq!(exist(), 0, "none is left");
}

#[tokio::test]
async fn a_fleet_over_an_engine_that_throttles_loses_answers_and_tells_late_keeps_its_promises() {
    let (dir, tag) = (tempfile::tempdir().unwrap(), Tag::of("v", &"r".parse().unwrap()));
    let engine = Rough::default();
    let mut fleet = Managed::open(engine.clone(), tag, Epoch(1), &dir.path().join("1")).unwrap();
    std::fs::create_dir(dir.path().join("1")).unwrap();
    a_fleet_keeps_its_promises(&mut fleet, &|| engine.exist(), &|| engine.kill()).await;
}
