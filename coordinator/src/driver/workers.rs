//! What each worker was sent, and what it is still to be sent: the difference between the machine's wishes and that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use forebay_jobs::{
    id::{AttemptId, WorkerId},
    task::TaskInput,
    wire::{Assignment, ToWorker},
};
use tokio::sync::mpsc;
use tonic::Status;

use crate::run::Share;

/// Pieces and files in one message at most, so that no message comes near the limit of the link; a single task with
/// more is sent alone.
const PARTS_A_MESSAGE: usize = 10_000;

type Sender = mpsc::UnboundedSender<Result<ToWorker, Status>>;

/// A stream to a worker.
pub(super) struct Stream {
    pub(super) number: u64,
    /// Where it comes from.
    pub(super) peer: Option<IpAddr>,
    pub(super) sender: Sender,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({})", self.number)
    }
}

/// The workers that the machine knows.
#[derive(Debug, Default)]
pub(super) struct Workers(BTreeMap<WorkerId, Known>);

#[derive(Debug, Default)]
struct Known {
    /// None of one that is absent.
    stream: Option<Stream>,
    /// The address of its host, as it came here last.
    address: Option<IpAddr>,
    /// Assigned to it, and not known to be over on both sides.
    sent: BTreeSet<AttemptId>,
    /// Of these, what it reported.
    ended: BTreeSet<AttemptId>,
    /// Of these, what it was told to end.
    killed: BTreeSet<AttemptId>,
    /// Of these, what it was told to be done with early.
    yields: BTreeSet<AttemptId>,
    /// Reports of its that are being checked.
    checking: BTreeSet<AttemptId>,
    /// The version of its share that it was last sent.
    synced: Option<u64>,
    /// Files of reports that it kept and that were read.
    files: u32,
    /// Whether its process is known to have ended, and whether its files were read since.
    process: Process,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Process {
    #[default]
    Unknown,
    Ended,
    EndedAndRead,
}

impl Workers {
    /// A worker said hello, and what it holds; an earlier stream of its is forgotten, and so is ended.
    pub(super) fn joined(&mut self, worker: WorkerId, stream: Stream, holds: BTreeSet<AttemptId>) {
        let known = self.0.entry(worker).or_default();
        // What is being checked it will report once more, which is no news.
        known.ended = known.checking.clone();
        known.address = stream.peer;
        (known.stream, known.sent, known.synced) = (Some(stream), holds, None);
        known.killed.clear();
        known.yields.clear();
        // Who says hello is there, whatever became of another process of this name.
        known.process = Process::Unknown;
    }

    /// Whether this stream is its worker's present one.
    pub(super) fn is_current(&self, worker: &WorkerId, stream: u64) -> bool {
        self.0.get(worker).and_then(|known| known.stream.as_ref()).is_some_and(|present| present.number == stream)
    }

    /// The address of a worker's host, as it was last seen from here.
    pub(super) fn address(&self, worker: &WorkerId) -> Option<IpAddr> {
        self.0.get(worker)?.address
    }

    /// An attempt was reported; with `check` its report is to be looked into. Says whether that is news.
    pub(super) fn reported(&mut self, worker: &WorkerId, attempt: AttemptId, check: bool) -> bool {
        let known = self.0.entry(worker.clone()).or_default();
        known.synced = None;
        known.ended.insert(attempt);
        if check { known.checking.insert(attempt) } else { !known.checking.contains(&attempt) }
    }

    /// A report was checked.
    pub(super) fn checked(&mut self, worker: &WorkerId, attempt: AttemptId) {
        if let Some(known) = self.0.get_mut(worker) {
            known.checking.remove(&attempt);
        }
    }

    /// A stream ended.
    pub(super) fn left(&mut self, worker: &WorkerId) {
        if let Some(known) = self.0.get_mut(worker) {
            known.stream = None;
        }
    }

    /// A worker's process has ended, whatever is still to be heard of it.
    pub(super) fn ended(&mut self, worker: &WorkerId) {
        if let Some(known) = self.0.get_mut(worker)
            && known.process == Process::Unknown
        {
            known.process = Process::Ended;
        }
    }

    /// What is known of an absent worker: how many of its files were read, and whether its process has ended.
    pub(super) fn absent(&self, worker: &WorkerId) -> (u32, bool) {
        self.0.get(worker).map_or((0, false), |known| (known.files, known.process != Process::Unknown))
    }

    /// So many of its files were read by now, the last of them after its process had `ended`.
    pub(super) fn read(&mut self, worker: &WorkerId, files: u32, ended: bool) {
        let known = self.0.entry(worker.clone()).or_default();
        known.files = files;
        if ended && known.stream.is_none() {
            known.process = Process::EndedAndRead;
        }
    }

    /// Those of which nothing more will be heard: what they did before they ended is not done again.
    pub(super) fn gone(&self) -> Vec<WorkerId> {
        let is_gone = |known: &Known| {
            known.stream.is_none() && known.checking.is_empty() && known.process == Process::EndedAndRead
        };
        self.0.iter().filter(|(_, known)| is_gone(known)).map(|(worker, _)| worker.clone()).collect()
    }

    /// Sends every worker what it lacks, and ends what it holds beyond that.
    pub(super) fn sync<'a>(
        &mut self,
        share: impl Fn(&WorkerId) -> Option<Share<'a>>,
        yields: impl Fn(AttemptId) -> bool,
        mut assignment: impl FnMut(AttemptId) -> Option<Assignment>,
    ) {
        for (worker, known) in &mut self.0 {
            let Some(Share { version, held }) = share(worker) else { continue };
            if known.synced.replace(version) == Some(version) {
                continue;
            }
            let over = |attempt: &AttemptId| !held.contains(attempt) && known.ended.contains(attempt);
            let noted: Vec<_> = known.sent.iter().filter(|attempt| over(attempt)).copied().collect();
            known.sent.retain(|attempt| held.contains(attempt) || !known.ended.contains(attempt));
            known.ended.retain(|attempt| known.sent.contains(attempt));
            known.killed.retain(|attempt| known.sent.contains(attempt));
            known.yields.retain(|attempt| known.sent.contains(attempt));
            let Some(Stream { sender, .. }) = &known.stream else { continue };
            let settled = |attempt: &AttemptId| {
                held.contains(attempt) || known.ended.contains(attempt) || known.killed.contains(attempt)
            };
            let kill: Vec<_> = known.sent.iter().filter(|attempt| !settled(attempt)).copied().collect();
            let assign: Vec<_> = held.difference(&known.sent).copied().collect();
            let asked = held.intersection(&known.sent).filter(|attempt| yields(**attempt));
            let asked: Vec<_> = asked.filter(|attempt| !known.yields.contains(attempt)).copied().collect();
            known.yields.extend(&asked);
            known.killed.extend(&kill);
            known.sent.extend(&assign);
            let mut messages = Vec::new();
            if !noted.is_empty() {
                messages.push(ToWorker::Noted(noted));
            }
            if !kill.is_empty() {
                messages.push(ToWorker::Kill(kill));
            }
            if !asked.is_empty() {
                messages.push(ToWorker::Yield(asked));
            }
            let assignments = assign.into_iter().filter_map(&mut assignment);
            messages.extend(batches(assignments).map(ToWorker::Assign));
            for message in messages {
                // A receiver that is gone is a worker that is leaving; the machine hears of that by itself.
                let _ = sender.send(Ok(message));
            }
        }
    }

    /// Whether a worker that is there was assigned an attempt, and so will report it.
    pub(super) fn was_sent(&self, worker: &WorkerId, attempt: AttemptId) -> bool {
        self.0.get(worker).is_some_and(|known| known.stream.is_some() && known.sent.contains(&attempt))
    }

    /// Forgets workers that the machine does not know any more, which ends their streams, and says which.
    pub(super) fn forget_all_but(&mut self, known: impl Fn(&WorkerId) -> bool) -> Vec<WorkerId> {
        let gone: Vec<_> = self.0.keys().filter(|worker| !known(worker)).cloned().collect();
        gone.iter().for_each(|worker| drop(self.0.remove(worker)));
        gone
    }

    /// What was reported and is being looked at.
    pub(super) fn reported_attempts(&self) -> BTreeSet<AttemptId> {
        self.0.values().flat_map(|known| known.ended.iter().copied()).collect()
    }

    /// Tells every worker to end.
    pub(super) fn shut_down(&mut self) {
        for Stream { sender, .. } in self.0.values().filter_map(|known| known.stream.as_ref()) {
            let _ = sender.send(Ok(ToWorker::Shutdown));
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
    use forebay_jobs::{
        id::{Epoch, TaskId},
        task::TaskSpec,
    };

    use super::*;

    fn attempt(index: u32) -> AttemptId {
        AttemptId { task: TaskId { phase: 0, index }, number: 1, epoch: Epoch(1) }
    }

    fn stream(number: u64, sender: Sender) -> Stream {
        Stream { number, peer: None, sender }
    }

    struct Fixture {
        workers: Workers,
        receiver: mpsc::UnboundedReceiver<Result<ToWorker, Status>>,
        worker: WorkerId,
        held: BTreeSet<AttemptId>,
        yields: BTreeSet<AttemptId>,
        version: u64,
    }

    impl Fixture {
        fn new() -> Self {
            let (sender, receiver) = mpsc::unbounded_channel();
            let (mut workers, worker) = (Workers::default(), "w".parse::<WorkerId>().unwrap());
            workers.joined(worker.clone(), stream(7, sender), BTreeSet::new());
            Self { workers, receiver, worker, held: BTreeSet::new(), yields: BTreeSet::new(), version: 0 }
        }

        /// What is sent once these attempts are to be held.
        fn sync(&mut self, held: &[u32]) -> Vec<String> {
            let held: BTreeSet<_> = held.iter().map(|index| attempt(*index)).collect();
            self.version += u64::from(held != self.held);
            self.held = held;
            let input = TaskInput::Split(Split::default());
            let share = |_: &WorkerId| Some(Share { version: self.version, held: &self.held });
            let spec = |task| TaskSpec { task, count: 9, input: input.clone() };
            let assignment = |attempt: AttemptId| {
                Some(Assignment { attempt, spec: spec(attempt.task), beside: false, rendezvous: None })
            };
            let yields = |attempt| self.yields.contains(&attempt);
            self.workers.sync(share, yields, assignment);
            let mut sent = Vec::new();
            while let Ok(message) = self.receiver.try_recv() {
                sent.push(match message.unwrap() {
                    ToWorker::Assign(assigned) => {
                        format!("assign {:?}", assigned.iter().map(|a| a.attempt.task.index).collect::<Vec<_>>())
                    }
                    ToWorker::Kill(killed) => {
                        format!("kill {:?}", killed.iter().map(|a| a.task.index).collect::<Vec<_>>())
                    }
                    ToWorker::Yield(asked) => {
                        format!("yield {:?}", asked.iter().map(|a| a.task.index).collect::<Vec<_>>())
                    }
                    ToWorker::Noted(noted) => {
                        format!("noted {:?}", noted.iter().map(|a| a.task.index).collect::<Vec<_>>())
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
    fn what_is_to_yield_is_told_so_once_a_stream_and_only_if_it_was_given() {
        let mut fixture = Fixture::new();
        fixture.yields = [0, 1].map(attempt).into();
        assert_eq!(fixture.sync(&[0]), ["assign [0]"]);
        fixture.version += 1;
        assert_eq!(fixture.sync(&[0]), ["yield [0]"]);
        fixture.version += 1;
        assert!(fixture.sync(&[0]).is_empty());
        let (sender, receiver) = mpsc::unbounded_channel();
        fixture.workers.joined(fixture.worker.clone(), stream(8, sender), [attempt(0)].into());
        fixture.receiver = receiver;
        assert_eq!(fixture.sync(&[0]), ["yield [0]"], "the first may not have reached it");
    }

    #[test]
    fn what_was_reported_is_neither_assigned_again_nor_killed_and_noted_once_it_counts() {
        let mut fixture = Fixture::new();
        fixture.sync(&[0, 1]);
        let worker = fixture.worker.clone();
        assert!(fixture.workers.reported(&worker, attempt(0), true));
        assert!(!fixture.workers.reported(&worker, attempt(0), true), "it is being checked");
        assert!(fixture.sync(&[0, 1]).is_empty());
        fixture.workers.checked(&worker, attempt(0));
        assert_eq!(fixture.sync(&[1]), ["noted [0]"]);
        // Nobody asked for it.
        assert!(fixture.workers.reported(&worker, attempt(1), false));
        assert_eq!(fixture.sync(&[]), ["noted [1]"]);
    }

    #[test]
    fn a_worker_that_has_ended_is_gone_once_all_of_its_reports_are_checked() {
        let mut fixture = Fixture::new();
        let worker = fixture.worker.clone();
        fixture.sync(&[0, 1]);
        fixture.workers.reported(&worker, attempt(0), true);
        fixture.workers.ended(&worker);
        assert_eq!(fixture.workers.absent(&worker), (0, true));
        fixture.workers.read(&worker, 0, true);
        fixture.workers.left(&worker);
        assert!(fixture.workers.gone().is_empty(), "its files were read while it still had a stream");
        fixture.workers.read(&worker, 2, true);
        fixture.workers.reported(&worker, attempt(1), true);
        fixture.workers.checked(&worker, attempt(0));
        assert!(fixture.workers.gone().is_empty());
        fixture.workers.checked(&worker, attempt(1));
        assert_eq!((fixture.workers.gone(), fixture.workers.absent(&worker)), (vec![worker.clone()], (2, true)));
        // Another process of its name comes, and is silent for a while.
        let (sender, _receiver) = mpsc::unbounded_channel();
        fixture.workers.joined(worker.clone(), stream(8, sender), BTreeSet::new());
        fixture.workers.left(&worker);
        assert_eq!((fixture.workers.gone(), fixture.workers.absent(&worker)), (vec![], (2, false)));
    }

    #[test]
    fn what_a_worker_that_comes_back_holds_is_not_sent_again() {
        let mut fixture = Fixture::new();
        fixture.sync(&[0, 1, 2]);
        let worker = fixture.worker.clone();
        fixture.workers.reported(&worker, attempt(2), true);
        fixture.workers.left(&worker);
        assert!(!fixture.workers.was_sent(&worker, attempt(0)), "it is not there");
        let (sender, receiver) = mpsc::unbounded_channel();
        fixture.workers.joined(worker.clone(), stream(8, sender), [0, 1, 2, 7].map(attempt).into());
        assert!(matches!(fixture.receiver.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        fixture.receiver = receiver;
        assert!(!fixture.workers.is_current(&worker, 7) && fixture.workers.is_current(&worker, 8));
        assert!(!fixture.workers.reported(&worker, attempt(2), true), "it is being checked");
        assert_eq!(fixture.sync(&[0, 1, 2, 3]), ["kill [7]", "assign [3]"]);
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
        let assignment = |files| Assignment { attempt: attempt(0), spec: spec(files), beside: false, rendezvous: None };
        let sizes = [20_000, 4_000, 6_000, 1].map(assignment).into_iter();
        assert_eq!(batches(sizes).map(|batch| batch.len()).collect::<Vec<_>>(), [1, 2, 1]);
    }
}
