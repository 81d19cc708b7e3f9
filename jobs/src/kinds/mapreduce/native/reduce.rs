//! Reduce tasks: a key and its values in, rows out.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    result::Result as StdResult,
};

use super::{
    Decode, Job, Params, Result,
    step::{Panicked, Step, Trouble},
};
use crate::{
    kinds::{
        TaskContext, TaskError, TaskOutput,
        mapreduce::{
            rows::{Cell, RowWriter},
            shuffle::Merged,
        },
    },
    task::OutputFile,
};

/// So much of a key stands in a message.
const SHOWN: usize = 100;

/// Makes rows of a key and its values.
///
/// One is made for each attempt at a task, and sees the keys of one partition, ordered by their bytes, in one thread. The
/// values of a key come in the order of the dataset, where one map task emitted several of them in the order of these.
///
/// ```
/// use forebay_jobs::{Reduce, Result, Rows, Values, decode};
///
/// /// How many values a key has, and the mean of them.
/// struct Mean;
///
/// impl Reduce for Mean {
///     fn reduce(&mut self, key: &[u8], values: &mut Values<'_>, out: &mut Rows<'_>) -> Result {
///         let (count, sum) = values.of::<u64>().fold((0_u64, 0), |(count, sum), value| (count + 1, sum + value));
///         let status: u64 = decode(key)?;
///         out.row(&[status.into(), count.into(), (sum as f64 / count as f64).into()]);
///         Ok(())
///     }
/// }
/// ```
pub trait Reduce {
    /// Takes a key with its values. It may leave some of them.
    ///
    /// # Errors
    /// Whatever it does not bear: the attempt fails, and says at which key.
    fn reduce(&mut self, key: &[u8], values: &mut Values<'_>, out: &mut Rows<'_>) -> Result;

    /// There are no more keys in this task.
    ///
    /// # Errors
    /// As for [`Reduce::reduce`].
    fn finish(&mut self, out: &mut Rows<'_>) -> Result {
        let _ = out;
        Ok(())
    }
}

/// The values of a key, read as they are asked for: there may be more than memory holds.
pub struct Values<'a> {
    merged: Merged<'a>,
    key: Vec<u8>,
    begun: bool,
    ended: bool,
    failed: Option<Trouble>,
}

impl<'a> Values<'a> {
    fn new(merged: Merged<'a>) -> Self {
        Self { merged, key: Vec::new(), begun: false, ended: false, failed: None }
    }

    /// The next value's bytes; none behind the last one.
    ///
    /// Where it cannot be read they end, and the attempt fails: what was made of some of the values counts for nothing.
    pub fn next_bytes(&mut self) -> Option<&[u8]> {
        if self.ended {
            return None;
        }
        if std::mem::replace(&mut self.begun, true)
            && let Err(error) = self.merged.advance()
        {
            self.fail(error.into());
            return None;
        }
        self.ended = self.merged.pair().is_none_or(|(key, _)| key != self.key);
        if self.ended { None } else { self.merged.pair().map(|(_, value)| value) }
    }

    /// The values that are left, made of their bytes. Where one cannot be they end, and the attempt fails.
    pub fn of<V: Decode>(&mut self) -> impl Iterator<Item = V> {
        std::iter::from_fn(|| match V::decode(self.next_bytes()?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.fail(Trouble::Own(error));
                None
            }
        })
    }

    fn fail(&mut self, trouble: Trouble) {
        self.ended = true;
        self.failed = Some(trouble);
    }

    /// Stands before the values of the next key, which is put into `key`; false if there is none.
    fn next_key(&mut self, key: &mut Vec<u8>) -> StdResult<bool, Trouble> {
        while self.key_is_held() {
            self.merged.advance()?;
        }
        let Some((next, _)) = self.merged.pair() else { return Ok(false) };
        for held in [key, &mut self.key] {
            held.clear();
            held.extend_from_slice(next);
        }
        (self.begun, self.ended) = (false, false);
        Ok(true)
    }

    /// Whether it still stands at the key whose values were given out.
    fn key_is_held(&self) -> bool {
        self.begun && self.merged.pair().is_some_and(|(key, _)| key == self.key)
    }

    fn check(&mut self) -> StdResult<(), Trouble> {
        // Who took none has passed over the first one too.
        self.begun = true;
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl std::fmt::Debug for Values<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Values").field("key", &self.key).field("failed", &self.failed).finish_non_exhaustive()
    }
}

/// Takes rows, which are published in the job's `[output] format`.
pub struct Rows<'a> {
    ctx: &'a TaskContext<'a>,
    writer: RowWriter<'a>,
    failed: Option<TaskError>,
}

impl Rows<'_> {
    /// Adds a row: a cell for each of the job's columns, in their order.
    ///
    /// Where it does not fit them, or cannot be written, the attempt fails after this key.
    pub fn row(&mut self, cells: &[Cell<'_>]) {
        if self.failed.is_none() {
            self.failed = self.writer.push(cells).err();
        }
    }

    /// Whether the attempt is to end. It is looked at between keys and between values; what takes long in between may ask
    /// by itself, and return with what it has: that counts for nothing then.
    pub fn is_cancelled(&self) -> bool {
        self.ctx.cancel.is_cancelled()
    }

    fn check(&mut self) -> StdResult<(), Trouble> {
        match self.failed.take() {
            Some(error) => Err(error.into()),
            // The code may have made less of it because of that.
            None if self.is_cancelled() => Err(TaskError::Cancelled.into()),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("failed", &self.failed).finish_non_exhaustive()
    }
}

/// Where a reduce task is.
#[derive(PartialEq)]
enum Place {
    Begin,
    Key,
    End,
}

pub(super) fn reduce(ctx: &TaskContext<'_>, job: &Job, files: &[OutputFile]) -> StdResult<TaskOutput, TaskError> {
    let mut values = Values::new(Merged::open(ctx, files)?);
    let mut out = Rows { ctx, writer: RowWriter::create(ctx, &job.columns)?, failed: None };
    let (mut place, mut key) = (Place::Begin, Vec::new());
    let reduced = catch_unwind(AssertUnwindSafe(|| {
        let mut reduce = (job.make_reduce)(Params(&ctx.job.params)).map_err(Trouble::Own)?;
        place = Place::Key;
        while values.next_key(&mut key)? {
            let reduced = reduce.reduce(&key, &mut values, &mut out);
            // What could not be read or written comes before what the code says to that.
            values.check().and(out.check())?;
            reduced.map_err(Trouble::Own)?;
        }
        place = Place::End;
        let finished = reduce.finish(&mut out);
        out.check()?;
        finished.map_err(Trouble::Own)
    }));
    let told = |trouble| {
        let place = match place {
            Place::Begin => "when it is made".to_owned(),
            Place::Key => format!("at the key `{}`", key[..key.len().min(SHOWN)].escape_ascii()),
            Place::End => "after the last key".to_owned(),
        };
        Step::Reduce.trouble(job, &place, trouble)
    };
    let panicked = |panic: Box<_>| values.check().and(out.check()).and(Err(Trouble::Own(Panicked::of(&*panic).into())));
    reduced.unwrap_or_else(panicked).map_err(told)?;
    let metrics = [("rows".to_owned(), out.writer.rows() as f64)].into();
    Ok(TaskOutput { metrics, ..out.writer.finish()? })
}
