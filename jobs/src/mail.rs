//! The link without a connection: coordinator and worker leave each other letters on the volume.
//!
//! A letter is a file that is never written again: whole under a temporary name, synced, then named
//! `<mailbox>.<number>`. Who it is for lists the directory, since a network file system may go on denying a name that
//! it was once asked for, while a listing shows it at once; takes the letters of a mailbox in the order of their
//! numbers; and removes each, which says that it arrived. All workers write into one directory, so that the coordinator
//! lists one, however many they are; each reads one of its own.
//!
//! All of it lies in the directory of the coordinator's epoch: who takes the run over renames that, and the letters of
//! an epoch that is over reach nobody. A letter bears a code over its place and its text, made with the link's token,
//! so that garbage, another run's letters and a letter in another's place are turned away.

mod caller;
mod letters;
mod seal;

pub use self::{
    caller::{ask_to_cancel, correspond},
    letters::{Backoff, Line, Listed, Mailbox, Outbox, Taken, read},
};

/// What comes and goes with the link, in the directory of an epoch: letters, and what shows that a volume is this one.
pub const LINK: &str = "link";
/// What workers write, in [`LINK`].
pub const UP: &str = "up";
/// In [`LINK`], a directory for each mailbox, with what is written to its worker.
pub const DOWN: &str = "down";
/// The coordinator's lease, in the directory of its epoch. While it is renewed, there is a coordinator.
pub const LEASE: &str = "lease.json";
