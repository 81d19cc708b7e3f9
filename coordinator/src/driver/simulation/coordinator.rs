//! A coordinator: the machine and what it sends to workers as they are, with the loop around them in steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use forebay_datasets::{
    split::{Part, Piece, Split},
    volume::Holder,
};
use forebay_jobs::{
    id::{AttemptId, TaskId, WorkerId},
    task::{AttemptReport, Failure, Outcome, TaskInput, TaskSpec},
    wire::{Assignment, FromWorker, ToWorker},
};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{
    driver::workers::{Stream, Workers},
    run::{Done, Event, Input, Millis, Run},
};

type Receiver = mpsc::UnboundedReceiver<Result<ToWorker, Status>>;

/// A planned task reads so many bytes of an object of its own.
pub(super) const BYTES: u64 = 8;

/// What a task is to read.
pub(super) fn split(machine: &Run, task: TaskId) -> Split {
    let key = format!("{task}");
    let part = Part::Bytes { offset: 0, length: BYTES };
    let planned = || Split { pieces: vec![Piece { path: key.clone(), key, size: BYTES, partial: false, part }] };
    machine.rest(task).cloned().unwrap_or_else(planned)
}

fn length(piece: &Piece) -> u64 {
    match piece.part {
        Part::Bytes { length, .. } => length,
        Part::Whole | Part::RowGroups { .. } => piece.size,
    }
}

/// A coordinator's process.
pub(super) struct Coordinator {
    pub(super) machine: Run,
    workers: Workers,
    /// Streams that it believes in, and what waits to be sent on them.
    streams: BTreeMap<u64, (WorkerId, Receiver)>,
    /// Reports that are to be compared with the volume.
    checks: Vec<Done>,
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams: Vec<_> = self.streams.iter().map(|(stream, (worker, _))| (stream, worker)).collect();
        write!(f, "{:?} {:?} {streams:?} {:?}", self.machine, self.workers, self.checks)
    }
}

impl Coordinator {
    pub(super) fn new(machine: Run) -> Self {
        Self { machine, workers: Workers::default(), streams: BTreeMap::new(), checks: Vec::new() }
    }

    pub(super) fn streams(&self) -> impl Iterator<Item = u64> {
        self.streams.keys().copied()
    }

    pub(super) fn decide(&mut self, inputs: &[Input], now: u64) -> Vec<Event> {
        self.machine.handle_all(inputs, Millis(now))
    }

    /// What is sent once all that was decided is durable.
    pub(super) fn act(&mut self) -> Vec<(u64, ToWorker)> {
        let machine = &self.machine;
        self.workers.forget_all_but(|worker| machine.share(worker).is_some());
        let spec = |task| TaskSpec { task, count: 9, input: TaskInput::Split(split(machine, task)) };
        let assignment = |attempt: AttemptId| {
            Some(Assignment { attempt, spec: spec(attempt.task), beside: machine.is_second(attempt), rendezvous: None })
        };
        self.workers.sync(|worker| machine.share(worker), |attempt| machine.yields(attempt), assignment);
        if machine.ended().is_some() {
            self.workers.shut_down();
        }
        let mut sent = Vec::new();
        for (stream, (_, receiver)) in &mut self.streams {
            while let Ok(Ok(message)) = receiver.try_recv() {
                sent.push((*stream, message));
            }
        }
        sent
    }

    /// What is recalled and was never given, nobody will report: it has ended.
    pub(super) fn unsent(&self) -> Vec<Input> {
        if !self.machine.recalls_all() {
            return Vec::new();
        }
        let held = self.machine.workers().flat_map(|worker| self.machine.held(worker).map(move |held| (worker, held)));
        let unsent = held.filter(|(worker, attempt)| !self.workers.was_sent(worker, *attempt));
        let failure = Failure::Cancelled;
        unsent
            .map(|(worker, attempt)| Input::Failed { worker: worker.clone(), attempt, failure: failure.clone() })
            .collect()
    }

    pub(super) fn joined(&mut self, worker: &WorkerId, slots: u32, stream: u64, holds: BTreeSet<AttemptId>) -> Input {
        let (sender, receiver) = mpsc::unbounded_channel();
        let to_worker = Stream { number: stream, peer: None, sender };
        self.workers.joined(worker.clone(), to_worker, holds.clone());
        self.streams.insert(stream, (worker.clone(), receiver));
        Input::Joined { worker: worker.clone(), slots, holds, process: None::<Holder>, left: None }
    }

    /// A stream ended, as far as it is its worker's present one.
    pub(super) fn left(&mut self, stream: u64) -> Vec<Input> {
        let Some((worker, _)) = self.streams.remove(&stream) else { return Vec::new() };
        if !self.workers.is_current(&worker, stream) {
            return Vec::new();
        }
        self.workers.left(&worker);
        vec![Input::Silent { worker }]
    }

    pub(super) fn hear(&mut self, stream: u64, message: FromWorker) -> Vec<Input> {
        let Some((worker, _)) = self.streams.get(&stream) else { return Vec::new() };
        let worker = worker.clone();
        if !self.workers.is_current(&worker, stream) {
            return Vec::new();
        }
        match message {
            FromWorker::Started(attempts) => vec![Input::Started { worker, attempts }],
            FromWorker::Reports(reports) => self.reports(&worker, reports),
            FromWorker::Draining => vec![Input::Draining { worker }],
            FromWorker::Hello { .. } | FromWorker::Seen(_) | FromWorker::Heartbeat => Vec::new(),
        }
    }

    fn reports(&mut self, worker: &WorkerId, reports: Vec<AttemptReport>) -> Vec<Input> {
        let mut inputs = Vec::new();
        for AttemptReport { attempt, outcome, .. } in reports {
            let check = matches!(&outcome, Outcome::Done { .. });
            if !self.workers.reported(worker, attempt, check) {
                continue;
            }
            let worker = worker.clone();
            match outcome {
                Outcome::Done { outputs, metrics, rest } => {
                    let all = split(&self.machine, attempt.task);
                    let rest = rest.filter(|rest| all.has_tail(rest)).map(|rest| rest.cut(2, 1)).unwrap_or_default();
                    self.checks.push(Done { worker, attempt, outputs, metrics, micros: 1_000_000, rest });
                }
                Outcome::Failed(failure) => inputs.push(Input::Failed { worker, attempt, failure }),
                Outcome::GivenBack => inputs.push(Input::GivenBack { worker, attempt }),
            }
        }
        inputs
    }

    /// One of the reports is compared with what stands on the volume.
    pub(super) fn check(&mut self, pick: usize, made: &BTreeMap<AttemptId, Split>) -> Vec<Input> {
        if self.checks.is_empty() {
            return Vec::new();
        }
        let done = self.checks.swap_remove(pick % self.checks.len());
        let (worker, attempt) = (done.worker.clone(), done.attempt);
        self.workers.checked(&worker, attempt);
        let bad = || Failure::BadOutput { message: "there is no such output".to_owned() };
        // Files of another part of the split than is claimed would not be those that are reported.
        let bytes = |split: &Split| split.pieces.iter().map(length).sum::<u64>();
        let claimed = bytes(&split(&self.machine, attempt.task)) - done.rest.iter().map(bytes).sum::<u64>();
        vec![match made.get(&attempt).is_some_and(|read| bytes(read) == claimed) {
            true => Input::Done(done),
            false => Input::Failed { worker, attempt, failure: bad() },
        }]
    }

    /// Looks after absent workers: which process has ended, and what was kept.
    pub(super) fn look(&mut self, of: impl Fn(&WorkerId, u32) -> (bool, Vec<Vec<AttemptReport>>)) -> Vec<Input> {
        let absent: Vec<_> = self.machine.absent().map(|(worker, ..)| worker.clone()).collect();
        let mut inputs = Vec::new();
        for worker in absent {
            let (read, known) = self.workers.absent(&worker);
            let (ended, files) = of(&worker, read);
            let count = read + u32::try_from(files.len()).unwrap();
            self.workers.read(&worker, count, ended || known);
            inputs.extend(self.reports(&worker, files.into_iter().flatten().collect()));
        }
        inputs
    }

    pub(super) fn gone(&self) -> Vec<Input> {
        self.workers.gone().into_iter().map(|worker| Input::Gone { worker }).collect()
    }

    pub(super) fn tick(&self) -> Input {
        Input::Tick { reported: self.workers.reported_attempts() }
    }
}
