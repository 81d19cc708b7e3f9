//! What each worker was sent, and what it is still to be sent: the difference between the machine's wishes and that.

use std::collections::{BTreeMap, BTreeSet};

use forebay_jobs::{
    id::{AttemptId, TaskId, WorkerId},
    task::{TaskInput, TaskSpec},
    wire::{Assignment, ToWorker},
};
use tokio::sync::mpsc;
use tonic::Status;

use crate::run::Share;

/// Pieces and files in one message at most, so that no message comes near the limit of the link; a single task with
/// more is sent alone.
const PARTS_A_MESSAGE: usize = 10_000;

type Sender = mpsc::UnboundedSender<Result<ToWorker, Status>>;

/// The joined workers.
#[derive(Debug, Default)]
pub(super) struct Workers(BTreeMap<WorkerId, Joined>);

#[derive(Debug)]
struct Joined {
    stream: u64,
    /// None once the stream has ended.
    sender: Option<Sender>,
    /// Assigned to it, and not known to be over on both sides.
    sent: BTreeSet<AttemptId>,
    /// Of these, what it reported.
    ended: BTreeSet<AttemptId>,
    /// Of these, what it was told to end.
    killed: BTreeSet<AttemptId>,
    /// Reports of its that are being checked.
    checking: usize,
    /// The version of its share that it was last sent.
    synced: Option<u64>,
}

impl Workers {
    /// A worker said hello; an earlier stream of its is forgotten, and so is ended.
    pub(super) fn joined(&mut self, worker: WorkerId, stream: u64, sender: Sender) {
        let joined = Joined {
            stream,
            sender: Some(sender),
            sent: BTreeSet::new(),
            ended: BTreeSet::new(),
            killed: BTreeSet::new(),
            checking: 0,
            synced: None,
        };
        self.0.insert(worker, joined);
    }

    /// Whether this stream is its worker's present one.
    pub(super) fn is_current(&self, worker: &WorkerId, stream: u64) -> bool {
        self.0.get(worker).is_some_and(|joined| joined.stream == stream)
    }

    /// An attempt was reported; with `checking` its report is on hold.
    pub(super) fn reported(&mut self, worker: &WorkerId, attempt: AttemptId, checking: bool) {
        if let Some(joined) = self.0.get_mut(worker) {
            joined.ended.insert(attempt);
            joined.checking += usize::from(checking);
            joined.synced = None;
        }
    }

    /// A report was checked. Says whether the worker left in the meantime, and is gone now.
    pub(super) fn checked(&mut self, worker: &WorkerId, stream: u64) -> bool {
        let Some(joined) = self.0.get_mut(worker).filter(|joined| joined.stream == stream) else { return false };
        joined.checking -= 1;
        self.forget_if_gone(worker)
    }

    /// A stream ended. Says whether its worker is gone now, or only once its reports are checked: what it did before
    /// it left is not done again.
    pub(super) fn left(&mut self, worker: &WorkerId, stream: u64) -> bool {
        let Some(joined) = self.0.get_mut(worker).filter(|joined| joined.stream == stream) else { return false };
        joined.sender = None;
        self.forget_if_gone(worker)
    }

    fn forget_if_gone(&mut self, worker: &WorkerId) -> bool {
        let gone = self.0.get(worker).is_some_and(|joined| joined.sender.is_none() && joined.checking == 0);
        if gone {
            self.0.remove(worker);
        }
        gone
    }

    /// Sends every worker what it lacks, and ends what it holds beyond that.
    pub(super) fn sync<'a>(
        &mut self,
        share: impl Fn(&WorkerId) -> Option<Share<'a>>,
        mut spec: impl FnMut(TaskId) -> Option<TaskSpec>,
    ) {
        for (worker, joined) in &mut self.0 {
            let Some(Share { version, held }) = share(worker) else { continue };
            if joined.synced.replace(version) == Some(version) {
                continue;
            }
            joined.sent.retain(|attempt| held.contains(attempt) || !joined.ended.contains(attempt));
            joined.ended.retain(|attempt| joined.sent.contains(attempt));
            joined.killed.retain(|attempt| joined.sent.contains(attempt));
            let Some(sender) = &joined.sender else { continue };
            let settled = |attempt: &AttemptId| {
                held.contains(attempt) || joined.ended.contains(attempt) || joined.killed.contains(attempt)
            };
            let kill: Vec<_> = joined.sent.iter().filter(|attempt| !settled(attempt)).copied().collect();
            let assign: Vec<_> = held.difference(&joined.sent).copied().collect();
            joined.killed.extend(&kill);
            joined.sent.extend(&assign);
            let mut messages = Vec::new();
            if !kill.is_empty() {
                messages.push(ToWorker::Kill(kill));
            }
            let assignments =
                assign.into_iter().filter_map(|attempt| spec(attempt.task).map(|spec| Assignment { attempt, spec }));
            messages.extend(batches(assignments).map(ToWorker::Assign));
            for message in messages {
                // A receiver that is gone is a worker that is leaving; the machine hears of that by itself.
                let _ = sender.send(Ok(message));
            }
        }
    }

    /// Whether an attempt was assigned to a worker over the link.
    pub(super) fn was_sent(&self, worker: &WorkerId, attempt: AttemptId) -> bool {
        self.0.get(worker).is_some_and(|joined| joined.sent.contains(&attempt))
    }

    /// Ends the streams of workers that the machine does not know any more, and says which.
    pub(super) fn forget_all_but(&mut self, known: impl Fn(&WorkerId) -> bool) -> Vec<WorkerId> {
        let gone: Vec<_> = self.0.keys().filter(|worker| !known(worker)).cloned().collect();
        gone.iter().for_each(|worker| drop(self.0.remove(worker)));
        gone
    }

    /// What was reported and is being looked at.
    pub(super) fn reported_attempts(&self) -> BTreeSet<AttemptId> {
        self.0.values().flat_map(|joined| joined.ended.iter().copied()).collect()
    }

    /// Tells every worker to end.
    pub(super) fn shut_down(&mut self) {
        for joined in self.0.values() {
            let _ = joined.sender.as_ref().map(|sender| sender.send(Ok(ToWorker::Shutdown)));
        }
    }
}

fn batches(assignments: impl Iterator<Item = Assignment>) -> impl Iterator<Item = Vec<Assignment>> {
    let mut batches: Vec<(usize, Vec<Assignment>)> = Vec::new();
    for assignment in assignments {
        let parts = match &assignment.spec.input {
            TaskInput::Split(split) => split.pieces.len(),
            TaskInput::Shuffle(files) => files.len(),
        };
        match batches.last_mut() {
            Some((held, batch)) if *held + parts <= PARTS_A_MESSAGE => {
                *held += parts;
                batch.push(assignment);
            }
            _ => batches.push((parts, vec![assignment])),
        }
    }
    batches.into_iter().map(|(_, batch)| batch)
}

#[cfg(test)]
mod tests {
    use forebay_datasets::split::Split;
    use forebay_jobs::id::Epoch;

    use super::*;

    fn attempt(index: u32) -> AttemptId {
        AttemptId { task: TaskId { phase: 0, index }, number: 1, epoch: Epoch(1) }
    }

    struct Fixture {
        workers: Workers,
        receiver: mpsc::UnboundedReceiver<Result<ToWorker, Status>>,
        worker: WorkerId,
        held: BTreeSet<AttemptId>,
        version: u64,
    }

    impl Fixture {
        fn new() -> Self {
            let (sender, receiver) = mpsc::unbounded_channel();
            let (mut workers, worker) = (Workers::default(), "w".parse::<WorkerId>().unwrap());
            workers.joined(worker.clone(), 7, sender);
            Self { workers, receiver, worker, held: BTreeSet::new(), version: 0 }
        }

        /// What is sent once these attempts are to be held.
        fn sync(&mut self, held: &[u32]) -> Vec<String> {
            let held: BTreeSet<_> = held.iter().map(|index| attempt(*index)).collect();
            self.version += u64::from(held != self.held);
            self.held = held;
            let input = TaskInput::Split(Split::default());
            let share = |_: &WorkerId| Some(Share { version: self.version, held: &self.held });
            self.workers.sync(share, |task| Some(TaskSpec { task, count: 9, input: input.clone() }));
            let mut sent = Vec::new();
            while let Ok(message) = self.receiver.try_recv() {
                sent.push(match message.unwrap() {
                    ToWorker::Assign(assigned) => {
                        format!("assign {:?}", assigned.iter().map(|a| a.attempt.task.index).collect::<Vec<_>>())
                    }
                    ToWorker::Kill(killed) => {
                        format!("kill {:?}", killed.iter().map(|a| a.task.index).collect::<Vec<_>>())
                    }
                    other => format!("{other:?}"),
                });
            }
            sent
        }
    }

    #[test]
    fn only_the_difference_is_sent_and_only_once() {
        let mut fixture = Fixture::new();
        assert!(!fixture.workers.was_sent(&fixture.worker, attempt(0)));
        assert_eq!(fixture.sync(&[0, 1]), ["assign [0, 1]"]);
        assert!(fixture.workers.was_sent(&fixture.worker, attempt(0)));
        assert!(fixture.sync(&[0, 1]).is_empty());
        assert_eq!(fixture.sync(&[1, 2]), ["kill [0]", "assign [2]"]);
        assert!(fixture.sync(&[1, 2]).is_empty());
    }

    #[test]
    fn what_was_reported_is_neither_assigned_again_nor_killed() {
        let mut fixture = Fixture::new();
        fixture.sync(&[0, 1]);
        let worker = fixture.worker.clone();
        fixture.workers.reported(&worker, attempt(0), true);
        assert!(fixture.sync(&[0, 1]).is_empty());
        assert!(!fixture.workers.checked(&worker, 7));
        assert!(fixture.sync(&[1]).is_empty());
    }

    #[test]
    fn a_worker_is_gone_only_once_its_reports_are_checked() {
        let mut fixture = Fixture::new();
        let worker = fixture.worker.clone();
        fixture.sync(&[0]);
        fixture.workers.reported(&worker, attempt(0), true);
        assert!(!fixture.workers.left(&worker, 6) && !fixture.workers.left(&worker, 7));
        assert!(fixture.sync(&[0, 1]).is_empty());
        assert!(fixture.workers.checked(&worker, 7));
        assert!(!fixture.workers.is_current(&worker, 7));
    }

    #[test]
    fn a_new_stream_replaces_the_old_one() {
        let mut fixture = Fixture::new();
        fixture.sync(&[0]);
        let (sender, receiver) = mpsc::unbounded_channel();
        fixture.workers.joined(fixture.worker.clone(), 8, sender);
        assert!(matches!(fixture.receiver.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        fixture.receiver = receiver;
        let worker = fixture.worker.clone();
        assert!(!fixture.workers.left(&worker, 7) && fixture.workers.is_current(&worker, 8));
        assert_eq!(fixture.sync(&[3]), ["assign [3]"]);
    }

    #[test]
    fn large_assignments_travel_in_several_messages() {
        let spec = |files| TaskSpec {
            task: TaskId { phase: 0, index: 0 },
            count: 1,
            input: TaskInput::Split(Split {
                pieces: vec![
                    forebay_datasets::split::Piece {
                        key: String::new(),
                        path: String::new(),
                        size: 0,
                        partial: false,
                        part: forebay_datasets::split::Part::Whole
                    };
                    files
                ],
            }),
        };
        let assignment = |files| Assignment { attempt: attempt(0), spec: spec(files) };
        let sizes = [20_000, 4_000, 6_000, 1].map(assignment).into_iter();
        assert_eq!(batches(sizes).map(|batch| batch.len()).collect::<Vec<_>>(), [1, 2, 1]);
    }
}
