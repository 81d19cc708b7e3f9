//! Bytes at rest: where a dataset comes from, how it is staged onto a volume, cut into splits, read, and published.
//!
//! Data flows one way: [`source`] → [`stage`] → [`snapshot`] → [`split`] → [`read`] → [`output`]. Nothing here knows
//! of jobs, workers, or attempts.

pub mod checksum;
pub mod columns;
pub mod format;
pub mod keymap;
pub mod output;
pub mod read;
pub mod snapshot;
pub mod source;
pub mod split;
pub mod stage;
pub mod verify;
pub mod volume;
