//! The worker's loop: what the coordinator assigns is queued, started as slots are free, and reported when it has ended.
//!
//! A worker lives as long as its link. When the link breaks it kills what it runs and ends; the fleet starts another.
//! Told to end by a signal, it drains: programs get SIGTERM and a grace, and everything that is not done is given back.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use forebay_datasets::volume::{Volume, VolumeError};
use forebay_jobs::{
    id::{AttemptId, RunId, WorkerId},
    task::{AttemptReport, Failure, Outcome},
    wire::{Assignment, FromWorker, ToWorker},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::{Id, JoinError, JoinSet},
    time::MissedTickBehavior,
};
use tonic::{Status, Streaming};

pub use crate::link::LinkError;
use crate::{
    execute::{Bench, execute},
    guard::Guard,
    link,
    logs::Logs,
    process::become_subreaper,
    resources,
    stop::{Stop, Why},
};

const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long the end waits for what was killed. A fleet grows impatient after five seconds.
const DYING: Duration = Duration::from_secs(3);
/// How long the end waits for the coordinator to take the last reports.
const FAREWELL: Duration = Duration::from_secs(5);

/// Attempts of which a message tells at most, about.
const NEWS: usize = 512;
/// Files that the reports of one message name, so that it stays below the largest of the link; a single report with
/// more travels alone.
const FILES_A_MESSAGE: usize = 10_000;

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
    /// The link to the coordinator broke.
    #[error("the link to the coordinator of run `{run}` broke; what was not done is given up")]
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

/// Works for a run until its coordinator says that nothing more will come, the link breaks, or a signal says to end.
///
/// A process runs one worker at most, and is expected to exit when this returns: it has become the parent of its
/// programs' orphans, and built-in work that does not end at once is left to end with the process.
///
/// # Errors
/// Every end but a coordinator's `Shutdown` and a signal's.
pub async fn run(config: WorkerConfig) -> Result<(), WorkerError> {
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
    run_until(config, told).await
}

/// As [`run`]; `told` stands for the signals. The first drains, the second ends at once.
async fn run_until(config: WorkerConfig, told: mpsc::Receiver<()>) -> Result<(), WorkerError> {
    resources::raise_open_files();
    let volume = Volume::open(&config.volume_root)?;
    let run_dir = volume.run_dir(config.run.as_str());
    let slots = config.slots.unwrap_or_else(resources::cores).max(1);
    let hello = FromWorker::Hello {
        run: config.run.clone(),
        worker: config.worker.clone(),
        slots,
        host: resources::host(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        volume: volume.id().to_owned(),
    };
    let link = link::connect(&config.run, &run_dir, hello).await?;
    tracing::info!(run = %config.run, worker = %config.worker, epoch = %link.epoch, slots, "joined");
    become_subreaper();
    let guard = Guard::start().inspect_err(|error| {
        tracing::warn!(%error, "no guard: programs would survive this worker's being killed");
    });
    let bench = Bench {
        logs: Logs::create(&run_dir.join("logs"), &config.worker)?,
        volume,
        run: config.run,
        job: link.job,
        slots,
        guard: guard.ok(),
        data: Mutex::new(None),
        pretend: config.pretend,
    };
    let agent = Agent {
        bench: Arc::new(bench),
        outgoing: link.outgoing,
        queue: VecDeque::new(),
        running: BTreeMap::new(),
        seen: BTreeSet::new(),
        tasks: JoinSet::new(),
        ids: BTreeMap::new(),
        started: Vec::new(),
        ended: Vec::new(),
        draining: false,
    };
    agent.work(link.incoming, told).await
}

struct Agent {
    bench: Arc<Bench>,
    outgoing: mpsc::Sender<FromWorker>,
    /// Assigned and not started, in the coordinator's order.
    queue: VecDeque<Assignment>,
    running: BTreeMap<AttemptId, Stop>,
    /// Everything that was ever assigned: nothing is done twice.
    seen: BTreeSet<AttemptId>,
    tasks: JoinSet<AttemptReport>,
    /// Whose task is whose, for one that panics.
    ids: BTreeMap<Id, AttemptId>,
    /// Not yet told: attempts that entered slots, and those that ended.
    started: Vec<AttemptId>,
    ended: Vec<AttemptReport>,
    draining: bool,
}

/// The stream takes no more messages: it broke, and its other direction will tell how.
struct Closed;

impl Agent {
    async fn work(
        mut self,
        mut incoming: Streaming<ToWorker>,
        mut told: mpsc::Receiver<()>,
    ) -> Result<(), WorkerError> {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !(self.draining && self.running.is_empty()) {
            let done = tokio::select! {
                // What is told waits for what is ready, so that it is told together.
                biased;
                Some(()) = told.recv() => {
                    self.drain();
                    Ok(())
                }
                message = incoming.message() => match message {
                    Ok(Some(ToWorker::Shutdown)) => {
                        self.abort().await;
                        return Ok(());
                    }
                    Ok(Some(message)) => {
                        self.take(message);
                        Ok(())
                    }
                    Ok(None) => return self.lost(None).await,
                    Err(status) => return self.lost(Some(Box::new(status))).await,
                },
                Some(ended) = self.tasks.join_next_with_id() => {
                    self.note_ended(ended);
                    Ok(())
                }
                _ = heartbeat.tick() => self.send(FromWorker::Heartbeat).await,
                () = std::future::ready(()), if self.has_news() => self.tell().await,
            };
            self.start();
            let full = self.started.len() + self.ended.len() >= NEWS;
            if done.is_err() || full && self.tell().await.is_err() {
                let why = tokio::time::timeout(DYING, incoming.message()).await;
                return self.lost(why.ok().and_then(Result::err).map(Box::new)).await;
            }
        }
        if self.tell().await.is_ok() {
            self.say_goodbye(incoming).await;
        }
        Ok(())
    }

    async fn send(&self, message: FromWorker) -> Result<(), Closed> {
        self.outgoing.send(message).await.map_err(|_| Closed)
    }

    fn take(&mut self, message: ToWorker) {
        match message {
            ToWorker::Assign(assignments) => {
                let new = assignments.into_iter().filter(|assignment| self.seen.insert(assignment.attempt));
                self.queue.extend(new);
                if self.draining {
                    self.give_back();
                }
            }
            ToWorker::Kill(attempts) => {
                let attempts: BTreeSet<_> = attempts.into_iter().collect();
                for stop in self.running.iter().filter(|(id, _)| attempts.contains(id)).map(|(_, stop)| stop) {
                    stop.order(Why::Cancelled);
                }
                let queue = std::mem::take(&mut self.queue);
                let (killed, kept): (Vec<_>, Vec<_>) =
                    queue.into_iter().partition(|held| attempts.contains(&held.attempt));
                self.queue = kept.into();
                let cancelled = || Outcome::Failed(Failure::Cancelled);
                self.ended.extend(killed.iter().map(|killed| unstarted(killed, cancelled())));
            }
            // A second welcome says nothing new; `work` sees to the shutdown.
            ToWorker::Welcome { .. } | ToWorker::Shutdown => {}
        }
    }

    /// Starts what is queued, as far as there are slots.
    fn start(&mut self) {
        if self.bench.pretend {
            let done = || Outcome::Done { outputs: Vec::new(), metrics: BTreeMap::new() };
            self.ended.extend(self.queue.drain(..).map(|assignment| unstarted(&assignment, done())));
        }
        while self.running.len() < self.bench.slots as usize {
            let Some(assignment) = self.queue.pop_front() else { break };
            let (attempt, stop) = (assignment.attempt, Stop::default());
            let task = self.tasks.spawn(execute(Arc::clone(&self.bench), assignment, stop.clone()));
            self.ids.insert(task.id(), attempt);
            self.running.insert(attempt, stop);
            self.started.push(attempt);
        }
    }

    /// Notes that an attempt has ended.
    fn note_ended(&mut self, ended: Result<(Id, AttemptReport), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        if let Some(attempt) = self.ids.remove(&id) {
            self.running.remove(&attempt);
            let panicked = |_| {
                let message = "the worker's own code panicked".to_owned();
                let outcome = Outcome::Failed(Failure::Error { message, retryable: true });
                AttemptReport { attempt, outcome, seconds: 0.0 }
            };
            self.ended.push(ended.map_or_else(panicked, |(_, report)| report));
        }
    }

    fn has_news(&self) -> bool {
        !self.started.is_empty() || !self.ended.is_empty()
    }

    /// Tells the coordinator what has ended and what has been started.
    async fn tell(&mut self) -> Result<(), Closed> {
        let mut batch: Vec<AttemptReport> = Vec::new();
        let mut named = 0;
        for report in std::mem::take(&mut self.ended) {
            named += files(&report);
            if named > FILES_A_MESSAGE && !batch.is_empty() {
                named = files(&report);
                self.send(FromWorker::Reports(std::mem::take(&mut batch))).await?;
            }
            batch.push(report);
        }
        if !batch.is_empty() {
            self.send(FromWorker::Reports(batch)).await?;
        }
        // What has ended by now has started, too.
        let mut started = std::mem::take(&mut self.started);
        started.retain(|attempt| self.running.contains_key(attempt));
        if started.is_empty() { Ok(()) } else { self.send(FromWorker::Started(started)).await }
    }

    fn give_back(&mut self) {
        let queued = std::mem::take(&mut self.queue);
        self.ended.extend(queued.iter().map(|assignment| unstarted(assignment, Outcome::GivenBack)));
    }

    /// Begins to end; told again, ends at once.
    fn drain(&mut self) {
        let why = if self.draining { Why::Abort } else { Why::Drain };
        self.draining = true;
        self.running.values().for_each(|stop| stop.order(why));
        self.give_back();
    }

    /// Kills what runs, and waits for it as long as it takes a program to die.
    async fn abort(&mut self) {
        self.queue.clear();
        self.running.values().for_each(|stop| stop.order(Why::Abort));
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DYING, ended).await.is_err() {
            tracing::warn!(
                attempts = self.tasks.len(),
                "built-in work does not end, and is left to end with the process"
            );
        }
    }

    async fn lost(mut self, source: Option<Box<Status>>) -> Result<(), WorkerError> {
        self.abort().await;
        Err(WorkerError::LinkLost { run: self.bench.run.clone(), source })
    }

    /// Closes the stream and waits until the coordinator has seen it: then it has seen the last reports too.
    async fn say_goodbye(self, mut incoming: Streaming<ToWorker>) {
        drop(self.outgoing);
        let seen = async { while let Ok(Some(_)) = incoming.message().await {} };
        if tokio::time::timeout(FAREWELL, seen).await.is_err() {
            tracing::warn!("the coordinator does not close the stream");
        }
    }
}

/// How many files a report names.
fn files(report: &AttemptReport) -> usize {
    match &report.outcome {
        Outcome::Done { outputs, .. } => outputs.len(),
        Outcome::Failed(_) | Outcome::GivenBack => 0,
    }
}

fn unstarted(assignment: &Assignment, outcome: Outcome) -> AttemptReport {
    AttemptReport { attempt: assignment.attempt, outcome, seconds: 0.0 }
}

#[cfg(test)]
mod tests;
