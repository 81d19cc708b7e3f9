//! How events change the state of a run, as they happen and at replay.

use forebay_jobs::{
    id::{AttemptId, TaskId, WorkerId},
    task::Failure,
};

use super::{Event, Holding, Millis, Run, TaskState, rests::Rests, tasks::Tasks, workers::Hello};

/// The usual time of a phase's attempts follows the last so many.
const LATELY: u64 = 32;

impl Run {
    /// Folds an event into the state. Decides nothing, and believes nothing that cannot be: what an event says of a
    /// task or worker that is not there changes nothing.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Opened { epoch, .. } => {
                self.epoch = *epoch;
                self.begun = None;
                self.await_inputs();
            }
            Event::Planned { snapshot, phases, .. } => {
                self.planned = true;
                self.snapshot = snapshot.clone();
                self.tasks = Tasks::new(phases);
                self.rests = Rests::behind(phases.first().copied().unwrap_or(0));
                self.usual = vec![None; phases.len()];
                // What its inputs hold is not known yet when its first tasks begin.
                self.sought = u32::from(snapshot.is_none());
                self.workers.hold_nothing();
                self.await_inputs();
            }
            Event::InputsStaged { tasks } => {
                tasks.iter().for_each(|index| self.inputs_are_there(TaskId { phase: 0, index: *index }));
            }
            Event::Staged { snapshot, .. } => {
                self.snapshot = Some(snapshot.clone());
                let awaiting = self.tasks.awaiting().clone();
                awaiting.into_iter().for_each(|task| self.inputs_are_there(task));
            }
            Event::Reused { tasks, .. } => tasks.iter().for_each(|reused| self.reuse(reused)),
            Event::Sought { phase, work, .. } => {
                self.sought = self.sought.max(phase.saturating_add(1));
                self.work = work.clone();
            }
            Event::WorkerJoined { worker, slots, process, until, at } => {
                let hello = Hello { slots: *slots, process: process.clone(), until: *until };
                self.workers.join(worker.clone(), hello, *at);
            }
            Event::WorkerDrains { worker } => self.workers.drain(worker),
            Event::WorkerAbsent { worker, at } => self.workers.miss(worker, *at),
            Event::WorkerLeft { worker } => self.remove_worker(worker),
            Event::Assigned { worker, attempts, at } => {
                attempts.iter().for_each(|attempt| self.assign(worker, *attempt, *at));
            }
            Event::Started { attempts, at } => attempts.iter().for_each(|attempt| self.started(*attempt, *at)),
            Event::Committed { attempt, outputs, micros, rest, .. } => {
                if rest.is_empty() {
                    self.took(attempt.task.phase, *micros);
                }
                self.prove_holder(*attempt);
                self.leave_rest(attempt.task, rest);
                self.put(attempt.task, TaskState::Committed { attempt: *attempt, outputs: outputs.clone() });
            }
            Event::Finished { finished, .. } => {
                self.took(finished.attempt.task.phase, finished.micros);
                self.prove_holder(finished.attempt);
                self.finish(finished);
            }
            Event::Yields { attempt, at } => {
                self.change_holding(*attempt, |holding| holding.yields = Some(*at));
                if let Some(worker) = self.holding(*attempt).map(|holding| holding.worker.clone()) {
                    self.workers.is_slow(&worker);
                }
            }
            Event::GangBroke => self.gang_is_broken = true,
            Event::GangReady => self.regroup(),
            Event::AttemptFailed { attempt, failure, retry_at, .. } => {
                if *failure != Failure::WorkerLost {
                    self.prove_holder(*attempt);
                }
                let follows = self.gang_is_broken;
                self.tasks.count(attempt.task, |task| match failure {
                    _ if follows => {}
                    Failure::WorkerLost => task.losses = task.losses.saturating_add(1),
                    _ => task.failures = task.failures.saturating_add(1),
                });
                let state = retry_at.map_or_else(|| TaskState::Failed(failure.clone()), TaskState::Ready);
                self.end_attempt(*attempt, state);
            }
            Event::AttemptReturned { attempt, retry_at, lost } => {
                self.tasks.count(attempt.task, |task| task.losses = task.losses.saturating_add(u32::from(*lost)));
                self.end_attempt(*attempt, TaskState::Ready(*retry_at));
            }
            Event::CancelRequested { .. } => self.cancelled = true,
            Event::Aborted { error, .. } => self.error = Some(error.clone()),
            Event::Published { .. } => self.published = true,
            Event::Exported { .. } => self.exported = true,
            Event::Ended { state, .. } => self.ended = Some(*state),
        }
    }

    pub(super) fn assign(&mut self, worker: &WorkerId, attempt: AttemptId, at: Millis) {
        if self.workers.get(worker).is_none() {
            return;
        }
        self.tasks.count(attempt.task, |task| task.attempts = attempt.number);
        let holding = Holding { attempt, worker: worker.clone(), started: None, yields: None };
        let state = match self.task(attempt.task).map(|task| &task.state) {
            Some(TaskState::Held { first, second: None }) if first.worker != *worker => {
                TaskState::Held { first: first.clone(), second: Some(Box::new(holding)) }
            }
            _ => TaskState::Held { first: holding, second: None },
        };
        self.put(attempt.task, state);
        self.workers.give(worker, at);
        self.begun.get_or_insert(at);
    }

    /// While the dataset is being staged, a new plan or a new coordinator knows of no inputs until it is told.
    fn await_inputs(&mut self) {
        if self.planned && self.snapshot.is_none() {
            self.tasks.idle_in(0).into_iter().for_each(|task| self.put(task, TaskState::Awaiting));
        }
    }

    fn inputs_are_there(&mut self, task: TaskId) {
        if self.task(task).is_some_and(|task| task.state == TaskState::Awaiting) {
            self.put(task, TaskState::Ready(Millis(0)));
        }
    }

    fn started(&mut self, attempt: AttemptId, at: Millis) {
        self.prove_holder(attempt);
        self.change_holding(attempt, |holding| holding.started = Some(at));
    }

    /// Changes what is known of an attempt that is held.
    fn change_holding(&mut self, attempt: AttemptId, change: impl FnOnce(&mut Holding)) {
        let Some(mut state) = self.task(attempt.task).map(|task| task.state.clone()) else { return };
        let TaskState::Held { first, second } = &mut state else { return };
        let mut both = std::iter::once(first).chain(second.as_deref_mut());
        if let Some(holding) = both.find(|holding| holding.attempt == attempt) {
            change(holding);
            self.put(attempt.task, state);
        }
    }

    /// Who has ended an attempt can start attempts, be it told of that or not.
    fn prove_holder(&mut self, attempt: AttemptId) {
        if let Some(worker) = self.holding(attempt).map(|holding| holding.worker.clone()) {
            self.workers.prove(&worker);
        }
    }

    /// An attempt is held no more. What becomes of its task depends on it only if no other attempt goes on.
    fn end_attempt(&mut self, attempt: AttemptId, state: TaskState) {
        let Some(task) = self.task(attempt.task) else { return };
        let other = task.state.holdings().find(|holding| holding.attempt != attempt).cloned();
        let state = match (other, state) {
            (Some(first), _) => TaskState::Held { first, second: None },
            // What an earlier coordinator found staged may not have outlived the crash of its host.
            (None, TaskState::Ready(_)) if attempt.epoch != self.epoch && self.awaits_inputs(attempt.task) => {
                TaskState::Awaiting
            }
            (None, state) => state,
        };
        self.put(attempt.task, state);
    }

    fn took(&mut self, phase: u32, micros: u64) {
        if let Some(usual) = self.usual.get_mut(phase as usize) {
            let before = usual.unwrap_or(micros);
            *usual = Some(before - before / LATELY + micros / LATELY);
        }
    }

    /// Moves a task, unless it is committed, which is for ever. Its workers' lists follow.
    pub(super) fn put(&mut self, task: TaskId, state: TaskState) {
        if self.task(task).is_none_or(|task| matches!(task.state, TaskState::Committed { .. })) {
            return;
        }
        for Holding { attempt, worker, .. } in state.holdings() {
            self.workers.hold(worker, *attempt);
        }
        let kept = state.holdings().map(|holding| holding.attempt).collect::<Vec<_>>();
        for Holding { attempt, worker, .. } in self.tasks.put(task, state).iter().flat_map(TaskState::holdings) {
            if !kept.contains(attempt) {
                self.workers.release(worker, *attempt);
            }
        }
    }

    /// Forgets a worker; what it still held is ready again.
    fn remove_worker(&mut self, worker: &WorkerId) {
        let held = self.workers.leave(worker);
        held.into_iter().for_each(|attempt| self.end_attempt(attempt, TaskState::Ready(Millis(0))));
    }
}
