//! From keys to paths, reversibly.
//!
//! A key is any text of up to 1,024 bytes; a path is not. An ordinary key keeps its own name. A key gives way that is
//! no usable path (an empty, `.` or `..` segment, a NUL, a segment over 255 bytes, a trailing slash), that is also a
//! directory of another key, that differs from a smaller key only in case or in Unicode form (some file systems take
//! the two for one file), or that looks like an escaped one. It becomes `%/` and its bytes in hexadecimal, 200 digits
//! a directory, the last with the suffix `.key`, so that no escaped path is a directory of another.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use icu_normalizer::DecomposingNormalizer;

use crate::checksum::Crc64;

const ESCAPED: &str = "%/";
const SUFFIX: &str = ".key";
const DIGITS: usize = 200;
/// NAME_MAX of every file system that forebay meets.
const LONGEST_NAME: usize = 255;

/// The paths of a dataset's keys, in the order given; which path a key gets depends on the set of keys only. No two
/// paths are equal, and none is a directory of another, even where case and Unicode form are not told apart.
pub fn paths<'a>(keys: impl IntoIterator<Item = &'a str> + Clone) -> Vec<String> {
    let mut census = Census::default();
    keys.clone().into_iter().for_each(|key| census.see(key));
    let mut mapping = census.settle();
    keys.clone().into_iter().for_each(|key| mapping.see_again(key));
    keys.into_iter().map(|key| mapping.path(key)).collect()
}

/// Sees every key once, and holds 8 bytes of it.
#[derive(Debug, Default)]
pub struct Census {
    names: Vec<u64>,
    directories: Vec<u64>,
    /// The last directory seen; those of keys in order are mostly the same.
    last: String,
}

impl Census {
    /// Takes a key.
    pub fn see(&mut self, key: &str) {
        if !is_plain(key) {
            return;
        }
        let fold = fold(key);
        self.names.push(hash(&fold));
        let Some((directory, _)) = fold.rsplit_once('/') else { return };
        if directory != self.last {
            directory.clone_into(&mut self.last);
            self.directories.extend(fold.match_indices('/').map(|(at, _)| hash(&fold[..at])));
        }
    }

    /// What stands in each other's way. Keys of equal hash are taken for equal: one more than needed gives way then.
    pub fn settle(self) -> Mapping {
        let Self { mut names, mut directories, .. } = self;
        names.sort_unstable();
        directories.sort_unstable();
        directories.dedup();
        let twice = names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| (pair[0], None)).collect();
        directories.retain(|directory| names.binary_search(directory).is_ok());
        Mapping { holders: twice, directories: directories.into_iter().collect() }
    }
}

/// Why a key does not keep its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is no usable path.
    NoPath(&'static str),
    /// Other keys lie below it.
    Directory,
    /// It differs from this key only in case or in Unicode form.
    Rival(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPath(why) => f.write_str(why),
            Self::Directory => f.write_str("it is a directory of other keys too"),
            Self::Rival(holder) => write!(f, "it differs from `{holder}` only in case or in Unicode form"),
        }
    }
}

/// Which keys keep their names.
#[derive(Debug, Default)]
pub struct Mapping {
    /// Of names that several keys would have: the key that keeps it.
    holders: HashMap<u64, Option<String>>,
    /// Names that are directories of other keys too.
    directories: HashSet<u64>,
}

impl Mapping {
    /// Whether every key has to be [seen again](Self::see_again) before paths are right.
    pub fn has_rivals(&self) -> bool {
        !self.holders.is_empty()
    }

    /// Takes a key, to find the smallest of those that would have one name.
    pub fn see_again(&mut self, key: &str) {
        if self.holders.is_empty() || !is_plain(key) {
            return;
        }
        if let Some(holder) = self.holders.get_mut(&hash(&fold(key)))
            && holder.as_deref().is_none_or(|holder| key < holder)
        {
            *holder = Some(key.to_owned());
        }
    }

    /// The path of a key that was seen.
    pub fn path(&self, key: &str) -> String {
        if self.reason(key).is_some() { escape(key) } else { key.to_owned() }
    }

    /// Why a key that was seen gives way; none if it keeps its own name.
    pub fn reason(&self, key: &str) -> Option<Reason> {
        if let Some(why) = no_path(key) {
            return Some(Reason::NoPath(why));
        }
        if self.holders.is_empty() && self.directories.is_empty() {
            return None;
        }
        let hash = hash(&fold(key));
        match self.holders.get(&hash) {
            Some(Some(holder)) if holder != key => Some(Reason::Rival(holder.clone())),
            _ => self.directories.contains(&hash).then_some(Reason::Directory),
        }
    }
}

fn hash(fold: &str) -> u64 {
    Crc64::of(fold.as_bytes()).0
}

/// What a file system that ignores case and Unicode form sees of a key.
fn fold(key: &str) -> String {
    if key.is_ascii() {
        return key.to_ascii_lowercase();
    }
    let normal = DecomposingNormalizer::new_nfd();
    // Upper case first: it tells fewer characters apart than lower case does, as with ß, ſ and final ς.
    normal.normalize(&normal.normalize(key).to_uppercase().to_lowercase()).into_owned()
}

/// The key of a path that [`paths`] made; none for any other path.
pub fn key(path: &str) -> Option<String> {
    let Some(digits) = path.strip_prefix(ESCAPED) else {
        return is_plain(path).then(|| path.to_owned());
    };
    let digits = digits.strip_suffix(SUFFIX)?.replace('/', "");
    let pairs = digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    let key = String::from_utf8(pairs.collect::<Option<Vec<u8>>>()?).ok()?;
    (escape(&key) == path).then_some(key)
}

fn is_plain(key: &str) -> bool {
    no_path(key).is_none()
}

/// Why a key is no usable path.
fn no_path(key: &str) -> Option<&'static str> {
    if key.starts_with(ESCAPED) || key == "%" {
        return Some("it looks like the escaped name of another key");
    }
    if key.contains('\0') {
        return Some("it has a NUL in it");
    }
    key.split('/').find_map(|name| match name {
        "" => Some("a part of it between slashes is empty"),
        "." | ".." => Some("a part of it is `.` or `..`"),
        name if name.len() > LONGEST_NAME => Some("a part of it is longer than 255 bytes"),
        name if name.starts_with(".tmp-") => Some("a part of it begins as temporary names do, with `.tmp-`"),
        _ => None,
    })
}

fn escape(key: &str) -> String {
    let digits = crate::snapshot::hex(key.as_bytes());
    let parts: Vec<_> = digits.as_bytes().chunks(DIGITS).map(|part| str::from_utf8(part).expect("ASCII")).collect();
    format!("{ESCAPED}{}{SUFFIX}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_keys_keep_their_names() {
        let keys = ["a/b.csv", "c%20d", "ä/ö", "x.y", "README", ".hidden", "a b"];
        assert_eq!(paths(keys), keys);
    }

    #[test]
    fn keys_that_are_no_paths_are_escaped() {
        let long = "x".repeat(256);
        for key in ["", "/", "a/", "a//b", "../x", "a/./b", "a\0b", "%/61.key", "%", &long] {
            let path = &paths([key])[0];
            assert!(path.starts_with("%/") && path.split('/').all(|name| name.len() <= 255), "{key:?} {path}");
            assert_eq!(self::key(path).as_deref(), Some(key));
        }
    }

    #[test]
    fn a_key_that_is_a_directory_of_another_gives_way() {
        assert_eq!(paths(["a", "a/b"]), ["%/61.key", "a/b"]);
        assert_eq!(paths(["A", "a/b"]), ["%/41.key", "a/b"]);
    }

    #[test]
    fn of_keys_that_some_file_systems_take_for_one_the_smallest_keeps_its_name() {
        assert_eq!(paths(["x/README", "x/readme"]), ["x/README", "%/782f726561646d65.key"]);
        assert_eq!(paths(["x/readme", "x/README"]), ["%/782f726561646d65.key", "x/README"]);
        assert_eq!(paths(["e\u{301}", "\u{e9}"]), ["e\u{301}", "%/c3a9.key"]);
        assert_eq!(paths(["STRASSE", "straße"]), ["STRASSE", "%/73747261c39f65.key"]);
        assert_eq!(paths(["Dir/a", "dir/b"]), ["Dir/a", "dir/b"], "a directory may be shared");
    }

    #[test]
    fn who_gives_way_is_told_why() {
        let keys = ["a", "a/b", "x/README", "x/readme", "..", "n\0", "/", ".tmp-1", "%/61.key", "plain"];
        let mut census = Census::default();
        keys.iter().for_each(|key| census.see(key));
        let mut mapping = census.settle();
        keys.iter().for_each(|key| mapping.see_again(key));
        let told = |key: &str| mapping.reason(key).map(|reason| reason.to_string()).unwrap_or_default();
        for (key, why) in [
            ("a", "a directory of other keys"),
            ("x/readme", "`x/README` only in case"),
            ("..", "`..`"),
            ("n\0", "NUL"),
            ("/", "empty"),
            (".tmp-1", ".tmp-"),
            ("%/61.key", "escaped name"),
        ] {
            assert!(told(key).contains(why), "{key:?}: {}", told(key));
            assert!(mapping.path(key).starts_with("%/"));
        }
        assert!(told(&"y".repeat(256)).contains("255"));
        for key in ["a/b", "x/README", "plain"] {
            assert_eq!((mapping.reason(key), mapping.path(key)), (None, key.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn the_mapping_is_injective_inside_and_reversible(
            keys in prop::collection::btree_set("([aA%.\\x00äÄ]|a\u{308}|/|x{100,300}|%/){0,6}", 0..20)
        ) {
            let keys: Vec<_> = keys.iter().map(String::as_str).collect();
            let paths = paths(keys.iter().copied());
            let seen: BTreeSet<_> = paths.iter().map(|path| fold(path)).collect();
            prop_assert_eq!(seen.len(), keys.len());
            for (path, original) in paths.iter().zip(&keys) {
                prop_assert!(key(path).as_deref() == Some(*original), "{} of {:?}", path, original);
                prop_assert!(path.split('/').all(|name| !matches!(name, "" | "." | "..") && name.len() <= 255));
                let below = format!("{}/", fold(path));
                prop_assert!(!seen.iter().any(|other| other.starts_with(&below)), "{} is a directory too", path);
            }
        }
    }
}
