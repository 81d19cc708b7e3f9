//! One run, and what strikes it.

use std::{collections::BTreeMap, time::Duration};

use rustix::process::{Pid, Signal};

use crate::{
    place::Place,
    support::{
        eventually,
        processes::{Running, signal},
    },
};

/// Faults of a history at most.
const BUDGET: usize = 6;
/// Coordinators that are started one after the other, once nothing strikes any more.
const RESUMES: usize = 5;

/// A fault, with how long it lasts where it does.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    KillCoordinator,
    KillWorkers(usize),
    KillAll,
    Interrupt,
    DrainWorker,
    StopCoordinator(Duration),
    StopWorkers(usize, Duration),
    FillDisk(Duration),
    CutNetwork(Duration),
    /// A second submission of the same run, which waits, and takes over when it can.
    Rival,
}

impl Fault {
    pub fn name(&self) -> &'static str {
        match self {
            Self::KillCoordinator => "kill coordinator",
            Self::KillWorkers(_) => "kill workers",
            Self::KillAll => "kill all",
            Self::Interrupt => "interrupt",
            Self::DrainWorker => "drain worker",
            Self::StopCoordinator(_) => "stop coordinator",
            Self::StopWorkers(..) => "stop workers",
            Self::FillDisk(_) => "fill disk",
            Self::CutNetwork(_) => "cut network",
            Self::Rival => "rival",
        }
    }

    fn random(random: &mut fastrand::Rng) -> Self {
        // Mostly shorter than any lease or time-out, now and then longer than all of them.
        let long = random.u32(..20) == 0;
        let lasts = Duration::from_millis(if long { random.u64(16_000..22_000) } else { random.u64(50..1500) });
        match random.u32(..10) {
            0 => Self::KillCoordinator,
            1 => Self::KillWorkers(random.usize(1..3)),
            2 => Self::KillAll,
            3 => Self::Interrupt,
            4 => Self::DrainWorker,
            5 => Self::StopCoordinator(lasts),
            6 => Self::StopWorkers(random.usize(1..4), lasts),
            7 => Self::FillDisk(lasts.min(Duration::from_secs(2))),
            8 => Self::CutNetwork(lasts),
            _ => Self::Rival,
        }
    }
}

/// What a history came to.
pub struct Figures {
    pub faults: Vec<Fault>,
    pub coordinators: u64,
    pub tasks: u64,
    pub attempts: u64,
}

pub struct History {
    random: fastrand::Rng,
    number: u32,
    faults: Vec<Fault>,
}

impl History {
    pub fn new(seed: u64, number: u32) -> Self {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number)));
        let faults = (0..random.usize(1..=BUDGET)).map(|_| Fault::random(&mut random)).collect();
        Self { random, number, faults }
    }

    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    pub fn job(&self) -> usize {
        self.number as usize % 2
    }

    pub fn play(&mut self, expected: &BTreeMap<String, Vec<u8>>) -> Figures {
        let place = Place::new();
        let job = self.job();
        let mut running = vec![place.start(job, "r")];
        let mut coordinators = 1;
        for fault in self.faults.clone() {
            // The moment is what varies: nothing is waited for.
            std::thread::sleep(Duration::from_millis(self.random.u64(20..400)));
            self.strike(&place, &mut running, fault);
            running.retain_mut(|running| !running.has_ended());
            if running.is_empty() || matches!(fault, Fault::Rival) {
                running.push(place.start(job, "r"));
                coordinators += 1;
            }
        }
        // Everybody there comes to an end; nobody is needed for that.
        let outcomes: Vec<_> = running.into_iter().map(Running::outcome).collect();
        let mut result = outcomes.into_iter().find(|outcome| outcome.code == Some(0));
        for _ in 0..RESUMES {
            if result.is_none() {
                coordinators += 1;
                let outcome = place.run(job, "r");
                assert!(matches!(outcome.code, Some(0 | 4)), "history {}: {outcome:#?}", self.number);
                result = Some(outcome).filter(|outcome| outcome.code == Some(0));
            }
        }
        let result = result.unwrap_or_else(|| panic!("history {}: it does not end", self.number)).json(0);
        let number = self.number;
        assert_eq!(result["state"], "succeeded", "history {number}: {result}");
        assert!(place.output("r") == *expected, "history {number}: the output differs");
        let tasks = place.tasks("r");
        let tasks = tasks["tasks"].as_array().unwrap();
        assert!(tasks.iter().all(|task| task["state"] == "succeeded"), "history {number}: {tasks:?}");
        for leftover in ["attempts", "reports", "inputs"] {
            assert!(!place.run_dir("r").join(leftover).exists(), "history {number}: {leftover}");
        }
        eventually("no worker is left", || place.workers().is_empty());
        let attempts = result["tasks"]["attempts"].as_u64().unwrap();
        Figures { faults: self.faults.clone(), coordinators, tasks: tasks.len() as u64, attempts }
    }

    fn strike(&mut self, place: &Place, running: &mut [Running], fault: Fault) {
        let mut workers = place.workers();
        self.random.shuffle(&mut workers);
        let coordinators: Vec<_> = running.iter().map(Running::pid).collect();
        let first = |count: usize| workers.iter().copied().take(count).collect::<Vec<_>>();
        match fault {
            Fault::KillCoordinator => signal(&coordinators[..coordinators.len().min(1)], Signal::KILL),
            Fault::KillWorkers(count) => signal(&first(count), Signal::KILL),
            Fault::KillAll => signal(&[coordinators, workers].concat(), Signal::KILL),
            Fault::Interrupt => signal(&coordinators[..coordinators.len().min(1)], Signal::INT),
            Fault::DrainWorker => signal(&first(1), Signal::TERM),
            Fault::StopCoordinator(lasts) => stop(&coordinators[..coordinators.len().min(1)], lasts),
            Fault::StopWorkers(count, lasts) => stop(&first(count), lasts),
            Fault::FillDisk(lasts) => {
                place.sh("cat /dev/zero >/mnt/filler");
                last(lasts);
                place.sh("rm -f /mnt/filler");
            }
            Fault::CutNetwork(lasts) => {
                place.sh("ip link set lo down");
                last(lasts);
                place.sh("ip link set lo up");
            }
            Fault::Rival => {}
        }
    }
}

/// Processes stand still.
fn stop(pids: &[Pid], lasts: Duration) {
    signal(pids, Signal::STOP);
    last(lasts);
    signal(pids, Signal::CONT);
}

/// A fault goes on. That is all that it does: nothing is waited for.
fn last(time: Duration) {
    std::thread::sleep(time);
}
