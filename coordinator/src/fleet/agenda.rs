//! What is to be asked of an engine next, and when: one call of each kind at a time.
//!
//! Pure, as [`Members`] is: it is told the time and what came of each errand. So a test can go through a day of a fleet's
//! life, with all that an engine may do wrong, in a moment.

use std::time::Duration;

use forebay_jobs::id::MemberId;
use tokio::time::Instant;

use super::{
    engine::{Call, Class, EngineError, Limits, Sighting, Started},
    members::Members,
};

/// Something to ask the engine.
#[derive(Debug)]
pub(super) enum Errand {
    /// To be written down first.
    Start(Call),
    List(Vec<MemberId>),
    Stop(Vec<MemberId>),
}

/// An errand has come to its end.
#[derive(Debug)]
pub(super) enum Done {
    Started(Call, Result<Started, EngineError>),
    /// It could not be written down, and was not made.
    NotCalled(Call, String),
    /// With when it was begun.
    Listed(Instant, Result<Vec<Sighting>, EngineError>),
    Stopped(Result<(), EngineError>),
}

#[derive(Debug)]
pub(super) struct Agenda {
    pub(super) members: Members,
    limits: Limits,
    starting: bool,
    listing: bool,
    stopping: bool,
    /// When the next list is due, and the wait before it.
    list: (Instant, Duration),
    /// Whether any coordinator of the run has asked the engine for members.
    called: bool,
    /// Since when everybody is to end.
    closing: Option<Instant>,
}

impl Agenda {
    pub(super) fn new(members: Members, limits: Limits, now: Instant) -> Self {
        let (called, list) = (members.has_something_to_list(), (now, limits.poll.0));
        Self { members, limits, starting: false, listing: false, stopping: false, list, called, closing: None }
    }

    /// What is due; it counts as under way from now on.
    pub(super) fn begin(&mut self, now: Instant) -> Vec<Errand> {
        let mut errands = Vec::new();
        if !self.listing && self.list.0 <= now && self.members.has_something_to_list() {
            self.listing = true;
            errands.push(Errand::List(self.members.known()));
        }
        if !self.stopping {
            let stop = self.members.whom_to_stop(now);
            if !stop.is_empty() {
                self.stopping = true;
                errands.push(Errand::Stop(stop));
            }
        }
        if !self.starting
            && let Some(call) = self.members.next_call(now)
        {
            (self.starting, self.called) = (true, true);
            errands.push(Errand::Start(call));
        }
        errands
    }

    /// When something will be due that is not yet.
    pub(super) fn due_at(&self, now: Instant) -> Option<Instant> {
        let list = Some(self.list.0).filter(|_| !self.listing && self.members.has_something_to_list());
        let stop = self.members.to_stop_at().filter(|_| !self.stopping);
        let start = self.members.next_call_at(now).filter(|_| !self.starting);
        list.into_iter().chain(stop).chain(start).min()
    }

    pub(super) fn done(&mut self, done: Done, now: Instant) {
        match done {
            Done::Started(call, answer) => {
                self.starting = false;
                self.members.answered(&call, answer, now);
                self.look_soon(now);
            }
            Done::NotCalled(call, why) => {
                self.starting = false;
                self.members.not_called(&call, &why, now);
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
                self.look_soon(now);
            }
        }
    }

    /// An errand was lost with the task that did it.
    pub(super) fn broke(&mut self, why: String) {
        (self.starting, self.listing, self.stopping) = (false, false, false);
        self.members.fail(why, None);
    }

    /// Looks soon, and then less and less often.
    pub(super) fn look_soon(&mut self, now: Instant) {
        let first = self.limits.poll.0;
        self.list = (self.list.0.min(now + first), first);
    }

    /// Everybody is to end.
    pub(super) fn close(&mut self, now: Instant) {
        self.closing = Some(now);
        self.members.close(now);
        self.look_soon(now);
    }

    /// Whether all have ended since that was asked for, as far as the engine knows.
    pub(super) fn is_closed(&self) -> bool {
        self.closing.is_some_and(|since| !self.called || (!self.starting && self.members.is_empty(since)))
    }
}
