//! Between map and reduce: keys and values in Arrow IPC streams, one a partition, ordered by key.
//!
//! What a map task holds of its pairs has a bound. What outgrows it is written to the attempt's scratch as a run: a stream
//! of all its partitions, each key behind its partition's number, so that runs are merged in the order of the files that
//! the task leaves by what merges these.

mod arena;
mod files;
mod merge;
mod pairs;
mod sort;
mod stream;

pub(super) use self::{
    files::{Files, Fold, Sorted, add_counts, count, malformed},
    merge::{Merged, merge},
    pairs::Pairs,
};
use twox_hash::XxHash64;

use crate::kinds::TaskContext;

/// Files that are read at once. Each costs a descriptor, a buffer and a batch, in every slot.
const FAN_IN: usize = 128;

/// What a map task holds where the job does not say what memory there is, and its bounds where it does.
const HELD: u64 = 256 << 20;
const LEAST_HELD: u64 = 16 << 20;
const MOST_HELD: u64 = 16 << 30;

/// The partition of a key, by XXH64. With another one `identity::VERSION` has to change, or reused outputs would disagree.
pub(super) fn partition(key: &[u8], partitions: u32) -> u32 {
    match partitions {
        0 | 1 => 0,
        _ => (XxHash64::oneshot(0, key) % u64::from(partitions)) as u32,
    }
}

/// So many bytes of pairs a map task may hold: half of its slot's memory, of which the rest is for all else.
pub(super) fn budget(ctx: &TaskContext<'_>) -> usize {
    let workers = &ctx.job.workers;
    let slots = workers.slots_of(std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32));
    let share = workers.memory.map(|bytes| (bytes / u64::from(slots) / 2).clamp(LEAST_HELD, MOST_HELD));
    share.unwrap_or(HELD) as usize
}

/// The first bytes of a key as a number that orders keys as far as it goes.
fn prefix(key: &[u8]) -> u64 {
    match key.first_chunk() {
        Some(first) => u64::from_be_bytes(*first),
        None => {
            key.iter().zip([56, 48, 40, 32, 24, 16, 8]).fold(0, |prefix, (byte, by)| prefix | u64::from(*byte) << by)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_of_a_key_never_changes() {
        // https://github.com/Cyan4973/xxHash, XXH64 of "" and of "a" with the seed 0
        assert_eq!(partition(b"", u32::MAX), (0xef46_db37_51d8_e999_u64 % u64::from(u32::MAX)) as u32);
        assert_eq!(partition(b"a", 1000), (0xd24e_c4f1_a98c_6e5b_u64 % 1000) as u32);
        assert_eq!(partition(b"a", 1), 0);
    }
}
