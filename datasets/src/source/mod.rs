//! Where a dataset comes from: `s3://bucket/prefix` or `file:///dir`.
//!
//! Every answer to a GET is checked against what was asked: its ETag, its range, its length. Old and new bytes of an
//! object are never mixed: a change is [`SourceError::Changed`].

mod file;
pub mod s3;

use std::{
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};

use bytes::Bytes;
use globset::{Glob, GlobSet, GlobSetBuilder};
use md5::{Digest as _, Md5};

use crate::checksum::Crc64;

/// A source's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceUrl {
    /// `s3://bucket/prefix`
    S3 {
        /// The bucket.
        bucket: String,
        /// What every key begins with; ends with `/` unless empty.
        prefix: String,
    },
    /// `file:///dir`
    File {
        /// Absolute.
        dir: PathBuf,
    },
}

impl FromStr for SourceUrl {
    type Err = SourceError;

    fn from_str(url: &str) -> Result<Self, SourceError> {
        let bad = |why| SourceError::BadUrl { url: url.to_owned(), why };
        if let Some(rest) = url.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(bad("the bucket is missing: s3://bucket/prefix"));
            }
            let slash = if prefix.is_empty() || prefix.ends_with('/') { "" } else { "/" };
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix: format!("{prefix}{slash}") });
        }
        match url.strip_prefix("file://") {
            // `/d/` and `/d` are one source.
            Some(dir) if dir.starts_with('/') => Ok(Self::File { dir: Path::new(dir).components().collect() }),
            Some(_) => Err(bad("a file source is absolute: file:///dir")),
            None => Err(bad("it begins neither with s3:// nor with file:///")),
        }
    }
}

impl fmt::Display for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::File { dir } => write!(f, "file://{}", dir.display()),
        }
    }
}

impl SourceUrl {
    /// A dataset's name made of the address's last part.
    pub fn default_name(&self) -> String {
        let last = match self {
            Self::S3 { bucket, prefix } => {
                prefix.trim_end_matches('/').rsplit('/').next().filter(|s| !s.is_empty()).unwrap_or(bucket)
            }
            Self::File { dir } => dir.file_name().and_then(|name| name.to_str()).unwrap_or("data"),
        };
        let name: String =
            last.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
        let name = name.trim_start_matches(['.', '_', '-']);
        if name.is_empty() { "data".to_owned() } else { name.chars().take(100).collect() }
    }
}

/// How a source is reached and what of it is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceOptions {
    /// Globs over the keys below the prefix; empty takes all.
    pub include: Vec<String>,
    /// Globs over the keys below the prefix.
    pub exclude: Vec<String>,
    /// How S3 is reached.
    pub s3: S3Options,
}

/// How S3 is reached, where the environment does not say it as the AWS SDK understands it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Options {
    /// Base URL of an S3-compatible server.
    pub endpoint: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Sign nothing.
    pub anonymous: bool,
    /// Bucket in the path; none: exactly when there is a custom endpoint.
    pub path_style: Option<bool>,
    /// Pay for the requests.
    pub requester_pays: bool,
}

/// An object as a source lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Key below the prefix.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Without quotes. For files: made of modification time and size.
    pub etag: Option<String>,
    /// Where the bucket is versioned and the source tells.
    pub version_id: Option<String>,
}

/// Checksums that a source keeps of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    /// Of the whole object.
    pub crc64nvme: Option<Crc64>,
    /// Of the whole object, in lower-case hexadecimal digits, where its ETag is one.
    pub md5: Option<String>,
}

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
    #[error("no AWS credentials were found")]
    NoCredentials,
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
        algorithm: &'static str,
    },
    /// The server asks for patience: 503, 500, 429.
    #[error("the server is busy with `{key}` ({code})")]
    Busy {
        /// The key, or the bucket in a listing.
        key: String,
        /// S3's error code, or the status.
        code: String,
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
            Self::BadUrl { .. } | Self::BadGlob { .. } => ErrorKind::Usage,
            Self::Absent { .. } | Self::Empty { .. } | Self::Gone { .. } => ErrorKind::NotFound,
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
        )
    }
}

/// A connected source.
#[derive(Clone, Debug)]
pub struct Source {
    url: SourceUrl,
    selection: Selection,
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    S3(s3::Bucket),
    File(file::Directory),
}

#[derive(Clone, Debug)]
struct Selection {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Selection {
    fn new(options: &SourceOptions) -> Result<Self, SourceError> {
        let include = (!options.include.is_empty()).then(|| globs(&options.include)).transpose()?;
        Ok(Self { include, exclude: globs(&options.exclude)? })
    }

    fn takes(&self, key: &str) -> bool {
        self.include.as_ref().is_none_or(|globs| globs.is_match(key)) && !self.exclude.is_match(key)
    }
}

/// Compiles globs over keys: `*` stays within a segment, `**` does not.
pub fn globs(globs: &[String]) -> Result<GlobSet, SourceError> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let bad = |source| SourceError::BadGlob { glob: glob.clone(), source };
        set.add(globset::GlobBuilder::new(glob).literal_separator(true).build().map(|g: Glob| g).map_err(bad)?);
    }
    set.build().map_err(|source| SourceError::BadGlob { glob: globs.join(" "), source })
}

impl Source {
    /// Finds credentials, region and endpoint. Sends nothing to S3 yet.
    pub async fn connect(url: &SourceUrl, options: &SourceOptions) -> Result<Self, SourceError> {
        let selection = Selection::new(options)?;
        let backend = match url {
            SourceUrl::S3 { bucket, prefix } => Backend::S3(s3::Bucket::connect(bucket, prefix, &options.s3).await),
            SourceUrl::File { dir } => Backend::File(file::Directory::new(dir)),
        };
        Ok(Self { url: url.clone(), selection, backend })
    }

    /// The selected objects, ordered by key, no key twice.
    ///
    /// # Errors
    /// [`SourceError::Empty`] if there are none.
    pub async fn list(&self, seen: &(dyn Fn(u64) + Send + Sync)) -> Result<Vec<Listed>, SourceError> {
        let takes = |key: &str| self.selection.takes(key);
        let mut objects = match &self.backend {
            Backend::S3(bucket) => bucket.list(&takes, seen).await?,
            Backend::File(directory) => directory.list(&takes)?,
        };
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        // A listing that repeats a key between pages is one object; the later answer is the newer one.
        objects.reverse();
        objects.dedup_by(|a, b| a.key == b.key);
        objects.reverse();
        if objects.is_empty() { Err(SourceError::Empty { url: self.url.to_string() }) } else { Ok(objects) }
    }

    /// One object as it is now.
    pub async fn head(&self, key: &str) -> Result<Listed, SourceError> {
        match &self.backend {
            Backend::S3(bucket) => bucket.head(key).await.map(|(listed, _)| listed),
            Backend::File(directory) => directory.head(key),
        }
    }

    /// What the source itself knows of the bytes of the whole object.
    pub async fn checksums(&self, object: &Listed) -> Result<Checksums, SourceError> {
        match &self.backend {
            Backend::S3(bucket) => bucket.head(&object.key).await.map(|(_, checksums)| checksums),
            Backend::File(_) => Ok(Checksums::default()),
        }
    }

    /// Begins to read an object, or a range of it that is not empty.
    pub async fn get(&self, object: &Listed, range: Option<Range<u64>>) -> Result<Body, SourceError> {
        match &self.backend {
            Backend::S3(bucket) => bucket.get(object, range).await.map(Body::S3),
            Backend::File(directory) => directory.get(object, range).map(Body::File),
        }
    }

    /// Reads a whole object, or a range of it, into memory. The length is checked, and the MD5 of a whole object whose
    /// ETag is one.
    pub async fn read(&self, object: &Listed, range: Option<Range<u64>>) -> Result<Vec<u8>, SourceError> {
        let expected = range.as_ref().map_or(object.size, |range| range.end - range.start);
        let whole = range.is_none();
        let mut body = self.get(object, range).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        while let Some(chunk) = body.next().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > expected {
                break;
            }
        }
        if bytes.len() as u64 != expected {
            let (key, received) = (object.key.clone(), bytes.len() as u64);
            return Err(SourceError::WrongLength { key, expected, received });
        }
        match body.md5().filter(|_| whole) {
            Some(md5) if *md5 != crate::snapshot::hex(&Md5::digest(&bytes)) => {
                Err(SourceError::Corrupt { key: object.key.clone(), algorithm: "MD5" })
            }
            _ => Ok(bytes),
        }
    }
}

/// The bytes of an answer.
#[derive(Debug)]
pub enum Body {
    /// From S3.
    S3(s3::S3Body),
    /// From a file.
    File(file::FileBody),
}

impl Body {
    /// The MD5 of the whole object, where its ETag is one.
    fn md5(&self) -> Option<&String> {
        match self {
            Self::S3(body) => body.md5.as_ref(),
            Self::File(_) => None,
        }
    }

    /// The next bytes; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        match self {
            Self::S3(body) => body.next().await,
            Self::File(body) => body.next().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood() {
        let s3 = |bucket: &str, prefix: &str| SourceUrl::S3 { bucket: bucket.into(), prefix: prefix.into() };
        assert_eq!("s3://b/p/q".parse::<SourceUrl>().unwrap(), s3("b", "p/q/"));
        assert_eq!("s3://b".parse::<SourceUrl>().unwrap(), s3("b", ""));
        for url in ["file:///d", "file:///d/", "file:////d/."] {
            assert_eq!(url.parse::<SourceUrl>().unwrap().to_string(), "file:///d");
        }
        for bad in ["s3://", "s3:///x", "file://x", "http://x", ""] {
            assert!(bad.parse::<SourceUrl>().is_err(), "{bad}");
        }
        assert_eq!(s3("b", "p/Flights 2013/").default_name(), "Flights-2013");
        assert_eq!(s3("b", "").default_name(), "b");
    }

    #[test]
    fn a_star_stays_within_a_segment() {
        let options = SourceOptions {
            include: vec!["*.csv".into(), "d/**".into()],
            exclude: vec!["**/x*".into()],
            ..Default::default()
        };
        let selection = Selection::new(&options).unwrap();
        let taken: Vec<_> =
            ["a.csv", "b/a.csv", "d/e/f", "d/xy"].into_iter().filter(|key| selection.takes(key)).collect();
        assert_eq!(taken, ["a.csv", "d/e/f"]);
    }
}
