//! Whole runs: the built binary with real workers, over a real S3 server.

#[path = "../support/mod.rs"]
mod support;

mod crashes;
mod demo;
mod errors;
mod life;
mod programs;
mod queries;
mod words;
