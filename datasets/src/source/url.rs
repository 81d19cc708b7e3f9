//! Where a source is.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::SourceError;

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

/// What several addresses have in common, and what each adds to it. Keys are those below the common address, so that no
/// two objects can have the same one.
///
/// # Errors
/// [`SourceError::BadUrl`] if there are none, or they are not in one bucket, or not all directories.
pub fn several(urls: &[SourceUrl]) -> Result<(SourceUrl, Vec<String>), SourceError> {
    let Some((first, rest)) = urls.split_first() else {
        return Err(SourceError::BadUrl { url: String::new(), why: "a dataset has at least one source" });
    };
    if rest.is_empty() {
        return Ok((first.clone(), Vec::new()));
    }
    let bad = |url: &SourceUrl| SourceError::BadUrl {
        url: url.to_string(),
        why: "the sources of one dataset are prefixes of one bucket, or directories",
    };
    let prefix = |url: &SourceUrl| match (first, url) {
        (SourceUrl::S3 { bucket: one, .. }, SourceUrl::S3 { bucket, prefix }) if one == bucket => Ok(prefix.clone()),
        (SourceUrl::File { .. }, SourceUrl::File { dir }) => {
            let dir = dir.to_str().ok_or_else(|| bad(url))?;
            Ok(format!("{}/", dir.trim_end_matches('/')))
        }
        _ => Err(bad(url)),
    };
    let mut prefixes = urls.iter().map(prefix).collect::<Result<Vec<_>, _>>()?;
    prefixes.sort();
    // What lies in another one of them is listed with it.
    prefixes.dedup_by(|next, one| next.starts_with(one.as_str()));
    let common = prefixes.iter().skip(1).fold(prefixes[0].as_str(), |common, prefix| {
        let same = common.bytes().zip(prefix.bytes()).take_while(|(a, b)| a == b).count();
        common.as_bytes()[..same].iter().rposition(|byte| *byte == b'/').map_or("", |slash| &common[..=slash])
    });
    let url = match first {
        SourceUrl::S3 { bucket, .. } => SourceUrl::S3 { bucket: bucket.clone(), prefix: common.to_owned() },
        SourceUrl::File { .. } => SourceUrl::File { dir: Path::new(common).components().collect() },
    };
    match &*prefixes {
        [_] => Ok((url, Vec::new())),
        all => Ok((url, all.iter().map(|prefix| prefix[common.len()..].to_owned()).collect())),
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
    fn several_addresses_have_one_in_common() {
        let of = |urls: &[&str]| {
            let urls: Vec<SourceUrl> = urls.iter().map(|url| url.parse().unwrap()).collect();
            several(&urls).map(|(url, prefixes)| (url.to_string(), prefixes))
        };
        let is = |url: &str, prefixes: &[&str]| (url.to_owned(), prefixes.iter().map(|p| (*p).to_owned()).collect());
        assert_eq!(of(&["s3://b/p"]).unwrap(), is("s3://b/p/", &[]));
        assert_eq!(of(&["s3://b/p/2", "s3://b/p/1/"]).unwrap(), is("s3://b/p/", &["1/", "2/"]));
        assert_eq!(of(&["s3://b/pa", "s3://b/pb/c"]).unwrap(), is("s3://b/", &["pa/", "pb/c/"]));
        assert_eq!(of(&["s3://b/p/q/r", "s3://b/p/q", "s3://b/p/q"]).unwrap(), is("s3://b/p/q/", &[]));
        assert_eq!(of(&["s3://b/x", "s3://b/x/y", "s3://b/x-y"]).unwrap(), is("s3://b/", &["x-y/", "x/"]));
        assert_eq!(of(&["s3://b", "s3://b/x"]).unwrap(), is("s3://b/", &[]));
        assert_eq!(of(&["file:///d/ä", "file:///d/å/x"]).unwrap(), is("file:///d", &["ä/", "å/x/"]));
        assert_eq!(of(&["file:///a", "file:///b"]).unwrap(), is("file:///", &["a/", "b/"]));
        for bad in [["s3://b/p", "s3://c/p"], ["s3://b/p", "file:///p"]] {
            assert!(matches!(of(&bad), Err(SourceError::BadUrl { .. })), "{bad:?}");
        }
    }
}
