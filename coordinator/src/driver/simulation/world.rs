//! The world around the coordinators and workers of one run.

use std::collections::{BTreeMap, BTreeSet};

use forebay_datasets::split::{Part, Split};
use forebay_jobs::{
    id::{AttemptId, Epoch, RunId, TaskId},
    task::{AttemptReport, Failure, Outcome},
    wire::{FromWorker, ToWorker},
};

use super::{
    Action, Ending, NoticedBy,
    coordinator::{BYTES, Coordinator, split},
    worker::Worker,
};
use crate::{
    driver::session::compose,
    journal::{self, Header},
    run::{EndState, Event, Input, Reused, Run, RunConfig, TaskState, Wanted},
};

/// After so many milliseconds without a sign of life a coordinator takes a stream for ended.
const SILENCE: u64 = 15_000;
/// Rounds in which everything is done once that can be done.
const ROUNDS: usize = 2_000;

/// What most runs are like.
pub(super) fn config() -> RunConfig {
    RunConfig {
        attempts: 3,
        backoff_first: 100,
        backoff_last: 1_000,
        timeout: None,
        max_failures: 2,
        speculate: true,
        resplit: true,
        gang: false,
        reuse: false,
        workers: 3,
        readers: None,
        ramp: 0,
        export: false,
    }
}

pub(super) struct World {
    now: u64,
    config: RunConfig,
    phases: Vec<u32>,
    early: bool,
    staged: BTreeSet<u32>,
    /// Tasks that an earlier run has done, by their places in their phases.
    done_before: BTreeSet<u32>,
    /// On the volume: a journal an epoch.
    journals: BTreeMap<Epoch, Vec<u8>>,
    full: bool,
    /// Attempts that were begun, and by whom.
    begun: BTreeMap<AttemptId, usize>,
    /// Attempts whose outputs stand on the volume, and what these are of.
    made: BTreeMap<AttemptId, Split>,
    published: Option<BTreeSet<AttemptId>>,
    /// By the journal that counts.
    committed: BTreeMap<TaskId, AttemptId>,
    coordinators: BTreeMap<Epoch, Coordinator>,
    newest: Epoch,
    workers: Vec<Worker>,
    /// Which coordinator each stream leads to.
    streams: BTreeMap<u64, Epoch>,
    bag: Vec<Packet>,
    cancelled: bool,
    failure: Option<String>,
}

/// A message under way.
#[derive(Clone, Debug)]
struct Packet {
    stream: u64,
    to_worker: bool,
    bytes: Vec<u8>,
}

impl World {
    /// A run with its first coordinator.
    pub(super) fn new(phases: Vec<u32>, early: bool, done_before: BTreeSet<u32>, config: RunConfig) -> Self {
        let mut world = Self {
            now: 0,
            config,
            phases,
            early,
            staged: BTreeSet::new(),
            done_before,
            journals: BTreeMap::new(),
            full: false,
            begun: BTreeMap::new(),
            made: BTreeMap::new(),
            published: None,
            committed: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            newest: Epoch(0),
            workers: Vec::new(),
            streams: BTreeMap::new(),
            bag: Vec::new(),
            cancelled: false,
            failure: None,
        };
        world.take_over();
        world
    }

    pub(super) fn was_cancelled(&self) -> bool {
        self.cancelled
    }

    /// What must be true at any time, and was not.
    pub(super) fn check(&mut self) -> Result<(), String> {
        self.failure.take().map_or(Ok(()), Err)
    }

    pub(super) fn take(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Join(slots) => {
                if self.workers.iter().filter(|worker| worker.alive).count() < 5 {
                    let id = format!("w{}", self.workers.len()).parse().unwrap();
                    self.workers.push(Worker::new(id, slots));
                    self.call(self.workers.len() - 1, false);
                }
            }
            Action::Drain(n) => {
                if let Some(n) = self.alive(n) {
                    let says = self.workers[n].drain();
                    self.say_of(n, says);
                }
            }
            Action::Crash(n) => {
                if let Some(n) = self.alive(n) {
                    self.workers[n].alive = false;
                }
            }
            Action::Cut(n, noticed) => {
                if let Some(n) = self.alive(n) {
                    self.cut(n, noticed);
                }
            }
            Action::Call(n, lost) => {
                if let Some(n) = self.alive(n) {
                    self.call(n, lost);
                }
            }
            Action::Partition(n, cut) => {
                if let Some(n) = self.alive(n) {
                    self.workers[n].partitioned = cut;
                }
            }
            Action::Deliver(n) => {
                if !self.bag.is_empty() {
                    let packet = self.bag.swap_remove(n % self.bag.len());
                    self.deliver(&packet);
                }
            }
            Action::Duplicate(n) => {
                if !self.bag.is_empty() {
                    let packet = self.bag[n % self.bag.len()].clone();
                    self.deliver(&packet);
                }
            }
            Action::Lose(n) => {
                if !self.bag.is_empty() {
                    self.bag.swap_remove(n % self.bag.len());
                }
            }
            Action::Finish(n, ending) => {
                let running: Vec<_> = self.running().collect();
                if !running.is_empty() {
                    let (worker, attempt) = running[n % running.len()];
                    self.finish(worker, attempt, ending);
                }
            }
            Action::Lie(n) => self.lie(n),
            Action::Look(n) => {
                if let Some(epoch) = self.any_coordinator(n) {
                    self.look(epoch, n);
                }
            }
            Action::Wait(millis) => self.wait(millis),
            Action::Kill(n, bytes) => {
                if let Some(epoch) = self.any_coordinator(n) {
                    self.kill(epoch, bytes);
                }
            }
            Action::TakeOver => self.take_over(),
            Action::Fill(full) => self.full = full,
            Action::Stage(task) => self.stage(task),
            Action::Cancel => {
                self.cancelled |= self.coordinators.contains_key(&self.newest);
                self.decide(self.newest, &[Input::Cancel]);
            }
        }
        Ok(())
    }

    /// Messages in the bag.
    pub(super) fn under_way(&self) -> usize {
        self.bag.len()
    }

    /// Messages on streams of which the other end is gone.
    pub(super) fn lose_what_nobody_hears(&mut self) {
        let (coordinators, streams, workers) = (&self.coordinators, &self.streams, &self.workers);
        self.bag.retain(|packet| match packet.to_worker {
            true => workers.iter().any(|worker| worker.alive && worker.stream == Some(packet.stream)),
            false => {
                coordinators.get(&streams[&packet.stream]).is_some_and(|c| c.streams().any(|s| s == packet.stream))
            }
        });
    }

    /// Coordinators that there were.
    pub(super) fn epochs(&self) -> u32 {
        self.newest.0
    }

    pub(super) fn has_committed(&self) -> bool {
        !self.committed.is_empty()
    }

    /// All that what happens next depends on.
    pub(super) fn state(&self) -> String {
        let mut bag: Vec<_> = self.bag.iter().map(|packet| format!("{packet:?}")).collect();
        bag.sort();
        let (coordinators, workers) = (&self.coordinators, &self.workers);
        let volume = (&self.journals, &self.made, &self.published, &self.committed);
        format!("{} {bag:?} {coordinators:?} {workers:?} {volume:?} {:?}", self.now, self.begun)
    }

    fn alive(&self, n: usize) -> Option<usize> {
        let alive: Vec<_> = (0..self.workers.len()).filter(|n| self.workers[*n].alive).collect();
        (!alive.is_empty()).then(|| alive[n % alive.len()])
    }

    /// Mostly the newest one; else one that does not know that it was taken over.
    fn any_coordinator(&self, n: usize) -> Option<Epoch> {
        let epochs: Vec<_> = self.coordinators.keys().copied().collect();
        (!epochs.is_empty())
            .then(|| if n.is_multiple_of(4) { epochs[n / 4 % epochs.len()] } else { epochs[epochs.len() - 1] })
    }

    fn running(&self) -> impl Iterator<Item = (usize, AttemptId)> {
        let alive = self.workers.iter().enumerate().filter(|(_, worker)| worker.alive);
        alive.flat_map(|(n, worker)| worker.running().iter().map(move |attempt| (n, *attempt)))
    }

    fn decide_only(&mut self, epoch: Epoch, inputs: &[Input]) {
        let Some(coordinator) = self.coordinators.get_mut(&epoch) else { return };
        let events = coordinator.decide(inputs, self.now);
        if !events.is_empty() {
            if self.full {
                self.coordinators.remove(&epoch);
                return;
            }
            self.journals.get_mut(&epoch).unwrap().extend(journal::group(&events));
            self.note(epoch, &events);
        }
    }

    /// A coordinator decides, makes that durable, and only then acts.
    fn decide(&mut self, epoch: Epoch, inputs: &[Input]) {
        self.decide_only(epoch, inputs);
        let Some(coordinator) = self.coordinators.get_mut(&epoch) else { return };
        let sent = coordinator.act();
        let packet = |(stream, message): (u64, ToWorker)| {
            let bytes = serde_json::to_vec(&message).unwrap();
            Packet { stream, to_worker: true, bytes }
        };
        self.bag.extend(sent.into_iter().map(packet));
        let coordinator = &self.coordinators[&epoch];
        let Wanted { publish, seek, .. } = coordinator.machine.wanted(crate::run::Millis(self.now));
        let then: Vec<_> = coordinator.unsent().into_iter().chain(coordinator.gone()).collect();
        if let Some(phase) = seek {
            self.seek(epoch, phase);
        } else if publish {
            self.publish(epoch);
        } else if !then.is_empty() {
            self.decide(epoch, &then);
        }
    }

    /// Earlier runs are searched for tasks of a phase. One that does not know that it was taken over finds as much.
    fn seek(&mut self, epoch: Epoch, phase: u32) {
        let machine = &self.coordinators[&epoch].machine;
        let found = self.done_before.iter().map(|index| TaskId { phase, index: *index });
        let found: Vec<_> = found.filter(|task| machine.task(*task).is_some()).collect();
        let from: RunId = "earlier".parse().unwrap();
        let reused = |task: &TaskId| {
            let attempt = machine.next_attempt(*task);
            Reused { attempt, outputs: Vec::new(), from: from.clone() }
        };
        let tasks: Vec<_> = found.iter().map(reused).collect();
        self.made.extend(tasks.iter().map(|reused| (reused.attempt, split(machine, reused.attempt.task))));
        self.decide_only(epoch, &[Input::Reused { tasks }]);
        self.decide(epoch, &[Input::Sought { phase, work: None, among: vec![from] }]);
    }

    /// What the journal that counts says now.
    fn note(&mut self, epoch: Epoch, events: &[Event]) {
        if epoch != self.newest {
            return;
        }
        for event in events {
            let attempts = match event {
                Event::Committed { attempt, .. } => vec![attempt],
                Event::Reused { tasks, .. } => tasks.iter().map(|reused| &reused.attempt).collect(),
                _ => Vec::new(),
            };
            for attempt in attempts {
                if !self.made.contains_key(attempt) {
                    self.failure = Some(format!("{attempt} is committed, and nobody made it"));
                }
                if let Some(before) = self.committed.insert(attempt.task, *attempt) {
                    self.failure = Some(format!("{before} was committed, and now {attempt} is"));
                }
            }
        }
        let tries: BTreeSet<_> = self.committed.values().map(|attempt| (attempt.number, attempt.epoch)).collect();
        let whole = self.committed.is_empty() || self.committed.len() == self.phases[0] as usize && tries.len() == 1;
        if self.config.gang && !whole {
            self.failure = Some(format!("of a gang are committed {:?}", self.committed));
        }
    }

    fn publish(&mut self, epoch: Epoch) {
        if epoch != self.newest {
            // It finds its paths gone.
            self.coordinators.remove(&epoch);
            return;
        }
        let committed = self.committed.values().copied().collect::<BTreeSet<_>>();
        if self.published.as_ref().is_some_and(|before| *before != committed) {
            self.failure = Some("what is published is published again, and is something else".to_owned());
        }
        self.published = Some(committed);
        self.decide(epoch, &[Input::Published { files: 1, bytes: 1, rows: None }]);
    }

    fn kill(&mut self, epoch: Epoch, bytes: usize) {
        let mut coordinator = self.coordinators.remove(&epoch).unwrap();
        let tick = coordinator.tick();
        let events = coordinator.decide(&[tick], self.now);
        if !events.is_empty() {
            let group = journal::group(&events);
            let arrive = bytes % (group.len() + 1);
            self.journals.get_mut(&epoch).unwrap().extend(&group[..arrive]);
            if arrive == group.len() {
                self.note(epoch, &events);
            }
        }
    }

    fn replay(&self) -> Result<(Run, Vec<(Epoch, u64)>), String> {
        let read = |epoch, limit: Option<u64>| {
            let bytes = &self.journals[&epoch];
            let counts = limit.map_or(bytes.len(), |limit| usize::try_from(limit).unwrap());
            journal::parse(&bytes[..counts]).map(Some).map_err(|wrong| format!("epoch {epoch}: {wrong:?}"))
        };
        let replayed = compose(self.journals.keys().rev().copied(), read, |why| why)?;
        Ok((Run::replay(self.config.clone(), &replayed.events)?, replayed.before))
    }

    fn take_over(&mut self) {
        if self.full {
            return;
        }
        let (machine, before) = match self.replay() {
            Ok(replayed) => replayed,
            Err(error) => {
                self.failure = Some(error);
                return;
            }
        };
        if let Some(live) = self.coordinators.get(&self.newest)
            && live.machine != machine
        {
            self.failure = Some("replay does not give the live state".to_owned());
        }
        let committed = machine.tasks().filter_map(|(id, task)| match &task.state {
            TaskState::Committed { attempt, .. } => Some((id, *attempt)),
            _ => None,
        });
        if !committed.eq(self.committed.iter().map(|(id, attempt)| (*id, *attempt))) {
            self.failure = Some("a commit is withdrawn".to_owned());
        }
        self.newest = Epoch(self.newest.0 + 1);
        self.journals.insert(self.newest, journal::begin(&Header { epoch: self.newest, before }));
        let is_planned = machine.tasks().next().is_some();
        self.coordinators.insert(self.newest, Coordinator::new(machine));
        self.decide(self.newest, &[Input::Opened { epoch: self.newest }]);
        if !is_planned {
            let snapshot = (!self.early).then(|| "s".to_owned());
            self.decide(self.newest, &[Input::Planned { snapshot, phases: self.phases.clone() }]);
        }
    }

    fn stage(&mut self, task: u32) {
        self.staged.insert(task % self.phases[0]);
        let tasks = self.staged.iter().copied().collect();
        self.decide(self.newest, &[Input::InputsStaged { tasks }]);
        if self.staged.len() == self.phases[0] as usize {
            self.decide(self.newest, &[Input::Staged { snapshot: "s".to_owned() }]);
        }
    }

    fn call(&mut self, n: usize, lost: bool) {
        let worker = &mut self.workers[n];
        if worker.stream.is_some_and(|stream| !self.coordinators.contains_key(&self.streams[&stream])) {
            worker.is_cut();
        }
        if worker.stream.is_some() || worker.partitioned {
            return;
        }
        let Some(coordinator) = self.coordinators.get_mut(&self.newest) else { return };
        let stream = self.streams.len() as u64;
        let joined = coordinator.joined(&worker.id, worker.slots, stream, worker.holds());
        self.streams.insert(stream, self.newest);
        if !lost {
            let says = worker.is_back(stream);
            self.say(stream, says);
        }
        self.decide(self.newest, &[joined]);
    }

    fn say(&mut self, stream: u64, messages: Vec<FromWorker>) {
        let packet = |message| Packet { stream, to_worker: false, bytes: serde_json::to_vec(&message).unwrap() };
        self.bag.extend(messages.into_iter().map(packet));
    }

    fn cut(&mut self, n: usize, noticed: NoticedBy) {
        let Some(stream) = self.workers[n].stream else { return };
        if matches!(noticed, NoticedBy::Worker | NoticedBy::Both) {
            self.workers[n].is_cut();
        }
        if matches!(noticed, NoticedBy::Coordinator | NoticedBy::Both) {
            self.left(stream);
        }
    }

    fn left(&mut self, stream: u64) {
        let epoch = self.streams[&stream];
        let inputs = self.coordinators.get_mut(&epoch).map(|coordinator| coordinator.left(stream));
        self.decide(epoch, &inputs.unwrap_or_default());
    }

    fn deliver(&mut self, packet: &Packet) {
        if packet.to_worker {
            let mut workers = self.workers.iter_mut().enumerate();
            let listens = |worker: &Worker| worker.stream == Some(packet.stream) && worker.alive;
            if let Some((n, worker)) = workers.find(|(_, worker)| listens(worker)) {
                let says = worker.hear(serde_json::from_slice(&packet.bytes).unwrap());
                for attempt in worker.running() {
                    if *self.begun.entry(*attempt).or_insert(n) != n {
                        self.failure = Some(format!("two workers have begun {attempt}"));
                    }
                }
                self.say_of(n, says);
            }
            return;
        }
        let epoch = self.streams[&packet.stream];
        if let Some(coordinator) = self.coordinators.get_mut(&epoch) {
            let inputs = coordinator.hear(packet.stream, serde_json::from_slice(&packet.bytes).unwrap());
            self.decide(epoch, &inputs);
        }
    }

    fn finish(&mut self, n: usize, attempt: AttemptId, ending: Ending) {
        let outcome = match ending {
            Ending::Done | Ending::InPart => {
                let early = matches!(ending, Ending::InPart) && self.config.resplit && attempt.task.phase == 0;
                let (read, rest) = self.workers[n].read(attempt, early);
                self.made.insert(attempt, read);
                Outcome::Done { outputs: Vec::new(), metrics: BTreeMap::new(), rest }
            }
            Ending::Failed => Outcome::Failed(Failure::ExitCode { code: 1, stderr: String::new() }),
            Ending::GivenBack => Outcome::GivenBack,
        };
        let says = self.workers[n].finish(attempt, outcome);
        self.say_of(n, says);
    }

    /// What a worker says goes over its stream; one that has drained goes.
    fn say_of(&mut self, n: usize, says: Vec<FromWorker>) {
        if let Some(stream) = self.workers[n].stream {
            self.say(stream, says);
        }
        self.workers[n].alive &= !self.workers[n].has_drained();
    }

    /// Of an attempt that it, or another one, is given.
    fn lie(&mut self, n: usize) {
        let Some(coordinator) = self.coordinators.get(&self.newest) else { return };
        let machine = &coordinator.machine;
        let held: Vec<_> = machine.workers().flat_map(|worker| machine.held(worker)).collect();
        let Some(stream) = self.alive(n).and_then(|n| self.workers[n].stream) else { return };
        if !held.is_empty() {
            let attempt = held[n / 7 % held.len()];
            let lie = Outcome::Done { outputs: Vec::new(), metrics: BTreeMap::new(), rest: None };
            self.say(stream, vec![FromWorker::Reports(vec![AttemptReport { attempt, outcome: lie, seconds: 0.0 }])]);
        }
    }

    fn look(&mut self, epoch: Epoch, n: usize) {
        let Some(coordinator) = self.coordinators.get_mut(&epoch) else { return };
        let mut inputs = coordinator.check(n, &self.made);
        let workers = &self.workers;
        inputs.extend(coordinator.look(|id, read| {
            let worker = workers.iter().enumerate().find(|(_, worker)| worker.id == *id);
            let (n, worker) = worker.unwrap();
            // Of every second one the process cannot be seen.
            (n % 2 == 0 && !worker.alive, worker.files[read as usize..].to_vec())
        }));
        self.decide(epoch, &inputs);
    }

    fn wait(&mut self, millis: u64) {
        self.now += millis;
        if millis >= SILENCE {
            let spoken: BTreeSet<_> =
                self.workers.iter().filter(|worker| worker.alive).filter_map(|w| w.stream).collect();
            let believed: Vec<_> = self.coordinators.values().flat_map(Coordinator::streams).collect();
            believed.into_iter().filter(|stream| !spoken.contains(stream)).for_each(|stream| self.left(stream));
        }
        for epoch in self.coordinators.keys().copied().collect::<Vec<_>>() {
            if let Some(tick) = self.coordinators.get(&epoch).map(Coordinator::tick) {
                self.decide(epoch, &[tick]);
            }
        }
    }

    /// All faults are over: one coordinator, workers that reach it, room on the volume, and messages that arrive in
    /// order. How the run ended.
    pub(super) fn heal(&mut self) -> Result<EndState, String> {
        self.full = false;
        self.take_over();
        let newest = self.newest;
        self.coordinators.retain(|epoch, _| *epoch == newest);
        self.bag.clear();
        for n in 0..self.workers.len() {
            self.workers[n].partitioned = false;
            self.cut(n, NoticedBy::Both);
        }
        self.take(Action::Join(3))?;
        for round in 0..ROUNDS {
            if self.early {
                self.stage(u32::try_from(round).unwrap());
            }
            for n in 0..self.workers.len() {
                if self.workers[n].alive {
                    self.call(n, false);
                }
            }
            for packet in std::mem::take(&mut self.bag) {
                self.deliver(&packet);
            }
            for (worker, attempt) in self.running().collect::<Vec<_>>() {
                self.finish(worker, attempt, Ending::Done);
            }
            self.look(newest, round);
            self.wait(if round % 100 == 99 { SILENCE } else { 100 });
            self.check()?;
            let machine = &self.coordinators[&newest].machine;
            if let Some(ended) = machine.ended() {
                return self.conclude(ended);
            }
        }
        let machine = &self.coordinators[&newest].machine;
        let open: Vec<_> =
            machine.tasks().filter(|(_, task)| !matches!(task.state, TaskState::Committed { .. })).collect();
        Err(format!("it does not end: {open:?}"))
    }

    /// Of what was planned each byte is some committed attempt's, or some task's that did not come to it, and no more.
    fn all_is_read_once(&self) -> Result<(), String> {
        let machine = &self.coordinators[&self.newest].machine;
        let mut read: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        for (task, _) in machine.tasks() {
            let pieces = match self.committed.get(&task) {
                Some(attempt) => self.made[attempt].pieces.clone(),
                None => split(machine, task).pieces,
            };
            for piece in pieces {
                let Part::Bytes { offset, length } = piece.part else { return Err(format!("{piece:?}")) };
                read.entry(piece.key).or_default().push((offset, length));
            }
        }
        for (key, mut ranges) in read {
            ranges.sort_unstable();
            let end = ranges.iter().try_fold(0, |end, (offset, length)| (end == *offset).then_some(offset + length));
            if end != Some(BYTES) {
                return Err(format!("{key} is read by {ranges:?}"));
            }
        }
        Ok(())
    }

    /// Whether a run may end so.
    fn conclude(&self, ended: EndState) -> Result<EndState, String> {
        let machine = &self.coordinators[&self.newest].machine;
        if self.replay()?.0 != *machine {
            return Err("replay does not give the live state".to_owned());
        }
        let total = machine.tasks().count();
        self.all_is_read_once()?;
        let failed = machine.tasks().filter(|(_, task)| matches!(task.state, TaskState::Failed(_))).count();
        let may = match ended {
            EndState::Succeeded => {
                self.committed.len() + failed == total
                    && failed <= self.config.max_failures as usize
                    && self.published.as_ref().is_some_and(|files| files.len() == self.committed.len())
            }
            EndState::Failed => failed > self.config.max_failures as usize,
            EndState::Cancelled => self.published.is_none(),
        };
        match may {
            true => Ok(ended),
            false => {
                Err(format!("it ends as {ended:?}: {failed} failed, {} of {total} committed", self.committed.len()))
            }
        }
    }
}
