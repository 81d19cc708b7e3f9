//! Merges streams of pairs that are each ordered by key.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use super::{
    FAN_IN,
    stream::{Cursor, Writer},
};
use crate::{
    kinds::{TaskContext, TaskError, ipc},
    task::OutputFile,
};

/// Calls `take` with every pair of a partition, ordered by key, then by map task, then as the task wrote them.
///
/// However many files there are, few are open at once: neighbours are merged into one, until few are left.
pub(in super::super) fn merge(
    ctx: &TaskContext<'_>,
    files: &[OutputFile],
    take: impl FnMut(&[u8], &[u8]) -> Result<(), TaskError>,
) -> Result<(), TaskError> {
    let files = files.iter().map(|file| ctx.volume.resolve(&file.path)).collect::<Result<Vec<_>, _>>()?;
    merge_paths(ctx, &files, take)
}

/// The same of files by their paths.
pub(super) fn merge_paths(
    ctx: &TaskContext<'_>,
    files: &[PathBuf],
    take: impl FnMut(&[u8], &[u8]) -> Result<(), TaskError>,
) -> Result<(), TaskError> {
    let merged = narrow(ctx, files)?;
    merge_open(ctx, merged.as_deref().unwrap_or(files), take)
}

/// Merges neighbours in the scratch directory until as few are left as may be open; none if they are already.
fn narrow(ctx: &TaskContext<'_>, files: &[PathBuf]) -> Result<Option<Vec<PathBuf>>, TaskError> {
    let mut merged: Option<Vec<PathBuf>> = None;
    for pass in 0.. {
        let from = merged.as_deref().unwrap_or(files);
        if from.len() <= FAN_IN {
            break;
        }
        let mut to = Vec::new();
        for (group, files) in from.chunks(FAN_IN).enumerate() {
            let path = ctx.scratch_dir.join(format!("merge-{pass}-{group}.arrows"));
            let file = File::create(&path).map_err(|source| TaskError::Io { path: path.clone(), source })?;
            let mut writer = Writer::new(path.clone(), file, ipc::compression(ctx.volume))?;
            merge_open(ctx, files, |key, value| writer.push(key, value))?;
            writer.finish()?;
            to.push(path);
        }
        for done in merged.replace(to).into_iter().flatten() {
            fs::remove_file(&done).map_err(|source| TaskError::Io { path: done.clone(), source })?;
        }
    }
    Ok(merged)
}

fn merge_open(
    ctx: &TaskContext<'_>,
    files: &[PathBuf],
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), TaskError>,
) -> Result<(), TaskError> {
    let mut merged = Merged::open_paths(ctx, files)?;
    while let Some((key, value)) = merged.pair() {
        take(key, value)?;
        merged.advance()?;
    }
    Ok(())
}

/// The pairs of a partition, one after the other, in the order of [`merge`].
pub(in super::super) struct Merged<'a> {
    ctx: &'a TaskContext<'a>,
    heap: Heap,
    since_look: u32,
}

impl<'a> Merged<'a> {
    /// Stands at the first one.
    pub(in super::super) fn open(ctx: &'a TaskContext<'a>, files: &[OutputFile]) -> Result<Self, TaskError> {
        let files = files.iter().map(|file| ctx.volume.resolve(&file.path)).collect::<Result<Vec<_>, _>>()?;
        let merged = narrow(ctx, &files)?;
        Self::open_paths(ctx, merged.as_deref().unwrap_or(&files))
    }

    fn open_paths(ctx: &'a TaskContext<'a>, files: &[PathBuf]) -> Result<Self, TaskError> {
        let mut heap = Heap::default();
        for path in files {
            let mut cursor = Cursor::open(path)?;
            if cursor.advance()? {
                heap.push(cursor);
            }
        }
        Ok(Self { ctx, heap, since_look: 0 })
    }

    /// The pair that it stands at; none behind the last one.
    pub(in super::super) fn pair(&self) -> Option<(&[u8], &[u8])> {
        self.heap.first().map(|first| (first.key(), first.value()))
    }

    /// Goes to the next one.
    pub(in super::super) fn advance(&mut self) -> Result<(), TaskError> {
        self.since_look += 1;
        if self.since_look.is_multiple_of(4096) && self.ctx.cancel.is_cancelled() {
            return Err(TaskError::Cancelled);
        }
        self.heap.advance()
    }
}

/// Streams, of which the one is first whose pair is; of equal keys that of the stream that was there before. Only the
/// first one moves, so that no key is copied for being compared.
#[derive(Default)]
struct Heap {
    cursors: Vec<Cursor>,
    /// Indices of those that have a pair; none is before what is at half of its place.
    order: Vec<usize>,
}

impl Heap {
    fn push(&mut self, cursor: Cursor) {
        self.order.push(self.cursors.len());
        self.cursors.push(cursor);
        let mut at = self.order.len() - 1;
        while at > 0 && self.is_before(at, (at - 1) / 2) {
            self.order.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn first(&self) -> Option<&Cursor> {
        self.order.first().map(|first| &self.cursors[*first])
    }

    /// Moves the first one, and restores the order.
    fn advance(&mut self) -> Result<(), TaskError> {
        let Some(first) = self.order.first() else { return Ok(()) };
        if !self.cursors[*first].advance()? {
            self.order.swap_remove(0);
        }
        let mut at = 0;
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            if left >= self.order.len() {
                return Ok(());
            }
            let least = if right < self.order.len() && self.is_before(right, left) { right } else { left };
            if !self.is_before(least, at) {
                return Ok(());
            }
            self.order.swap(at, least);
            at = least;
        }
    }

    fn is_before(&self, a: usize, b: usize) -> bool {
        let (a, b) = (self.order[a], self.order[b]);
        self.cursors[a].order(&self.cursors[b]).then(a.cmp(&b)).is_lt()
    }
}
