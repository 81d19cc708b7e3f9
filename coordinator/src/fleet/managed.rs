//! A fleet over any engine: asks it for what is missing, looks what there is, stops what is too much.
//!
//! One call of each kind is under way at a time, each a task of its own, so that [`Fleet::observe`] can be dropped at any
//! moment and nothing is lost by it. What an answer means, and what is to be done next, `Members` says.

use std::{io, path::Path, sync::Arc, time::Duration};

use forebay_jobs::id::{Epoch, MemberId, WorkerId};
use futures::future::BoxFuture;
use tokio::{task::JoinSet, time::Instant};

use super::{
    Fleet, FleetEvent,
    calls::{self, Calls},
    engine::{Call, Class, Engine, EngineError, Limits, Sighting, Started, Tag},
    members::Members,
};

/// How long stopping everybody may take, with an engine that does not answer or members that do not end.
const STOPPING: Duration = Duration::from_secs(180);

/// The members of a run that an engine runs.
#[derive(Debug)]
pub struct Managed<E: Engine> {
    engine: Arc<E>,
    limits: Limits,
    calls: Arc<Calls>,
    members: Members,
    under_way: JoinSet<Done>,
    starting: bool,
    listing: bool,
    stopping: bool,
    /// When the next list is due, and the wait after it.
    list: (Instant, Duration),
    /// Whether any coordinator of the run has asked the engine for anything.
    called: bool,
}

/// A call has come to its end.
#[derive(Debug)]
enum Done {
    Started(Call, Result<Started, EngineError>),
    /// It could not be written down, and was not made.
    NotCalled(Call, io::Error),
    Listed(Instant, Result<Vec<Sighting>, EngineError>),
    Stopped(Result<(), EngineError>),
    Explained(String),
}

impl<E: Engine> Managed<E> {
    /// A fleet that takes up what earlier coordinators of the run have left. `epoch_dir` is this one's, below `epochs`.
    ///
    /// # Errors
    /// What they have left cannot be read.
    pub fn open(engine: E, tag: Tag, epoch: Epoch, epoch_dir: &Path) -> io::Result<Self> {
        let (limits, now) = (engine.limits(), Instant::now());
        let earlier = calls::earlier(epoch_dir.parent().unwrap_or(epoch_dir))?;
        let called = !earlier.open.is_empty() || !earlier.members.is_empty();
        Ok(Self {
            engine: Arc::new(engine),
            limits,
            calls: Arc::new(Calls::of(epoch_dir)),
            members: Members::new(tag, epoch, limits, earlier, now),
            under_way: JoinSet::new(),
            starting: false,
            listing: false,
            stopping: false,
            list: (now, limits.poll.0),
            called,
        })
    }

    /// Begins what is due.
    fn advance(&mut self) {
        let now = Instant::now();
        if !self.listing && self.list.0 <= now && self.members.has_something_to_list() {
            self.listing = true;
            let (engine, known, limit) = (Arc::clone(&self.engine), self.members.known(), self.limits.call);
            self.under_way.spawn(async move { Done::Listed(now, in_time(limit, engine.list(&known)).await) });
        }
        if !self.stopping {
            let stop = self.members.to_stop(now);
            if !stop.is_empty() {
                self.stopping = true;
                let (engine, limit) = (Arc::clone(&self.engine), self.limits.call);
                self.under_way.spawn(async move { Done::Stopped(in_time(limit, engine.stop(&stop)).await) });
            }
        }
        if !self.starting
            && let Some(call) = self.members.next_call(now)
        {
            (self.starting, self.called) = (true, true);
            let (engine, calls, limit) = (Arc::clone(&self.engine), Arc::clone(&self.calls), self.limits.call);
            self.under_way.spawn(start(engine, calls, call, limit));
        }
    }

    /// When something will be due.
    fn due_at(&self) -> Option<Instant> {
        let list = Some(self.list.0).filter(|_| !self.listing && self.members.has_something_to_list());
        let stop = self.members.to_stop_at().filter(|_| !self.stopping);
        let start = self.members.next_call_at(Instant::now()).filter(|_| !self.starting);
        list.into_iter().chain(stop).chain(start).min()
    }

    /// Looks soon, and then less and less often.
    fn look_soon(&mut self) {
        let first = self.limits.poll.0;
        self.list = (self.list.0.min(Instant::now() + first), first);
    }

    fn done(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Started(call, answer) => {
                self.starting = false;
                self.members.answered(&call, answer, now);
                self.look_soon();
            }
            Done::NotCalled(call, error) => {
                self.starting = false;
                self.members.not_called(&call, &format!("the call could not be written down: {error}"), now);
            }
            Done::Listed(begun, Ok(sightings)) => {
                self.listing = false;
                self.members.listed(sightings, begun, now);
                let wait = match self.members.is_unsettled() {
                    true => self.limits.poll.0,
                    false => (self.list.1 * 2).min(self.limits.poll.1),
                };
                self.list = (now + wait, wait);
            }
            Done::Listed(_, Err(error)) => {
                self.listing = false;
                // An engine that is not there at all is found out before anything was started.
                if error.class == Class::Permanent && !self.called {
                    self.members.fail(error.why, None);
                } else {
                    tracing::warn!("workers could not be listed, which is tried again: {}", error.why);
                }
                let wait = (self.list.1 * 2).min(self.limits.poll.1);
                self.list = (now + wait, wait);
            }
            Done::Stopped(stopped) => {
                self.stopping = false;
                if let Err(error) = stopped {
                    tracing::warn!("workers could not be stopped, which is tried again: {}", error.why);
                }
                self.look_soon();
            }
            Done::Explained(why) => self.members.explained(why, None),
        }
    }

    /// Waits for the next thing that happens, and takes note of it. All of its waits can be dropped.
    async fn step(&mut self) {
        self.advance();
        let due_at = self.due_at();
        let due = async {
            match due_at {
                // Nothing tells when a list would show something else, or when there is room.
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(done) = self.under_way.join_next() => match done {
                Ok(done) => self.done(done),
                Err(error) => {
                    (self.starting, self.listing, self.stopping) = (false, false, false);
                    self.members.fail(format!("a part of the fleet failed: {error}"), None);
                }
            },
            () = due => {}
        }
    }

    fn explain(&mut self, why: String, member: MemberId) {
        let (engine, limit) = (Arc::clone(&self.engine), self.limits.call);
        self.under_way.spawn(async move {
            let more = tokio::time::timeout(limit, engine.explain(&member)).await.ok().flatten();
            Done::Explained(more.map_or(why.clone(), |more| format!("{why}: {more}")))
        });
    }
}

/// Writes the call down, makes it, and writes down what came of it.
async fn start<E: Engine>(engine: Arc<E>, calls: Arc<Calls>, call: Call, limit: Duration) -> Done {
    let (to, what) = (Arc::clone(&calls), call.clone());
    match tokio::task::spawn_blocking(move || to.called(&what)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Done::NotCalled(call, error),
        Err(error) => return Done::NotCalled(call, error.into()),
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

async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    let late = |_| Err(EngineError::new(Class::Unknown, format!("no answer came in {} s", limit.as_secs())));
    tokio::time::timeout(limit, call).await.unwrap_or_else(late)
}

impl<E: Engine> Fleet for Managed<E> {
    fn want(&mut self, workers: u32) {
        if self.members.want(workers) {
            self.look_soon();
        }
    }

    fn joined(&mut self, worker: &WorkerId) {
        self.members.joined(worker, Instant::now());
    }

    fn started(&self, worker: &WorkerId) -> bool {
        self.members.has(worker)
    }

    fn lost(&mut self, worker: &WorkerId) {
        self.members.lost(worker, Instant::now());
        self.look_soon();
    }

    fn observe(&mut self) -> BoxFuture<'_, FleetEvent> {
        Box::pin(async move {
            loop {
                if let Some(event) = self.members.event() {
                    return event;
                }
                match self.members.take_failure() {
                    Some((why, Some(member))) => self.explain(why, member),
                    Some((error, None)) => return FleetEvent::Failed { error },
                    None => self.step().await,
                }
            }
        })
    }

    fn stop_all(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let since = Instant::now();
            self.members.close(since);
            if !self.called {
                return;
            }
            self.look_soon();
            let stopped = async {
                while self.starting || !self.members.is_empty(since) {
                    self.step().await;
                }
            };
            if tokio::time::timeout(STOPPING, stopped).await.is_err() {
                let left: Vec<_> = self.members.known().iter().map(MemberId::to_string).collect();
                tracing::warn!(workers = left.join(", "), "the engine does not say that they have ended");
            }
        })
    }
}
