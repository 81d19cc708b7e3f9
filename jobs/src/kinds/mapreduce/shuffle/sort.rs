//! The order of pairs: by partition, then by key, then as they came.
//!
//! A pair is one number of 128 bits: its partition, the first eight bytes of its key, and its place, from the highest bits
//! on. Sorting these numbers looks at no key. Where many keys begin alike, the same is done again with their next eight
//! bytes, so that a key is fetched from memory once for eight of its bytes, and not at every comparison.

use super::prefix;

/// Fewer pairs than this whose keys begin alike are sorted by comparing the keys.
const FEW: usize = 8;
/// What stands where the partition was of a key that goes on beyond the eight bytes that are looked at.
const GOES_ON: u32 = 9;
/// Keys that are alike up to here are compared, so that nobody's keys take the whole stack.
const DEEP: usize = 512;

/// A pair in the order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u128);

impl Place {
    pub(super) fn new(partition: u32, key: &[u8], at: u32) -> Self {
        Self::of(partition, prefix(key), at)
    }

    fn of(first: u32, prefix: u64, at: u32) -> Self {
        Self(u128::from(first) << 96 | u128::from(prefix) << 32 | u128::from(at))
    }

    pub(super) fn partition(self) -> u32 {
        (self.0 >> 96) as u32
    }

    /// Where it is, in numbers that rise as pairs come.
    pub(super) fn at(self) -> u32 {
        self.0 as u32
    }
}

/// Sorts pairs, of which `key` tells the keys by their places.
pub(super) fn sort<'k>(places: &mut [Place], key: &impl Fn(u32) -> &'k [u8]) {
    places.sort_unstable();
    each_alike(places, |alike| sort_alike(alike, key, 0));
}

/// Calls `sort` with those that differ in nothing but where they are.
fn each_alike(places: &mut [Place], mut sort: impl FnMut(&mut [Place])) {
    for alike in places.chunk_by_mut(|a, b| a.0 >> 32 == b.0 >> 32) {
        if alike.len() > 1 {
            sort(alike);
        }
    }
}

/// Sorts those of one partition whose keys' eight bytes from `from` on are alike, a key that ends before as if zeros followed.
fn sort_alike<'k>(places: &mut [Place], key: &impl Fn(u32) -> &'k [u8], from: usize) {
    if places.len() < FEW || from >= DEEP {
        return places.sort_unstable_by(|a, b| key(a.at())[from..].cmp(&key(b.at())[from..]).then(a.cmp(b)));
    }
    let (partition, next) = (places[0].partition(), from + 8);
    for place in places.iter_mut() {
        let key = key(place.at());
        // Of those that end here, and so differ in zeros alone, the shorter one is first.
        *place = match key.get(next..) {
            Some(rest) if !rest.is_empty() => Place::of(GOES_ON, prefix(rest), place.at()),
            _ => Place::of((key.len() - from) as u32, 0, place.at()),
        };
    }
    places.sort_unstable();
    each_alike(places, |alike| {
        if alike[0].partition() == GOES_ON {
            sort_alike(alike, key, next);
        }
    });
    places.iter_mut().for_each(|place| *place = Place::of(partition, 0, place.at()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_that_of_partitions_keys_and_places(
            keys in prop::collection::vec((0u32..2, "(\0|a|b|abababab|aaaaaaaa){0,6}"), 0..200),
        ) {
            let key = |at: u32| keys[at as usize].1.as_bytes();
            let mut places: Vec<_> =
                (0..).zip(&keys).map(|(at, (partition, key))| Place::new(*partition, key.as_bytes(), at)).collect();
            sort(&mut places, &key);
            let mut expected: Vec<_> = (0..).zip(&keys).map(|(at, (partition, key))| (*partition, key, at)).collect();
            expected.sort();
            let found: Vec<_> =
                places.iter().map(|place| (place.partition(), &keys[place.at() as usize].1, place.at())).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn equal_keys_of_any_length_stay_as_they_came() {
        let long = "x".repeat(200_000);
        let key = |_: u32| long.as_bytes();
        let mut places: Vec<_> = (0..100).rev().map(|at| Place::new(1, key(at), at)).collect();
        sort(&mut places, &key);
        assert!(places.iter().map(|place| place.at()).eq(0..100));
    }
}
