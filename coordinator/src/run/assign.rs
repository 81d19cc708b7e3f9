//! Who is given what next.
//!
//! Tasks that are ready are given in order to whoever has least to do. Where none is and a slot is free, a slot that
//! would idle is given what others do not come to: first an attempt that waits behind others on its worker, which is
//! taken back from there. Then, of a task that takes much longer than its peers, what it has not read (`rests`), and a
//! second attempt of one that cannot leave that to others, does not, or whose worker is absent. The first attempt of a task
//! that is done counts; the other is ended. This is speculation as in MapReduce's backup tasks (Dean and Ghemawat, OSDI
//! 2004) with thresholds like those of Spark's `spark.speculation`.

use forebay_jobs::id::{AttemptId, TaskId, WorkerId};

use super::{Event, Millis, Run, TaskState, tasks::Holding};

/// What waits behind a slot lasts for so many microseconds.
const AHEAD: u64 = 200_000;
/// Attempts that a slot is given at most: what is lost with a worker is to be little.
pub(super) const DEEPEST: usize = 2048;
/// What a worker was given so many milliseconds ago and has not begun, others may begin.
const UNBEGUN: u64 = 1_000;
/// A worker that is absent for so many milliseconds may be so for good.
const SPARED: u64 = 5_000;
/// A task takes long if it takes so many times what its peers took, and so many milliseconds more.
const SLOWER: (u64, u64) = (2, 1_000);

/// A change in who holds what.
pub(super) enum Step {
    /// This worker is given this attempt.
    Give(WorkerId, AttemptId),
    /// Something else is to become of an attempt that a worker holds.
    Note(Event),
}

/// An attempt goes back from its worker, which has not begun it.
fn taken_back(attempt: AttemptId) -> Step {
    Step::Note(Event::AttemptReturned { attempt, retry_at: Millis(0), lost: false })
}

/// What helps a task that takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// It leaves what it has not read to others.
    Yield,
    /// A second attempt.
    Second,
}

impl Run {
    /// The next change, if there is one.
    pub(super) fn step(&self, now: Millis) -> Option<Step> {
        if self.ended.is_some() || self.stopping().is_some() || self.config.gang {
            return None;
        }
        let phase = self.phase_at_work().filter(|_| self.workers.held() < self.most_at_once(now))?;
        if let Some(task) = self.tasks.next(phase, now) {
            let worker = self.takers(phase, self.depth(phase), now).next()?;
            return Some(self.give(worker, task));
        }
        self.takers(phase, 1, now).next()?;
        let unbegun = self.unbegun(phase).find(|(at, _)| *at <= now).map(|(_, attempt)| taken_back(attempt));
        unbegun.or_else(|| {
            self.slow(phase).filter(|(at, ..)| *at <= now).find_map(|(_, holding, remedy)| match remedy {
                Remedy::Yield => Some(Step::Note(Event::Yields { attempt: holding.attempt, at: now })),
                Remedy::Second => {
                    let worker = self.takers(phase, 1, now).find(|worker| **worker != holding.worker)?;
                    Some(self.give(worker, holding.attempt.task))
                }
            })
        })
    }

    /// Workers that have room for another attempt of this phase, and time.
    fn takers(&self, phase: u32, depth: usize, now: Millis) -> impl Iterator<Item = &WorkerId> {
        // It is with tasks of the first phase that a worker is found to be slow.
        self.workers.below(depth, self.usual_in(phase).unwrap_or(0) / 1000, phase == 0, now)
    }

    /// What an attempt of a phase took lately, in microseconds.
    pub(super) fn usual_in(&self, phase: u32) -> Option<u64> {
        self.usual.get(phase as usize).copied().flatten()
    }

    fn give(&self, worker: &WorkerId, task: TaskId) -> Step {
        Step::Give(worker.clone(), self.next_attempt(task))
    }

    /// Attempts that may be held at this time, by all workers together.
    fn most_at_once(&self, now: Millis) -> usize {
        let all = self.config.readers.map_or(usize::MAX, |readers| readers as usize);
        match self.begun {
            Some(begun) if now.0.saturating_sub(begun.0) < self.config.ramp => {
                let (all, gone) = (self.ramped_to() as u64, now.0.saturating_sub(begun.0));
                usize::try_from(all * gone / self.config.ramp).unwrap_or(usize::MAX).max(1)
            }
            _ => all,
        }
    }

    /// How many are held at once when all slots have begun.
    fn ramped_to(&self) -> usize {
        let slots = self.workers.slots();
        self.config.readers.map_or(slots, |readers| slots.min(readers as usize))
    }

    /// When the next attempt may be held, if only the ramp is in its way.
    fn ramps_at(&self, now: Millis) -> Option<Millis> {
        let (begun, next, all) = (self.begun?, self.workers.held() + 1, self.ramped_to());
        let after = (next as u64).saturating_mul(self.config.ramp).div_ceil(all.max(1) as u64);
        Some(Millis(begun.0.saturating_add(after.min(self.config.ramp)))).filter(|at| *at > now && next <= all)
    }

    /// When time alone lets something be given to a slot that is free.
    pub(super) fn gives_at(&self, now: Millis) -> Option<Millis> {
        let phase = self.phase_at_work().filter(|_| !self.config.gang)?;
        self.takers(phase, 1, now).next()?;
        if self.tasks.next(phase, now).is_some() {
            return self.ramps_at(now);
        }
        let unbegun = self.unbegun(phase).map(|(at, _)| at).filter(|at| *at > now).min();
        let slow = self.slow(phase).map(|(at, ..)| at).filter(|at| *at > now).min();
        unbegun.into_iter().chain(slow).min()
    }

    /// Attempts for which their workers have no slot, and since when others may begin them: of each worker the last. One
    /// that has a slot is begun, be it that the word of it is lost on a link that breaks.
    fn unbegun(&self, phase: u32) -> impl Iterator<Item = (Millis, AttemptId)> {
        let full = self.workers.by_load().filter(|(_, worker)| worker.held.len() > worker.slots as usize);
        full.filter_map(move |(_, worker)| {
            let waits = |attempt: &&AttemptId| attempt.task.phase == phase && self.waits(**attempt);
            let attempt = worker.held.iter().rev().find(waits)?;
            Some((Millis(worker.given.0.saturating_add(UNBEGUN)), *attempt))
        })
    }

    /// Whether an attempt is the only one of its task, and has not been begun.
    fn waits(&self, attempt: AttemptId) -> bool {
        match self.task(attempt.task).map(|task| &task.state) {
            Some(TaskState::Held { first, second: None }) => first.attempt == attempt && first.started.is_none(),
            _ => false,
        }
    }

    /// Attempts of which others may do what they have not come to, how, and from when on.
    fn slow(&self, phase: u32) -> impl Iterator<Item = (Millis, &Holding, Remedy)> {
        let absent = self.workers.absent().flat_map(move |(since, id)| {
            let at = Millis(since.0.saturating_add(SPARED));
            let held = self.workers.get(id).into_iter().flat_map(|worker| &worker.held);
            held.map(move |attempt| (at, *attempt, Remedy::Second))
        });
        // What is usual is known once many have done it.
        let many = 2 * self.tasks.open_in(phase) <= self.tasks.count_in(phase);
        let usual = self.usual_in(phase).filter(|_| many);
        let resplit = self.config.resplit && phase == 0;
        let running = usual.into_iter().flat_map(move |usual| {
            let longer = move |since: Millis, times: u64| {
                Millis(since.0.saturating_add(times.saturating_mul(usual / 1000)).saturating_add(SLOWER.1))
            };
            self.tasks.running().iter().map(move |(started, attempt)| {
                match (resplit, self.holding(*attempt).and_then(|holding| holding.yields)) {
                    (true, None) => (longer(*started, SLOWER.0), *attempt, Remedy::Yield),
                    // It may take its time to write what it has.
                    (_, Some(asked)) => (longer(asked, 1), *attempt, Remedy::Second),
                    (false, None) => (longer(*started, SLOWER.0), *attempt, Remedy::Second),
                }
            })
        });
        let may = move |remedy: &Remedy| self.config.speculate || *remedy == Remedy::Yield;
        absent.chain(running).filter(move |(_, _, remedy)| may(remedy)).filter_map(move |(at, attempt, remedy)| {
            let task = self.task(attempt.task).filter(|_| attempt.task.phase == phase)?;
            // One that has failed has a fault of its own, and one beside which another was begun had its chance.
            match &task.state {
                TaskState::Held { first, second: None } if task.failures == 0 && task.attempts == attempt.number => {
                    // Who has just come back is about to tell what it has ended.
                    let told =
                        self.workers.get(&first.worker).map_or(0, |worker| worker.joined.0.saturating_add(UNBEGUN));
                    Some((at.max(Millis(told)), first, remedy))
                }
                _ => None,
            }
        })
    }

    /// How many attempts a slot is given, those included that wait behind it. While there is enough to do, a worker
    /// holds as many again as it has slots, so that no slot waits for the network; of short ones as many as last for
    /// [`AHEAD`], but none that another worker would have time for.
    fn depth(&self, phase: u32) -> usize {
        // What waits behind a slot would take a reader's place.
        if self.config.readers.is_some() || self.config.ramp > 0 {
            return 1;
        }
        let unheld = (self.tasks.open_in(phase) as usize).saturating_sub(self.workers.held());
        if unheld <= self.workers.due_to_missing(self.config.workers) {
            return 1;
        }
        let lasting = self.usual_in(phase).map_or(2, |usual| AHEAD / usual.max(1));
        let fair = unheld / (2 * self.workers.slots().max(1));
        usize::try_from(lasting).unwrap_or(usize::MAX).min(fair).clamp(2, DEEPEST)
    }
}
