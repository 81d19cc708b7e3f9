//! `forebay dataset …`, the built binary, against a real S3 server with real faults.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]

#[path = "../support/mod.rs"]
mod support;

mod basics;
mod checksums;
mod crowd;
mod diff;
mod faults;
mod kills;
mod preview;
mod proxies;
mod repair;
mod sources;
mod space;
