//! The workers of a run: what each holds, and which holds least.

use std::collections::{BTreeMap, BTreeSet};

use forebay_datasets::volume::Holder;
use forebay_jobs::id::{AttemptId, WorkerId};

use super::Millis;

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
    /// When it was last given anything.
    pub(super) given: Millis,
}

impl Worker {
    /// Attempts behind each slot, and in all.
    fn load(&self) -> (usize, usize) {
        (self.held.len() / self.slots as usize, self.held.len())
    }
}

/// All workers, with what is asked of them at every step kept beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Workers {
    joined: BTreeMap<WorkerId, Worker>,
    /// Those that are there.
    by_load: BTreeSet<((usize, usize), WorkerId)>,
    /// Those that are not, since when.
    absent: BTreeSet<(Millis, WorkerId)>,
    /// Of those that are there.
    slots: usize,
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

    /// Those that have a slot free.
    pub(super) fn free(&self) -> impl Iterator<Item = &WorkerId> {
        self.by_load.iter().take_while(|((behind, _), _)| *behind < 1).map(|(_, id)| id)
    }

    /// Those that are there, the fullest first.
    pub(super) fn by_load(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.by_load.iter().rev().map(|(_, id)| (id, &self.joined[id]))
    }

    /// Slots of all that are there.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Attempts that any holds.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// The worker with the least behind each slot, if that is less than `depth`.
    pub(super) fn least_loaded(&self, depth: usize) -> Option<&WorkerId> {
        self.by_load.first().filter(|((behind, _), _)| *behind < depth).map(|(_, id)| id)
    }

    /// Tasks that workers which have not joined yet could begin at once: who came first leaves them to them.
    pub(super) fn due_to_missing(&self, wanted: u32) -> usize {
        let missing = (wanted as usize).saturating_sub(self.joined.len());
        missing * self.slots.div_ceil(self.joined.len().max(1)).max(1)
    }

    /// A worker came, or came back.
    pub(super) fn join(&mut self, id: WorkerId, slots: u32, process: Option<Holder>, at: Millis) {
        let mut worker = self.take(&id).unwrap_or_default();
        (worker.slots, worker.process, worker.absent_since) = (slots.max(1), process, None);
        // What it has begun meanwhile it is about to tell.
        worker.given = at;
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

    /// Forgets a worker, and says what it held.
    pub(super) fn leave(&mut self, id: &WorkerId) -> BTreeSet<AttemptId> {
        self.take(id).map(|worker| worker.held).unwrap_or_default()
    }

    fn insert(&mut self, id: WorkerId, worker: Worker) {
        self.held += worker.held.len();
        match worker.absent_since {
            Some(since) => drop(self.absent.insert((since, id.clone()))),
            None => {
                self.slots += worker.slots as usize;
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
            None => {
                self.slots -= worker.slots as usize;
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
        if worker.absent_since.is_none() {
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
