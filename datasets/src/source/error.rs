//! Why a source failed, and what can be done about it.

use std::{io, path::PathBuf, time::Duration};

use crate::{aws::BadCertificates, checksum::Algorithm, columns::FooterError};

/// What a user can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Correct what was asked for.
    Usage,
    /// It is not there.
    NotFound,
    /// The storage did not answer, refused, or failed.
    Storage,
}

/// Why a source failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The address is none.
    #[error("`{url}` is no source: {why}")]
    BadUrl {
        /// As given.
        url: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A selection is no glob.
    #[error("`{glob}` is no glob")]
    BadGlob {
        /// As given.
        glob: String,
        /// Where and why.
        #[source]
        source: globset::Error,
    },
    /// A file of keys cannot be used.
    #[error("the list of keys {} cannot be used: {why}", path.display())]
    BadKeys {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Keys that were named are not there.
    #[error("{missing} of the {of} keys that were named are not in the source: {first}")]
    Missing {
        /// How many.
        missing: usize,
        /// Of how many.
        of: usize,
        /// The first of them.
        first: String,
    },
    /// The bucket or directory does not exist.
    #[error("{what} does not exist")]
    Absent {
        /// The bucket or directory.
        what: String,
    },
    /// Nothing was selected.
    #[error("no object below {url} is selected")]
    Empty {
        /// The source.
        url: String,
    },
    /// Refused.
    #[error("access to {what} was denied ({code})")]
    Denied {
        /// The bucket or object.
        what: String,
        /// S3's error code.
        code: String,
    },
    /// No credentials were found.
    #[error("no AWS credentials were found: {why}")]
    NoCredentials {
        /// What was looked for, or failed.
        why: String,
    },
    /// `AWS_CA_BUNDLE` names a file that cannot be used.
    #[error(transparent)]
    BadCertificates(#[from] BadCertificates),
    /// The bucket is in another region than it was looked for in.
    #[error("the bucket `{bucket}` is in region {region}")]
    Elsewhere {
        /// The bucket.
        bucket: String,
        /// Where it is.
        region: String,
    },
    /// In Glacier or another archive, and not restored.
    #[error("the object `{key}` is archived: restore it, or exclude it")]
    Archived {
        /// Its key.
        key: String,
    },
    /// No answer.
    #[error("{endpoint} cannot be reached: {why}")]
    Unreachable {
        /// The server.
        endpoint: String,
        /// The innermost cause.
        why: String,
    },
    /// The object is gone.
    #[error("the object `{key}` is not there any more")]
    Gone {
        /// Its key.
        key: String,
    },
    /// The object is another one than the listing said.
    #[error("the object `{key}` changed while it was read")]
    Changed {
        /// Its key.
        key: String,
    },
    /// The server ignored the range.
    #[error("the server answered a range of `{key}` with something else")]
    WrongRange {
        /// Its key.
        key: String,
    },
    /// The answer ended early, or did not end.
    #[error("the answer for `{key}` has {received} bytes in place of {expected}")]
    WrongLength {
        /// Its key.
        key: String,
        /// Bytes asked for.
        expected: u64,
        /// Bytes received.
        received: u64,
    },
    /// The bytes are not those that the source has a checksum of.
    #[error("the bytes of `{key}` do not have the {algorithm} that the source says")]
    Corrupt {
        /// Its key.
        key: String,
        /// Which checksum.
        algorithm: Algorithm,
    },
    /// Columns of it are wanted, and it does not tell where they are.
    #[error("the columns of `{key}` cannot be found")]
    NoFooter {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: FooterError,
    },
    /// The server asks for patience: 503, 500, 429.
    #[error("the server is busy with `{key}` ({code})")]
    Busy {
        /// The key, or the bucket in a listing.
        key: String,
        /// S3's error code, or the status.
        code: String,
        /// How long it asks to be left alone.
        after: Option<Duration>,
    },
    /// The transfer broke off or stalled.
    #[error("the transfer of `{key}` broke off: {why}")]
    Broken {
        /// The key, or the bucket in a listing.
        key: String,
        /// The innermost cause.
        why: String,
    },
    /// S3 said something else.
    #[error("S3 failed at `{key}`: {message}")]
    S3 {
        /// The key or bucket.
        key: String,
        /// S3's code and message.
        message: String,
    },
    /// A file or directory could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    /// What a user can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BadUrl { .. } | Self::BadGlob { .. } | Self::BadKeys { .. } | Self::BadCertificates(_) => {
                ErrorKind::Usage
            }
            Self::Absent { .. } | Self::Empty { .. } | Self::Missing { .. } | Self::Gone { .. } => ErrorKind::NotFound,
            _ => ErrorKind::Storage,
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Busy { .. }
                | Self::Broken { .. }
                | Self::WrongLength { .. }
                | Self::Corrupt { .. }
                | Self::Unreachable { .. }
                // Broken inside of the server, or by what lies between: seen once, it need not be seen again.
                | Self::WrongRange { .. }
        )
    }

    /// Whether the server wants fewer requests, or shows that it cannot keep up.
    pub fn is_overload(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Broken { .. } | Self::Unreachable { .. })
    }
}
