//! Words: where they are in a text, and how often each was there.
//!
//! A text is gone through in blocks of 64 bytes. Which of a block's bytes are white space is worked out for eight bytes at
//! once, without a branch, and each word then costs one step. Words are looked up some hundred at a time, so that the
//! processor waits for many places of a large table at once.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;

use super::shuffle::{Sorted, partition};
use crate::kinds::TaskError;

/// Words that are looked up together.
const TOGETHER: usize = 256;
/// A table has so many places at first, and always a power of two.
const PLACES: usize = 1 << 10;
/// The lowest, and the highest bit of each byte.
const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = LOW << 7;

/// Space, `\t`, `\n`, `\v`, `\f`, `\r`.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// Which of eight bytes are white space, the first one as the lowest bit.
fn spaces_of_eight(bytes: [u8; 8]) -> u64 {
    let bytes = u64::from_le_bytes(bytes);
    // No sum of seven bits carries into the next byte.
    let low = bytes & !HIGH;
    let is_control = (low + LOW * (0x80 - 0x09)) & !(low + LOW * (0x80 - 0x0e));
    let is_blank = !((low ^ (LOW * 0x20)) + LOW * 0x7f);
    let found = (is_control | is_blank) & !bytes & HIGH;
    // Brings the highest bits of all bytes together in the highest byte.
    (found >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

fn spaces(block: &[u8; 64]) -> u64 {
    let (eights, _) = block.as_chunks();
    (0..8).zip(eights).fold(0, |spaces, (at, eight)| spaces | spaces_of_eight(*eight) << (8 * at))
}

/// Calls `take` with the start and the end of each run of bytes other than white space.
fn each_word(text: &[u8], mut take: impl FnMut(usize, usize)) {
    let mut start = 0;
    let mut ends = |end: usize| {
        if end > start {
            take(start, end);
        }
        start = end + 1;
    };
    let (blocks, tail) = text.as_chunks();
    for (at, block) in blocks.iter().enumerate() {
        let mut spaces = spaces(block);
        while spaces != 0 {
            ends(64 * at + spaces.trailing_zeros() as usize);
            spaces &= spaces - 1;
        }
    }
    let at = text.len() - tail.len();
    tail.iter().enumerate().filter(|(_, byte)| is_space(**byte)).for_each(|(n, _)| ends(at + n));
    ends(text.len());
}

/// The first eight bytes of a word, those that it lacks as zeros.
#[inline]
fn first_bytes(text: &[u8], start: usize, end: usize) -> u64 {
    let length = end - start;
    match text[start..].first_chunk() {
        Some(bytes) if length >= 8 => u64::from_le_bytes(*bytes),
        Some(bytes) => u64::from_le_bytes(*bytes) & ((1 << (8 * length)) - 1),
        None => text[start..end].iter().rev().fold(0, |first, byte| first << 8 | u64::from(*byte)),
    }
}

/// How often each word was there: a hash table that is probed place after place.
pub(super) struct Words {
    places: Vec<Place>,
    used: usize,
    /// The words, behind each other.
    arena: Vec<u8>,
    hasher: RandomState,
    total: u64,
}

/// A word of up to eight bytes is known by them and its length, without a look at the arena. Without a count it is free.
#[derive(Clone, Copy, Default)]
struct Place {
    first: u64,
    length: usize,
    at: usize,
    count: u64,
}

/// A word of a text on its way into the table.
#[derive(Clone, Copy, Default)]
struct Found {
    first: u64,
    hash: u64,
    start: usize,
    end: usize,
}

impl Words {
    pub(super) fn new() -> Self {
        let places = vec![Place::default(); PLACES];
        Self { places, used: 0, arena: Vec::new(), hasher: RandomState::default(), total: 0 }
    }

    /// Counts a text's words.
    pub(super) fn count(&mut self, text: &[u8]) {
        let hasher = self.hasher.clone();
        let mut together = [Found::default(); TOGETHER];
        let mut held = 0;
        each_word(text, |start, end| {
            let first = first_bytes(text, start, end);
            together[held] = Found { first, hash: hash(&hasher, first, &text[start..end]), start, end };
            held += 1;
            if held == TOGETHER {
                together.iter().for_each(|found| self.add(text, found));
                held = 0;
            }
        });
        together[..held].iter().for_each(|found| self.add(text, found));
    }

    /// All that were counted.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that the table takes.
    pub(super) fn held(&self) -> usize {
        size_of_val(&*self.places) + self.arena.len()
    }

    /// Forgets all words; what they took stays for others.
    pub(super) fn clear(&mut self) {
        self.places.fill(Place::default());
        self.arena.clear();
        self.used = 0;
    }

    #[inline]
    fn add(&mut self, text: &[u8], found: &Found) {
        self.total += 1;
        let (length, last) = (found.end - found.start, self.places.len() - 1);
        let mut at = found.hash as usize & last;
        loop {
            let place = &mut self.places[at];
            if place.first == found.first
                && place.length == length
                && (length <= 8 || self.arena[place.at..place.at + length] == text[found.start..found.end])
            {
                place.count += 1;
                return;
            }
            if place.count == 0 {
                return self.insert(at, &text[found.start..found.end], found.first);
            }
            at = (at + 1) & last;
        }
    }

    #[cold]
    fn insert(&mut self, at: usize, word: &[u8], first: u64) {
        self.places[at] = Place { first, length: word.len(), at: self.arena.len(), count: 1 };
        self.arena.extend_from_slice(word);
        self.used += 1;
        if self.used > self.places.len() / 8 * 5 {
            self.grow();
        }
    }

    fn grow(&mut self) {
        let last = 2 * self.places.len() - 1;
        let places = std::mem::replace(&mut self.places, vec![Place::default(); last + 1]);
        for place in places.into_iter().filter(|place| place.count > 0) {
            let mut at = hash(&self.hasher, place.first, self.word(&place)) as usize & last;
            while self.places[at].count > 0 {
                at = (at + 1) & last;
            }
            self.places[at] = place;
        }
    }

    fn word(&self, place: &Place) -> &[u8] {
        &self.arena[place.at..place.at + place.length]
    }
}

#[inline]
fn hash(hasher: &RandomState, first: u64, word: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    match word.len() <= 8 {
        true => {
            hasher.write_u64(first);
            hasher.write_usize(word.len());
        }
        false => hasher.write(word),
    }
    hasher.finish()
}

impl Sorted for Words {
    fn each(
        &self,
        partitions: u32,
        mut take: impl FnMut(u32, &[u8], &[u8]) -> Result<(), TaskError>,
    ) -> Result<(), TaskError> {
        let used = self.places.iter().filter(|place| place.count > 0);
        let mut order: Vec<_> = used.map(|place| (partition(self.word(place), partitions), place)).collect();
        order.sort_unstable_by(|(a_partition, a), (b_partition, b)| {
            let by_first = a_partition.cmp(b_partition).then(a.first.swap_bytes().cmp(&b.first.swap_bytes()));
            by_first.then_with(|| self.word(a).cmp(self.word(b)))
        });
        order
            .into_iter()
            .try_for_each(|(partition, place)| take(partition, self.word(place), &place.count.to_le_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// By partition and word.
    fn counted(words: &Words, partitions: u32) -> Vec<(u32, Vec<u8>, u64)> {
        let mut found = Vec::new();
        let take = |partition, word: &[u8], count: &[u8]| {
            found.push((partition, word.to_vec(), u64::from_le_bytes(count.try_into().unwrap())));
            Ok(())
        };
        words.each(partitions, take).unwrap();
        found
    }

    fn expected(text: &[u8], partitions: u32) -> Vec<(u32, Vec<u8>, u64)> {
        let mut counts = BTreeMap::<_, u64>::new();
        for word in text.split(|byte| is_space(*byte)).filter(|word| !word.is_empty()) {
            *counts.entry((partition(word, partitions), word.to_vec())).or_default() += 1;
        }
        counts.into_iter().map(|((partition, word), count)| (partition, word, count)).collect()
    }

    #[test]
    fn every_byte_is_told_from_white_space_at_every_place() {
        for (byte, at) in (0..=u8::MAX).flat_map(|byte| (0..8).map(move |at| (byte, at))) {
            for around in [b'a', b' ', 0xff, 0] {
                let mut bytes = [around; 8];
                bytes[at] = byte;
                let expected = bytes.iter().rev().fold(0, |spaces, byte| spaces << 1 | u64::from(is_space(*byte)));
                assert_eq!(spaces_of_eight(bytes), expected, "{bytes:?}");
            }
        }
    }

    #[test]
    fn many_words_are_counted_and_forgotten() {
        let text: String = (0..100_000).map(|n| format!("{} a-longer-word-{}\n", n % 7_000, n % 11_000)).collect();
        let mut words = Words::new();
        for _ in 0..2 {
            words.count(text.as_bytes());
            assert!(counted(&words, 3) == expected(text.as_bytes(), 3));
            words.clear();
            assert_eq!(counted(&words, 3), []);
        }
        assert_eq!(words.total(), 400_000);
    }

    proptest! {
        #[test]
        fn words_are_what_a_plain_split_gives(
            texts in prop::collection::vec("([ab\0é\u{80}\u{89}\u{a0}]{0,20}[ \t\n\u{b}\r]{0,3}){0,20}", 0..4),
        ) {
            let mut words = Words::new();
            texts.iter().for_each(|text| words.count(text.as_bytes()));
            let all = texts.iter().flat_map(|text| [text.as_bytes(), b" "].concat()).collect::<Vec<_>>();
            prop_assert_eq!(counted(&words, 2), expected(&all, 2));
        }
    }
}
