//! Decides and journals: the coordinator of a run.
//!
//! [`run`] is the pure state machine of a run, and [`journal`] makes its events durable.

pub mod journal;
pub mod run;
