//! What is known of an engine's members, and what follows from it: whom to start, whom to stop, what to tell.
//!
//! All of it is decided here, from answers, lists and the time, without waiting for anything. A list may be as old as
//! [`Limits::settle`]. So a member that a list does not show counts as ended only if that list was begun so long after it
//! was heard of, and one that has ended, and is still shown, stays ended. A call whose answer was lost counts as members
//! until an answer to the same token, or such a list, tells what it has started.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use forebay_jobs::id::{Epoch, MemberId, WorkerId};
use tokio::time::Instant;

use super::{
    FleetEvent,
    calls::Earlier,
    engine::{Call, Class, EngineError, Limits, Sighting, Started, State, Tag, Token},
};

/// So many members that end in a row without having said hello mean that none ever will.
pub(super) const ENDS_IN_A_ROW: u32 = 5;
/// From one try that fails to the next, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long a member may be at work without having said hello.
pub(super) const HELLO: Duration = Duration::from_secs(300);
/// How long a worker may take to end by itself once its link said so, or is gone.
pub(super) const BY_ITSELF: Duration = Duration::from_secs(5);
/// How long more may wait for their places than are wanted.
const SURPLUS: Duration = Duration::from_secs(30);
/// From asking a member to end to asking again.
const ASK_AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Member {
    token: Token,
    state: State,
    life: u32,
    /// Its workers that said hello; several, if it was begun anew.
    workers: BTreeSet<WorkerId>,
    /// The worker of its present life, once that said hello.
    present: Option<WorkerId>,
    /// When that last said so.
    present_since: Instant,
    /// When it was first heard of.
    known_at: Instant,
    /// When it was first seen at work in this life.
    works_since: Option<Instant>,
    /// When its present worker was given up.
    lost_at: Option<Instant>,
    /// When it was last asked to end, and why.
    asked: Option<(Instant, Why)>,
}

/// Why a member was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Silent,
    NotNeeded,
}

/// A call that is under way, or whose answer was lost.
#[derive(Debug)]
struct Open {
    count: u32,
    /// When it was last made; none while it is.
    tried_at: Option<Instant>,
}

/// What is known, and what is wanted.
#[derive(Debug)]
pub(super) struct Members {
    tag: Tag,
    epoch: Epoch,
    limits: Limits,
    wanted: u32,
    surplus_since: Option<Instant>,
    members: BTreeMap<MemberId, Member>,
    /// Those that have ended, when, and whether lists still show them.
    ended: BTreeMap<MemberId, Instant>,
    /// Workers that said hello before their member was heard of.
    early: BTreeMap<MemberId, BTreeSet<WorkerId>>,
    open: BTreeMap<Token, Open>,
    /// When the last list was begun that came to an answer.
    listed: Option<Instant>,
    /// No call that starts members is made before: after one there is a pause, and a longer one after a refusal.
    paced_until: Option<Instant>,
    /// Nor before this, after members that ended early.
    not_before: Option<Instant>,
    /// Tries in a row that did not start what was asked for.
    refusals: u32,
    ends_in_a_row: u32,
    events: VecDeque<FleetEvent>,
    /// Set once it is useless to start more: why, and the member that ended last, if it was for that.
    failure: Option<(String, Option<MemberId>)>,
    failed: bool,
    /// Since when everybody is to end.
    closing: Option<Instant>,
}

impl Members {
    pub(super) fn new(tag: Tag, epoch: Epoch, limits: Limits, earlier: Earlier, now: Instant) -> Self {
        let open =
            earlier.open.into_iter().map(|(token, count)| (token, Open { count, tried_at: Some(now) })).collect();
        let mut members = Self {
            tag,
            epoch,
            limits,
            wanted: 0,
            surplus_since: None,
            members: BTreeMap::new(),
            ended: BTreeMap::new(),
            early: BTreeMap::new(),
            open,
            listed: None,
            paced_until: None,
            not_before: None,
            refusals: 0,
            ends_in_a_row: 0,
            events: VecDeque::new(),
            failure: None,
            failed: false,
            closing: None,
        };
        for (member, token) in earlier.members {
            members.found(member, token, State::Queued, 0, now);
        }
        members
    }

    /// So many are to exist. Says whether these are more than before.
    pub(super) fn want(&mut self, wanted: u32) -> bool {
        std::mem::replace(&mut self.wanted, wanted) < wanted
    }

    pub(super) fn joined(&mut self, worker: &WorkerId, now: Instant) {
        let Some(id) = worker.member() else { return };
        match self.members.get_mut(&id) {
            Some(member) => {
                member.workers.insert(worker.clone());
                (member.present, member.present_since, member.lost_at) = (Some(worker.clone()), now, None);
                (self.ends_in_a_row, self.not_before) = (0, None);
            }
            None => drop(self.early.entry(id).or_default().insert(worker.clone())),
        }
    }

    pub(super) fn has(&self, worker: &WorkerId) -> bool {
        worker.member().is_some_and(|member| self.members.contains_key(&member))
    }

    pub(super) fn lost(&mut self, worker: &WorkerId, now: Instant) {
        let Some(id) = worker.member() else { return };
        self.early.get_mut(&id).map(|early| early.remove(worker));
        if let Some(member) = self.members.get_mut(&id) {
            member.workers.remove(worker);
            // The worker of an earlier life says nothing about this one.
            if member.present.as_ref() == Some(worker) {
                member.lost_at = Some(now);
            }
        }
    }

    pub(super) fn event(&mut self) -> Option<FleetEvent> {
        self.events.pop_front()
    }

    /// Why no more are started, if that is so and was not told yet, and by whose end.
    pub(super) fn take_failure(&mut self) -> Option<(String, Option<MemberId>)> {
        self.failure.take()
    }

    pub(super) fn fail(&mut self, why: String, member: Option<MemberId>) {
        if !self.failed {
            self.failed = true;
            self.explained(why, member);
        }
    }

    /// It failed, and now there is more to say about it.
    pub(super) fn explained(&mut self, why: String, member: Option<MemberId>) {
        self.failure = Some((why, member));
    }

    /// Everybody is to end: who has a link was told so, and has a while to do it.
    pub(super) fn close(&mut self, now: Instant) {
        self.wanted = 0;
        self.closing = Some(now);
    }

    /// Whether nobody exists, as far as can be known, by a list that was begun since `since`.
    pub(super) fn is_empty(&self, since: Instant) -> bool {
        self.members.is_empty() && self.open.is_empty() && self.listed.is_some_and(|listed| listed >= since)
    }

    /// Those that are taken to exist.
    pub(super) fn known(&self) -> Vec<MemberId> {
        self.members.keys().cloned().collect()
    }

    /// Whether something is about to change that lists will tell.
    pub(super) fn is_unsettled(&self) -> bool {
        let unsettled = |member: &Member| {
            member.asked.is_some()
                || member.lost_at.is_some()
                || member.state == State::Ending
                || (member.state == State::Running && member.present.is_none())
        };
        self.closing.is_some() || !self.open.is_empty() || self.members.values().any(unsettled)
    }

    /// Whether lists could tell anything.
    pub(super) fn has_something_to_list(&self) -> bool {
        self.wanted > 0 || self.closing.is_some() || !self.members.is_empty() || !self.open.is_empty()
    }

    /// Those that are at work, will be, or may be: of calls without an answer as many as were asked for.
    fn expected(&self) -> u32 {
        let counts =
            |member: &&Member| member.asked.is_none() && matches!(member.state, State::Queued | State::Running);
        let counted = self.members.values().filter(counts).count();
        let unseen = self.open.iter().map(|(token, open)| {
            let seen = self.members.values().filter(|member| member.token == *token).count();
            (open.count as usize).saturating_sub(seen)
        });
        u32::try_from(counted + unseen.sum::<usize>()).unwrap_or(u32::MAX)
    }

    /// The next call to make, if one is due; it counts as under way from now on. The nonce makes its token.
    pub(super) fn next_call(&mut self, nonce: u32, now: Instant) -> Option<Call> {
        if self.failed || self.listed.is_none() || self.waits_until().is_some_and(|at| at > now) {
            return None;
        }
        let (expected, wanted) = (self.expected(), self.wanted);
        // What a call may have started is asked for under its token, if all of it is wanted; else lists will tell.
        let again = self.open.iter_mut().find(|(_, open)| open.tried_at.is_some() && expected <= wanted);
        if let Some((token, open)) = again {
            open.tried_at = None;
            return Some(Call { token: token.clone(), count: open.count, again: true });
        }
        let count = wanted.saturating_sub(expected).min(self.limits.batch);
        if count == 0 {
            return None;
        }
        let token = self.tag.fresh(self.epoch, nonce);
        self.open.insert(token.clone(), Open { count, tried_at: None });
        Some(Call { token, count, again: false })
    }

    /// Whether a call would be made later, and when.
    pub(super) fn next_call_at(&self, now: Instant) -> Option<Instant> {
        let wants = !self.failed && self.listed.is_some() && self.wanted > 0;
        let may = self.expected() < self.wanted
            || (self.expected() == self.wanted && self.open.values().any(|open| open.tried_at.is_some()));
        self.waits_until().filter(|at| wants && may && *at > now)
    }

    fn waits_until(&self) -> Option<Instant> {
        self.paced_until.max(self.not_before)
    }

    /// What came of a call.
    pub(super) fn answered(&mut self, call: &Call, answer: Result<Started, EngineError>, now: Instant) {
        self.paced_until = Some(now + self.limits.pause);
        let (started, refused) = match answer {
            Ok(Started { members, refused }) => (Some(members), refused),
            Err(error) => (None, Some(error)),
        };
        let is_known = refused.as_ref().is_none_or(|error| error.class != Class::Unknown);
        // That another try was refused tells nothing of the first one.
        if is_known && (started.is_some() || !call.again) {
            self.open.remove(&call.token);
        } else if let Some(open) = self.open.get_mut(&call.token) {
            open.tried_at = Some(now);
        }
        if started.as_ref().is_some_and(|members| !members.is_empty()) {
            self.refusals = 0;
        }
        for member in started.into_iter().flatten() {
            if !self.members.contains_key(&member) && !self.ended.contains_key(&member) {
                self.found(member, call.token.clone(), State::Queued, 0, now);
            }
        }
        let Some(error) = refused else { return };
        match error.class {
            Class::Permanent => self.fail(error.why, None),
            Class::Capacity | Class::Throttled | Class::Unknown => {
                tracing::warn!(
                    count = call.count,
                    "workers could not be started, and are asked for again: {}",
                    error.why
                );
                self.paced_until = self.paced_until.max(Some(now + backoff(self.refusals)));
                self.refusals += 1;
            }
        }
    }

    /// The call was not made at all.
    pub(super) fn not_called(&mut self, call: &Call, why: &str, now: Instant) {
        let error = EngineError::new(Class::Throttled, why);
        match call.again {
            true => self.answered(call, Err(EngineError { class: Class::Unknown, ..error }), now),
            false => self.answered(call, Err(error), now),
        }
    }

    /// What a list tells that was begun at `begun`.
    pub(super) fn listed(&mut self, sightings: Vec<Sighting>, begun: Instant, now: Instant) {
        let before = self.listed.replace(begun);
        let settle = self.limits.settle;
        let settled = |at: Instant| at + settle <= begun;
        let shown: BTreeSet<_> = sightings.iter().map(|sighting| sighting.member.clone()).collect();
        for Sighting { member, token, state, life } in sightings {
            let is_known = self.members.contains_key(&member);
            match (state, self.ended.get(&member)) {
                (State::Ended { .. } | State::Evicted { .. }, Some(_)) => {}
                (State::Ended { why }, None) => {
                    if !is_known {
                        self.found(member.clone(), token, State::Ending, life, now);
                    }
                    self.end(&member, &why, now);
                }
                (State::Evicted { why }, None) => {
                    tracing::info!(%member, "its place was taken: {why}");
                    if self.remove(&member, now).is_some_and(|member| member.present.is_none()) {
                        self.paced_until = self.paced_until.max(Some(now + backoff(0)));
                    }
                }
                // The list is older than its end.
                (_, Some(at)) if !settled(*at) => {}
                (state, _) => {
                    self.ended.remove(&member);
                    if !is_known {
                        self.found(member.clone(), token, State::Queued, life, now);
                    }
                    self.seen(&member, state, life, (before, now));
                }
            }
        }
        let missing = self.members.iter().filter(|(id, member)| !shown.contains(*id) && settled(member.known_at));
        for id in missing.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.end(&id, "it is not known any more", now);
        }
        // What it may have started is there by now.
        self.open.retain(|_, open| !open.tried_at.is_some_and(settled));
        self.ended.retain(|id, at| shown.contains(id) || !settled(*at));
    }

    fn found(&mut self, id: MemberId, token: Token, state: State, life: u32, now: Instant) {
        let workers = self.early.remove(&id).unwrap_or_default();
        let present = workers.iter().next_back().cloned();
        if present.is_some() {
            self.ends_in_a_row = 0;
            self.events.push_back(FleetEvent::Recognized);
        }
        let (works_since, lost_at, asked) = (None, None, None);
        let (known_at, present_since) = (now, now);
        let member =
            Member { token, state, life, workers, present, present_since, known_at, works_since, lost_at, asked };
        self.members.insert(id, member);
    }

    /// What a list shows of a member, after one that was begun `before`.
    fn seen(&mut self, id: &MemberId, state: State, life: u32, (before, now): (Option<Instant>, Instant)) {
        let settle = self.limits.settle;
        let Some(member) = self.members.get_mut(id) else { return };
        let was_at_work = member.works_since.is_some();
        if life > member.life || (state == State::Queued && was_at_work) {
            // It is begun anew; what was its worker may be at work all the same.
            (member.life, member.works_since) = (life, None);
            member.lost_at = None;
            // Who said hello since what that list can have shown may be of this life already.
            let may_be = before.is_none_or(|at| member.present_since + settle >= at);
            member.present = member.present.take().filter(|_| may_be);
        }
        if state == State::Running {
            member.works_since.get_or_insert(now);
        }
        member.state = state;
    }

    /// A member has ended, and so have all of its workers, as far as its engine knows.
    fn remove(&mut self, id: &MemberId, now: Instant) -> Option<Member> {
        self.ended.insert(id.clone(), now);
        let mut member = self.members.remove(id)?;
        let workers = std::mem::take(&mut member.workers);
        self.events.extend(workers.into_iter().map(|worker| FleetEvent::Ended { worker }));
        Some(member)
    }

    /// The same, and whether it tells that others will end that way.
    fn end(&mut self, id: &MemberId, why: &str, now: Instant) {
        let Some(member) = self.remove(id, now) else { return };
        let why = match member.asked {
            Some((_, Why::NotNeeded)) => None,
            Some((_, Why::Silent)) => Some(format!("in {} s it did not say hello", HELLO.as_secs())),
            None => Some(why.to_owned()),
        };
        let is_early = member.present.is_none() && member.token.epoch() == self.epoch;
        let Some(why) = why.filter(|_| is_early && self.closing.is_none()) else { return };
        self.not_before = self.not_before.max(Some(now + backoff(self.ends_in_a_row)));
        self.ends_in_a_row += 1;
        tracing::info!(member = %id, "it ended before it could join: {why}");
        if self.ends_in_a_row >= ENDS_IN_A_ROW {
            let failure = format!("{ENDS_IN_A_ROW} workers in a row ended before they could join ({id}: {why})");
            self.fail(failure, Some(id.clone()));
        }
    }

    /// Whom to ask to end now; they count as asked.
    pub(super) fn whom_to_stop(&mut self, now: Instant) -> Vec<MemberId> {
        let surplus = self.expected().saturating_sub(self.wanted);
        self.surplus_since = self.surplus_since.or(Some(now)).filter(|_| surplus > 0);
        let surplus = if self.surplus_since.is_some_and(|at| at + SURPLUS <= now) { surplus as usize } else { 0 };
        let newest = self.members.iter().rev().filter(|(_, member)| member.waits()).take(surplus);
        let surplus: BTreeSet<_> = newest.map(|(id, _)| id.clone()).collect();
        let closing = self.closing;
        let mut stop = Vec::new();
        for (id, member) in &mut self.members {
            let why = if surplus.contains(id) { Some((now, Why::NotNeeded)) } else { due(member, closing) };
            if let Some((_, why)) = why.filter(|(at, _)| *at <= now) {
                // What it ends for it ends for at first.
                member.asked = Some((now, member.asked.map_or(why, |(_, first)| first)));
                stop.push(id.clone());
            }
        }
        stop
    }

    /// When somebody will have to be asked to end.
    pub(super) fn stops_at(&self) -> Option<Instant> {
        let due = self.members.values().filter_map(|member| due(member, self.closing).map(|(at, _)| at));
        let has_waiting = self.members.values().any(Member::waits);
        due.chain(self.surplus_since.map(|at| at + SURPLUS).filter(|_| has_waiting)).min()
    }
}

impl Member {
    /// Whether it waits for its place, and nobody minds if it gets none.
    fn waits(&self) -> bool {
        self.state == State::Queued && self.asked.is_none() && self.present.is_none()
    }
}

fn backoff(tries: u32) -> Duration {
    BACKOFF.0.saturating_mul(2_u32.saturating_pow(tries)).min(BACKOFF.1)
}

/// When a member has to be asked to end.
fn due(member: &Member, closing: Option<Instant>) -> Option<(Instant, Why)> {
    let closing = closing.map(|at| match &member.present {
        Some(_) => (at + BY_ITSELF, Why::NotNeeded),
        None => (at, Why::NotNeeded),
    });
    let lost = member.lost_at.map(|at| (at + BY_ITSELF, Why::NotNeeded));
    let silent = member.works_since.filter(|_| member.present.is_none()).map(|at| (at + HELLO, Why::Silent));
    let first = closing.into_iter().chain(lost).chain(silent).min_by_key(|(at, _)| *at);
    match member.asked {
        None => first,
        Some((asked, why)) => Some((asked + ASK_AGAIN, why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        batch: 1,
        pause: Duration::from_millis(500),
        settle: Duration::from_secs(60),
        poll: (Duration::from_secs(1), Duration::from_secs(10)),
        call: Duration::from_secs(60),
    };

    /// As many calls as are wanted, each at the moment it is due, that start a member each.
    fn start(members: &mut Members, count: u32, now: &mut Instant) -> Vec<(MemberId, Token)> {
        let mut call = |nonce| {
            *now = members.next_call_at(*now).unwrap_or(*now);
            let call = members.next_call(nonce, *now).unwrap();
            let member: MemberId = format!("m-{nonce}").parse().unwrap();
            let started = Started { members: vec![member.clone()], refused: None };
            members.answered(&call, Ok(started), *now);
            (member, call.token)
        };
        (0..count).map(&mut call).collect()
    }

    fn wanting(count: u32) -> (Members, Instant) {
        let (tag, now) = (Tag::of("v", &"r".parse().unwrap()), Instant::now());
        let mut members = Members::new(tag, Epoch(1), LIMITS, Earlier::default(), now);
        members.want(count);
        members.listed(Vec::new(), now, now);
        (members, now)
    }

    #[test]
    fn what_is_wanted_is_told_again_once_a_worker_that_came_before_its_answer_is_known() {
        let (mut members, now) = wanting(1);
        let call = members.next_call(1, now).unwrap();
        let member: MemberId = "m-1".parse().unwrap();
        let worker = WorkerId::of_member(&member, 1).unwrap();
        members.joined(&worker, now);
        assert!(!members.has(&worker) && members.event().is_none());
        members.answered(&call, Ok(Started { members: vec![member], refused: None }), now);
        assert!(members.has(&worker));
        assert_eq!((members.event(), members.event()), (Some(FleetEvent::Recognized), None));
    }

    #[test]
    fn a_worker_that_joins_does_not_shorten_the_pause_between_calls() {
        let (mut members, mut now) = wanting(2);
        let started = start(&mut members, 1, &mut now);
        members.joined(&WorkerId::of_member(&started[0].0, 1).unwrap(), now);
        assert!(members.next_call(7, now + LIMITS.pause / 2).is_none());
        assert_eq!(members.next_call_at(now), Some(now + LIMITS.pause));
        assert!(members.next_call(7, now + LIMITS.pause).is_some());
    }

    #[test]
    fn those_whose_places_were_taken_do_not_count_as_workers_that_cannot_work() {
        for (evicted, fails) in [(true, false), (false, true)] {
            let (mut members, mut now) = wanting(ENDS_IN_A_ROW);
            let started = start(&mut members, ENDS_IN_A_ROW, &mut now);
            let state = |why: String| if evicted { State::Evicted { why } } else { State::Ended { why } };
            let ended = |(member, token)| Sighting { member, token, state: state("so".to_owned()), life: 0 };
            members.listed(started.into_iter().map(ended).collect(), now, now);
            assert_eq!(members.take_failure().is_some(), fails);
            assert_eq!(members.known(), []);
        }
    }

    #[test]
    fn a_worker_whose_hello_comes_before_the_list_that_shows_its_life_is_not_silent() {
        let limits = Limits { settle: Duration::ZERO, ..LIMITS };
        let (tag, start) = (Tag::of("v", &"r".parse().unwrap()), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (token, member): (_, MemberId) = (tag.fresh(Epoch(1), 1), "m".parse().unwrap());
        let mut members = Members::new(tag, Epoch(1), limits, Earlier::default(), start);
        members.want(1);
        let list = |members: &mut Members, life, seconds| {
            let (member, token) = (member.clone(), token.clone());
            members.listed(vec![Sighting { member, token, state: State::Running, life }], at(seconds), at(seconds));
        };
        list(&mut members, 0, 1);
        let hello = |nonce| WorkerId::of_member(&"m".parse().unwrap(), nonce).unwrap();
        members.joined(&hello(1), at(2));
        list(&mut members, 0, 3);
        // It is begun anew and is there before anybody has looked.
        members.joined(&hello(2), at(4));
        list(&mut members, 1, 5);
        let late = at(5) + HELLO;
        assert!(members.whom_to_stop(late).is_empty());
        // The one of an earlier life says nothing of the next one, which is waited for.
        list(&mut members, 1, 6);
        list(&mut members, 2, 7);
        assert_eq!(members.whom_to_stop(at(7) + HELLO).len(), 1);
    }
}
