//! The client over a real API server, which `tests/kubernetes/real.sh` has. It is one that knows no Indexed Jobs, and leaves
//! out what it does not know: what is asked of it is tried here, and not what becomes of a Job.

use std::env;

use forebay_jobs::id::Epoch;
use futures::{StreamExt, TryStreamExt, stream};

use super::super::*;

/// More than a page of a list.
const MANY: u32 = 510;

/// The engine of a run, as one who has not said otherwise.
async fn engine(kubeconfig: &str, run: &str, more: &str) -> Kubernetes {
    super::engine(run, &format!("kubeconfig = '{kubeconfig}'\n{more}")).await
}

/// Of the server; none where there is none.
fn kubeconfig() -> Option<String> {
    let path = env::var("FOREBAY_TEST_KUBECONFIG").ok();
    if path.is_none() {
        println!("skipped: FOREBAY_TEST_KUBECONFIG is not set");
    }
    path
}

fn call(engine: &Kubernetes, nonce: u32, count: u32) -> Call {
    Call { token: engine.config.tag.fresh(Epoch(1), nonce), count, again: false }
}

async fn members(engine: &Kubernetes) -> BTreeSet<MemberId> {
    let seen = engine.list(&[]).await.unwrap();
    assert!(seen.iter().all(|sighting| sighting.state == State::Queued), "{seen:?}");
    seen.into_iter().map(|sighting| sighting.member).collect()
}

#[tokio::test]
#[ignore = "needs an API server: tests/kubernetes/real.sh, which .ci/run has none for"]
async fn a_real_api_server_makes_lists_and_deletes_jobs() {
    let Some(kubeconfig) = kubeconfig() else { return };
    let ours = engine(&kubeconfig, "r", "").await;
    let first = call(&ours, 0, 3);
    ours.cluster.would_create(&ours.config.job(&first)).await.unwrap();
    assert_eq!(members(&ours).await, BTreeSet::new(), "asking makes none");

    let started: BTreeSet<_> = ours.start(&first).await.unwrap().members.into_iter().collect();
    let again: BTreeSet<_> = ours.start(&first).await.unwrap().members.into_iter().collect();
    assert_eq!((started.len(), &again), (3, &started));
    assert_eq!(members(&ours).await, started);

    let others = engine(&kubeconfig, "another", "").await;
    let starts = (0..MANY).map(|nonce| call(&others, nonce, 1));
    let starts = stream::iter(starts).map(|call| {
        let others = &others;
        async move { others.start(&call).await }
    });
    let theirs: Vec<Started> = starts.buffer_unordered(16).try_collect().await.unwrap();
    let theirs: BTreeSet<_> = theirs.into_iter().flat_map(|started| started.members).collect();
    assert_eq!(members(&others).await, theirs, "a list of several pages");
    assert_eq!((theirs.len(), members(&ours).await), (MANY as usize, started.clone()));

    for engine in [&ours, &others] {
        let all: Vec<_> = members(engine).await.into_iter().collect();
        engine.stop(&all).await.unwrap();
        assert_eq!(members(engine).await, BTreeSet::new());
        engine.stop(&all).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs an API server: tests/kubernetes/real.sh, which .ci/run has none for"]
async fn what_a_real_api_server_refuses_is_told_with_what_to_do() {
    let Some(kubeconfig) = kubeconfig() else { return };
    for (more, words) in [
        ("context = 'stranger'", "Unauthorized"),
        ("context = 'nobody'", "cannot create resource \"jobs\""),
        ("namespace = 'nowhere'", "namespaces \"nowhere\" not found"),
    ] {
        let engine = engine(&kubeconfig, "r", more).await;
        let error = engine.start(&call(&engine, 1, 1)).await.unwrap_err();
        assert!(error.class == Class::Permanent && error.why.contains(words), "{more}: {error}");
    }
}
