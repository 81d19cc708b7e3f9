//! What differs between two snapshots of a dataset: a merge of their manifests, both in the order of their keys, so that
//! memory holds a piece of each however long they are.

use crate::{
    snapshot::{self, Object, SnapshotError, SnapshotRecord},
    volume::Volume,
};

/// A key that the two snapshots do not agree about. An ETag or a version id that changed over the same bytes is no
/// difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Only the later snapshot has it.
    Added(Object),
    /// Only the earlier snapshot has it.
    Removed(Object),
    /// Both have it, with other bytes.
    Changed {
        /// As the earlier snapshot has it.
        before: Object,
        /// As the later snapshot has it.
        after: Object,
    },
}

/// Objects and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub objects: u64,
    /// Of all of them.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, object: &Object) {
        self.objects += 1;
        self.bytes += object.size;
    }
}

/// What the differences come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Only in the later snapshot.
    pub added: Tally,
    /// Only in the earlier snapshot.
    pub removed: Tally,
    /// In both with other bytes, as the later snapshot has them.
    pub changed: Tally,
    /// What the earlier snapshot has of the changed ones.
    pub changed_bytes_before: u64,
    /// The same in both.
    pub unchanged: Tally,
}

/// The two snapshots that are meant: `to`, or else the latest; `from`, or else the one that was staged before `to`.
///
/// # Errors
/// [`SnapshotError::NoneBefore`] if nothing was staged before.
pub fn pair(
    volume: &Volume,
    name: &str,
    from: Option<&str>,
    to: Option<&str>,
) -> Result<(SnapshotRecord, SnapshotRecord), SnapshotError> {
    let to = snapshot::find(volume, name, to)?;
    let from = match from {
        Some(id) => snapshot::find(volume, name, Some(id))?,
        None => {
            let before = snapshot::records(volume, name)?.into_iter().take_while(|record| record.id != to.id);
            before.last().ok_or_else(|| SnapshotError::NoneBefore { name: name.to_owned(), id: to.id.clone() })?
        }
    };
    Ok((from, to))
}

/// The differences from one snapshot to another, in the order of their keys. Both manifests have been read to their
/// ends by then, and are those of their records.
pub fn changes(volume: &Volume, from: &SnapshotRecord, to: &SnapshotRecord) -> Result<Changes, SnapshotError> {
    let open = |record: &SnapshotRecord| -> Result<Side, SnapshotError> {
        snapshot::check_manifest(volume, record)?;
        let objects = snapshot::objects(&record.dir(volume)?.join(snapshot::MANIFEST))?;
        let mut side = Side { objects: Box::new(objects), next: None };
        side.advance()?;
        Ok(side)
    };
    Ok(Changes { before: open(from)?, after: open(to)?, totals: Totals::default() })
}

/// Yields the differences, and counts as it goes.
pub struct Changes {
    before: Side,
    after: Side,
    totals: Totals,
}

struct Side {
    objects: Box<dyn Iterator<Item = Result<Object, SnapshotError>>>,
    next: Option<Object>,
}

impl Side {
    fn advance(&mut self) -> Result<Option<Object>, SnapshotError> {
        let next = self.objects.next().transpose()?;
        Ok(std::mem::replace(&mut self.next, next))
    }
}

impl Changes {
    /// What was gone through so far: all of it, once there is no next.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    fn find(&mut self) -> Result<Option<Change>, SnapshotError> {
        let Self { before, after, totals } = self;
        loop {
            let (is_before, is_after) = match (&before.next, &after.next) {
                (None, None) => return Ok(None),
                (Some(old), Some(new)) => (old.key <= new.key, new.key <= old.key),
                (old, new) => (old.is_some(), new.is_some()),
            };
            let old = if is_before { before.advance()? } else { None };
            let new = if is_after { after.advance()? } else { None };
            match (old, new) {
                (Some(old), Some(new)) if (old.size, old.checksum) == (new.size, new.checksum) => {
                    totals.unchanged.add(&new);
                }
                (Some(old), Some(new)) => {
                    totals.changed.add(&new);
                    totals.changed_bytes_before += old.size;
                    return Ok(Some(Change::Changed { before: old, after: new }));
                }
                (Some(old), None) => {
                    totals.removed.add(&old);
                    return Ok(Some(Change::Removed(old)));
                }
                (None, Some(new)) => {
                    totals.added.add(&new);
                    return Ok(Some(Change::Added(new)));
                }
                (None, None) => return Ok(None),
            }
        }
    }
}

impl Iterator for Changes {
    type Item = Result<Change, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.find().transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::checksum::Crc64;

    fn object(key: &str, size: u64) -> Object {
        let (key, path) = (key.to_owned(), key.to_owned());
        Object { key, path, size, etag: None, version_id: None, checksum: Crc64(size), held: None }
    }

    fn side(objects: &BTreeMap<String, u64>) -> Side {
        let objects: Vec<_> = objects.iter().map(|(key, size)| Ok(object(key, *size))).collect();
        let mut side = Side { objects: Box::new(objects.into_iter()), next: None };
        side.advance().unwrap();
        side
    }

    #[test]
    fn an_etag_alone_is_no_difference_and_a_checksum_alone_is_one() {
        let of = |etag: Option<&str>, checksum| {
            let object = Object { etag: etag.map(str::to_owned), checksum: Crc64(checksum), ..object("k", 5) };
            Side { objects: Box::new(std::iter::empty()), next: Some(object) }
        };
        let changes = |before, after| Changes { before, after, totals: Totals::default() };
        let mut same = changes(of(Some("1"), 7), of(Some("2"), 7));
        assert!(same.next().is_none());
        assert_eq!(same.totals().unchanged, Tally { objects: 1, bytes: 5 });
        assert!(matches!(changes(of(None, 7), of(None, 8)).next(), Some(Ok(Change::Changed { .. }))));
    }

    proptest! {
        /// Against two maps in memory.
        #[test]
        fn the_merge_finds_what_maps_find(
            old in prop::collection::btree_map("[a-c/]{0,3}", 0_u64..3, 0..20),
            new in prop::collection::btree_map("[a-c/]{0,3}", 0_u64..3, 0..20),
        ) {
            let mut changes = Changes { before: side(&old), after: side(&new), totals: Totals::default() };
            let found: Vec<_> = changes.by_ref().map(Result::unwrap).collect();
            let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
            keys.sort();
            keys.dedup();
            let wanted: Vec<_> = keys.into_iter().filter_map(|key| match (old.get(key), new.get(key)) {
                (Some(old), Some(new)) if old == new => None,
                (Some(old), Some(new)) => {
                    Some(Change::Changed { before: object(key, *old), after: object(key, *new) })
                }
                (Some(old), None) => Some(Change::Removed(object(key, *old))),
                (None, new) => new.map(|new| Change::Added(object(key, *new))),
            }).collect();
            prop_assert_eq!(found, wanted);
            let totals = changes.totals();
            prop_assert_eq!(totals.added.objects + totals.changed.objects + totals.unchanged.objects, new.len() as u64);
            prop_assert_eq!(totals.removed.objects + totals.changed.objects + totals.unchanged.objects, old.len() as u64);
            let bytes = |side: &BTreeMap<String, u64>| side.values().sum::<u64>();
            prop_assert_eq!(totals.added.bytes + totals.changed.bytes + totals.unchanged.bytes, bytes(&new));
            prop_assert_eq!(totals.removed.bytes + totals.changed_bytes_before + totals.unchanged.bytes, bytes(&old));
        }
    }
}
