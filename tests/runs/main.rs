//! Whole runs: the built binary with real workers, over a real S3 server.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]

#[path = "../support/mod.rs"]
mod support;

mod addresses;
mod adoption;
mod ballista;
mod crashes;
mod demo;
mod early;
mod errors;
mod examples;
mod gang;
mod letters;
mod life;
mod mounts;
mod native;
mod programs;
mod queries;
mod resources;
mod reuse;
mod speculation;
mod splits;
mod strangers;
mod tables;
mod words;
