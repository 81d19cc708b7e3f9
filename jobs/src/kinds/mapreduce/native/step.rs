//! How a failure of a program's own code is told: what failed, where, and why.

use std::any::Any;

use super::{BoxError, Job};
use crate::kinds::TaskError;

/// Which part of a job.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Map,
    Reduce,
}

/// A failure on its way to who knows where it happened.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Of the machinery around the code.
    Task(TaskError),
    /// Of the code.
    Own(BoxError),
}

impl From<TaskError> for Trouble {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}

/// The code panicked.
#[derive(Debug, thiserror::Error)]
#[error("it panicked: {0}")]
pub(super) struct Panicked(String);

impl Panicked {
    pub(super) fn of(panic: &(dyn Any + Send)) -> Self {
        let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
        Self(said.or_else(|| panic.downcast_ref().cloned()).unwrap_or_else(|| "it does not say why".to_owned()))
    }
}

impl Step {
    pub(super) fn failed(self, job: &Job, place: &str, source: BoxError) -> TaskError {
        let step = match self {
            Self::Map => "map",
            Self::Reduce => "reduce",
        };
        TaskError::native(job.name(), step, place, source)
    }

    /// The error of what came to trouble at a place.
    pub(super) fn trouble(self, job: &Job, place: &str, trouble: Trouble) -> TaskError {
        match trouble {
            Trouble::Own(source) => self.failed(job, place, source),
            // What the code gave to be written does not fit; another one knows where all else happened.
            Trouble::Task(TaskError::BadInput(message)) => self.failed(job, place, message.into()),
            Trouble::Task(error) => error,
        }
    }
}
