//! Bytes at rest: where a dataset comes from, how it is staged onto a volume, cut into splits, read, and published.
//!
//! Data flows one way: [`source`] → [`stage`] → [`snapshot`] → [`split`] → [`read`] → [`output`]. Nothing here knows
//! of jobs, workers, or attempts.

pub mod aws;
pub mod checksum;
pub mod columns;
pub mod diff;
#[cfg(test)]
mod fixture;
pub mod format;
pub mod gc;
pub mod hold;
pub mod keymap;
pub mod lease;
pub mod output;
pub mod read;
pub mod repair;
pub mod results;
pub mod room;
pub mod snapshot;
pub mod source;
pub mod split;
pub mod stage;
pub mod threads;
pub mod verify;
pub mod volume;
