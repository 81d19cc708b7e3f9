//! Map tasks: records in, keys and values out.

use std::{
    cell::Cell,
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
};

use forebay_datasets::{
    read::{self, Parts, Records},
    split::Piece,
};

use super::{
    Encode, Job, Params, Result,
    encode::Encoder,
    step::{Panicked, Step, Trouble},
};
use crate::kinds::{TaskContext, TaskError, TaskOutput, mapreduce::shuffle::Pairs};

/// So much is read at a time: little enough for the processor's own cache.
const READ: u64 = 256 << 10;

/// A line of an object, without its end.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Record<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// The key of the object.
    pub object: &'a str,
    /// Where in the object it begins. The first line of each object is at 0, whichever task has it.
    pub offset: u64,
}

impl<'a> Record<'a> {
    /// Its text.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn text(&self) -> Result<&'a str> {
        Ok(std::str::from_utf8(self.bytes)?)
    }
}

impl Deref for Record<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

/// Makes keys and values of records.
///
/// One is made for each attempt at a task, and sees the records of the task's split, in order, in one thread. What it keeps
/// between them depends on how the dataset is cut; what depends on all records of a kind belongs into the [`Reduce`].
///
/// ```
/// use forebay_jobs::{Emit, Map, Record, Result};
///
/// /// Bytes by status, of lines such as `GET /index.html 200 5120`.
/// struct BytesByStatus;
///
/// impl Map for BytesByStatus {
///     fn map(&mut self, record: Record<'_>, out: &mut Emit<'_>) -> Result {
///         let mut words = record.text()?.split(' ').skip(2);
///         let status: u64 = words.next().ok_or("there is no status")?.parse()?;
///         let bytes: u64 = words.next().ok_or("there are no bytes")?.parse()?;
///         out.emit(status, bytes);
///         Ok(())
///     }
/// }
/// ```
///
/// [`Reduce`]: super::Reduce
pub trait Map {
    /// Takes a record.
    ///
    /// # Errors
    /// Whatever it does not bear: the attempt fails, and says at which byte of which object. `[retry] attempts` says how
    /// often the task is tried.
    fn map(&mut self, record: Record<'_>, out: &mut Emit<'_>) -> Result;

    /// There are no more records in this task.
    ///
    /// # Errors
    /// As for [`Map::map`].
    fn finish(&mut self, out: &mut Emit<'_>) -> Result {
        let _ = out;
        Ok(())
    }
}

/// A map behind a pointer, which is followed once for many records.
pub(super) trait Mapping {
    fn records(&mut self, object: &str, records: Records<'_>, at: &Cell<u64>, out: &mut Emit<'_>) -> Result;
    fn finish(&mut self, out: &mut Emit<'_>) -> Result;
}

impl<M: Map> Mapping for M {
    fn records(&mut self, object: &str, records: Records<'_>, at: &Cell<u64>, out: &mut Emit<'_>) -> Result {
        for (from, bytes) in read::lines(records.bytes) {
            let offset = records.offset + from as u64;
            at.set(offset);
            self.map(Record { bytes, object, offset }, out)?;
            if out.failed.is_some() {
                break;
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Emit<'_>) -> Result {
        Map::finish(self, out)
    }
}

/// Takes keys and values, which are sorted, written and brought to reduce tasks.
pub struct Emit<'a> {
    ctx: &'a TaskContext<'a>,
    pairs: Pairs<'a>,
    failed: Option<TaskError>,
}

impl Emit<'_> {
    /// Emits a pair. All pairs of a key come to one call of the reduce.
    ///
    /// Where it cannot be written there is nothing to be done about it here: the attempt fails after this record.
    pub fn emit(&mut self, key: impl Encode, value: impl Encode) {
        if self.failed.is_none() {
            let (key, value) =
                (|into: &mut _| key.encode(&mut Encoder(into)), |into: &mut _| value.encode(&mut Encoder(into)));
            self.failed = self.pairs.push_with(key, value).err();
        }
    }

    /// Whether the attempt is to end. It is looked at between records; a record that takes long may ask by itself, and return
    /// with what it has: that counts for nothing then.
    pub fn is_cancelled(&self) -> bool {
        self.ctx.cancel.is_cancelled()
    }

    fn check(&mut self) -> std::result::Result<(), Trouble> {
        match self.failed.take() {
            Some(error) => Err(error.into()),
            // The code may have made less of it because of that.
            None if self.is_cancelled() => Err(TaskError::Cancelled.into()),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Emit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emit").field("failed", &self.failed).finish_non_exhaustive()
    }
}

/// Where a map task is.
enum Place<'p> {
    Begin,
    In(&'p Piece),
    End,
}

pub(super) fn map(
    ctx: &TaskContext<'_>,
    job: &Job,
    pieces: &[Piece],
    partitions: u32,
    budget: usize,
) -> std::result::Result<TaskOutput, TaskError> {
    let (mut place, at) = (Place::Begin, Cell::new(0));
    let pairs = Pairs::folded(ctx, partitions, budget, job.fold.as_deref());
    let mut out = Emit { ctx, pairs, failed: None };
    let mapped = catch_unwind(AssertUnwindSafe(|| {
        let mut map = (job.make_map)(Params(&ctx.job.params)).map_err(Trouble::Own)?;
        for piece in pieces {
            (place, _) = (Place::In(piece), at.set(0));
            let mut parts = Parts::open(ctx.volume, piece).map_err(TaskError::from)?;
            while let Some(records) = parts.next(READ).map_err(TaskError::from)? {
                if ctx.cancel.is_cancelled() {
                    return Err(TaskError::Cancelled.into());
                }
                let mapped = map.records(&piece.key, records, &at, &mut out);
                // What could not be written comes before what the code says to that.
                out.check()?;
                mapped.map_err(Trouble::Own)?;
            }
        }
        place = Place::End;
        let finished = map.finish(&mut out);
        out.check()?;
        finished.map_err(Trouble::Own)
    }));
    let told = |trouble| {
        let place = match place {
            Place::Begin => "when it is made".to_owned(),
            Place::In(piece) => format!("at byte {} of `{}`", at.get(), piece.key),
            Place::End => "after the last record".to_owned(),
        };
        Step::Map.trouble(job, &place, trouble)
    };
    let panicked = |panic: Box<_>| out.check().and(Err(Trouble::Own(Panicked::of(&*panic).into())));
    mapped.unwrap_or_else(panicked).map_err(told)?;
    let metrics = [("pairs".to_owned(), out.pairs.count() as f64)].into();
    Ok(TaskOutput { files: out.pairs.finish()?, metrics, rest: None })
}
