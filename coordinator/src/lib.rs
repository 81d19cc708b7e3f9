//! Decides, journals and does.
//!
//! [`run`] is the pure state machine of a run. [`journal`] makes its events durable, [`lease`] says whose events
//! count, [`driver`] owns both and does what the machine wants: through [`server`] with workers, through [`fleet`]
//! with processes, through [`commit`] with the volume.

pub mod commit;
pub mod driver;
pub mod fleet;
pub mod journal;
pub mod lease;
pub mod run;
pub mod rundir;
pub mod server;
