//! Fleets start and stop workers, and know nothing of tasks.

mod agenda;
mod calls;
pub mod command;
#[cfg(test)]
mod conformance;
pub mod ecs;
pub mod engine;
pub mod external;
pub mod kubernetes;
pub mod local;
pub mod managed;
mod members;
#[cfg(test)]
mod simulation;
pub mod slurm;

use forebay_jobs::id::WorkerId;
use futures::future::BoxFuture;

/// What became of a fleet's workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FleetEvent {
    /// A worker ended; another one is started in its place while one is wanted.
    Ended {
        /// Which.
        worker: WorkerId,
    },
    /// Workers that said hello turn out to be its own: from now on they count among those that it is to have.
    Recognized,
    /// Workers cannot be started, and trying again does not help.
    Failed {
        /// Why, with what the last one said.
        error: String,
    },
}

/// Starts and stops workers.
pub trait Fleet: Send {
    /// From now on so many workers are to exist. Asking again changes nothing; asking for fewer starts no new ones in
    /// place of those that end, and stops none, since only the driver knows which are at work.
    fn want(&mut self, workers: u32);

    /// A worker said hello: starting it was no failure.
    fn joined(&mut self, worker: &WorkerId);

    /// Whether it started this worker.
    fn started(&self, worker: &WorkerId) -> bool;

    /// A worker was given up: what may still exist of it is to be stopped.
    fn lost(&mut self, worker: &WorkerId);

    /// Waits for the next event, and does meanwhile what is wanted. May be dropped and called again at any time.
    fn observe(&mut self) -> BoxFuture<'_, FleetEvent>;

    /// Stops all workers, by force where they do not end by themselves. None exists when it returns.
    fn stop_all(&mut self) -> BoxFuture<'_, ()>;
}
