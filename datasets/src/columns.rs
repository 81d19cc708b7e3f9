//! Selective staging: of a Parquet object only the chunks of the columns that somebody will read.
//!
//! A Parquet file ends with its footer, which says where in the file the chunk of each column of each row group lies.
//! So the end of the object is read first; from it follow the byte ranges of the wanted columns. Ranges that lie close
//! together become one, since a request costs about as much as the bytes between them, and where most of the object
//! would be fetched anyway, all of it is.
//!
//! What is held of an object: its footer; its page indexes, of all columns, because readers take them in one read; and
//! of the wanted columns the chunks of all row groups with their Bloom filters. A nested column is taken whole. The
//! object's file has its full size, with holes for what is not held; [`Object::holds`](crate::snapshot::Object::holds)
//! tells the one from the other, and whoever opens such a file asks it before each read: a hole reads as zeros.
//!
//! A wanted column that an object does not have is no error of that object, as the files of a table need not have the
//! same columns; `absent` finds those that no object has.

mod footer;
mod local;
pub mod remote;

use std::{collections::BTreeSet, fmt, ops::Range};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(crate) use self::local::{absent, damaged, is_intact};
pub use self::{
    footer::{Footer, FooterError, Found, TAIL},
    local::lacking,
};
use crate::{format::Format, snapshot::hex, source::Listed};

/// Bytes that cost as much to fetch as one more request: 100 µs of CPU, at half a second a GiB.
const REQUEST: u64 = 128 << 10;
/// An object up to this size is fetched whole, by one request in place of three.
const SMALL: u64 = 3 * REQUEST;
/// If the ranges with their requests cost more than so many hundredths of the whole, the whole is fetched.
const MOST: u64 = 80;

/// Names of top-level columns.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Columns(BTreeSet<String>);

impl Columns {
    /// Whether a column is one of them.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Whether all of the others are among them.
    pub fn contain_all(&self, others: &Self) -> bool {
        others.0.is_subset(&self.0)
    }

    /// The names, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The digest of a listing of which only these columns are taken: another one than that of the listing itself,
    /// and than that of any other columns.
    pub fn listing(&self, whole: &str) -> String {
        let mut digest = Sha256::new();
        for text in std::iter::once(whole).chain(self.iter()) {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text.as_bytes());
        }
        hex(&digest.finalize()[..16])
    }
}

impl<S: Into<String>> FromIterator<S> for Columns {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        Self(names.into_iter().map(Into::into).collect())
    }
}

/// `a, b, c`; `none` if there are none.
impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_empty() {
            true => f.write_str("none"),
            false => f.write_str(&self.iter().collect::<Vec<_>>().join(", ")),
        }
    }
}

/// The columns to take of an object, if there is a choice: of a Parquet object that is worth it, and that has an ETag by
/// which all of its ranges are known to be of one version.
pub(crate) fn taken_of<'a>(wanted: Option<&'a Columns>, object: &Listed) -> Option<&'a Columns> {
    wanted.filter(|_| Format::of(&object.key) == Format::Parquet && object.size > SMALL && object.etag.is_some())
}

/// What of an object is to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// All of it.
    Whole,
    /// These ranges, in order, none touching another.
    Ranges(Vec<Range<u64>>),
}

/// Why the ranges of an object's columns cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ColumnsError<E: std::error::Error + 'static> {
    /// It could not be read.
    #[error("its footer cannot be read")]
    Read(#[source] E),
    /// It has no footer that tells.
    #[error(transparent)]
    Footer(#[from] FooterError),
}

/// Puts ranges in order, and those together that have at most `gap` bytes between them.
fn coalesced(mut ranges: Vec<Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Coalesced ranges, or the whole object where they would cost about as much.
fn worthwhile(ranges: Vec<Range<u64>>, size: u64, request: u64) -> Held {
    let ranges = coalesced(ranges, request);
    let cost: u64 = ranges.iter().map(|range| range.end - range.start + request).sum();
    match u128::from(cost) * 100 > u128::from(size) * u128::from(MOST) {
        true => Held::Whole,
        false => Held::Ranges(ranges),
    }
}

#[cfg(test)]
mod tests;
