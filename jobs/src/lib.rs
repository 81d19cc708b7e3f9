//! The vocabulary of work that coordinator and workers share: ids, job files, plans, tasks, the wire, and the kinds
//! of work.
//!
//! Who compiles a map and a reduce of their own into a program needs [`Map`], [`Reduce`] and [`Job`]:
//! [`kinds::mapreduce::native`] shows how.

pub mod host;
pub mod id;
pub mod identity;
pub mod kept;
pub mod kinds;
pub mod link;
pub mod mail;
pub mod parcel;
pub mod plan;
pub mod spec;
pub mod task;
pub mod wire;

pub use kinds::mapreduce::native::{
    BoxError, Cell, Column, Decode, Emit, Encode, Encoder, Fixed, Job, Map, Params, Record, Reduce, Result, Rows,
    Values, decode,
};
