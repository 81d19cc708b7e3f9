//! Decides, journals and does: the coordinator of a run.
//!
//! [`run`] is the pure state machine of a run. [`journal`] makes its events durable, and [`lease`] says whose events
//! count. [`driver`] owns them and does what the machine wants: through [`server`] with workers, through [`fleet`] with
//! processes, through [`commit`] with the volume, on which a run has its directory, [`rundir`]. [`submit`] starts all of
//! this elsewhere.

mod ballista;
pub mod commit;
pub mod driver;
#[cfg(test)]
mod fixture;
pub mod fleet;
pub mod journal;
pub mod lease;
pub mod reuse;
pub mod run;
pub mod rundir;
pub mod server;
pub mod submit;
