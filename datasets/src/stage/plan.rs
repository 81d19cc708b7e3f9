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
/// An object is unchanged if key, size and ETag are; without an ETag nothing is. One that is held in part is never
/// shared as a whole.
pub(super) fn rows<'a, E>(
    listing: impl Iterator<Item = Result<Listed, E>> + 'a,
    mut present: impl Iterator<Item = Result<Object, E>> + 'a,
    mapping: &'a Mapping,
    place: impl Fn(&Object) -> String + 'a,
) -> impl Iterator<Item = Result<Row, E>> + 'a {
    let mut held: Option<Object> = None;
    listing.map(move |object| {
        let object = object?;
        while held.as_ref().is_none_or(|held| held.key < object.key) {
            match present.next().transpose()? {
                None => break,
                next => held = next,
            }
        }
        let same = |held: &&Object| (&held.key, held.size, &held.etag) == (&object.key, object.size, &object.etag);
        let unchanged = held.as_ref().filter(same).filter(|held| object.etag.is_some() && held.held.is_none());
        let shared = unchanged.map(|held| Shared {
            from: place(held),
            checksum: held.checksum,
            version_id: held.version_id.clone(),
        });
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
        let mapping = Mapping::default();
        let rows = rows::<Infallible>(listing.into_iter().map(Ok), present.into_iter().map(Ok), &mapping, |object| {
            format!("old/{}", object.path)
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
    fn a_part_is_not_shared_as_a_whole() {
        let part = Object { held: Some(vec![]), ..held("a", Some("1")) };
        assert_eq!(shared(vec![listed("a", Some("1"))], vec![part]), [None]);
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
