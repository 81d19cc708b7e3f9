//! The engine, and a fleet over it, over the double of Kubernetes that whole runs are tried with.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "clippy does not see that the double is a test, of which this uses a part"
)]

#[allow(unused_imports, reason = "what it offers is for other tests too")]
#[path = "../../../../../tests/kubernetes/server/mod.rs"]
mod server;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use forebay_jobs::id::Epoch;

use self::server::KubernetesServer;
use super::super::*;
use crate::fleet::{
    conformance::{a_fleet_keeps_its_promises, keeps_its_promises},
    managed::Managed,
};

/// A cluster, and an engine over it whose workers say nothing and stay.
async fn over_a_cluster(dir: &Path) -> (KubernetesServer, Kubernetes, Tag) {
    let (program, kubeconfig) = (dir.join("program"), dir.join("config"));
    fs::write(&program, "#!/bin/sh\nexec sleep 600\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let server = KubernetesServer::start("batch");
    server.kubeconfig(&kubeconfig);
    let says = format!("kubeconfig = '{}'\nprogram = '{}'\n", kubeconfig.display(), program.display());
    (server, super::engine("r", &says).await, super::tag())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_what_any_engine_and_any_fleet_has_to_keep() {
    let dir = tempfile::tempdir().unwrap();
    let (server, engine, tag) = over_a_cluster(dir.path()).await;
    keeps_its_promises(&engine, &tag).await;

    let mut fleet = Managed::open(engine, tag, Epoch(2), &dir.path().join("2")).unwrap();
    fs::create_dir(dir.path().join("2")).unwrap();
    // A pod that was killed for want of memory has failed, and its index with it.
    let kill = || server.out_of_memory(server.at_work()[0].metadata.name.as_ref().unwrap());
    a_fleet_keeps_its_promises(&mut fleet, &|| server.at_work().len(), &kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_made_during_a_look_is_not_seen_as_one_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, engine, tag) = over_a_cluster(dir.path()).await;
    for nonce in 1..=30 {
        let call = Call { token: tag.fresh(Epoch(1), nonce), count: 1, again: false };
        let looks = async {
            for _ in 0..4 {
                let seen = engine.list(&[]).await.unwrap();
                assert!(seen.iter().all(|sighting| sighting.state != State::Ending), "{seen:?}");
            }
        };
        let (started, ()) = tokio::join!(engine.start(&call), looks);
        started.unwrap();
    }
}
