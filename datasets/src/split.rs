//! Cuts a snapshot's objects into splits, each the input of one task.

use serde::{Deserialize, Serialize};

/// The input of one task: pieces of staged objects, in the order in which they are to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Never empty, except for a run over an empty snapshot.
    pub pieces: Vec<Piece>,
}

/// A part of one staged object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The object's key in its source.
    pub key: String,
    /// Path relative to the volume's root, so that hosts may mount it at different places.
    pub path: String,
    /// Bytes of the whole object.
    pub size: u64,
    /// What of the object belongs to the split.
    pub part: Part,
}

/// What of an object belongs to a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Part {
    /// All of it.
    Whole,
    /// The records that *start* in this byte range.
    Bytes {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Parquet row groups.
    RowGroups {
        /// Index of the first.
        first: u32,
        /// How many.
        count: u32,
    },
}
