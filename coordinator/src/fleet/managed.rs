//! A fleet over any engine: asks it for what is missing, looks what there is, stops what is too much.
//!
//! What is to be asked `Agenda` says, and what the answers mean. Each errand is a task of its own, so that
//! [`Fleet::observe`] can be dropped at any moment and nothing is lost by it.

use std::{io, path::Path, sync::Arc, time::Duration};

use forebay_jobs::id::{Epoch, MemberId, WorkerId};
use futures::future::BoxFuture;
use tokio::{task::JoinSet, time::Instant};

use super::{
    Fleet, FleetEvent,
    agenda::{Agenda, Done, Errand},
    calls::{self, Calls},
    engine::{Call, Class, Engine, EngineError, Started, Tag},
    members::Members,
};

/// How long stopping everybody may take, with an engine that does not answer or members that do not end.
const STOPPING: Duration = Duration::from_secs(180);

/// The members of a run that an engine runs.
#[derive(Debug)]
pub struct Managed<E: Engine> {
    engine: Arc<E>,
    calls: Arc<Calls>,
    agenda: Agenda,
    under_way: JoinSet<Ended>,
}

#[derive(Debug)]
enum Ended {
    Errand(Done),
    Explained(String),
}

impl<E: Engine> Managed<E> {
    /// A fleet that takes up what earlier coordinators of the run have left. `epoch_dir` is this one's, and beside it are
    /// theirs.
    ///
    /// # Errors
    /// What they have left cannot be read.
    pub fn open(engine: E, tag: Tag, epoch: Epoch, epoch_dir: &Path) -> io::Result<Self> {
        let (limits, now) = (engine.limits(), Instant::now());
        let earlier = calls::earlier(epoch_dir.parent().unwrap_or(epoch_dir))?;
        let members = Members::new(tag, epoch, limits, earlier, now);
        Ok(Self {
            engine: Arc::new(engine),
            calls: Arc::new(Calls::of(epoch_dir)),
            agenda: Agenda::new(members, limits, now),
            under_way: JoinSet::new(),
        })
    }

    fn send(&mut self, errand: Errand) {
        let (engine, limit) = (Arc::clone(&self.engine), self.engine.limits().call);
        match errand {
            Errand::Start(call) => {
                let calls = Arc::clone(&self.calls);
                self.under_way.spawn(async move { Ended::Errand(start(engine, calls, call, limit).await) });
            }
            Errand::List(known) => {
                let list = async move {
                    let begun = Instant::now();
                    Ended::Errand(Done::Listed(begun, in_time(limit, engine.list(&known)).await))
                };
                self.under_way.spawn(list);
            }
            Errand::Stop(members) => {
                let stop = async move { Ended::Errand(Done::Stopped(in_time(limit, engine.stop(&members)).await)) };
                self.under_way.spawn(stop);
            }
        }
    }

    /// Does what is due, waits for the next thing that happens, and takes note of it. All of its waits can be dropped.
    async fn step(&mut self) {
        for errand in self.agenda.begin(rand::random(), Instant::now()) {
            self.send(errand);
        }
        let due_at = self.agenda.due_at(Instant::now());
        let due = async {
            match due_at {
                // Nothing tells when a list would show something else, or when there is room.
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = self.under_way.join_next() => match ended {
                Ok(Ended::Errand(done)) => self.agenda.done(done, Instant::now()),
                Ok(Ended::Explained(why)) => self.agenda.members.explained(why, None),
                Err(error) => self.agenda.broke(format!("a part of the fleet failed: {error}")),
            },
            () = due => {}
        }
    }

    fn explain(&mut self, why: String, member: MemberId) {
        let (engine, limit) = (Arc::clone(&self.engine), self.engine.limits().call);
        self.under_way.spawn(async move {
            let more = tokio::time::timeout(limit, engine.explain(&member)).await.ok().flatten();
            Ended::Explained(more.map_or(why.clone(), |more| format!("{why}: {more}")))
        });
    }
}

/// Writes the call down, makes it, and writes down what came of it.
async fn start<E: Engine>(engine: Arc<E>, calls: Arc<Calls>, call: Call, limit: Duration) -> Done {
    let (to, what) = (Arc::clone(&calls), call.clone());
    match tokio::task::spawn_blocking(move || to.called(&what)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Done::NotCalled(call, not_written(&error)),
        Err(error) => return Done::NotCalled(call, not_written(&error)),
    }
    let answer = in_time(limit, engine.start(&call)).await;
    if let Ok(Started { members, .. }) = &answer {
        let (token, members) = (call.token.clone(), members.clone());
        let noted = tokio::task::spawn_blocking(move || calls.answered(&token, &members)).await;
        if let Ok(Err(error)) = noted {
            tracing::debug!(%error, "what a call has started could not be written down");
        }
    }
    Done::Started(call, answer)
}

fn not_written(error: &dyn std::fmt::Display) -> String {
    format!("the call could not be written down: {error}")
}

async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    let late = |_| Err(EngineError::new(Class::Unknown, format!("no answer came in {} s", limit.as_secs())));
    tokio::time::timeout(limit, call).await.unwrap_or_else(late)
}

impl<E: Engine> Fleet for Managed<E> {
    fn want(&mut self, workers: u32) {
        if self.agenda.members.want(workers) {
            self.agenda.look_soon(Instant::now());
        }
    }

    fn joined(&mut self, worker: &WorkerId) {
        self.agenda.members.joined(worker, Instant::now());
    }

    fn started(&self, worker: &WorkerId) -> bool {
        self.agenda.members.has(worker)
    }

    fn lost(&mut self, worker: &WorkerId) {
        self.agenda.members.lost(worker, Instant::now());
        self.agenda.look_soon(Instant::now());
    }

    fn observe(&mut self) -> BoxFuture<'_, FleetEvent> {
        Box::pin(async move {
            loop {
                if let Some(event) = self.agenda.members.event() {
                    return event;
                }
                match self.agenda.members.take_failure() {
                    Some((why, Some(member))) => self.explain(why, member),
                    Some((error, None)) => return FleetEvent::Failed { error },
                    None => self.step().await,
                }
            }
        })
    }

    fn stop_all(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.agenda.close(Instant::now());
            let stopped = async {
                while !self.agenda.is_closed() {
                    self.step().await;
                }
            };
            if tokio::time::timeout(STOPPING, stopped).await.is_err() {
                let left: Vec<_> = self.agenda.members.known().iter().map(MemberId::to_string).collect();
                tracing::warn!(workers = left.join(", "), "the engine does not say that they have ended");
            }
        })
    }
}
