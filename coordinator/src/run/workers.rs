//! The workers of a run: what each holds, and which holds least.

use std::collections::{BTreeMap, BTreeSet};

use forebay_jobs::id::{AttemptId, WorkerId};

/// A worker that has joined.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Worker {
    pub(super) slots: u32,
    pub(super) held: BTreeSet<AttemptId>,
    /// It has started an attempt: what it was sent reached it.
    pub(super) proven: bool,
    /// Another number whenever `held` is another.
    pub(super) version: u64,
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
    by_load: BTreeSet<((usize, usize), WorkerId)>,
    slots: usize,
    held: usize,
}

impl Workers {
    pub(super) fn get(&self, id: &WorkerId) -> Option<&Worker> {
        self.joined.get(id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &WorkerId> {
        self.joined.keys()
    }

    /// Slots of all.
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

    /// A worker that is not there yet.
    pub(super) fn join(&mut self, id: WorkerId, slots: u32) {
        let worker = Worker { slots: slots.max(1), held: BTreeSet::new(), proven: false, version: 0 };
        self.slots += worker.slots as usize;
        self.by_load.insert((worker.load(), id.clone()));
        self.joined.insert(id, worker);
    }

    /// Forgets a worker, and says what it held.
    pub(super) fn leave(&mut self, id: &WorkerId) -> BTreeSet<AttemptId> {
        let Some(worker) = self.joined.remove(id) else { return BTreeSet::new() };
        self.by_load.remove(&(worker.load(), id.clone()));
        self.slots -= worker.slots as usize;
        self.held -= worker.held.len();
        worker.held
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
        self.by_load.remove(&(before, id.clone()));
        self.by_load.insert((after, id.clone()));
    }

    /// Whether what is kept beside the workers agrees with them.
    pub(super) fn agree(&self) -> Result<(), String> {
        let by_load = self.joined.iter().map(|(id, worker)| (worker.load(), id.clone())).collect::<BTreeSet<_>>();
        let slots: usize = self.joined.values().map(|worker| worker.slots as usize).sum();
        let held: usize = self.joined.values().map(|worker| worker.held.len()).sum();
        match by_load == self.by_load && (slots, held) == (self.slots, self.held) {
            true => Ok(()),
            false => Err(format!("{slots} slots hold {held} attempts, which is counted otherwise")),
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
