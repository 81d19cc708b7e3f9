//! Datasets of which some columns are staged, by the built binary.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]

mod kills;
mod queries;
mod staging;
#[path = "../support/mod.rs"]
mod support;
mod table;
