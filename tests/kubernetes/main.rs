//! Workers as pods: the engine's requests, and whole runs, over a Kubernetes of the tests that runs pods as processes.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]

#[path = "../support/mod.rs"]
mod support;

mod engine;
mod fixture;
mod runs;
mod server;
mod submits;
mod troubles;
