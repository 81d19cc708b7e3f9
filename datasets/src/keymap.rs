//! From keys to paths, reversibly.
//!
//! A key is any text of up to 1,024 bytes; a path is not. An ordinary key keeps its own name. A key that is no usable
//! path (an empty, `.` or `..` segment, a NUL, a segment over 255 bytes, a trailing slash), that is also a directory
//! of another key, or that looks like an escaped one, becomes `%/` and its bytes in hexadecimal, 200 digits a
//! directory, the last with the suffix `.key`, so that no escaped path is a directory of another.
//!
//! Keys that differ only in case or in Unicode form keep their own names: EFS, NFS and Linux's own file systems tell
//! them apart.

use std::collections::BTreeSet;

const ESCAPED: &str = "%/";
const SUFFIX: &str = ".key";
const DIGITS: usize = 200;
/// NAME_MAX of every file system that forebay meets.
const LONGEST_NAME: usize = 255;

/// The paths of a dataset's keys, in the order given. No two are equal, and none is a directory of another.
pub fn paths<'a>(keys: impl IntoIterator<Item = &'a str> + Clone) -> Vec<String> {
    let mut directories = BTreeSet::new();
    for key in keys.clone().into_iter().filter(|key| is_plain(key)) {
        for (at, _) in key.match_indices('/') {
            directories.insert(&key[..at]);
        }
    }
    let path = |key: &str| match is_plain(key) && !directories.contains(key) {
        true => key.to_owned(),
        false => escape(key),
    };
    keys.into_iter().map(path).collect()
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
    let plain_name =
        |name: &str| !matches!(name, "" | "." | "..") && name.len() <= LONGEST_NAME && !name.starts_with(".tmp-");
    !key.starts_with(ESCAPED) && key != "%" && !key.contains('\0') && key.split('/').all(plain_name)
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
        let keys = ["a/b.csv", "c%20d", "ä/ö", "x.y"];
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
    }

    proptest! {
        #[test]
        fn the_mapping_is_injective_inside_and_reversible(
            keys in prop::collection::btree_set("([a%.\\x00ä]|/|x{100,300}|%/){0,6}", 0..20)
        ) {
            let keys: Vec<_> = keys.iter().map(String::as_str).collect();
            let paths = paths(keys.iter().copied());
            prop_assert_eq!(paths.iter().collect::<BTreeSet<_>>().len(), keys.len());
            for (path, original) in paths.iter().zip(&keys) {
                prop_assert!(key(path).as_deref() == Some(*original), "{} of {:?}", path, original);
                prop_assert!(path.split('/').all(|name| !matches!(name, "" | "." | "..") && name.len() <= 255));
                let below = format!("{path}/");
                prop_assert!(!paths.iter().any(|other| other.starts_with(&below)), "{} is a directory too", path);
            }
        }
    }
}
