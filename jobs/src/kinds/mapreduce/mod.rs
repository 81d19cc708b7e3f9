//! Map-reduce: from splits to keys and values, from one partition of them, ordered by key, to output.
//!
//! A map task writes at most one file a partition, ordered by key. A reduce task merges the files of its partition in
//! the order of the map tasks, so that the result does not depend on where the dataset was cut or who was first.

mod builtin;
mod columns;
mod matcher;
pub mod native;
pub mod program;
mod rows;
mod shuffle;
mod words;

use self::native::Natives;
use super::{TaskContext, TaskError, TaskOutput};
use crate::{
    spec::{MapReduceSpec, Mapper, Work},
    task::TaskInput,
};

/// Executes a map or a reduce task of a built-in, or of what is compiled into the program.
pub fn execute(ctx: &TaskContext<'_>, natives: &Natives) -> Result<TaskOutput, TaskError> {
    let spec = spec(ctx)?;
    match (&ctx.spec.input, &spec.map) {
        (TaskInput::Split(split), Mapper::WordCount) => builtin::count_words(ctx, &split.pieces, spec.partitions),
        (TaskInput::Split(split), Mapper::LineCount) => builtin::count_lines(ctx, &split.pieces, spec.partitions),
        (TaskInput::Split(split), Mapper::Grep(pattern)) => builtin::grep(ctx, &split.pieces, pattern, spec.partitions),
        (TaskInput::Split(split), Mapper::ColumnStats) => columns::map(ctx, &split.pieces, spec.partitions),
        (TaskInput::Shuffle(files), Mapper::WordCount) => builtin::sum(ctx, files, "word", "count"),
        (TaskInput::Shuffle(files), Mapper::LineCount) => builtin::sum(ctx, files, "key", "lines"),
        (TaskInput::Shuffle(files), Mapper::Grep(_)) => builtin::matches(ctx, files),
        (TaskInput::Shuffle(files), Mapper::ColumnStats) => columns::reduce(ctx, files),
        (_, Mapper::Native(name)) => {
            // A worker without it could not join.
            let job = natives.get(name).map_err(|error| TaskError::BadInput(error.to_string()))?;
            native::execute(ctx, job, spec.partitions, shuffle::budget(ctx))
        }
        (_, Mapper::Program(_)) => Err(TaskError::BadInput("a program is no built-in".to_owned())),
    }
}

/// Whether a map task that is asked to yield is done with what it has read: then the rest is others'. Only where it makes
/// no difference to the result where the dataset is cut; a mean of floats has its last digits from that.
pub fn can_yield(work: &Work) -> bool {
    matches!(work, Work::Mapreduce(spec) if matches!(spec.map, Mapper::WordCount | Mapper::LineCount | Mapper::Grep(_)))
}

fn spec<'a>(ctx: &TaskContext<'a>) -> Result<&'a MapReduceSpec, TaskError> {
    match &ctx.job.work {
        Work::Mapreduce(spec) => Ok(spec),
        _ => Err(TaskError::BadInput("the task is no map-reduce".to_owned())),
    }
}

#[cfg(test)]
mod tests;
