//! Pairs as they come, of any keys and values, in bounded memory.

use super::{
    budget,
    files::{Files, Fold, Folded, Sorted},
    partition, prefix,
};
use crate::kinds::{TaskContext, TaskError, Written};

/// Takes a map task's pairs, and writes them. Those of equal keys stay in the order given.
pub(in super::super) struct Pairs<'a> {
    files: Files<'a>,
    held: Held<'a>,
    partitions: u32,
    budget: usize,
    count: u64,
}

/// A key and its value lie behind each other in `bytes`, without an allocation of their own.
struct Held<'a> {
    /// Makes one value of those of equal keys, when they are gone through.
    fold: Option<&'a Fold>,
    bytes: Vec<u8>,
    pairs: Vec<Pair>,
}

#[derive(Clone, Copy)]
struct Pair {
    prefix: u64,
    at: usize,
    partition: u32,
    key: u32,
    value: u32,
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
        let held = Held { fold, bytes: Vec::new(), pairs: Vec::new() };
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
        let at = self.held.bytes.len();
        key(&mut self.held.bytes);
        let behind = self.held.bytes.len();
        value(&mut self.held.bytes);
        let lengths = (u32::try_from(behind - at), u32::try_from(self.held.bytes.len() - behind));
        let (Ok(key_length), Ok(value)) = lengths else {
            return Err(TaskError::BadInput("a key or a value has more than 1 GiB".to_owned()));
        };
        let key = &self.held.bytes[at..behind];
        let (prefix, partition) = (prefix(key), partition(key, self.partitions));
        self.held.pairs.push(Pair { prefix, at, partition, key: key_length, value });
        self.count += 1;
        // A vector that grows is there twice, once of double size.
        if self.held.bytes.len() + self.held.pairs.len() * size_of::<Pair>() > self.budget / 3 {
            self.held.sort();
            self.files.spill(&self.held)?;
            self.held.bytes.clear();
            self.held.pairs.clear();
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
    fn sort(&mut self) {
        let bytes = &self.bytes;
        let key = |pair: &Pair| &bytes[pair.at..pair.at + pair.key as usize];
        self.pairs.sort_unstable_by(|a, b| {
            let by_prefix = (a.partition, a.prefix).cmp(&(b.partition, b.prefix));
            by_prefix.then_with(|| key(a).cmp(key(b))).then(a.at.cmp(&b.at))
        });
    }
}

impl Sorted for Held<'_> {
    fn each(
        &self,
        _partitions: u32,
        mut take: impl FnMut(u32, &[u8], &[u8]) -> Result<(), TaskError>,
    ) -> Result<(), TaskError> {
        let pairs = self.pairs.iter().map(|pair| {
            let (key, behind) = self.bytes[pair.at..].split_at(pair.key as usize);
            (pair.partition, key, &behind[..pair.value as usize])
        });
        let Some(fold) = self.fold else {
            return pairs.into_iter().try_for_each(|(partition, key, value)| take(partition, key, value));
        };
        let (mut folded, mut before) = (Folded::new(fold), 0);
        for (partition, key, value) in pairs {
            folded.push(key, value, |key, value| take(before, key, value))?;
            before = partition;
        }
        folded.finish(|key, value| take(before, key, value))
    }
}
