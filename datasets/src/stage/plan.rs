//! What is to be copied: a pure function of what the source lists and what the volume holds.
//!
//! Both are in the order of their keys and may be longer than memory, so that the plan is a merge of two iterators, and
//! lies in a file, cut into chunks.

use sha2::{Digest, Sha256};

use super::rows::{Row, Shared};
use crate::{
    keymap::Mapping,
    snapshot::{Object, hex},
    source::Listed,
};

/// A row for each listed object: fetched, or shared with an object that is on the volume.
///
/// `present` are the objects of snapshots, and `place` says where one of the object's is, unless it holds too little. An
/// object is unchanged if key, size and ETag are; without an ETag nothing is.
pub(super) fn rows<'a, E>(
    listing: impl Iterator<Item = Result<Listed, E>> + 'a,
    present: Vec<impl Iterator<Item = Result<Object, E>> + 'a>,
    mapping: &'a Mapping,
    place: impl Fn(usize, &Object) -> Option<String> + 'a,
) -> impl Iterator<Item = Result<Row, E>> + 'a {
    let mut present: Vec<_> = present.into_iter().map(|objects| (objects, None::<Object>)).collect();
    listing.map(move |object| {
        let object = object?;
        let mut shared = None;
        for (snapshot, (objects, held)) in present.iter_mut().enumerate() {
            while held.as_ref().is_none_or(|held| held.key < object.key) {
                match objects.next().transpose()? {
                    None => break,
                    next => *held = next,
                }
            }
            let same = |held: &&Object| (&held.key, held.size, &held.etag) == (&object.key, object.size, &object.etag);
            let unchanged = held.as_ref().filter(same).filter(|_| object.etag.is_some() && shared.is_none());
            let Some((held, from)) = unchanged.and_then(|held| Some((held, place(snapshot, held)?))) else { continue };
            let (checksum, version_id) = (held.checksum, held.version_id.clone());
            shared = Some(Shared { from, checksum, version_id, held: held.held.clone() });
        }
        Ok(Row { path: mapping.path(&object.key), object, shared })
    })
}

/// The digest of a listing. Equal digests mean that nothing has changed, as far as a listing can tell.
#[derive(Clone, Default)]
pub(super) struct ListingDigest(Sha256);

impl ListingDigest {
    pub(super) fn see(&mut self, key: &str, size: u64, etag: Option<&str>) {
        let etag = etag.unwrap_or_default();
        self.0.update((key.len() as u64).to_le_bytes());
        self.0.update(key.as_bytes());
        self.0.update(size.to_le_bytes());
        self.0.update((etag.len() as u64).to_le_bytes());
        self.0.update(etag.as_bytes());
    }

    pub(super) fn finish(self) -> String {
        hex(&self.0.finalize()[..16])
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::checksum::Crc64;

    fn listed(key: &str, etag: Option<&str>) -> Listed {
        Listed { key: key.into(), size: 1, etag: etag.map(Into::into), version_id: None }
    }

    fn held(key: &str, etag: Option<&str>) -> Object {
        let (key, path) = (key.to_owned(), key.to_owned());
        Object { key, path, size: 1, etag: etag.map(Into::into), version_id: None, checksum: Crc64(7), held: None }
    }

    fn shared(listing: Vec<Listed>, present: Vec<Object>) -> Vec<Option<String>> {
        shared_of(listing, vec![present])
    }

    fn shared_of(listing: Vec<Listed>, present: Vec<Vec<Object>>) -> Vec<Option<String>> {
        let mapping = Mapping::default();
        let present = present.into_iter().map(|objects| objects.into_iter().map(Ok)).collect();
        let rows = rows::<Infallible>(listing.into_iter().map(Ok), present, &mapping, |snapshot, object| {
            object.held.is_none().then(|| format!("{}/{}", ["old", "older"][snapshot], object.path))
        });
        rows.map(|row| row.unwrap().shared.map(|shared| shared.from)).collect()
    }

    #[test]
    fn only_what_changed_is_fetched() {
        let present = ["changed", "gone", "same", "smaller"].map(|key| held(key, Some("1")));
        let mut listing = [("changed", "2"), ("new", "1"), ("same", "1"), ("smaller", "1")]
            .map(|(key, etag)| listed(key, Some(etag)))
            .to_vec();
        listing[3].size = 0;
        assert_eq!(shared(listing, present.to_vec()), [None, None, Some("old/same".to_owned()), None]);
    }

    #[test]
    fn without_an_etag_nothing_counts_as_unchanged() {
        assert_eq!(shared(vec![listed("a", None)], vec![held("a", None)]), [None]);
    }

    #[test]
    fn what_one_snapshot_holds_too_little_of_is_shared_with_another() {
        let keys = ["a", "b", "c"];
        let part = |key| Object { held: Some(vec![]), ..held(key, Some("1")) };
        let listing = || keys.map(|key| listed(key, Some("1"))).to_vec();
        let present = || vec![part("a"), held("b", Some("1")), part("c")];
        assert_eq!(shared(listing(), present()), [None, Some("old/b".to_owned()), None]);
        let older = keys.map(|key| held(key, Some(if key == "c" { "0" } else { "1" }))).to_vec();
        let both = shared_of(listing(), vec![present(), older]);
        assert_eq!(both, [Some("older/a".to_owned()), Some("old/b".to_owned()), None]);
    }

    #[test]
    fn the_digest_tells_listings_apart() {
        let of = |rows: &[(&str, u64, Option<&str>)]| {
            let mut digest = ListingDigest::default();
            rows.iter().for_each(|(key, size, etag)| digest.see(key, *size, *etag));
            digest.finish()
        };
        assert_ne!(of(&[("a", 1, Some("b"))]), of(&[("ab", 1, None)]));
        assert_ne!(of(&[("a", 1, None)]), of(&[("a", 2, None)]));
        assert_eq!(of(&[("a", 1, None)]), of(&[("a", 1, None)]));
    }
}
