//! What a run came to, in figures.

use std::collections::BTreeSet;

use forebay_jobs::{
    id::{AttemptId, Epoch, RunId, TaskId, WorkerId},
    task::Failure,
};
use serde::{Deserialize, Serialize};

use crate::run::{EndState, Event, Millis};

/// The final object of a run: what `forebay run --json` prints and `result.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Of this object.
    pub version: u32,
    /// The run.
    pub run: RunId,
    /// How it ended.
    pub state: EndState,
    /// The snapshot that was worked on; none if none was planned.
    pub snapshot: Option<String>,
    /// What staging took; none if it did not come to its end.
    pub staged: Option<StagedFigures>,
    /// What became of the tasks.
    pub tasks: TaskFigures,
    /// The most workers at once.
    pub workers: u32,
    /// From the first coordinator's start to the end.
    pub seconds: f64,
    /// The published output; none if there is none.
    pub output: Option<OutputFigures>,
    /// Why it failed.
    pub error: Option<String>,
    /// What kind of failure that was.
    #[serde(default)]
    pub failure: Option<FailureKind>,
}

/// What made a run fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// More tasks failed than may.
    Tasks,
    /// The job cannot be planned over what was staged: a table without objects, a column that is not there.
    Plan,
    /// Workers could not be started, or the output could not be published or copied.
    Coordination,
}

/// What staging took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StagedFigures {
    /// Objects of the snapshot.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that had to be fetched.
    pub fetched_objects: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What became of the tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFigures {
    /// Of all phases.
    pub total: u64,
    /// Committed.
    pub succeeded: u64,
    /// Failed for good.
    pub failed: u64,
    /// Taken over from an earlier run.
    pub reused: u64,
    /// Attempts that entered a slot.
    pub attempts: u64,
}

/// The published output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFigures {
    /// Its directory.
    pub path: String,
    /// Paths below it, in order.
    pub files: Vec<String>,
    /// Records, where the kind of work knows.
    pub rows: Option<u64>,
    /// Bytes of the files.
    pub bytes: u64,
    /// Records that could not be read and were left out, as the job says; the output lists them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_records: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How far one phase is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhaseFigures {
    /// Tasks.
    pub total: u64,
    /// Tasks that are done.
    pub succeeded: u64,
    /// Tasks that failed for good.
    pub failed: u64,
    /// Attempts in slots.
    pub running: u64,
}

/// Counts events: those that were replayed and those that are new.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// When the first coordinator started.
    pub started: Option<Millis>,
    /// The latest time that any event bears.
    pub latest: Millis,
    /// Whether there is a plan.
    pub planned: bool,
    /// The snapshot that is read; none until all of it is staged.
    pub snapshot: Option<String>,
    /// How far each phase is.
    pub phases: Vec<PhaseFigures>,
    /// Tasks that earlier runs have done.
    pub reused: u64,
    /// Attempts that entered a slot.
    pub attempts: u64,
    /// The most workers at once.
    pub most_workers: u32,
    /// What was published.
    pub published: Option<(u64, Option<u64>)>,
    /// Records that were left out.
    pub skipped_records: u64,
    /// Why the run failed beside its tasks.
    pub aborted: Option<String>,
    /// The task that failed first, and why.
    pub first_failure: Option<(TaskId, Failure)>,
    running: BTreeSet<AttemptId>,
    /// Of a gang of which others are not done.
    finished: BTreeSet<AttemptId>,
    /// Workers that are there.
    present: BTreeSet<WorkerId>,
}

impl Figures {
    /// Counts one event.
    pub fn note(&mut self, event: &Event) {
        let phase = |phases: &mut Vec<PhaseFigures>, task: TaskId, change: &dyn Fn(&mut PhaseFigures)| {
            phases.get_mut(task.phase as usize).map(change);
        };
        match event {
            Event::Opened { at, .. } => {
                self.started.get_or_insert(*at);
            }
            Event::Planned { snapshot, phases, .. } => {
                (self.planned, self.snapshot) = (true, snapshot.clone());
                let phase = |total: &u32| PhaseFigures { total: u64::from(*total), ..PhaseFigures::default() };
                self.phases = phases.iter().map(phase).collect();
            }
            Event::Staged { snapshot, .. } => self.snapshot = Some(snapshot.clone()),
            Event::Reused { tasks, .. } => {
                self.reused += tasks.len() as u64;
                for reused in tasks {
                    phase(&mut self.phases, reused.attempt.task, &|phase| phase.succeeded += 1);
                }
            }
            Event::WorkerJoined { worker, .. } => {
                self.present.insert(worker.clone());
                self.most_workers = self.most_workers.max(self.workers());
            }
            Event::WorkerAbsent { worker, .. } | Event::WorkerLeft { worker } => drop(self.present.remove(worker)),
            Event::Started { attempts, .. } => {
                for attempt in attempts {
                    if self.running.insert(*attempt) {
                        self.attempts += 1;
                        phase(&mut self.phases, attempt.task, &|phase| phase.running += 1);
                    }
                }
            }
            Event::Finished { finished, .. } => {
                self.attempts += u64::from(!self.stopped(finished.attempt));
                self.finished.insert(finished.attempt);
            }
            Event::GangReady => self.finished.clear(),
            Event::Committed { attempt, metrics, rest, .. } => {
                self.skipped_records += metrics.get("skipped_records").map_or(0, |count| *count as u64);
                // A short one is not reported to have started before it has ended.
                let counted = self.stopped(*attempt) || self.finished.remove(attempt);
                self.attempts += u64::from(!counted);
                let of_task = |number| AttemptId { number, epoch: Epoch(0), ..*attempt };
                let others: Vec<_> = self.running.range(of_task(0)..of_task(u32::MAX)).copied().collect();
                for other in others {
                    self.stopped(other);
                }
                phase(&mut self.phases, attempt.task, &|phase| {
                    phase.succeeded += 1;
                    phase.total += rest.len() as u64;
                });
            }
            Event::AttemptFailed { attempt, failure, retry_at, .. } => {
                self.attempts += u64::from(!self.stopped(*attempt) && *failure != Failure::WorkerLost);
                if retry_at.is_none() {
                    self.first_failure.get_or_insert_with(|| (attempt.task, failure.clone()));
                    phase(&mut self.phases, attempt.task, &|phase| phase.failed += 1);
                }
            }
            Event::AttemptReturned { attempt, .. } => {
                self.stopped(*attempt);
            }
            Event::Aborted { error, .. } => self.aborted = Some(error.clone()),
            Event::Published { bytes, rows, .. } => self.published = Some((*bytes, *rows)),
            Event::InputsStaged { .. }
            | Event::Sought { .. }
            | Event::Yields { .. }
            | Event::GangBroke
            | Event::WorkerDrains { .. }
            | Event::Assigned { .. }
            | Event::CancelRequested { .. }
            | Event::Exported { .. }
            | Event::Ended { .. } => {}
        }
        self.latest = self.latest.max(time(event).unwrap_or_default());
    }

    /// Whether it was in a slot.
    fn stopped(&mut self, attempt: AttemptId) -> bool {
        let ran = self.running.remove(&attempt);
        if ran && let Some(phase) = self.phases.get_mut(attempt.task.phase as usize) {
            phase.running -= 1;
        }
        ran
    }

    /// Workers that are there.
    pub fn workers(&self) -> u32 {
        u32::try_from(self.present.len()).unwrap_or(u32::MAX)
    }

    /// Of all phases.
    pub fn tasks(&self) -> TaskFigures {
        let sum = |field: fn(&PhaseFigures) -> u64| self.phases.iter().map(field).sum();
        TaskFigures {
            total: sum(|phase| phase.total),
            succeeded: sum(|phase| phase.succeeded),
            failed: sum(|phase| phase.failed),
            reused: self.reused,
            attempts: self.attempts,
        }
    }

    /// Seconds from the first coordinator's start to the latest event.
    pub fn seconds(&self) -> f64 {
        let started = self.started.unwrap_or(self.latest);
        std::time::Duration::from_millis(self.latest.0.saturating_sub(started.0)).as_secs_f64()
    }

    /// Why the run failed, for people, and what kind of failure it is.
    pub fn error(&self, state: EndState) -> Option<(String, FailureKind)> {
        if state != EndState::Failed {
            return None;
        }
        if let Some(error) = &self.aborted {
            let kind = if !self.planned { FailureKind::Plan } else { FailureKind::Coordination };
            return Some((error.clone(), kind));
        }
        let tasks = self.tasks();
        let first = match &self.first_failure {
            Some((task, failure)) => format!("; the first was task {task}: {failure}"),
            None => String::new(),
        };
        Some((format!("{} of {} tasks failed{first}", tasks.failed, tasks.total), FailureKind::Tasks))
    }
}

fn time(event: &Event) -> Option<Millis> {
    match event {
        Event::Opened { at, .. }
        | Event::Planned { at, .. }
        | Event::Staged { at, .. }
        | Event::Reused { at, .. }
        | Event::Sought { at, .. }
        | Event::WorkerJoined { at, .. }
        | Event::WorkerAbsent { at, .. }
        | Event::Assigned { at, .. }
        | Event::Started { at, .. }
        | Event::Committed { at, .. }
        | Event::Finished { at, .. }
        | Event::Yields { at, .. }
        | Event::AttemptFailed { at, .. }
        | Event::CancelRequested { at }
        | Event::Aborted { at, .. }
        | Event::Published { at, .. }
        | Event::Exported { at }
        | Event::Ended { at, .. } => Some(*at),
        Event::InputsStaged { .. }
        | Event::WorkerDrains { .. }
        | Event::GangBroke
        | Event::GangReady
        | Event::WorkerLeft { .. }
        | Event::AttemptReturned { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(index: u32) -> AttemptId {
        AttemptId { task: TaskId { phase: 0, index }, number: 1, epoch: Epoch(1) }
    }

    #[test]
    fn figures_follow_the_events() {
        let failure = Failure::ExitCode { code: 1, stderr: String::new() };
        let events = [
            Event::Opened { epoch: Epoch(1), at: Millis(1000) },
            Event::Planned { snapshot: Some("s".into()), phases: vec![3], at: Millis(1100) },
            Event::WorkerJoined {
                worker: "w".parse().unwrap(),
                slots: 3,
                process: None,
                until: None,
                at: Millis(1100),
            },
            Event::Started { attempts: (0..3).map(attempt).collect(), at: Millis(1200) },
            Event::Committed {
                attempt: attempt(0),
                outputs: vec![],
                metrics: Default::default(),
                micros: 0,
                rest: vec![],
                at: Millis(1300),
            },
            Event::AttemptFailed { attempt: attempt(1), failure, retry_at: None, at: Millis(3500) },
        ];
        let mut figures = Figures::default();
        events.iter().for_each(|event| figures.note(event));
        assert_eq!(figures.phases, [PhaseFigures { total: 3, succeeded: 1, failed: 1, running: 1 }]);
        assert_eq!(figures.tasks(), TaskFigures { total: 3, succeeded: 1, failed: 1, reused: 0, attempts: 3 });
        assert_eq!((figures.most_workers, figures.seconds()), (1, 2.5));
        let (error, kind) = figures.error(EndState::Failed).unwrap();
        assert_eq!(kind, FailureKind::Tasks);
        assert_eq!(error, "1 of 3 tasks failed; the first was task 0-1: its program ended with exit code 1");
        figures.note(&Event::Opened { epoch: Epoch(2), at: Millis(4000) });
        assert_eq!((figures.phases[0].running, figures.workers(), figures.seconds()), (1, 1, 3.0));
        figures.note(&Event::WorkerAbsent { worker: "w".parse().unwrap(), at: Millis(4000) });
        // Beside the attempt that ran, another one was begun, and was done first.
        let second = AttemptId { number: 2, epoch: Epoch(2), ..attempt(2) };
        let (outputs, metrics, at) = (vec![], Default::default(), Millis(5000));
        figures.note(&Event::Started { attempts: vec![second], at });
        figures.note(&Event::Committed {
            attempt: second,
            outputs,
            metrics,
            micros: 0,
            rest: vec![Default::default(); 2],
            at,
        });
        // What it left unread became two more.
        assert_eq!(figures.phases, [PhaseFigures { total: 5, succeeded: 2, failed: 1, running: 0 }]);
        assert_eq!((figures.workers(), figures.attempts), (0, 4));
    }

    #[test]
    fn the_final_object_has_the_keys_that_are_documented() {
        let result = RunResult {
            version: 1,
            run: "r".parse().unwrap(),
            state: EndState::Succeeded,
            snapshot: Some("s".into()),
            staged: Some(StagedFigures::default()),
            tasks: TaskFigures::default(),
            workers: 2,
            seconds: 1.5,
            output: Some(OutputFigures {
                path: "/o".into(),
                files: vec!["a".into()],
                rows: Some(1),
                bytes: 2,
                skipped_records: 0,
            }),
            error: None,
            failure: None,
        };
        let text = serde_json::to_string(&result).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"run":"r","state":"succeeded","snapshot":"s","staged":{"objects":0,"bytes":0,"#.to_owned()
                + r#""fetched_objects":0,"fetched_bytes":0,"seconds":0.0},"tasks":{"total":0,"succeeded":0,"#
                + r#""failed":0,"reused":0,"attempts":0},"workers":2,"seconds":1.5,"#
                + r#""output":{"path":"/o","files":["a"],"rows":1,"bytes":2},"error":null,"failure":null}"#
        );
        assert_eq!(serde_json::from_str::<RunResult>(&text).unwrap(), result);
    }
}
