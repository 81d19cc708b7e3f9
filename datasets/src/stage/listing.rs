//! A listing on its way to a plan: collected as it comes, in memory while it is short and in a file when it is not.
//!
//! It comes in any order, since ranges of it are listed at once. What lies in the file are runs, each in order, and a
//! merge of them is the listing: memory holds one run while they are written, and a chunk of each while they are merged.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    ops::Range,
    path::{Path, PathBuf},
    vec,
};

use super::{
    StageError,
    rows::{Facts, Row, RowFile, RowWriter},
};
use crate::source::Listed;

/// Objects held in memory; about 200 bytes each.
const HELD: usize = 32 << 10;

/// Takes objects as a source lists them.
pub(super) struct Collector {
    path: PathBuf,
    held: Vec<Listed>,
    spilled: Option<RowWriter>,
    /// The chunks of each run.
    runs: Vec<Range<usize>>,
    last: Option<String>,
    in_order: bool,
    pub(super) objects: u64,
}

impl Collector {
    /// `path` is where a long listing goes.
    pub(super) fn new(path: &Path) -> Self {
        let (held, runs, path) = (Vec::new(), Vec::new(), path.to_owned());
        Self { path, held, spilled: None, runs, last: None, in_order: true, objects: 0 }
    }

    pub(super) fn push(&mut self, object: Listed) -> Result<(), StageError> {
        self.in_order &= self.last.as_ref().is_none_or(|last| *last <= object.key);
        self.last = Some(object.key.clone());
        self.objects += 1;
        self.held.push(object);
        if self.held.len() == HELD { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<(), StageError> {
        let writer = match &mut self.spilled {
            Some(writer) => writer,
            none => none.insert(RowWriter::create(&self.path)?),
        };
        // Of equal keys the one that came later stays behind.
        self.held.sort_by(|a, b| a.key.cmp(&b.key));
        self.held
            .drain(..)
            .try_for_each(|object| writer.push(Row { path: object.key.clone(), object, shared: None }))?;
        let begin = self.runs.last().map_or(0, |run| run.end);
        self.runs.push(begin..writer.cut()?);
        Ok(())
    }

    /// The objects in the order of their keys, none twice.
    pub(super) fn finish(mut self) -> Result<Listing, StageError> {
        if self.spilled.is_none() {
            self.held.sort_by(|a, b| a.key.cmp(&b.key));
            return Ok(Listing { place: Place::Memory(self.held) });
        }
        self.spill()?;
        self.spilled.take().expect("just looked at").finish(&Facts::default())?;
        if self.in_order {
            return Ok(Listing { place: Place::File(self.path) });
        }
        let merged = self.path.with_extension("merged");
        let mut writer = RowWriter::create(&merged)?;
        Merge::new(RowFile::open(&self.path)?, self.runs)?.try_for_each(|row| writer.push(row?))?;
        writer.finish(&Facts::default())?;
        Ok(Listing { place: Place::File(merged) })
    }
}

/// Merges the runs of a file. Of equal keys the one of the later run comes later.
struct Merge {
    file: RowFile,
    runs: Vec<Run>,
    /// The next key of each run that is not at its end.
    heads: BinaryHeap<Reverse<(String, usize)>>,
}

struct Run {
    next: Option<Row>,
    rows: vec::IntoIter<Row>,
    chunks: Range<usize>,
}

impl Merge {
    fn new(file: RowFile, runs: Vec<Range<usize>>) -> Result<Self, StageError> {
        let run = |chunks| Run { next: None, rows: Vec::new().into_iter(), chunks };
        let mut merge = Self { file, runs: runs.into_iter().map(run).collect(), heads: BinaryHeap::new() };
        for run in 0..merge.runs.len() {
            merge.advance(run)?;
        }
        Ok(merge)
    }

    /// The row that a run is at; the run then is at its next.
    fn advance(&mut self, number: usize) -> Result<Option<Row>, StageError> {
        let run = &mut self.runs[number];
        let mut next = run.rows.next();
        if next.is_none()
            && let Some(chunk) = run.chunks.next()
        {
            run.rows = self.file.chunk(chunk)?.into_iter();
            next = run.rows.next();
        }
        if let Some(row) = &next {
            self.heads.push(Reverse((row.object.key.clone(), number)));
        }
        Ok(std::mem::replace(&mut run.next, next))
    }
}

impl Iterator for Merge {
    type Item = Result<Row, StageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((_, run)) = self.heads.pop()?;
        self.advance(run).transpose()
    }
}

/// A listing, which can be gone through more than once.
pub(super) struct Listing {
    place: Place,
}

enum Place {
    Memory(Vec<Listed>),
    File(PathBuf),
}

impl Listing {
    pub(super) fn objects(&self) -> Result<impl Iterator<Item = Result<Listed, StageError>> + '_, StageError> {
        let objects: Box<dyn Iterator<Item = Result<Listed, StageError>>> = match &self.place {
            Place::Memory(objects) => Box::new(objects.iter().cloned().map(Ok)),
            Place::File(path) => Box::new(RowFile::open(path)?.rows().map(|row| row.map(|row| row.object))),
        };
        Ok(last_of_equals(objects))
    }
}

/// A listing that repeats a key between pages has one object more than once; the later answer is the newer one.
fn last_of_equals(
    objects: impl Iterator<Item = Result<Listed, StageError>>,
) -> impl Iterator<Item = Result<Listed, StageError>> {
    let mut objects = objects.peekable();
    std::iter::from_fn(move || {
        let mut object = objects.next()?;
        while let (Ok(this), Some(Ok(next))) = (&object, objects.peek())
            && this.key == next.key
        {
            object = objects.next()?;
        }
        Some(object)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(key: String, size: u64) -> Listed {
        Listed { key, size, etag: None, version_id: None }
    }

    #[test]
    fn what_comes_in_any_order_is_put_in_order_and_the_later_of_equals_counts() {
        let dir = tempfile::tempdir().unwrap();
        for count in [100, 3 * HELD + 100] {
            // Seven ranges, a page of each in turn, as they are listed at once; then some of them again.
            let pages: Vec<_> = (0..count).collect::<Vec<_>>().chunks(10).map(<[usize]>::to_vec).collect();
            let mut turns: Vec<_> = (0..7).flat_map(|turn| pages.iter().skip(turn).step_by(7)).collect();
            turns.reverse();
            let mut collector = Collector::new(&dir.path().join("listing"));
            turns.iter().flat_map(|page| page.iter()).for_each(|n| {
                collector.push(listed(format!("{n:08}"), 1)).unwrap();
            });
            (0..count).step_by(1000).for_each(|n| collector.push(listed(format!("{n:08}"), 2)).unwrap());
            let listing = collector.finish().unwrap();
            let objects: Vec<_> = listing.objects().unwrap().map(Result::unwrap).collect();
            let wanted: Vec<_> = (0..count).map(|n| listed(format!("{n:08}"), 1 + u64::from(n % 1000 == 0))).collect();
            assert!(objects == wanted, "{count}");
            assert!(matches!(listing.place, Place::File(_)) == (count > HELD), "{count}");
        }
    }

    #[test]
    fn what_is_repeated_counts_once_and_the_later_answer_counts() {
        let dir = tempfile::tempdir().unwrap();
        for count in [10, HELD + 10] {
            for disorder in [false, true] {
                let mut collector = Collector::new(&dir.path().join("listing"));
                for n in 0..count {
                    collector.push(listed(format!("{n:08}"), 1)).unwrap();
                    // A page begins with the last key of the one before, or with an earlier one.
                    if n % 7 == 5 {
                        let earlier = if disorder { n - 3 } else { n };
                        collector.push(listed(format!("{earlier:08}"), 2)).unwrap();
                    }
                }
                let listing = collector.finish().unwrap();
                for _ in 0..2 {
                    let objects: Vec<_> = listing.objects().unwrap().map(Result::unwrap).collect();
                    assert_eq!(objects.len(), count);
                    assert!(objects.is_sorted_by(|a, b| a.key < b.key));
                    assert_eq!(objects[if disorder { 2 } else { 5 }].size, 2);
                }
            }
        }
    }
}
