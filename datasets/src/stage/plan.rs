//! What is to be copied: a pure function of what the source lists and what the volume holds.

use sha2::{Digest, Sha256};

use crate::{
    keymap,
    snapshot::{Manifest, Object, hex},
    source::Listed,
};

/// Where the bytes of one object come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// From the source, to this path below `data/`.
    Fetch { object: Listed, path: String },
    /// From the snapshot before, unchanged.
    Share { from: Object, path: String },
}

/// One copy for each listed object, in the listing's order.
///
/// An object is unchanged if key, size and ETag are; without an ETag nothing is. One that is held in part is never
/// shared as a whole.
pub(super) fn copies(listing: &[Listed], present: &Manifest) -> Vec<Copy> {
    let paths = keymap::paths(listing.iter().map(|object| object.key.as_str()));
    let copy = |(object, path): (&Listed, String)| {
        let held = present.objects.binary_search_by(|held| held.key.cmp(&object.key)).ok();
        let unchanged = held
            .map(|at| &present.objects[at])
            .filter(|held| held.held.is_none())
            .filter(|held| object.etag.is_some() && (held.size, &held.etag) == (object.size, &object.etag));
        match unchanged {
            Some(held) => Copy::Share { from: held.clone(), path },
            None => Copy::Fetch { object: object.clone(), path },
        }
    };
    listing.iter().zip(paths).map(copy).collect()
}

/// The digest of a listing. Equal digests mean that nothing has changed, as far as a listing can tell.
pub(super) fn digest<'a>(listing: impl IntoIterator<Item = (&'a str, u64, Option<&'a str>)>) -> String {
    let mut digest = Sha256::new();
    for (key, size, etag) in listing {
        digest.update((key.len() as u64).to_le_bytes());
        digest.update(key.as_bytes());
        digest.update(size.to_le_bytes());
        let etag = etag.unwrap_or_default();
        digest.update((etag.len() as u64).to_le_bytes());
        digest.update(etag.as_bytes());
    }
    hex(&digest.finalize()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::Crc64;

    fn listed(key: &str, etag: Option<&str>) -> Listed {
        Listed { key: key.into(), size: 1, etag: etag.map(Into::into), version_id: None }
    }

    #[test]
    fn only_what_changed_is_fetched() {
        let held = |key: &str, etag: &str| Object {
            key: key.into(),
            path: key.into(),
            size: 1,
            etag: Some(etag.into()),
            version_id: None,
            checksum: Crc64(0),
            held: None,
        };
        let present = Manifest { objects: vec![held("changed", "1"), held("gone", "1"), held("same", "1")] };
        let listing = [listed("changed", Some("2")), listed("new", Some("1")), listed("same", Some("1"))];
        let plan = copies(&listing, &present);
        assert_eq!(plan[0], Copy::Fetch { object: listing[0].clone(), path: "changed".into() });
        assert_eq!(plan[1], Copy::Fetch { object: listing[1].clone(), path: "new".into() });
        assert_eq!(plan[2], Copy::Share { from: present.objects[2].clone(), path: "same".into() });
    }

    #[test]
    fn a_part_is_not_shared_as_a_whole() {
        let (key, path, etag) = ("a".into(), "a".into(), Some("1".into()));
        let whole = Object { key, path, size: 1, etag, version_id: None, checksum: Crc64(0), held: None };
        let part = Object { held: Some(vec![]), ..whole.clone() };
        let plan = |object| copies(&[listed("a", Some("1"))], &Manifest { objects: vec![object] });
        assert!(matches!(plan(whole)[0], Copy::Share { .. }));
        assert!(matches!(plan(part)[0], Copy::Fetch { .. }));
    }

    #[test]
    fn without_an_etag_nothing_counts_as_unchanged() {
        let (key, path) = ("a".into(), "a".into());
        let object = Object { key, path, size: 1, etag: None, version_id: None, checksum: Crc64(0), held: None };
        let plan = copies(&[listed("a", None)], &Manifest { objects: vec![object] });
        assert!(matches!(plan[0], Copy::Fetch { .. }));
    }
}
