//! Pages of listings, as ListObjectsV2 gives them.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Included, Unbounded},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{CommonPrefix, EncodingType, ListObjectsV2Input, ListObjectsV2Output, Object};

use super::{
    faults::{Fault, Faults},
    object::Stored,
    store::Entry,
};

/// What stands in a page: an object, or what several keys have in common up to the delimiter.
#[derive(Clone, Copy)]
enum Line<'a> {
    Object(&'a str, &'a Stored),
    Prefix(&'a str),
}

impl<'a> Line<'a> {
    fn name(self) -> &'a str {
        match self {
            Self::Object(name, _) | Self::Prefix(name) => name,
        }
    }
}

/// What comes after a key.
type Entries<'a> = Box<dyn Iterator<Item = (&'a String, &'a Entry)> + 'a>;

fn by_key<'a>(objects: &'a BTreeMap<String, Entry>, prefix: &'a str, after: &'a str) -> Entries<'a> {
    let begin = if after < prefix { Included(prefix) } else { Excluded(after) };
    Box::new(objects.range::<str, _>((begin, Unbounded)).take_while(move |(key, _)| key.starts_with(prefix)))
}

/// The same, on a server that has an order of its own.
fn by_lower_case<'a>(objects: &'a BTreeMap<String, Entry>, prefix: &'a str, after: &'a str) -> Entries<'a> {
    let order = |key: &str| (key.to_lowercase(), key.to_owned());
    let is_meant = |key: &str| key.starts_with(prefix) && order(key) > order(after);
    let mut entries: Vec<_> = objects.iter().filter(|(key, _)| is_meant(key)).collect();
    entries.sort_by_key(|(key, _)| order(key));
    Box::new(entries.into_iter())
}

/// At most `most` lines of entries, and whether there are more.
fn lines<'a>(
    entries: impl Iterator<Item = (&'a String, &'a Entry)>,
    prefix: &str,
    delimiter: Option<&str>,
    after: &str,
    most: usize,
) -> (Vec<Line<'a>>, bool) {
    let mut found: Vec<Line<'a>> = Vec::new();
    for (key, entry) in entries {
        let Some(stored) = &entry.current else { continue };
        let rest = &key[prefix.len()..];
        let common = delimiter
            .filter(|delimiter| !delimiter.is_empty())
            .and_then(|delimiter| rest.find(delimiter).map(|at| &key[..prefix.len() + at + delimiter.len()]));
        let line = match common {
            // A page that ends with a common prefix goes on behind all of its keys.
            Some(common) if common == after => continue,
            Some(common) if found.last().is_some_and(|last| last.name() == common) => continue,
            Some(common) => Line::Prefix(common),
            None => Line::Object(key, stored),
        };
        if found.len() == most {
            return (found, true);
        }
        found.push(line);
    }
    (found, false)
}

/// The page that was asked for, with what goes wrong in it.
pub(super) fn page(
    objects: &BTreeMap<String, Entry>,
    input: ListObjectsV2Input,
    faults: &Faults,
    fault: Option<Fault>,
) -> ListObjectsV2Output {
    let prefix = input.prefix.clone().unwrap_or_default();
    let after = input.continuation_token.clone().or(input.start_after.clone()).unwrap_or_default();
    let most = usize::try_from(input.max_keys.unwrap_or(1000)).unwrap_or(0).min(1000);
    let entries = if faults.list_by_lower_case { by_lower_case } else { by_key };
    let (mut page, more) = lines(entries(objects, &prefix, &after), &prefix, input.delimiter.as_deref(), &after, most);
    let last = page.last().map(|line| line.name().to_owned());
    let mut count = page.len();
    match fault {
        Some(Fault::PageRepeats) => {
            page.extend(page.last().copied());
            count = page.len();
        }
        Some(Fault::PageOverlaps) => {
            let before = objects.range::<str, _>((Unbounded, Included(after.as_str()))).rev().take(10).filter_map(
                |(key, entry)| {
                    let stored = entry.current.as_ref()?;
                    (key.starts_with(&prefix) && input.delimiter.is_none()).then_some(Line::Object(key, stored))
                },
            );
            let mut before: Vec<_> = before.collect();
            before.reverse();
            page.splice(..0, before);
            count = page.len();
        }
        Some(Fault::PageOmits) if !page.is_empty() => {
            page.remove(page.len() / 2);
        }
        _ => {}
    }
    let next = match faults.list_in_circles {
        true => Some(input.continuation_token.clone().or(last).unwrap_or_default()),
        false => last.filter(|_| more),
    };
    let url = input.encoding_type.as_ref().is_some_and(|encoding| encoding.as_str() == EncodingType::URL);
    let shown = |key: &str| match url {
        true => utf8_percent_encode(key, NON_ALPHANUMERIC).to_string(),
        false => key.to_owned(),
    };
    let contents = page.iter().filter_map(|line| match line {
        Line::Object(key, stored) => Some(Object {
            key: Some(shown(key)),
            size: stored.size(),
            e_tag: (!faults.list_without_etags).then(|| stored.etag()),
            ..Object::default()
        }),
        Line::Prefix(_) => None,
    });
    let prefixes = page.iter().filter_map(|line| match line {
        Line::Prefix(prefix) => Some(CommonPrefix { prefix: Some(shown(prefix)) }),
        Line::Object(..) => None,
    });
    ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: input.prefix.as_deref().map(shown),
        delimiter: input.delimiter.as_deref().map(shown),
        start_after: input.start_after.as_deref().map(shown),
        max_keys: i32::try_from(most).ok(),
        key_count: i32::try_from(count).ok(),
        is_truncated: Some(next.is_some()),
        encoding_type: input.encoding_type,
        continuation_token: input.continuation_token,
        next_continuation_token: next,
        contents: Some(contents.collect()),
        common_prefixes: Some(prefixes.collect()),
        ..ListObjectsV2Output::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3_server::object::Upload;

    fn objects(keys: &[&str]) -> BTreeMap<String, Entry> {
        let entry = || Entry { current: Some(Upload::new("x").stored()), old: Vec::new() };
        keys.iter().map(|key| ((*key).to_owned(), entry())).collect()
    }

    /// Every page of a listing, as `key` and `prefix/`, with the key counts.
    fn walked(keys: &[&str], prefix: &str, delimiter: Option<&str>, most: i32, fault: Option<Fault>) -> Vec<String> {
        let (objects, mut token, mut seen) = (objects(keys), None, Vec::new());
        loop {
            let input = ListObjectsV2Input {
                prefix: Some(prefix.to_owned()),
                delimiter: delimiter.map(str::to_owned),
                continuation_token: token,
                max_keys: Some(most),
                ..ListObjectsV2Input::default()
            };
            let page = page(&objects, input, &Faults::default(), fault);
            let keys = page.contents.unwrap_or_default().into_iter().filter_map(|object| object.key);
            let prefixes = page.common_prefixes.unwrap_or_default().into_iter().filter_map(|common| common.prefix);
            let mut names: Vec<_> = keys.chain(prefixes).collect();
            names.sort();
            seen.push(format!("{} {}", page.key_count.unwrap(), names.join(" ")));
            token = page.next_continuation_token;
            if token.is_none() {
                return seen;
            }
        }
    }

    const KEYS: [&str; 7] = ["a", "b/1", "b/2", "b/c/3", "b/d", "b0", "z"];

    #[test]
    fn pages_hold_every_key_once() {
        assert_eq!(walked(&KEYS, "", None, 3, None), ["3 a b/1 b/2", "3 b/c/3 b/d b0", "1 z"]);
        assert_eq!(walked(&KEYS, "b/", None, 10, None), ["4 b/1 b/2 b/c/3 b/d"]);
        assert_eq!(walked(&KEYS, "", Some("/"), 2, None), ["2 a b/", "2 b0 z"]);
        assert_eq!(walked(&KEYS, "b/", Some("/"), 1, None), ["1 b/1", "1 b/2", "1 b/c/", "1 b/d"]);
    }

    #[test]
    fn pages_go_wrong_as_they_are_told() {
        assert_eq!(walked(&KEYS, "b/", None, 2, Some(Fault::PageRepeats)), ["3 b/1 b/2 b/2", "3 b/c/3 b/d b/d"]);
        assert_eq!(walked(&KEYS, "b/", None, 2, Some(Fault::PageOverlaps)), ["2 b/1 b/2", "4 b/1 b/2 b/c/3 b/d"]);
        assert_eq!(walked(&KEYS, "b/", None, 3, Some(Fault::PageOmits)), ["3 b/1 b/c/3", "1 "]);
    }
}
