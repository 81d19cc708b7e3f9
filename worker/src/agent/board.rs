//! What a worker holds: what waits, what runs, and what is to be told of it.
//!
//! The agent puts there what it is assigned, and fills the slots that are free. A slot's thread takes what comes next by
//! itself, so that nobody has to wake up between two short attempts. The agent is woken for what the coordinator should
//! know at once; what is done while much waits is told a little later, together: of many short attempts each would
//! otherwise cost a message, a step of the coordinator and a sync of its journal.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Mutex,
    time::Duration,
};

use forebay_jobs::{
    id::AttemptId,
    task::{AttemptReport, Failure, Outcome},
    wire::Assignment,
};
use tokio::{sync::Notify, time::Instant};

use crate::{
    process::held,
    stop::{Stop, Why},
};

/// Attempts of which a message tells at most, about.
const NEWS: usize = 512;
/// How long news waits for more, while every slot has something to do next.
const TOGETHER: Duration = Duration::from_millis(10);

/// An attempt in a slot.
pub(super) type Place = (Assignment, Stop);

/// Shared by the agent and the threads of its slots.
#[derive(Debug)]
pub(super) struct Board {
    state: Mutex<State>,
    changed: Notify,
    slots: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Assigned and not started, in the coordinator's order.
    queue: VecDeque<Assignment>,
    running: BTreeMap<AttemptId, Stop>,
    /// Slots that are free.
    free: BTreeSet<u32>,
    /// Everything that was ever assigned: nothing is done twice.
    seen: BTreeSet<AttemptId>,
    /// Not yet told: attempts that entered slots, and those that ended.
    started: Vec<AttemptId>,
    ended: Vec<AttemptReport>,
    /// Since when there is something of these two.
    since: Option<Instant>,
}

impl State {
    fn enter(&mut self) -> Option<Place> {
        let assignment = self.queue.pop_front()?;
        let stop = Stop::default();
        self.running.insert(assignment.attempt, stop.clone());
        self.started.push(assignment.attempt);
        self.since.get_or_insert_with(Instant::now);
        Some((assignment, stop))
    }

    fn end(&mut self, reports: impl IntoIterator<Item = AttemptReport>) {
        self.ended.extend(reports);
        if !self.ended.is_empty() {
            self.since.get_or_insert_with(Instant::now);
        }
    }

    fn end_unstarted(&mut self, outcome: impl Fn() -> Outcome, which: impl Fn(&AttemptId) -> bool) {
        let queue = std::mem::take(&mut self.queue);
        let (ended, kept): (VecDeque<_>, _) = queue.into_iter().partition(|held| which(&held.attempt));
        self.queue = kept;
        let report = |held: Assignment| AttemptReport { attempt: held.attempt, outcome: outcome(), seconds: 0.0 };
        self.end(ended.into_iter().map(report));
    }

    /// A slot may soon have nothing to do, or a message would grow too long.
    fn is_urgent(&self, slots: usize) -> bool {
        self.queue.len() < slots || self.started.len() + self.ended.len() >= NEWS
    }
}

impl Board {
    pub(super) fn new(slots: u32) -> Self {
        let state = State { free: (0..slots).collect(), ..State::default() };
        Self { state: Mutex::new(state), changed: Notify::new(), slots: slots as usize }
    }

    /// Queues what was never assigned before.
    pub(super) fn assign(&self, assignments: Vec<Assignment>) {
        let mut state = held(&self.state);
        for assignment in assignments {
            if state.seen.insert(assignment.attempt) {
                state.queue.push_back(assignment);
            }
        }
    }

    /// Gives the slots that are free what is queued.
    pub(super) fn fill(&self) -> Vec<(u32, Place)> {
        let mut state = held(&self.state);
        let mut filled = Vec::new();
        while !state.queue.is_empty() {
            let Some(slot) = state.free.pop_first() else { break };
            filled.extend(state.enter().map(|place| (slot, place)));
        }
        filled
    }

    /// Notes that a slot's attempt has ended. What the slot goes on with; if that is nothing, it is free.
    pub(super) fn ended(&self, slot: u32, report: AttemptReport) -> Option<Place> {
        let mut state = held(&self.state);
        let was_told = state.since.is_none();
        state.running.remove(&report.attempt);
        state.end([report]);
        let next = state.enter();
        if next.is_none() {
            state.free.insert(slot);
        }
        if was_told || state.is_urgent(self.slots) {
            self.changed.notify_one();
        }
        next
    }

    /// Returns when a slot's thread has noted something that may have to be told. For one task at a time.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// When the news is to be told, if there is any: of what has only started nobody is told while there is no
    /// coordinator.
    pub(super) fn news_due(&self, is_up: bool) -> Option<Instant> {
        let state = held(&self.state);
        let since = state.since.filter(|_| is_up || !state.ended.is_empty())?;
        Some(if state.is_urgent(self.slots) { since } else { since + TOGETHER })
    }

    /// What has ended, and what has started and not ended, since the last time. Without a coordinator only the first is
    /// taken.
    pub(super) fn take_news(&self, is_up: bool) -> (Vec<AttemptReport>, Vec<AttemptId>) {
        let mut state = held(&self.state);
        let mut started = if is_up { std::mem::take(&mut state.started) } else { Vec::new() };
        started.retain(|attempt| state.running.contains_key(attempt));
        state.since = None;
        (std::mem::take(&mut state.ended), started)
    }

    /// These reports may have been lost.
    pub(super) fn tell_again(&self, reports: impl IntoIterator<Item = AttemptReport>) {
        held(&self.state).end(reports);
    }

    /// A coordinator may not know what runs.
    pub(super) fn tell_what_runs(&self) {
        let mut state = held(&self.state);
        state.started = state.running.keys().copied().collect();
        if !state.started.is_empty() {
            state.since.get_or_insert_with(Instant::now);
        }
    }

    /// Ends attempts, be they queued or running.
    pub(super) fn kill(&self, attempts: &BTreeSet<AttemptId>) {
        let mut state = held(&self.state);
        let running = attempts.iter().filter_map(|attempt| state.running.get(attempt));
        running.for_each(|stop| stop.order(Why::Cancelled));
        state.end_unstarted(|| Outcome::Failed(Failure::Cancelled), |attempt| attempts.contains(attempt));
    }

    /// Orders attempts that run to be done with what they have read.
    pub(super) fn make_way(&self, attempts: &[AttemptId]) {
        let state = held(&self.state);
        attempts.iter().filter_map(|attempt| state.running.get(attempt)).for_each(|stop| stop.order(Why::Yield));
    }

    /// Gives back what is queued.
    pub(super) fn give_back(&self) {
        held(&self.state).end_unstarted(|| Outcome::GivenBack, |_| true);
    }

    /// Says that what is queued is done.
    pub(super) fn pretend(&self) {
        let done = || Outcome::Done { outputs: Vec::new(), metrics: BTreeMap::new(), rest: None };
        held(&self.state).end_unstarted(done, |_| true);
    }

    /// Orders the end of what runs.
    pub(super) fn stop(&self, why: Why) {
        held(&self.state).running.values().for_each(|stop| stop.order(why));
    }

    /// Whether nothing runs.
    pub(super) fn is_quiet(&self) -> bool {
        held(&self.state).running.is_empty()
    }

    /// Whether nothing runs and nothing is queued.
    pub(super) fn is_idle(&self) -> bool {
        let state = held(&self.state);
        state.running.is_empty() && state.queue.is_empty()
    }

    /// What is queued, runs, or has ended and was not told.
    pub(super) fn holds(&self) -> Vec<AttemptId> {
        let state = held(&self.state);
        let queued = state.queue.iter().map(|assignment| assignment.attempt);
        let ended = state.ended.iter().map(|report| report.attempt);
        queued.chain(state.running.keys().copied()).chain(ended).collect()
    }
}

#[cfg(test)]
mod tests {
    use forebay_jobs::{
        id::{Epoch, TaskId},
        task::{TaskInput, TaskSpec},
    };

    use super::*;

    fn id(index: u32) -> AttemptId {
        AttemptId { task: TaskId { phase: 0, index }, number: 1, epoch: Epoch(1) }
    }

    fn done(index: u32) -> AttemptReport {
        let outcome = Outcome::Done { outputs: Vec::new(), metrics: BTreeMap::new(), rest: None };
        AttemptReport { attempt: id(index), outcome, seconds: 0.0 }
    }

    /// Two slots that are full, and so many attempts that wait.
    fn board(waiting: u32) -> Board {
        let board = Board::new(2);
        let spec = |index| TaskSpec { task: id(index).task, count: 9, input: TaskInput::Split(Default::default()) };
        let assignment = |index| Assignment { attempt: id(index), spec: spec(index), beside: false, rendezvous: None };
        board.assign((0..2 + waiting).map(assignment).collect());
        let filled = board.fill().into_iter().map(|(slot, place)| (slot, place.0.attempt)).collect::<Vec<_>>();
        assert_eq!(filled, [(0, id(0)), (1, id(1))]);
        board
    }

    fn wakes(board: &Board) -> bool {
        futures::FutureExt::now_or_never(board.changed()).is_some()
    }

    #[test]
    fn a_slot_goes_on_with_what_waits_and_is_free_when_nothing_does() {
        let board = board(1);
        let next = board.ended(1, done(1)).map(|place| place.0.attempt);
        assert_eq!(next, Some(id(2)));
        assert!(board.ended(0, done(0)).is_none() && !board.is_quiet());
        assert!(board.ended(1, done(2)).is_none() && board.is_idle());
        assert_eq!(held(&board.state).free, BTreeSet::from([0, 1]));
    }

    #[test]
    fn news_waits_for_more_only_while_every_slot_has_something_to_do_next() {
        let board = board(4);
        let started = board.take_news(true).1;
        assert_eq!((started, board.news_due(true)), (vec![id(0), id(1)], None));
        let before = Instant::now();
        board.ended(0, done(0)).unwrap();
        assert!(wakes(&board), "to see when the news is due");
        assert!(board.news_due(true).unwrap() >= before + TOGETHER);
        board.ended(0, done(2)).unwrap();
        assert!(!wakes(&board), "the next is told with the first");
        board.ended(1, done(1)).unwrap();
        assert!(wakes(&board) && board.news_due(true).unwrap() <= Instant::now(), "one waits, for two slots");
        let (ended, started) = board.take_news(true);
        assert_eq!(ended.iter().map(|report| report.attempt).collect::<Vec<_>>(), [id(0), id(2), id(1)]);
        assert_eq!(started, [id(3), id(4)], "what has ended has started, too");
    }

    #[test]
    fn without_a_coordinator_only_ends_are_news_and_the_next_hears_what_runs() {
        let board = board(0);
        assert_eq!(board.news_due(false), None);
        board.ended(0, done(0));
        assert!(board.news_due(false).is_some());
        assert_eq!(board.take_news(false), (vec![done(0)], Vec::new()));
        assert_eq!(board.holds(), [id(1)]);
        board.tell_what_runs();
        assert_eq!(board.take_news(true), (Vec::new(), vec![id(1)]));
    }
}
