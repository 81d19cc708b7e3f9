//! The workers of a run: what each holds, and which holds least.

use std::collections::{BTreeMap, BTreeSet};

use forebay_datasets::volume::Holder;
use forebay_jobs::id::{AttemptId, WorkerId};

use super::Millis;

/// So many milliseconds of a worker's time are for ending what it has begun.
const TO_DRAIN: u64 = 15_000;

/// A worker that has joined.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Worker {
    pub(super) slots: u32,
    pub(super) held: BTreeSet<AttemptId>,
    /// It has started an attempt: what it was sent reached it.
    pub(super) proven: bool,
    /// Another number whenever `held` is another.
    pub(super) version: u64,
    /// Its process, which who can see it need not wait for once it is gone.
    pub(super) process: Option<Holder>,
    /// Since when nothing was heard of it; none while it has a stream.
    pub(super) absent_since: Option<Millis>,
    /// When its stream began.
    pub(super) joined: Millis,
    /// When it was last given anything.
    pub(super) given: Millis,
    /// It takes nothing more.
    pub(super) drains: bool,
    /// It was so slow with a task that others have to do the rest.
    pub(super) slow: bool,
    /// When it came, and when it has to end.
    pub(super) time: Option<(Millis, Millis)>,
}

/// What a worker brings with it.
#[derive(Clone, Debug)]
pub(super) struct Hello {
    pub(super) slots: u32,
    pub(super) process: Option<Holder>,
    /// When it has to end.
    pub(super) until: Option<Millis>,
}

impl Worker {
    /// Whether anything can be given to it.
    fn is_open(&self) -> bool {
        self.absent_since.is_none() && !self.drains
    }

    /// Whether an attempt that usually takes so many milliseconds would end in time. One that takes longer than any
    /// worker has is begun by those that have most of their time before them.
    pub(super) fn has_time(&self, usual: u64, now: Millis) -> bool {
        self.time.is_none_or(|(came, until)| {
            let (left, all) = (until.0.saturating_sub(now.0), until.0.saturating_sub(came.0));
            left > TO_DRAIN && (left >= usual.saturating_add(TO_DRAIN) || left >= all / 2)
        })
    }

    /// Attempts behind each slot, and in all.
    fn load(&self) -> (usize, usize) {
        (self.held.len() / self.slots as usize, self.held.len())
    }
}

/// All workers, with what is asked of them at every step kept beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Workers {
    joined: BTreeMap<WorkerId, Worker>,
    /// Those that can be given something.
    by_load: BTreeSet<((usize, usize), WorkerId)>,
    /// Those that are not, since when.
    absent: BTreeSet<(Millis, WorkerId)>,
    /// Of those that can be given something.
    slots: usize,
    /// How many of these are slow.
    slow: usize,
    /// By any.
    held: usize,
}

impl Workers {
    pub(super) fn get(&self, id: &WorkerId) -> Option<&Worker> {
        self.joined.get(id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &WorkerId> {
        self.joined.keys()
    }

    /// Whether a worker has a stream.
    pub(super) fn is_there(&self, id: &WorkerId) -> bool {
        self.joined.get(id).is_some_and(|worker| worker.absent_since.is_none())
    }

    /// Those of which nothing is heard, and since when, the longest first.
    pub(super) fn absent(&self) -> impl Iterator<Item = (Millis, &WorkerId)> {
        self.absent.iter().map(|(since, id)| (*since, id))
    }

    /// Those that can be given something, the fullest first.
    pub(super) fn by_load(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.by_load.iter().rev().map(|(_, id)| (id, &self.joined[id]))
    }

    /// Slots of all that can be given something.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// How many these are.
    pub(super) fn open(&self) -> usize {
        self.by_load.len()
    }

    /// Those that can be given something and have enough time for what usually takes so long, and how many slots each has.
    pub(super) fn with_time(&self, usual: u64, now: Millis) -> impl Iterator<Item = (&WorkerId, usize)> {
        let open = self.joined.iter().filter(|(_, worker)| worker.is_open());
        open.filter(move |(_, worker)| worker.has_time(usual, now)).map(|(id, worker)| (id, worker.slots as usize))
    }

    /// Attempts that any holds.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Those with less than `depth` behind each slot and enough time for what usually takes so long, the least first. Of
    /// those that were found to be slow none, if they are to be spared and there are others.
    pub(super) fn below(
        &self,
        depth: usize,
        usual: u64,
        spare_slow: bool,
        now: Millis,
    ) -> impl Iterator<Item = &WorkerId> {
        let below = self.by_load.iter().take_while(move |((behind, _), _)| *behind < depth).map(|(_, id)| id);
        let spare_slow = spare_slow && self.slow > 0 && self.slow < self.by_load.len();
        below.filter(move |id| {
            let worker = &self.joined[*id];
            worker.has_time(usual, now) && !(spare_slow && worker.slow)
        })
    }

    /// Tasks that workers which have not joined yet could begin at once: who came first leaves them to them.
    pub(super) fn due_to_missing(&self, wanted: u32) -> usize {
        let missing = (wanted as usize).saturating_sub(self.joined.len());
        missing * self.slots.div_ceil(self.joined.len().max(1)).max(1)
    }

    /// A worker came, or came back.
    pub(super) fn join(&mut self, id: WorkerId, hello: Hello, at: Millis) {
        let mut worker = self.take(&id).unwrap_or_default();
        // Another process of the same name has not begun to end, and has a time of its own.
        if worker.process != hello.process {
            (worker.drains, worker.slow, worker.proven, worker.time) = (false, false, false, None);
        }
        (worker.slots, worker.process, worker.absent_since) = (hello.slots.max(1), hello.process, None);
        worker.time = hello.until.map(|until| (worker.time.map_or(at, |(came, _)| came), until));
        // What it has begun and ended meanwhile it is about to tell.
        (worker.joined, worker.given) = (at, at);
        worker.version += 1;
        self.insert(id, worker);
    }

    /// Nothing is heard of a worker any more.
    pub(super) fn miss(&mut self, id: &WorkerId, at: Millis) {
        if let Some(mut worker) = self.take(id) {
            worker.absent_since = Some(at);
            self.insert(id.clone(), worker);
        }
    }

    /// A worker takes nothing more.
    pub(super) fn drain(&mut self, id: &WorkerId) {
        if let Some(mut worker) = self.take(id) {
            worker.drains = true;
            self.insert(id.clone(), worker);
        }
    }

    /// Forgets a worker, and says what it held.
    pub(super) fn leave(&mut self, id: &WorkerId) -> BTreeSet<AttemptId> {
        self.take(id).map(|worker| worker.held).unwrap_or_default()
    }

    fn insert(&mut self, id: WorkerId, worker: Worker) {
        self.held += worker.held.len();
        match worker.absent_since {
            Some(since) => drop(self.absent.insert((since, id.clone()))),
            None if worker.drains => {}
            None => {
                self.slots += worker.slots as usize;
                self.slow += usize::from(worker.slow);
                self.by_load.insert((worker.load(), id.clone()));
            }
        }
        self.joined.insert(id, worker);
    }

    fn take(&mut self, id: &WorkerId) -> Option<Worker> {
        let worker = self.joined.remove(id)?;
        self.held -= worker.held.len();
        match worker.absent_since {
            Some(since) => drop(self.absent.remove(&(since, id.clone()))),
            None if worker.drains => {}
            None => {
                self.slots -= worker.slots as usize;
                self.slow -= usize::from(worker.slow);
                self.by_load.remove(&(worker.load(), id.clone()));
            }
        }
        Some(worker)
    }

    /// A worker was given something.
    pub(super) fn give(&mut self, id: &WorkerId, at: Millis) {
        if let Some(worker) = self.joined.get_mut(id) {
            worker.given = at;
        }
    }

    /// A worker is slow, and is to be told that others do the rest of something.
    pub(super) fn is_slow(&mut self, id: &WorkerId) {
        if let Some(mut worker) = self.take(id) {
            worker.slow = true;
            worker.version += 1;
            self.insert(id.clone(), worker);
        }
    }

    /// Slots of those that can be given something and are not slow; of all, if there are no others.
    pub(super) fn quick_slots(&self) -> usize {
        let quick = self.by_load.iter().map(|(_, id)| &self.joined[id]).filter(|worker| !worker.slow);
        let slots = quick.map(|worker| worker.slots as usize).sum();
        if slots == 0 { self.slots } else { slots }
    }

    pub(super) fn prove(&mut self, id: &WorkerId) {
        if let Some(worker) = self.joined.get_mut(id) {
            worker.proven = true;
        }
    }

    pub(super) fn hold(&mut self, id: &WorkerId, attempt: AttemptId) {
        self.change(id, |held| held.insert(attempt));
    }

    pub(super) fn release(&mut self, id: &WorkerId, attempt: AttemptId) {
        self.change(id, |held| held.remove(&attempt));
    }

    pub(super) fn hold_nothing(&mut self) {
        let ids: Vec<_> = self.joined.keys().cloned().collect();
        ids.iter().for_each(|id| self.change(id, |held| !std::mem::take(held).is_empty()));
    }

    /// Changes what a worker holds; `change` says whether it did.
    fn change(&mut self, id: &WorkerId, change: impl FnOnce(&mut BTreeSet<AttemptId>) -> bool) {
        let Some(worker) = self.joined.get_mut(id) else { return };
        let before = worker.load();
        if !change(&mut worker.held) {
            return;
        }
        worker.version += 1;
        let after = worker.load();
        self.held = self.held + after.1 - before.1;
        if worker.is_open() {
            self.by_load.remove(&(before, id.clone()));
            self.by_load.insert((after, id.clone()));
        }
    }

    /// Whether what is kept beside the workers agrees with them.
    pub(super) fn agree(&self) -> Result<(), String> {
        let mut counted = Self::default();
        self.joined.iter().for_each(|(id, worker)| counted.insert(id.clone(), worker.clone()));
        match counted == *self {
            true => Ok(()),
            false => Err(format!("{} slots hold {} attempts, which is counted otherwise", counted.slots, counted.held)),
        }
    }

    /// One that holds more than `depth` attempts a slot.
    pub(super) fn fuller_than(&self, depth: usize) -> Option<&WorkerId> {
        let full = |worker: &Worker| worker.held.len() > worker.slots as usize * depth;
        self.joined.iter().find(|(_, worker)| full(worker)).map(|(id, _)| id)
    }

    /// Everything that is held, and by whom.
    pub(super) fn holdings(&self) -> impl Iterator<Item = (&WorkerId, AttemptId)> {
        self.joined.iter().flat_map(|(id, worker)| worker.held.iter().map(move |attempt| (id, *attempt)))
    }
}
