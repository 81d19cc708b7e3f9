//! The vocabulary of work that coordinator and workers share: ids, job files, plans, tasks, the wire, and the kinds
//! of work.

pub mod host;
pub mod id;
pub mod identity;
pub mod kept;
pub mod kinds;
pub mod link;
pub mod plan;
pub mod spec;
pub mod task;
pub mod wire;
