//! What workers report of their attempts: it is believed once it was looked at.

use std::{sync::Arc, time::Duration};

use forebay_datasets::split::Split;
use forebay_jobs::{
    id::{TaskId, WorkerId},
    plan::Plan,
    task::{AttemptReport, Failure, Outcome, TaskInput, TaskSpec},
};

use super::{Finished, Work};
use crate::{
    commit::{self, chain},
    run::{Done, Input, Run},
};

/// What a task has not read is cut into pieces of so many bytes at least.
const LEAST_REST: u64 = 1 << 20;

impl Work<'_> {
    /// What a report means, unless it has to be looked into first.
    pub(in crate::driver) fn report(&mut self, worker: &WorkerId, report: AttemptReport) -> Option<Input> {
        let AttemptReport { attempt, outcome, seconds } = report;
        let checking = matches!(&outcome, Outcome::Done { outputs, .. } if !outputs.is_empty());
        if !self.workers.reported(worker, attempt, checking) {
            return None;
        }
        let worker = worker.clone();
        match outcome {
            Outcome::Done { outputs, metrics, rest } => {
                let micros = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_micros();
                let micros = u64::try_from(micros).unwrap_or(u64::MAX);
                let rest = match rest.map(|rest| self.cut_rest(attempt.task, rest)).transpose() {
                    Ok(rest) => rest.unwrap_or_default(),
                    Err(failure) => return Some(Input::Failed { worker, attempt, failure }),
                };
                let done = Done { worker, attempt, outputs, metrics, micros, rest };
                if !checking {
                    return Some(Input::Done(done));
                }
                self.check(done);
                None
            }
            Outcome::Failed(failure) => Some(Input::Failed { worker, attempt, failure }),
            Outcome::GivenBack => Some(Input::GivenBack { worker, attempt }),
        }
    }

    /// What a task is to do: as it was planned, or the rest of another one.
    fn task(&self, task: TaskId) -> Option<TaskSpec> {
        task_of(self.plan.as_ref()?, &self.session.machine, task)
    }

    /// Cuts what an attempt has not read into as many splits as can be read at once.
    fn cut_rest(&self, task: TaskId, rest: Split) -> Result<Vec<Split>, Failure> {
        match self.task(task).map(|task| task.input) {
            Some(TaskInput::Split(split)) if split.has_tail(&rest) => {
                Ok(rest.cut(self.session.machine.quick_slots(), LEAST_REST))
            }
            _ => Err(Failure::BadOutput { message: "it says to have left what it was not to read".to_owned() }),
        }
    }

    /// Looks at what a worker says that it made, beside the loop.
    fn check(&mut self, done: Done) {
        let (volume, run, checks) = (self.volume.clone(), self.run.clone(), Arc::clone(&self.checks));
        self.tasks.spawn(async move {
            let (worker, attempt) = (done.worker.clone(), done.attempt);
            let permit = checks.acquire_owned().await;
            let check = move || {
                let checked = commit::check(&volume, &run, attempt, &done.outputs);
                drop(permit);
                checked.map(|()| done)
            };
            let bad = |message| Failure::BadOutput { message };
            let result = match tokio::task::spawn_blocking(check).await {
                Ok(checked) => checked.map_err(|error| bad(chain(&error))),
                Err(error) => Err(bad(error.to_string())),
            };
            let input = match result {
                Ok(done) => Input::Done(done),
                Err(failure) => Input::Failed { worker: worker.clone(), attempt, failure },
            };
            Finished::Checked { worker, attempt, input }
        });
    }
}

pub(super) fn task_of(plan: &Plan, machine: &Run, task: TaskId) -> Option<TaskSpec> {
    match machine.rest(task) {
        Some(split) => {
            let count = *plan.phases().first()?;
            Some(TaskSpec { task, count, input: TaskInput::Split(split.clone()) })
        }
        None => plan.task(task),
    }
}
