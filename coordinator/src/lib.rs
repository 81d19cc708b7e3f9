//! Decides, journals and does: the coordinator of a run.

pub mod run;
