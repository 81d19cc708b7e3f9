//! Keys and values behind each other, without an allocation of their own.
//!
//! They lie in chunks, so that no more room is taken than they need: a vector that grows is there twice.

/// A chunk takes no more pairs once it is so long.
const CHUNK: usize = 1 << 20;
/// What the last pair of a chunk has beyond that, mostly.
const BEYOND: usize = 64 << 10;
/// As many as have a number beside a place in one of them.
const MOST_CHUNKS: usize = 1 << 12;
/// Before a key lie its length and that of its value.
const LENGTHS: usize = 2 * size_of::<u32>();

#[derive(Default)]
pub(super) struct Arena {
    chunks: Vec<Vec<u8>>,
    /// Chunks before the one that is filled.
    full: usize,
    /// In these.
    bytes: usize,
}

impl Arena {
    /// Appends a pair; where it is, and its key. None if its key or its value is longer than a number of 32 bits tells.
    pub(super) fn push(
        &mut self,
        key: impl FnOnce(&mut Vec<u8>),
        value: impl FnOnce(&mut Vec<u8>),
    ) -> Option<(u32, &[u8])> {
        if let Some(chunk) = self.chunks.get(self.full).filter(|chunk| chunk.len() >= CHUNK) {
            self.bytes += chunk.len();
            self.full += 1;
        }
        if self.full == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(CHUNK + BEYOND));
        }
        let chunk = &mut self.chunks[self.full];
        let (at, start) = (self.full << 20 | chunk.len(), chunk.len() + LENGTHS);
        chunk.extend_from_slice(&[0; LENGTHS]);
        key(chunk);
        let behind = chunk.len();
        value(chunk);
        let lengths = [behind - start, chunk.len() - behind];
        for (length, into) in lengths.into_iter().zip(chunk[start - LENGTHS..].chunks_mut(size_of::<u32>())) {
            into.copy_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
        }
        Some((at as u32, &chunk[start..behind]))
    }

    /// The key and the value at a place.
    pub(super) fn pair(&self, at: u32) -> (&[u8], &[u8]) {
        let (lengths, rest) = self.chunks[at as usize >> 20][at as usize % CHUNK..].split_at(LENGTHS);
        let length = |at: usize| {
            let length = lengths[at..].first_chunk().map_or(0, |length| u32::from_le_bytes(*length));
            length as usize
        };
        let (key, rest) = rest.split_at(length(0));
        (key, &rest[..length(size_of::<u32>())])
    }

    /// What it holds.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.chunks.get(self.full).map_or(0, Vec::len)
    }

    /// Whether there may be no place for another pair.
    pub(super) fn is_full(&self) -> bool {
        self.full + 1 >= MOST_CHUNKS
    }

    /// Forgets all pairs; the chunks stay for others, but not those of a pair that was unusually long.
    pub(super) fn clear(&mut self) {
        self.chunks.retain(|chunk| chunk.capacity() <= CHUNK + BEYOND);
        self.chunks.iter_mut().for_each(Vec::clear);
        (self.full, self.bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_found_again_in_whatever_chunk() {
        let mut arena = Arena::default();
        for _ in 0..2 {
            let lengths = [0, 1, 100, CHUNK - 150, 0, 7, 3 * CHUNK, 5, CHUNK - 1, CHUNK, 0];
            let text = |n: usize| vec![n as u8; lengths[n]];
            let places: Vec<_> = (0..lengths.len())
                .map(|n| {
                    let (key, value) = (text(n), text(lengths.len() - 1 - n));
                    let (at, pushed) = arena
                        .push(|bytes| bytes.extend_from_slice(&key), |bytes| bytes.extend_from_slice(&value))
                        .unwrap();
                    assert!(pushed == key.as_slice());
                    at
                })
                .collect();
            assert!(places.is_sorted() && arena.full > 2);
            assert_eq!(arena.bytes(), 2 * lengths.iter().sum::<usize>() + lengths.len() * LENGTHS);
            for (n, at) in places.into_iter().enumerate() {
                assert!(arena.pair(at) == (&text(n)[..], &text(lengths.len() - 1 - n)[..]), "{n}");
            }
            arena.clear();
            assert_eq!(arena.bytes(), 0);
        }
    }
}
