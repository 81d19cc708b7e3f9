//! Pairs as they come, of any keys and values, in bounded memory.

use super::{
    budget,
    files::{Files, Sorted},
    partition, prefix,
};
use crate::kinds::{TaskContext, TaskError, Written};

/// Takes a map task's pairs, and writes them. Those of equal keys stay in the order given.
pub(in super::super) struct Pairs<'a> {
    files: Files<'a>,
    held: Held,
    partitions: u32,
    budget: usize,
    count: u64,
}

/// A key and its value lie behind each other in `bytes`, without an allocation of their own.
#[derive(Default)]
struct Held {
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
        let files = Files::new(ctx, partitions, false);
        Self { files, held: Held::default(), partitions, budget, count: 0 }
    }

    /// Adds a pair, of a value in pieces.
    pub(in super::super) fn push(&mut self, key: &[u8], value: &[&[u8]]) -> Result<(), TaskError> {
        let at = self.held.bytes.len();
        self.held.bytes.extend_from_slice(key);
        value.iter().for_each(|piece| self.held.bytes.extend_from_slice(piece));
        let lengths = (u32::try_from(key.len()), u32::try_from(self.held.bytes.len() - at - key.len()));
        let (Ok(key_length), Ok(value)) = lengths else {
            return Err(TaskError::BadInput("a key or a value has more than 1 GiB".to_owned()));
        };
        let partition = partition(key, self.partitions);
        self.held.pairs.push(Pair { prefix: prefix(key), at, partition, key: key_length, value });
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

impl Held {
    fn sort(&mut self) {
        let bytes = &self.bytes;
        let key = |pair: &Pair| &bytes[pair.at..pair.at + pair.key as usize];
        self.pairs.sort_unstable_by(|a, b| {
            let by_prefix = (a.partition, a.prefix).cmp(&(b.partition, b.prefix));
            by_prefix.then_with(|| key(a).cmp(key(b))).then(a.at.cmp(&b.at))
        });
    }
}

impl Sorted for Held {
    fn each(
        &self,
        _partitions: u32,
        mut take: impl FnMut(u32, &[u8], &[u8]) -> Result<(), TaskError>,
    ) -> Result<(), TaskError> {
        self.pairs.iter().try_for_each(|pair| {
            let (key, behind) = self.bytes[pair.at..].split_at(pair.key as usize);
            take(pair.partition, key, &behind[..pair.value as usize])
        })
    }
}
