//! A listing on its way to a plan: collected as it comes, in memory while it is short and in a file when it is not.

use std::path::{Path, PathBuf};

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
    last: Option<String>,
    in_order: bool,
    pub(super) objects: u64,
}

impl Collector {
    /// `path` is where a long listing goes.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), held: Vec::new(), spilled: None, last: None, in_order: true, objects: 0 }
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
        self.held.drain(..).try_for_each(|object| writer.push(Row { path: object.key.clone(), object, shared: None }))
    }

    /// The objects in the order of their keys, none twice.
    pub(super) fn finish(mut self) -> Result<Listing, StageError> {
        let place = match self.spilled {
            None => Place::Memory(std::mem::take(&mut self.held)),
            Some(_) => {
                self.spill()?;
                self.spilled.take().expect("just matched").finish(&Facts::default())?;
                Place::File(self.path)
            }
        };
        let listing = Listing { place };
        if self.in_order {
            return Ok(listing);
        }
        // No server that has very many objects was seen to list them out of order, so that memory does.
        let mut objects = listing.objects()?.collect::<Result<Vec<_>, _>>()?;
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Listing { place: Place::Memory(objects) })
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
