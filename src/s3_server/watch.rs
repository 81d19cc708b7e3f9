//! What a test may know of the server's work, and the gate at which a silent server holds everything up.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

/// How often the server was asked.
#[derive(Debug, Default)]
pub struct Counts {
    pub(super) gets: AtomicU64,
    pub(super) heads: AtomicU64,
    pub(super) attributes: AtomicU64,
    pub(super) lists: AtomicU64,
    lists_under_way: AtomicU64,
    most_lists: AtomicU64,
    pub(super) parts: AtomicU64,
    bytes: AtomicU64,
    answers: Mutex<Answers>,
}

/// A page of a listing that is being made.
pub(super) struct Listing<'a>(&'a Counts);

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        self.0.lists_under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers by what was asked: a key, and a range where one was asked for.
#[derive(Debug, Default)]
struct Answers {
    whole: BTreeMap<String, u64>,
    under_way: BTreeMap<String, u64>,
}

impl Counts {
    /// GETs of objects, those that failed too.
    pub fn gets(&self) -> u64 {
        self.gets.load(Ordering::Relaxed)
    }

    /// HEADs of objects.
    pub fn heads(&self) -> u64 {
        self.heads.load(Ordering::Relaxed)
    }

    /// GetObjectAttributes.
    pub fn attributes(&self) -> u64 {
        self.attributes.load(Ordering::Relaxed)
    }

    /// Pages of listings.
    pub fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    /// Pages of listings that were asked for at once, at most.
    pub fn most_lists(&self) -> u64 {
        self.most_lists.load(Ordering::Relaxed)
    }

    /// A page is asked for; until what is returned is dropped.
    pub(super) fn list(&self) -> Listing<'_> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        let now = self.lists_under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_lists.fetch_max(now, Ordering::Relaxed);
        Listing(self)
    }

    /// Parts of multipart uploads.
    pub fn parts(&self) -> u64 {
        self.parts.load(Ordering::Relaxed)
    }

    /// Bytes of bodies that were sent.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bodies that were sent to their end, by `key` or `key first-last`.
    pub fn sent_whole(&self) -> BTreeMap<String, u64> {
        self.answers().whole.clone()
    }

    /// GETs that were begun and not answered to their end, by the same names.
    pub fn under_way(&self) -> BTreeMap<String, u64> {
        self.answers().under_way.clone()
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        // Under the lock maps are changed, which does not panic.
        self.answers.lock().expect("no holder panics")
    }
}

/// One GET from its beginning to the end of its answer.
#[derive(Debug)]
pub(super) struct Asked {
    counts: Arc<Counts>,
    what: String,
    open: bool,
}

impl Asked {
    pub(super) fn new(counts: &Arc<Counts>, what: String) -> Self {
        *counts.answers().under_way.entry(what.clone()).or_default() += 1;
        Self { counts: Arc::clone(counts), what, open: true }
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.counts.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// All of it was sent.
    pub(super) fn answered(&mut self) {
        if self.close() {
            *self.counts.answers().whole.entry(self.what.clone()).or_default() += 1;
        }
    }

    fn close(&mut self) -> bool {
        let was_open = std::mem::take(&mut self.open);
        if was_open {
            let mut answers = self.counts.answers();
            if let Some(count) = answers.under_way.get_mut(&self.what) {
                *count -= 1;
                if *count == 0 {
                    answers.under_way.remove(&self.what);
                }
            }
        }
        was_open
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.close();
    }
}

/// Everything that the server sends passes here.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    open: watch::Receiver<bool>,
}

impl Gate {
    pub(super) fn new() -> (watch::Sender<bool>, Self) {
        let (sender, open) = watch::channel(true);
        (sender, Self { open })
    }

    pub(super) async fn passed(&self) {
        // An error means that the server has ended, and its connections with it.
        let _ = self.open.clone().wait_for(|open| *open).await;
    }
}
