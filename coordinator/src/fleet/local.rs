//! Workers as processes on this host, each the leader of a process group of its own.
//!
//! They outlive a coordinator that is killed, and work for the next one. Here they are reaped, started again, and in the
//! end stopped: asked over the link, then by SIGTERM, then by SIGKILL.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use forebay_jobs::id::{Epoch, WorkerId};
use futures::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::{Child, Command},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Fleet, FleetEvent,
    command::{SECRETS, WorkerCommand, last_words},
};

/// So many workers that end in a row without having said hello mean that none ever will.
const ENDS_IN_A_ROW: u32 = 5;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// How long workers may take to end by themselves once their link said so, or is gone.
const BY_THEMSELVES: Duration = Duration::from_secs(5);
/// From SIGTERM to SIGKILL: a worker gives its programs 10 s.
const GRACE: Duration = Duration::from_secs(11);

/// What local workers are started with.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// What is started.
    pub command: WorkerCommand,
    /// The coordinator's epoch: part of their names.
    pub epoch: Epoch,
    /// How many this host holds at once.
    pub fit: u32,
    /// The host's GPUs, and how many each has to itself.
    pub gpus: (Vec<String>, u32),
    /// How long each may exist.
    pub time: Option<Duration>,
    /// Where their standard error goes, one file a worker.
    pub logs: PathBuf,
}

/// The workers on this host.
#[derive(Debug)]
pub struct Local {
    config: LocalConfig,
    wanted: u32,
    started: u32,
    members: BTreeMap<WorkerId, Member>,
    processes: JoinSet<(WorkerId, io::Result<ExitStatus>)>,
    ends_in_a_row: u32,
    not_before: Option<Instant>,
    /// Set once it is useless to start more; taken when it is told.
    failure: Option<String>,
    failed: bool,
    /// How long workers may take to end by themselves.
    patience: Duration,
}

#[derive(Debug)]
struct Member {
    joined: bool,
    /// Its GPUs.
    gpus: Vec<String>,
    /// To be stopped now.
    stop: CancellationToken,
    /// Its link is gone: to be stopped unless it ends by itself soon.
    lost: CancellationToken,
}

impl Local {
    /// A fleet without workers.
    pub fn new(config: LocalConfig) -> Self {
        Self {
            config,
            wanted: 0,
            started: 0,
            members: BTreeMap::new(),
            processes: JoinSet::new(),
            ends_in_a_row: 0,
            not_before: None,
            failure: None,
            failed: false,
            patience: BY_THEMSELVES,
        }
    }

    /// Starts workers until as many exist as are wanted.
    fn start_missing(&mut self) {
        while !self.failed
            && self.members.len() < self.wanted as usize
            && self.not_before.is_none_or(|at| at <= Instant::now())
        {
            self.not_before = None;
            if let Err(error) = self.start() {
                self.ended_early();
                let program = self.config.command.program.display();
                if self.ends_in_a_row >= ENDS_IN_A_ROW {
                    let failure = format!("cannot start {program} as a worker: {error}");
                    self.fail(failure);
                }
            }
        }
    }

    fn start(&mut self) -> io::Result<()> {
        self.started += 1;
        let name = format!("local-{}-{}", self.config.epoch, self.started);
        let worker: WorkerId = name.parse().expect("letters, digits and hyphens are an id");
        let mut command = Command::new(&self.config.command.program);
        command.args(self.config.command.arguments()).args(["--name", worker.as_str()]);
        if let Some(until) = self.config.time.and_then(|time| SystemTime::now().checked_add(time)) {
            let until = until.duration_since(UNIX_EPOCH).unwrap_or_default();
            command.args(["--until", &until.as_secs().to_string()]);
        }
        SECRETS.iter().for_each(|name| {
            command.env_remove(name);
        });
        let gpus = self.free_gpus();
        if !gpus.is_empty() {
            command.env("CUDA_VISIBLE_DEVICES", gpus.join(","));
        }
        let errors = File::create(self.words(&worker))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(errors.try_clone()?)
            .stderr(errors)
            // Control-C on the terminal is for the coordinator, which tells its workers.
            .process_group(0)
            .spawn()?;
        let member = Member { joined: false, gpus, stop: CancellationToken::new(), lost: CancellationToken::new() };
        let (id, stop, lost) = (worker.clone(), member.stop.clone(), member.lost.clone());
        let patience = self.patience;
        self.processes.spawn(async move { (id, tend(child, &stop, &lost, patience).await) });
        self.members.insert(worker, member);
        Ok(())
    }

    /// Those that the next worker has to itself.
    fn free_gpus(&self) -> Vec<String> {
        let (all, each) = &self.config.gpus;
        let taken: Vec<_> = self.members.values().flat_map(|member| &member.gpus).collect();
        all.iter().filter(|gpu| !taken.contains(gpu)).take(*each as usize).cloned().collect()
    }

    /// Takes note of a worker's end; tells it unless the fleet failed by it.
    fn ended(&mut self, worker: WorkerId, status: io::Result<ExitStatus>) -> FleetEvent {
        let joined = self.members.remove(&worker).is_some_and(|member| member.joined);
        let words = self.words(&worker);
        if !joined {
            self.ended_early();
        }
        if self.ends_in_a_row >= ENDS_IN_A_ROW && !self.failed {
            let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            let last = last_words(&words).unwrap_or_default();
            self.fail(format!("{ENDS_IN_A_ROW} workers in a row ended before they could join ({how}): {last}"));
        }
        // A file for each worker that had nothing to say helps nobody.
        if fs::metadata(&words).is_ok_and(|meta| meta.len() == 0) {
            let _ = fs::remove_file(&words);
        }
        FleetEvent::Ended { worker }
    }

    /// One more that has not said hello: the next is started a little later.
    fn ended_early(&mut self) {
        self.ends_in_a_row += 1;
        let doubled = BACKOFF_FIRST * 2_u32.saturating_pow(self.ends_in_a_row.saturating_sub(1).min(6));
        self.not_before = Some(Instant::now() + doubled);
    }

    fn fail(&mut self, error: String) {
        self.failure = Some(error);
        self.failed = true;
    }

    fn words(&self, worker: &WorkerId) -> PathBuf {
        self.config.logs.join(format!("{worker}.stderr"))
    }
}

impl Fleet for Local {
    fn want(&mut self, workers: u32) {
        self.wanted = workers.min(self.config.fit);
        self.start_missing();
    }

    fn joined(&mut self, worker: &WorkerId) {
        if let Some(member) = self.members.get_mut(worker) {
            member.joined = true;
            self.ends_in_a_row = 0;
            self.not_before = None;
        }
    }

    fn started(&self, worker: &WorkerId) -> bool {
        self.members.contains_key(worker)
    }

    fn lost(&mut self, worker: &WorkerId) {
        if let Some(member) = self.members.get(worker) {
            member.lost.cancel();
        }
    }

    fn observe(&mut self) -> BoxFuture<'_, FleetEvent> {
        Box::pin(async move {
            loop {
                if let Some(error) = self.failure.take() {
                    return FleetEvent::Failed { error };
                }
                self.start_missing();
                if self.failure.is_some() {
                    continue;
                }
                let not_before = self.not_before;
                let pause = async {
                    match not_before {
                        // Workers that end at once are not started at once again.
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    Some(ended) = self.processes.join_next() => {
                        // A task that panicked or was aborted tells no worker.
                        if let Ok((worker, status)) = ended {
                            return self.ended(worker, status);
                        }
                    }
                    () = pause => self.not_before = None,
                }
            }
        })
    }

    fn stop_all(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.wanted = 0;
            for member in self.members.values() {
                // Who has not joined was not asked over the link, either.
                let token = if member.joined { &member.lost } else { &member.stop };
                token.cancel();
            }
            while let Some(ended) = self.processes.join_next().await {
                if let Ok((worker, status)) = ended {
                    self.ended(worker, status);
                }
            }
        })
    }
}

/// Owns a worker's process until it has ended. Signals are sent only while it is not reaped, so that they cannot hit
/// another process of the same number.
async fn tend(
    mut child: Child,
    stop: &CancellationToken,
    lost: &CancellationToken,
    patience: Duration,
) -> io::Result<ExitStatus> {
    let overdue = async {
        lost.cancelled().await;
        // It has this long to end by itself before it is made to.
        tokio::time::sleep(patience).await;
    };
    tokio::select! {
        status = child.wait() => return status,
        () = stop.cancelled() => {}
        () = overdue => {}
    }
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let signal = |signal| {
        if let Some(group) = group {
            // It may have ended this very moment.
            let _ = kill_process_group(group, signal);
        }
    };
    signal(Signal::TERM);
    // A stopped process hears nothing else.
    signal(Signal::CONT);
    if let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await {
        return status;
    }
    signal(Signal::KILL);
    child.wait().await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::fleet::conformance::a_fleet_keeps_its_promises;

    /// A fleet whose program is a shell script; its `$9` is the worker's name.
    fn fleet(script: &str) -> (tempfile::TempDir, Local) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (volume, run) = (dir.path().to_owned(), "r".parse().unwrap());
        let config = LocalConfig {
            command: WorkerCommand { program, volume, run, slots: 3, pretend: false },
            epoch: Epoch(2),
            logs: dir.path().to_owned(),
            fit: u32::MAX,
            gpus: (Vec::new(), 0),
            time: None,
        };
        (dir, Local::new(config))
    }

    #[tokio::test]
    async fn workers_of_this_host_keep_what_any_fleet_has_to() {
        let (dir, mut fleet) = fleet("echo $$ > $9.begun; exec sleep 60");
        // Who has ended is reaped, and so has no command line any more.
        let here = || {
            let names =
                fs::read_dir(dir.path()).unwrap().flatten().filter_map(|file| file.file_name().into_string().ok());
            let pid = |name: String| fs::read_to_string(dir.path().join(name)).ok()?.trim().parse::<i32>().ok();
            let pids = names.filter(|name| name.ends_with(".begun")).filter_map(pid);
            pids.filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())).collect()
        };
        let here: &dyn Fn() -> Vec<i32> = &here;
        let kill = || kill_process_group(Pid::from_raw(here()[0]).unwrap(), Signal::KILL).unwrap();
        a_fleet_keeps_its_promises(&mut fleet, &|| here().len(), &kill).await;
    }

    #[tokio::test]
    async fn a_worker_is_told_who_it_is() {
        let (dir, mut fleet) = fleet("echo \"$@\" > arguments");
        fleet.want(1);
        assert_eq!(fleet.observe().await, FleetEvent::Ended { worker: "local-2-1".parse().unwrap() });
        let arguments = fs::read_to_string(dir.path().join("arguments")).unwrap();
        let volume = dir.path().display();
        assert_eq!(arguments.trim(), format!("worker --volume {volume} --run r --slots 3 --name local-2-1"));
        assert!(!dir.path().join("local-2-1.stderr").exists());
        fleet.stop_all().await;
    }

    #[tokio::test]
    async fn a_worker_that_ends_is_replaced_and_one_too_many_is_not_started() {
        let (_dir, mut fleet) = fleet("test $9 = local-2-1 || exec sleep 60");
        fleet.want(1);
        fleet.want(1);
        fleet.joined(&"local-2-1".parse().unwrap());
        assert_eq!(fleet.observe().await, FleetEvent::Ended { worker: "local-2-1".parse().unwrap() });
        fleet.want(1);
        assert_eq!(fleet.members.keys().map(WorkerId::as_str).collect::<Vec<_>>(), ["local-2-2"]);
        fleet.stop_all().await;
        assert!(fleet.members.is_empty());
    }

    #[tokio::test]
    async fn workers_that_never_join_are_a_failure_with_their_last_words() {
        let (_dir, mut fleet) = fleet("echo the reason >&2; exit 4");
        fleet.want(1);
        for _ in 0..ENDS_IN_A_ROW {
            assert!(matches!(fleet.observe().await, FleetEvent::Ended { .. }));
        }
        let FleetEvent::Failed { error } = fleet.observe().await else { panic!() };
        assert!(error.contains("the reason") && error.contains("exit status: 4"), "{error}");
        fleet.want(2);
        assert!(fleet.members.is_empty());
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_a_failure_at_once() {
        let (_dir, mut fleet) = fleet("");
        fleet.config.command.program = "/nowhere/forebay".into();
        fleet.want(2);
        let FleetEvent::Failed { error } = fleet.observe().await else { panic!() };
        assert!(error.contains("/nowhere/forebay"), "{error}");
        fleet.stop_all().await;
    }

    #[tokio::test]
    async fn a_lost_worker_that_stays_is_stopped_with_its_group() {
        // The file says that the trap is set.
        let (dir, mut fleet) = fleet("trap 'echo > ended; exit' TERM; echo > ready; while :; do sleep 0.05; done");
        fleet.patience = Duration::ZERO;
        fleet.want(1);
        let worker = "local-2-1".parse().unwrap();
        fleet.joined(&worker);
        while !dir.path().join("ready").exists() {
            tokio::task::yield_now().await;
        }
        fleet.lost(&worker);
        assert_eq!(fleet.observe().await, FleetEvent::Ended { worker });
        assert!(dir.path().join("ended").exists());
        fleet.stop_all().await;
    }
}
