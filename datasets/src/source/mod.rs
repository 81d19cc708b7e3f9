//! Where a dataset comes from: `s3://bucket/prefix` or `file:///dir`.
//!
//! Every answer to a GET is checked against what was asked: its ETag, its range, its length. Old and new bytes of an
//! object are never mixed: a change is [`SourceError::Changed`].

mod error;
mod file;
mod keys;
pub(crate) mod retry;
pub mod s3;
mod url;

use std::ops::{ControlFlow, Range};

use globset::{Glob, GlobSet, GlobSetBuilder};

pub use self::{
    error::{ErrorKind, SourceError},
    keys::Keys,
    url::{SourceUrl, several},
};
use crate::checksum::Expected;

/// How a source is reached and what of it is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceOptions {
    /// Only what is below these, each of which ends with `/`, as [`several`] makes them; empty takes all.
    pub prefixes: Vec<String>,
    /// Only these, each looked at by itself; none lists.
    pub keys: Option<Keys>,
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

/// What an answer says of the object that it brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Without quotes.
    pub etag: Option<String>,
    /// Where the bucket is versioned.
    pub version_id: Option<String>,
    /// What the whole object is compared with.
    pub expected: Option<Expected>,
}

/// A connected source.
#[derive(Clone, Debug)]
pub struct Source {
    url: SourceUrl,
    selection: Selection,
    prefixes: Vec<String>,
    keys: Option<Keys>,
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    S3(Box<s3::Bucket>),
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
            SourceUrl::S3 { bucket, prefix } => {
                Backend::S3(Box::new(s3::Bucket::connect(bucket, prefix, &options.s3).await?))
            }
            SourceUrl::File { dir } => Backend::File(file::Directory::new(dir)),
        };
        let prefixes = match options.prefixes.is_empty() {
            true => vec![String::new()],
            false => options.prefixes.clone(),
        };
        Ok(Self { url: url.clone(), selection, prefixes, keys: options.keys.clone(), backend })
    }

    /// Gives `page` the selected objects, some at a time and in any order, some perhaps twice. `page` may break off.
    ///
    /// # Errors
    /// [`SourceError::Empty`] if there are none.
    pub async fn list(&mut self, page: &mut Page<'_>) -> Result<Asked, SourceError> {
        let mut found = false;
        let mut asked = self.try_list(page, &mut found).await;
        // The first request tells.
        if let Err(SourceError::Elsewhere { region, .. }) = asked {
            self.move_to(region).await?;
            asked = self.try_list(page, &mut found).await;
        }
        let asked = asked?;
        if found { Ok(asked) } else { Err(SourceError::Empty { url: self.url.to_string() }) }
    }

    async fn try_list(&self, page: &mut Page<'_>, found: &mut bool) -> Result<Asked, SourceError> {
        let selection = &self.selection;
        let mut selected = |mut objects: Vec<Listed>| {
            objects.retain(|object| selection.takes(&object.key));
            *found |= !objects.is_empty();
            page(objects)
        };
        if let Some(keys) = &self.keys {
            return keys.look(&self.readers().await?, |key| selection.takes(key), &mut selected).await;
        }
        match &self.backend {
            Backend::File(directory) => directory.list(&self.prefixes, &mut selected).map(|()| Asked::default()),
            Backend::S3(bucket) => bucket.list(&self.prefixes, &mut selected).await,
        }
    }

    /// The same bucket, looked for in the region that S3 has named in [`SourceError::Elsewhere`].
    pub(crate) async fn move_to(&mut self, region: String) -> Result<(), SourceError> {
        if let Backend::S3(bucket) = &mut self.backend {
            **bucket = bucket.in_region(region).await?;
        }
        Ok(())
    }

    /// What each lane's reader is made of.
    pub async fn readers(&self) -> Result<Readers, SourceError> {
        Ok(match &self.backend {
            Backend::S3(bucket) => Readers::S3(bucket.readers().await?),
            Backend::File(directory) => Readers::File(directory.clone()),
        })
    }
}

/// The requests that a listing took, those left out that were tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Pages of listings.
    pub lists: u64,
    /// HEADs of objects.
    pub heads: u64,
}

/// Takes a page of a listing.
pub type Page<'a> = dyn FnMut(Vec<Listed>) -> ControlFlow<()> + Send + 'a;

/// Makes readers.
#[derive(Clone, Debug)]
pub enum Readers {
    /// Of a bucket.
    S3(s3::S3Readers),
    /// Of a directory.
    File(file::Directory),
}

impl Readers {
    /// A reader for one thread.
    pub fn reader(&self) -> Reader {
        match self {
            Self::S3(readers) => Reader::S3(Box::new(readers.reader())),
            Self::File(directory) => Reader::File(file::FileReader::new(directory.clone())),
        }
    }
}

/// Reads objects, one at a time, on the calling thread. Every answer is checked: its ETag, its range, its length.
#[derive(Debug)]
pub enum Reader {
    /// From S3, over a connection of its own.
    S3(Box<s3::S3Reader>),
    /// From files.
    File(file::FileReader),
}

impl Reader {
    /// Begins to read an object, or a range of it that is not empty.
    pub fn get(&mut self, object: &Listed, range: Option<&Range<u64>>) -> Result<About, SourceError> {
        match self {
            Self::S3(reader) => reader.get(object, range),
            Self::File(reader) => reader.get(object, range),
        }
    }

    /// Fills the buffer from the answer; with less only at its end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        match self {
            Self::S3(reader) => reader.read(buffer),
            Self::File(reader) => reader.read(buffer),
        }
    }

    /// One object as it is now, and what the source itself knows of its bytes.
    pub fn head(&mut self, key: &str) -> Result<(Listed, Option<Expected>), SourceError> {
        match self {
            Self::S3(reader) => reader.head(key),
            Self::File(reader) => reader.head(key).map(|listed| (listed, None)),
        }
    }

    /// The sizes of the `count` parts that an object was uploaded in.
    pub fn parts(&mut self, object: &Listed, count: u32) -> Result<Vec<u64>, SourceError> {
        match self {
            Self::S3(reader) => reader.parts(object, count),
            Self::File(_) => Ok(vec![object.size]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
