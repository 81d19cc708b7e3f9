//! A run's engine, and a cluster for it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use forebay_coordinator::fleet::{
    command::WorkerCommand,
    engine::{Call, Engine, EngineError, Sighting, State, Tag},
    kubernetes::{Kubernetes, PodConfig},
};
use forebay_jobs::{id::MemberId, spec::parse};
use tempfile::TempDir;

use crate::server::KubernetesServer;

/// Ends when it is asked to, and not before.
pub const PATIENT: &str = "trap 'exit 0' TERM; is_ready; while :; do sleep 0.02; done";
/// What scripts say once they hear signals.
const IS_READY: &str = "is_ready() { : > ready.$FOREBAY_KUBERNETES_JOB-$JOB_COMPLETION_INDEX; }";

pub struct Fixture {
    pub server: KubernetesServer,
    pub engine: Kubernetes,
    pub tag: Tag,
    pub dir: TempDir,
}

impl Fixture {
    /// A run whose pods run a script of the shell.
    pub async fn new(script: &str) -> Self {
        Self::with(script, "").await
    }

    pub async fn with(script: &str, more: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let server = KubernetesServer::start("batch");
        let program = dir.path().join("program");
        fs::write(&program, format!("#!/bin/sh\ncd {}\n{IS_READY}\n{script}\n", dir.path().display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        server.kubeconfig(&dir.path().join("config"));
        let run = "r".parse().unwrap();
        let tag = Tag::of("volume", &run);
        let text = format!(
            "name = 'j'\n[dataset]\nsource = 'file:///x'\n[command]\nargv = ['a']\n[workers]\nfleet = 'kubernetes'\n\
             cpus = 2\nmemory = '1GiB'\ngpus = 1\ntime = '1h'\n[kubernetes]\nkubeconfig = 'config'\nimage = 'i:1'\n\
             program = '{}'\nclaim = 'c'\nuser = 1000\n{more}",
            program.display()
        );
        let job = parse::job_file(&text, dir.path(), &[]).unwrap();
        let slots = job.workers.slots_of(0);
        let command = WorkerCommand { program: "x".into(), volume: "/v".into(), run, slots, pretend: false };
        let pods = PodConfig::new(&job, &tag, command).unwrap();
        Self { server, engine: Kubernetes::open(pods).await.unwrap(), tag, dir }
    }

    pub fn call(&self, nonce: u32, count: u32) -> Call {
        let token = self.tag.token(&format!("{}-1-{nonce:08x}", self.tag.as_str())).unwrap();
        Call { token, count, again: false }
    }

    pub async fn start(&self, nonce: u32, count: u32) -> Vec<MemberId> {
        let started = self.engine.start(&self.call(nonce, count)).await.unwrap();
        assert_eq!(started.refused, None);
        started.members
    }

    pub async fn list(&self) -> Vec<Sighting> {
        self.engine.list(&[]).await.unwrap()
    }

    /// Lists until something holds of it.
    pub async fn until(&self, what: &str, holds: impl Fn(&[Sighting]) -> bool) -> Vec<Sighting> {
        let begun = Instant::now();
        loop {
            let list = self.list().await;
            if holds(&list) {
                return list;
            }
            assert!(begun.elapsed().as_secs() < 60, "in vain: {what}: {list:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A member has ended.
    pub async fn has_ended(&self, member: &MemberId) -> Vec<Sighting> {
        self.until("it has ended", |list| matches!(state(list, member).state, State::Ended { .. })).await
    }

    /// So many run, and hear signals.
    pub async fn are_running(&self, count: usize) -> Vec<Sighting> {
        let is_ready = |member: &MemberId| self.dir.path().join(format!("ready.{member}")).exists();
        let runs = |it: &&Sighting| it.state == State::Running && is_ready(&it.member);
        self.until("they run", |list| list.iter().filter(runs).count() == count).await
    }

    /// The pod of a member.
    pub fn pod(&self, member: &MemberId) -> String {
        let names = self.server.pods().into_iter().filter_map(|pod| pod.metadata.name);
        names.into_iter().find(|name| name.starts_with(&format!("{member}-"))).unwrap()
    }

    pub async fn refused(&self, nonce: u32) -> EngineError {
        self.engine.start(&self.call(nonce, 1)).await.unwrap_err()
    }

    pub fn posts(&self) -> usize {
        self.server.requests().iter().filter(|request| request.method == "POST").count()
    }
}

#[track_caller]
pub fn state<'a>(list: &'a [Sighting], member: &MemberId) -> &'a Sighting {
    let its = list.iter().find(|sighting| sighting.member == *member);
    its.unwrap_or_else(|| panic!("{member} is not in {list:#?}"))
}
