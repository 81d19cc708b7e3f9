//! The worker's loop: what the coordinator assigns goes to the board, from which the slots' threads take it, and what they
//! have ended is reported.
//!
//! When its link breaks a worker goes on with what it holds, keeps what it has to report as files, and looks for the next
//! coordinator of the run, be it the same one: that one hears what the worker holds, and takes it on. Without anything
//! to do it ends soon, and in any case once the job's `[workers] patience` is over.
//! Told to end by a signal, or by a time that it was given, it drains: it says so, programs get SIGTERM and a grace, and
//! everything that is not done is given back.

mod board;
mod ending;
mod line;
mod news;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, SystemTime},
};

use forebay_datasets::volume::{Holder, Volume, VolumeError};
use forebay_jobs::{
    host::Host,
    id::{AttemptId, RunId, WorkerId},
    kept,
    kinds::mapreduce::native::Natives,
    task::AttemptReport,
    wire::{Cluster, FromWorker, ToWorker},
};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tonic::Status;

use self::{
    board::{Board, Place},
    line::{Line, News, RETRY},
};
pub use crate::link::LinkError;
use crate::{
    ballista::{Member, Post},
    execute::{Bench, Scratch, Spares, execute, query_memory, without_thread},
    guard::Guard,
    link::{self, Link},
    logs::Logs,
    memory::Groups,
    process::become_subreaper,
    resources,
    stop::Why,
};

const HEARTBEAT: Duration = Duration::from_secs(2);

/// A worker that holds nothing waits for so long for a coordinator: others are started as soon as there is work again.
const IDLE: Duration = Duration::from_secs(60);

/// Before the time at which it is taken away a worker begins to end: programs have 10 s, their outputs the rest.
const BEFORE_THE_END: Duration = Duration::from_secs(15);

/// What a worker is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// The volume's directory on this host.
    pub volume_root: PathBuf,
    /// The run to work for.
    pub run: RunId,
    /// The worker's name, which no other worker of the run may have at the same time.
    pub worker: WorkerId,
    /// Attempts at once; none: as many as this process may use cores.
    pub slots: Option<u32>,
    /// When its host takes it away: it drains in time.
    pub until: Option<SystemTime>,
    /// Whether attempts are reported to be done and nothing is done: only to measure what coordinating costs.
    pub pretend: bool,
}

/// Why a worker ended otherwise than in peace.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The volume cannot be opened, or the worker's log not be written on it.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// There is no link to the coordinator.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The link to the coordinator broke, and no other coordinator came in time.
    #[error("the link to the coordinator of run `{run}` broke, and no other one came in time")]
    LinkLost {
        /// The run.
        run: RunId,
        /// How, unless the coordinator just closed it.
        #[source]
        source: Option<Box<Status>>,
    },
    /// The system does not tell of signals.
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
}

/// Works for a run, by what is built in and by `natives`, until its coordinator says that nothing more will come, there is none for too long, or a signal says
/// to end.
///
/// A process runs one worker at most, and is expected to exit when this returns: it has become the parent of its
/// programs' orphans, and built-in work that does not end at once is left to end with the process.
///
/// # Errors
/// Every end but a coordinator's `Shutdown`, the run's, and a signal's.
pub async fn run(config: WorkerConfig, natives: Natives) -> Result<(), WorkerError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(WorkerError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(WorkerError::Signals)?;
    let (sender, told) = mpsc::channel(2);
    let mut signals = JoinSet::new();
    signals.spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    run_until(config, natives, told).await
}

/// As [`run`]; `told` stands for the signals. The first drains, the second ends at once.
async fn run_until(config: WorkerConfig, natives: Natives, mut told: mpsc::Receiver<()>) -> Result<(), WorkerError> {
    resources::raise_open_files();
    let volume = Volume::open(&config.volume_root)?;
    let run_dir = volume.run_dir(config.run.as_str());
    let host = Host::here();
    let slots = config.slots.unwrap_or(host.cores).max(1);
    let left = config.until.map(|until| until.duration_since(SystemTime::now()).unwrap_or_default());
    let until = left.map(|left| Instant::now() + left);
    let me = Me {
        run: config.run.clone(),
        run_dir: run_dir.clone(),
        worker: config.worker.clone(),
        slots,
        until,
        natives: natives.names(),
    };
    let Some(link) = first_link(&me, &volume, &mut told).await? else { return Ok(()) };
    tracing::info!(run = %config.run, worker = %config.worker, epoch = %link.epoch, slots, "joined");
    become_subreaper();
    let guard = Guard::start().inspect_err(|error| {
        tracing::warn!(%error, "no guard: programs would survive this worker's being killed");
    });
    let (clusters, cluster) = watch::channel(link.cluster.clone());
    let bench = Bench {
        cluster,
        run_dir: run_dir.clone(),
        logs: Logs::create(&run_dir.join("logs"), &config.worker)?,
        worker: config.worker,
        scratch: Scratch::default(),
        spare_outputs: Spares::default(),
        spare_checkpoints: Spares::default(),
        volume,
        until: config.until,
        gpus: host.gpus.into_iter().take(link.job.workers.gpus as usize).collect(),
        groups: if link.job.workers.memory.is_some() { Groups::new() } else { Groups::none() },
        run: config.run,
        job: link.job.clone(),
        natives,
        slots,
        guard: guard.ok(),
        plan: Mutex::new(None),
        runtime: Handle::current(),
    };
    let mut agent = Agent {
        clusters,
        member: None,
        bench: Arc::new(bench),
        me,
        board: Arc::new(Board::new(slots)),
        pretend: config.pretend,
        unnoted: BTreeMap::new(),
        draining: false,
        line: Line::Up(Box::new(link)),
        cut: None,
        kept: 0,
    };
    agent.join_cluster();
    agent.work(told).await
}

/// The link to the coordinator; none if there is nothing to be done. Whoever asked an engine for this worker may have died
/// since then, and a successor wants it: so such a worker waits for one.
async fn first_link(me: &Me, volume: &Volume, told: &mut mpsc::Receiver<()>) -> Result<Option<Link>, WorkerError> {
    let since = Instant::now();
    loop {
        let error = match link::connect(&me.run, volume, me.hello(volume, BTreeSet::new())).await {
            Ok(link) => return Ok(Some(link)),
            Err(error) => error,
        };
        if me.worker.member().is_none() || !error.is_of_nobody() || since.elapsed() > IDLE {
            return Err(error.into());
        }
        if me.run_dir.join(kept::RESULT).exists() {
            return Ok(None);
        }
        tokio::select! {
            // Nobody tells a worker that there is a coordinator.
            () = tokio::time::sleep(RETRY) => {}
            _ = told.recv() => return Ok(None),
        }
    }
}

/// Who this worker is.
struct Me {
    run: RunId,
    run_dir: PathBuf,
    worker: WorkerId,
    slots: u32,
    /// When it is taken away.
    until: Option<Instant>,
    natives: BTreeSet<String>,
}

impl Me {
    fn hello(&self, volume: &Volume, holds: BTreeSet<AttemptId>) -> FromWorker {
        FromWorker::Hello {
            run: self.run.clone(),
            worker: self.worker.clone(),
            slots: self.slots,
            process: Holder::this_process(),
            holds,
            left: self.until.map(|until| {
                let left = until.saturating_duration_since(Instant::now());
                u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
            }),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            volume: volume.id().to_owned(),
            root: volume.root().display().to_string(),
            natives: self.natives.clone(),
        }
    }
}

struct Agent {
    /// Tells attempts of the scheduler that there is.
    clusters: watch::Sender<Option<Cluster>>,
    /// What executes stages of the run's query.
    member: Option<Member>,
    bench: Arc<Bench>,
    me: Me,
    board: Arc<Board>,
    /// Whether nothing is done, and said to be.
    pretend: bool,
    /// Told, and not yet noted.
    unnoted: BTreeMap<AttemptId, AttemptReport>,
    draining: bool,
    line: Line,
    /// Since when there is no coordinator, and how the last one was lost.
    cut: Option<(Instant, Option<Box<Status>>)>,
    /// The number of the last file of reports that was kept for a coordinator.
    kept: u32,
}

/// The stream takes no more messages: it broke.
struct Closed;

impl Agent {
    async fn work(mut self, mut told: mpsc::Receiver<()>) -> Result<(), WorkerError> {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !(self.draining && self.board.is_quiet()) {
            let (is_up, until) = (self.line.is_up(), self.drains_at());
            let due = self.board.news_due(is_up);
            let is_due = due.is_some_and(|due| due <= Instant::now());
            let mut told_all = Ok(());
            tokio::select! {
                // What is told waits for what is ready, so that it is told together.
                biased;
                Some(()) = told.recv() => told_all = self.drain().await,
                news = self.line.next() => match news {
                    News::Said(ToWorker::Shutdown) | News::RunEnded => {
                        self.abort().await;
                        return Ok(());
                    }
                    News::Said(message) => self.take(message),
                    News::Broke(source) => self.is_cut(source),
                    News::IsBack => told_all = self.is_back().await,
                    News::Nobody => {}
                    News::MayCall => self.call(),
                },
                () = self.board.changed() => {}
                _ = heartbeat.tick(), if is_up => told_all = self.send(FromWorker::Heartbeat).await,
                () = std::future::ready(()), if is_due => told_all = self.tell().await,
                // What is of no use to the coordinator yet is told together with more.
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                // What is taken away goes at a time, and so does patience.
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    if self.cut.is_some() {
                        tracing::warn!("no coordinator came in time");
                    }
                    told_all = self.drain().await;
                }
            }
            self.start();
            if told_all.is_err() {
                self.is_cut(None);
            }
        }
        let told_all = self.tell().await;
        match self.cut.take() {
            Some((_, source)) => Err(WorkerError::LinkLost { run: self.me.run.clone(), source }),
            None => {
                if told_all.is_ok() {
                    self.say_goodbye().await;
                }
                Ok(())
            }
        }
    }

    /// When this worker drains by itself: before it is taken away, and when it has been without a coordinator for long.
    fn drains_at(&self) -> Option<Instant> {
        let taken_away = self.me.until.map(|until| until.checked_sub(BEFORE_THE_END).unwrap_or(until));
        let patience = self.bench.job.workers.patience;
        let idle = self.board.is_idle();
        let alone = self.cut.as_ref().map(|(since, _)| *since + if idle { patience.min(IDLE) } else { patience });
        taken_away.into_iter().chain(alone).min().filter(|_| !self.draining)
    }

    /// The stream ended. What was told and not noted may have been lost with it.
    fn is_cut(&mut self, source: Option<Box<Status>>) {
        if self.cut.is_none() {
            tracing::warn!("the link to the coordinator broke");
        }
        self.cut.get_or_insert_with(|| (Instant::now(), source));
        self.board.tell_again(std::mem::take(&mut self.unnoted).into_values());
        self.call();
    }

    fn call(&mut self) {
        let holds = self.board.holds().into_iter().chain(self.unnoted.keys().copied()).collect();
        let hello = self.me.hello(&self.bench.volume, holds);
        self.line = Line::call(self.me.run.clone(), self.bench.volume.clone(), hello);
    }

    /// Executes stages for the coordinator that there is. With its coordinator a scheduler has ended.
    fn join_cluster(&mut self) {
        let Line::Up(link) = &self.line else { return };
        if self.member.as_ref().map(|member| &member.cluster) == link.cluster.as_ref() {
            return;
        }
        self.member = None;
        if let Some(cluster) = &link.cluster {
            let post = Post {
                worker: self.me.worker.clone(),
                volume: self.bench.volume.clone(),
                run_dir: self.me.run_dir.clone(),
                job: self.bench.job.clone(),
                slots: self.me.slots,
                memory: query_memory(&self.bench.job),
            };
            match Member::join(cluster, post) {
                Ok(member) => self.member = Some(member),
                Err(error) => tracing::warn!(%error, "this worker executes no stages"),
            }
        }
        self.clusters.send_replace(link.cluster.clone());
    }

    /// A coordinator is there again. It is told everything that it may not know.
    async fn is_back(&mut self) -> Result<(), Closed> {
        tracing::info!("joined again");
        self.join_cluster();
        self.cut = None;
        self.board.tell_again(std::mem::take(&mut self.unnoted).into_values());
        self.board.tell_what_runs();
        if self.draining { self.send(FromWorker::Draining).await } else { Ok(()) }
    }

    async fn send(&mut self, message: FromWorker) -> Result<(), Closed> {
        match &self.line {
            Line::Up(link) => link.outgoing.send(message).await.map_err(|_| Closed),
            Line::Calling(_) | Line::Down(_) => Err(Closed),
        }
    }

    fn take(&mut self, message: ToWorker) {
        match message {
            ToWorker::Assign(assignments) => {
                self.board.assign(assignments);
                if self.draining {
                    self.board.give_back();
                }
            }
            ToWorker::Kill(attempts) => self.board.kill(&attempts.into_iter().collect()),
            ToWorker::Yield(attempts) => self.board.make_way(&attempts),
            ToWorker::Noted(attempts) => attempts.iter().for_each(|attempt| drop(self.unnoted.remove(attempt))),
            // A second welcome says nothing new, who was welcomed was looked at; `work` sees to the shutdown.
            ToWorker::Welcome { .. } | ToWorker::Look { .. } | ToWorker::Shutdown => {}
        }
    }

    /// Starts what is queued, as far as there are slots. A slot's thread goes on with what is queued then, and ends when
    /// there is nothing.
    fn start(&self) {
        if self.pretend {
            self.board.pretend();
        }
        for (slot, mut place) in self.board.fill() {
            loop {
                let attempt = place.0.attempt;
                let (bench, board) = (Arc::clone(&self.bench), Arc::clone(&self.board));
                let thread = thread::Builder::new().name(format!("slot-{slot}"));
                let Err(error) = thread.spawn(move || serve(&bench, &board, slot, place)) else { break };
                let Some(next) = self.board.ended(slot, without_thread(attempt, error)) else { break };
                place = next;
            }
        }
    }
}

/// Executes one attempt after the other, as long as there are any.
fn serve(bench: &Arc<Bench>, board: &Board, slot: u32, place: Place) {
    let mut place = Some(place);
    while let Some((assignment, stop)) = place {
        place = board.ended(slot, execute(bench, assignment, slot, &stop));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Whoever drops a worker under way wants none of its programs to go on.
        self.board.give_back();
        self.board.stop(Why::Abort);
    }
}

#[cfg(test)]
mod tests;
