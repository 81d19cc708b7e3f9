//! Why staging failed.

use std::{io, path::PathBuf};

use arrow::error::ArrowError;

use crate::{
    columns::Columns,
    room::RoomError,
    snapshot::SnapshotError,
    source::{ErrorKind, SourceError},
    volume::VolumeError,
};

/// Why staging failed. Nothing was published then. What was staged is kept a day for the next try, unless it was the
/// volume that failed.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A snapshot on the volume is broken.
    #[error(transparent)]
    Snapshot(SnapshotError),
    /// Not enough room, found before the bytes that would not fit.
    #[error(transparent)]
    NoRoom(#[from] RoomError),
    /// The plan on the volume cannot be written or read.
    #[error("{} is not a plan of staging", path.display())]
    Plan {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: ArrowError,
    },
    /// Several objects failed; the others are kept for the next try.
    #[error("{failed} of {objects} objects could not be staged, the first of them: {first}")]
    Failed {
        /// How many.
        failed: u64,
        /// Of how many.
        objects: u64,
        /// What happened to the first that failed.
        first: Box<SourceError>,
        /// What happened to some more.
        more: Vec<SourceError>,
    },
    /// Not even one buffer could be had.
    #[error("no memory for a buffer of a few MiB")]
    NoMemory(#[source] io::Error),
    /// Columns are chosen that do not exist.
    #[error("no Parquet object has the columns {columns}")]
    NoColumns {
        /// Which.
        columns: Columns,
    },
    /// A lane ended, or was told to end, before its work was done.
    #[error("staging was ended before it was done")]
    Ended,
}

impl From<SnapshotError> for StageError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Volume(error) => Self::Volume(error),
            error => Self::Snapshot(error),
        }
    }
}

impl StageError {
    /// What a user can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Source(error) => error.kind(),
            Self::Failed { first, .. } => first.kind(),
            Self::Snapshot(SnapshotError::BadName { .. }) | Self::NoColumns { .. } => ErrorKind::Usage,
            _ => ErrorKind::Storage,
        }
    }

    /// Whether a file or directory of the place of work is not there, as when another stager has published and cleared up.
    pub(super) fn misses_a_file(&self) -> bool {
        matches!(self, Self::Volume(VolumeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether what was staged so far is of use to the next try. Of a full or broken volume the space is given back.
    pub(super) fn leaves_work(&self) -> bool {
        matches!(self, Self::Source(_) | Self::Failed { .. } | Self::NoMemory(_) | Self::Ended)
    }
}
