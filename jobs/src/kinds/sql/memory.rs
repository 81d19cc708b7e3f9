//! How much memory a query has, and where it goes when that is not enough.
//!
//! DataFusion's operators ask a pool before they grow, and spill to the attempt's scratch directory where the pool says
//! no. What they do not ask for (decoded pages, batches on their way, a row group that is being written, the process
//! itself) needs room beside the pool.

use std::{collections::BTreeMap, num::NonZero, path::Path, sync::Arc};

use datafusion::{
    common::config::ConfigNonZeroUsize,
    error::DataFusionError,
    execution::{
        disk_manager::{DiskManager, DiskManagerMode},
        memory_pool::{FairSpillPool, TrackConsumersPool},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    prelude::SessionConfig,
};

use crate::host::Host;

/// The process itself, its code and its threads.
const PROCESS: u64 = 64 << 20;
/// A smaller pool holds no batch of any operator.
const LEAST: u64 = 16 << 20;

/// The memory of a worker whose job says nothing: three quarters of the host, shared by its workers.
pub fn default_memory(workers: u32) -> Option<u64> {
    Host::here().memory.map(|bytes| bytes / 4 * 3 / u64::from(workers.max(1)))
}

/// What of a worker's memory its query's operators may ask for.
fn pool(memory: u64) -> usize {
    let bytes = (memory.saturating_sub(PROCESS) / 5 * 3).max(LEAST.min(memory));
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// What a query runs in.
pub(super) fn runtime(memory: Option<u64>, scratch: &Path) -> Result<Arc<RuntimeEnv>, DataFusionError> {
    // What stops a spill is a full disk.
    let disk = DiskManager::builder()
        .with_mode(DiskManagerMode::Directories(vec![scratch.to_owned()]))
        .with_max_temp_directory_size(u64::MAX);
    let builder = RuntimeEnvBuilder::new().with_disk_manager_builder(disk);
    let Some(memory) = memory else { return builder.build_arc() };
    let most = NonZero::new(3).expect("3 is not 0");
    builder.with_memory_pool(Arc::new(TrackConsumersPool::new(FairSpillPool::new(pool(memory)), most))).build_arc()
}

/// Sets what operators reserve for the time when they spill, so that those of a worker all together leave room for what
/// they do before; and the rows of a batch, of which some five are held for each spilled file while files are merged, twice
/// and more what is asked of the pool for it. What the user sets is left as it is.
pub(super) fn fit(config: &mut SessionConfig, threads: usize, memory: Option<u64>, options: &BTreeMap<String, String>) {
    const RESERVED: &str = "datafusion.execution.sort_spill_reservation_bytes";
    const BATCH: &str = "datafusion.execution.batch_size";
    let Some(memory) = memory else { return };
    let execution = &mut config.options_mut().execution;
    if !options.contains_key(RESERVED) {
        let share = pool(memory) / (8 * threads.max(1));
        let reserved = &mut execution.sort_spill_reservation_bytes;
        *reserved = share.clamp(1 << 18, *reserved);
    }
    if !options.contains_key(BATCH) {
        let rows = batch(memory / threads.max(1) as u64, execution.batch_size.get());
        execution.batch_size = ConfigNonZeroUsize::try_new(rows).unwrap_or(execution.batch_size);
    }
}

/// Rows of a batch for a thread with so much memory: 2,048 for 256 MiB.
fn batch(memory: u64, most: usize) -> usize {
    const FEWEST: usize = 1024;
    usize::try_from(memory >> 17).unwrap_or(usize::MAX).clamp(FEWEST, most.max(FEWEST))
}

/// The bytes that the writers of many files hold together: the more, the fewer and larger the files are.
pub(super) fn writers(memory: Option<u64>) -> u64 {
    memory.map_or(1 << 30, |memory| (memory / 8).max(1 << 20))
}

/// The bytes of a row group that its writer holds: a sixteenth of the memory, and no more than a reader wants.
pub(super) fn row_group(memory: Option<u64>) -> u64 {
    const MOST: u64 = 128 << 20;
    memory.map_or(MOST, |memory| (memory / 16).clamp(1 << 20, MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_less_memory_a_thread_has_the_fewer_rows_are_in_a_batch() {
        let rows = |memory: u64, threads, options: &BTreeMap<String, String>| {
            let mut config = SessionConfig::new();
            fit(&mut config, threads, Some(memory), options);
            config.options().execution.batch_size.get()
        };
        let none = BTreeMap::new();
        assert_eq!(
            [64 << 10, 512 << 20, 1 << 30, 64 << 30].map(|memory| rows(memory, 2, &none)),
            [1024, 2048, 4096, 8192]
        );
        let set = BTreeMap::from([("datafusion.execution.batch_size".to_owned(), "8192".to_owned())]);
        assert_eq!(rows(512 << 20, 2, &set), 8192);
    }

    #[test]
    fn a_pool_leaves_room_for_what_nobody_asks_for() {
        assert_eq!(pool(512 << 20), (448 << 20) / 5 * 3);
        assert_eq!(pool(64 << 20), 16 << 20);
        assert_eq!(pool(1 << 20), 1 << 20);
        assert_eq!((row_group(None), row_group(Some(512 << 20)), row_group(Some(1))), (128 << 20, 32 << 20, 1 << 20));
    }
}
