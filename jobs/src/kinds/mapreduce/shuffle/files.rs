//! What a map task leaves: a file for each partition that has pairs.

use std::{fs::File, path::PathBuf};

use arrow_ipc::CompressionType;
use forebay_datasets::volume::NewFile;

use super::{merge::merge_paths, stream::Writer};
use crate::kinds::{TaskContext, TaskError, Written, ipc};

/// Between two looks whether the attempt is to end.
const PAIRS_A_LOOK: u64 = 4096;

/// Pairs in memory that can be gone through by partition, then by key, and those of equal keys in the order given.
pub(in super::super) trait Sorted {
    /// Calls `take` with the partition, the key and the value of each.
    fn each(
        &self,
        partitions: u32,
        take: impl FnMut(u32, &[u8], &[u8]) -> Result<(), TaskError>,
    ) -> Result<(), TaskError>;
}

/// A map task's files, and the runs that come before them.
pub(in super::super) struct Files<'a> {
    ctx: &'a TaskContext<'a>,
    partitions: u32,
    /// Makes one value of those of equal keys.
    fold: Option<&'a Fold>,
    compression: Option<CompressionType>,
    runs: Vec<PathBuf>,
}

impl<'a> Files<'a> {
    pub(in super::super) fn new(ctx: &'a TaskContext<'a>, partitions: u32, fold: Option<&'a Fold>) -> Self {
        Self { ctx, partitions, fold, compression: ipc::compression(ctx.volume), runs: Vec::new() }
    }

    /// Writes what memory does not hold any longer to scratch.
    pub(in super::super) fn spill(&mut self, held: &impl Sorted) -> Result<(), TaskError> {
        let path = self.ctx.scratch_dir.join(format!("run-{:05}.arrows", self.runs.len()));
        let file = File::create(&path).map_err(|source| TaskError::Io { path: path.clone(), source })?;
        let mut writer = Writer::new(path.clone(), file, self.compression)?;
        let mut numbered = Vec::new();
        held.each(self.partitions, |partition, key, value| {
            look(self.ctx, writer.rows())?;
            numbered.clear();
            numbered.extend_from_slice(&partition.to_be_bytes());
            numbered.extend_from_slice(key);
            writer.push(&numbered, value)
        })?;
        writer.finish()?;
        self.runs.push(path);
        Ok(())
    }

    /// Writes the files: what was spilled, and then what is held.
    pub(in super::super) fn finish(mut self, held: &impl Sorted) -> Result<Vec<Written>, TaskError> {
        let mut out = Out { ctx: self.ctx, compression: self.compression, open: None, done: Vec::new() };
        if self.runs.is_empty() {
            held.each(self.partitions, |partition, key, value| out.push(partition, key, value))?;
            return out.finish();
        }
        self.spill(held)?;
        let mut give = |numbered: &[u8], value: &[u8]| {
            let (partition, key) = numbered_key(numbered)?;
            out.push(partition, key, value)
        };
        match self.fold {
            None => merge_paths(self.ctx, &self.runs, give)?,
            Some(fold) => {
                let mut folded = Folded::new(fold);
                merge_paths(self.ctx, &self.runs, |numbered, value| folded.push(numbered, value, &mut give))?;
                folded.finish(&mut give)?;
            }
        }
        out.finish()
    }
}

/// Puts a value to the one that is held of the same key, on the left of it.
pub(in super::super) type Fold = dyn Fn(&mut Vec<u8>, &[u8]) -> Result<(), TaskError> + Send + Sync;

/// Folds the values of equal keys that follow each other.
pub(super) struct Folded<'f> {
    fold: &'f Fold,
    held: Option<(Vec<u8>, Vec<u8>)>,
}

impl<'f> Folded<'f> {
    pub(super) fn new(fold: &'f Fold) -> Self {
        Self { fold, held: None }
    }

    /// Takes a pair, and gives the one before if its key was another.
    pub(super) fn push(
        &mut self,
        key: &[u8],
        value: &[u8],
        give: impl FnOnce(&[u8], &[u8]) -> Result<(), TaskError>,
    ) -> Result<(), TaskError> {
        match &mut self.held {
            Some((held, folded)) if held == key => (self.fold)(folded, value)?,
            Some((held, folded)) => {
                give(held, folded)?;
                held.clear();
                held.extend_from_slice(key);
                folded.clear();
                folded.extend_from_slice(value);
            }
            None => self.held = Some((key.to_vec(), value.to_vec())),
        }
        Ok(())
    }

    /// Gives the last one.
    pub(super) fn finish(self, give: impl FnOnce(&[u8], &[u8]) -> Result<(), TaskError>) -> Result<(), TaskError> {
        self.held.map_or(Ok(()), |(key, value)| give(&key, &value))
    }
}

/// The fold of counts.
pub(in super::super) fn add_counts(sum: &mut Vec<u8>, value: &[u8]) -> Result<(), TaskError> {
    let added = count(sum)? + count(value)?;
    sum.clear();
    sum.extend_from_slice(&added.to_le_bytes());
    Ok(())
}

/// A count as a value.
pub(in super::super) fn count(value: &[u8]) -> Result<u64, TaskError> {
    Ok(u64::from_le_bytes(value.try_into().map_err(|_| malformed("a count"))?))
}

/// The partition that a spilled key begins with, and the key.
fn numbered_key(numbered: &[u8]) -> Result<(u32, &[u8]), TaskError> {
    let (partition, key) = numbered.split_first_chunk().ok_or_else(|| malformed("keys of partitions"))?;
    Ok((u32::from_be_bytes(*partition), key))
}

/// What is between map and reduce, or was spilled, is damaged.
pub(in super::super) fn malformed(what: &str) -> TaskError {
    TaskError::BadInput(format!("a file between map and reduce holds something else than {what}"))
}

fn look(ctx: &TaskContext<'_>, pairs: u64) -> Result<(), TaskError> {
    match pairs.is_multiple_of(PAIRS_A_LOOK) && ctx.cancel.is_cancelled() {
        true => Err(TaskError::Cancelled),
        false => Ok(()),
    }
}

/// The files, of which one is open.
struct Out<'a> {
    ctx: &'a TaskContext<'a>,
    compression: Option<CompressionType>,
    open: Option<(u32, PathBuf, Writer<NewFile>)>,
    done: Vec<Written>,
}

impl Out<'_> {
    fn push(&mut self, partition: u32, key: &[u8], value: &[u8]) -> Result<(), TaskError> {
        if self.open.as_ref().is_none_or(|(open, ..)| *open != partition) {
            self.close()?;
            let path = self.ctx.out_dir.join(format!("shuffle-{partition:05}.arrows"));
            let writer = Writer::new(path.clone(), NewFile::create(&path)?, self.compression)?;
            self.open = Some((partition, path, writer));
        }
        let (.., writer) = self.open.as_mut().expect("it was just opened");
        look(self.ctx, writer.rows())?;
        writer.push(key, value)
    }

    fn close(&mut self) -> Result<(), TaskError> {
        if let Some((partition, path, writer)) = self.open.take() {
            let rows = Some(writer.rows());
            // The attempt makes the names durable, once, when all are there.
            let (size, checksum) = writer.finish()?.finish_in_tree()?;
            self.done.push(Written { path, publish_as: None, partition: Some(partition), size, checksum, rows });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Written>, TaskError> {
        self.close()?;
        Ok(self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spilled_key_that_is_damaged_is_an_error() {
        assert_eq!(numbered_key(b"\0\0\x01\x02word").unwrap(), (258, &b"word"[..]));
        assert_eq!(numbered_key(b"\0\0\0\x01").unwrap(), (1, &b""[..]));
        let error = numbered_key(b"\0\0\0").unwrap_err();
        assert!(error.to_string().contains("something else than keys of partitions"), "{error}");
    }
}
