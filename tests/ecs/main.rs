//! Workers as tasks of ECS, over a double of it: `double` has its rules, and runs each task as a process.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]

#[path = "../support/mod.rs"]
mod support;

mod double;
mod engine;
mod moto;
mod runs;
mod submits;
