//! Pairs as they come, of any keys and values, in bounded memory.

use super::{
    arena::Arena,
    budget,
    files::{Files, Fold, Folded, Sorted},
    partition,
    sort::{Place, sort},
};
use crate::kinds::{TaskContext, TaskError, Written};

/// Pairs that are looked up together.
const TOGETHER: usize = 32;

/// Takes a map task's pairs, and writes them. Those of equal keys stay in the order given.
pub(in super::super) struct Pairs<'a> {
    files: Files<'a>,
    held: Held<'a>,
    partitions: u32,
    budget: usize,
    count: u64,
}

/// Pairs in memory.
struct Held<'a> {
    /// Makes one value of those of equal keys, when they are gone through.
    fold: Option<&'a Fold>,
    arena: Arena,
    places: Vec<Place>,
}

impl<'a> Pairs<'a> {
    pub(in super::super) fn new(ctx: &'a TaskContext<'a>, partitions: u32) -> Self {
        Self::with_budget(ctx, partitions, budget(ctx))
    }

    pub(in super::super) fn with_budget(ctx: &'a TaskContext<'a>, partitions: u32, budget: usize) -> Self {
        Self::folded(ctx, partitions, budget, None)
    }

    /// Of equal keys only one value is written, to which `fold` makes theirs.
    pub(in super::super) fn folded(
        ctx: &'a TaskContext<'a>,
        partitions: u32,
        budget: usize,
        fold: Option<&'a Fold>,
    ) -> Self {
        let held = Held { fold, arena: Arena::default(), places: Vec::new() };
        Self { files: Files::new(ctx, partitions, fold), held, partitions, budget, count: 0 }
    }

    /// Adds a pair, of a value in pieces.
    pub(in super::super) fn push(&mut self, key: &[u8], value: &[&[u8]]) -> Result<(), TaskError> {
        let value = |bytes: &mut Vec<u8>| value.iter().for_each(|piece| bytes.extend_from_slice(piece));
        self.push_with(|bytes| bytes.extend_from_slice(key), value)
    }

    /// Adds a pair whose key and value are appended by whom they are of.
    pub(in super::super) fn push_with(
        &mut self,
        key: impl FnOnce(&mut Vec<u8>),
        value: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), TaskError> {
        let too_long = || TaskError::BadInput("a key or a value has more than 1 GiB".to_owned());
        let (at, key) = self.held.arena.push(key, value).ok_or_else(too_long)?;
        self.held.places.push(Place::new(partition(key, self.partitions), key, at));
        self.count += 1;
        if self.held.is_full(self.budget) {
            self.held.sort();
            self.files.spill(&self.held)?;
            self.held.arena.clear();
            self.held.places.clear();
        }
        Ok(())
    }

    /// How many there were.
    pub(in super::super) fn count(&self) -> u64 {
        self.count
    }

    pub(in super::super) fn finish(mut self) -> Result<Vec<Written>, TaskError> {
        self.held.sort();
        self.files.finish(&self.held)
    }
}

impl Held<'_> {
    /// Whether another pair could be one too many. Places that grow are there twice, once in double number.
    fn is_full(&self, budget: usize) -> bool {
        let growing = if self.places.len() == self.places.capacity() { 3 } else { 1 };
        let places = size_of::<Place>() * self.places.capacity() * growing;
        self.arena.bytes() + places > budget || self.arena.is_full()
    }

    fn sort(&mut self) {
        sort(&mut self.places, &|at| self.arena.pair(at).0);
    }
}

impl Sorted for Held<'_> {
    fn each(
        &self,
        _partitions: u32,
        mut take: impl FnMut(u32, &[u8], &[u8]) -> Result<(), TaskError>,
    ) -> Result<(), TaskError> {
        let (mut folded, mut before) = (self.fold.map(Folded::new), 0);
        let mut pairs = [(&[][..], &[][..]); TOGETHER];
        for places in self.places.chunks(TOGETHER) {
            // Found before any is taken: the processor waits for many places of memory at once.
            places.iter().zip(&mut pairs).for_each(|(place, pair)| *pair = self.arena.pair(place.at()));
            for (place, (key, value)) in places.iter().zip(pairs) {
                match &mut folded {
                    None => take(place.partition(), key, value)?,
                    Some(folded) => {
                        folded.push(key, value, |key, value| take(before, key, value))?;
                        before = place.partition();
                    }
                }
            }
        }
        folded.map_or(Ok(()), |folded| folded.finish(|key, value| take(before, key, value)))
    }
}
