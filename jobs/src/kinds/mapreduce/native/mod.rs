//! Map and reduce that are compiled into the program: a user's own crate, with the command line and the workers of forebay.
//!
//! ```
//! use forebay_jobs::{Column, Emit, Job, Map, Record, Reduce, Result, Rows, Values};
//!
//! struct Words;
//!
//! impl Map for Words {
//!     fn map(&mut self, record: Record<'_>, out: &mut Emit<'_>) -> Result {
//!         record.text()?.split_whitespace().for_each(|word| out.emit(word, 1_u64));
//!         Ok(())
//!     }
//! }
//!
//! struct Sum;
//!
//! impl Reduce for Sum {
//!     fn reduce(&mut self, key: &[u8], values: &mut Values<'_>, out: &mut Rows<'_>) -> Result {
//!         out.row(&[key.into(), values.of::<u64>().sum::<u64>().into()]);
//!         Ok(())
//!     }
//! }
//!
//! let words = Job::named("words")
//!     .map(|_| Ok(Words))
//!     .combine(|some: u64, more: u64| some + more)
//!     .reduce([Column::text("word"), Column::uint("count")], |_| Ok(Sum));
//! ```
//!
//! A `main` that is `forebay::main([words])` makes a program of it that is to be used as `forebay` is, and that its fleet
//! starts as workers. A job file calls for it by `map = { native = "words" }` in `[mapreduce]`.
//!
//! Records are lines, splits and retries those of the built-ins, and what is emitted goes through the same shuffle, in
//! bounded memory. A record costs no allocation but those that the code makes. Errors and panics of the code are failures of
//! the attempt, which say where, and not of its worker; this needs `panic = "unwind"`, which is the default.

mod encode;
mod job;
mod map;
mod reduce;
mod step;

pub use self::{
    encode::{Decode, Encode, Encoder, Fixed, decode},
    job::{Job, Mapped, Named, NativeError, Natives, Params, listed},
    map::{Emit, Map, Record},
    reduce::{Reduce, Rows, Values},
};
pub use super::rows::{Cell, Column};
use crate::{
    kinds::{TaskContext, TaskError, TaskOutput},
    task::TaskInput,
};

/// Any error of a program's own code; a text becomes one by `into`, and other errors by `?`.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a program's own code gives.
pub type Result<T = ()> = std::result::Result<T, BoxError>;

/// Executes a map or a reduce task, of which the first holds no more of its pairs than the budget says.
pub(super) fn execute(
    ctx: &TaskContext<'_>,
    job: &Job,
    partitions: u32,
    budget: usize,
) -> std::result::Result<TaskOutput, TaskError> {
    match &ctx.spec.input {
        TaskInput::Split(split) => map::map(ctx, job, &split.pieces, partitions, budget),
        TaskInput::Shuffle(files) => reduce::reduce(ctx, job, files),
    }
}
