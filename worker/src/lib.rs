//! Executes attempts: the process that a fleet starts, and that does what the run's coordinator assigns to it.
//!
//! [`agent`] is the worker's loop. It speaks through `link` with the coordinator, and gives every attempt to `execute`,
//! which makes the attempt's directory, does the work and reports the files it left. Programs are started, and ended
//! whole, by `process`; `guard` ends them when the worker itself is killed. What they print goes to [`logs`], packed.
//!
//! Nothing here decides what is tried, or how often: that is the coordinator's. Nothing here is published: an attempt's
//! files lie in its own directory until the coordinator has checked them.

pub mod agent;
mod ballista;
mod execute;
mod guard;
mod link;
pub mod logs;
mod memory;
mod process;
mod resources;
mod stop;

pub use agent::{LinkError, WorkerConfig, WorkerError, run};
