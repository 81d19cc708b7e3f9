//! What any engine has to keep, as a function that each runs over a real one.

use std::collections::{BTreeMap, BTreeSet};

use forebay_jobs::id::{Epoch, MemberId};
use tokio::time::Instant;

use super::engine::{Call, Engine, State, Tag, Token};

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
