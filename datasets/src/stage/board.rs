//! What lanes do next: the one place where the work of a staging is handed out.
//!
//! A lane is a thread that takes a job, does it, and comes again. Small objects are handed out in runs, larger ones one
//! by one with a buffer, the largest in parts, from several objects in turn, so that a file system that takes one write
//! to a file at a time has more than one file. There are [`BUFFERS`] buffers, and so memory does not grow with the
//! number or the size of objects.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use memmap2::MmapMut;

use super::{StageError, crew::Before, large::Large, ledger::At, pace::Pace, rows::Row};
use crate::{
    columns::{self, Columns},
    source::{Listed, SourceError},
};

/// Bytes of a buffer, and of most writes of larger objects.
pub(super) const BUFFER: usize = 4 << 20;
/// Buffers in all: what large transfers hold in memory.
const BUFFERS: usize = 24;
/// An object of up to so many bytes is small: it is held in a lane's own memory.
pub(super) const SMALL: u64 = 256 << 10;
/// Small objects handed out at once.
const RUN: usize = 8;
/// Large objects whose parts are handed out in turn.
const OPEN: usize = 4;
/// Lanes, and so requests in flight.
pub(super) const LANES: usize = 256;
/// So many objects that fail one after the other, none succeeding between, are no accident.
const HOPELESS: u32 = 24;
/// Failures that are told one by one.
const TOLD: usize = 10;

/// Rows that one stager has claimed.
pub(super) struct Chunk {
    pub index: u32,
    pub rows: Vec<Row>,
    pub before: Before,
    left: AtomicUsize,
    failed: AtomicBool,
}

impl Chunk {
    pub(super) fn new(index: u32, rows: Vec<Row>, before: Before) -> Self {
        let left = AtomicUsize::new(rows.len());
        Self { index, rows, before, left, failed: AtomicBool::new(false) }
    }
}

/// One row of a chunk.
#[derive(Clone)]
pub(super) struct Item {
    pub chunk: Arc<Chunk>,
    pub row: usize,
    /// How often all of it was begun before.
    pub tries: u32,
    /// What it has become since it was listed.
    pub now: Option<Listed>,
}

impl Item {
    pub(super) fn row(&self) -> &Row {
        &self.chunk.rows[self.row]
    }

    /// What is to be fetched.
    pub(super) fn object(&self) -> &Listed {
        self.now.as_ref().unwrap_or_else(|| &self.row().object)
    }

    pub(super) fn at(&self) -> At {
        At(self.chunk.index, u32::try_from(self.row).expect("a chunk is short"))
    }
}

/// What a lane does.
pub(super) enum Job {
    /// These rows, each small or shared.
    Small(Arc<Chunk>, Range<usize>),
    /// An object that goes through a buffer.
    Whole(Item, Buffer),
    /// An object that comes in parts: to be looked at, and its file made.
    Open(Item),
    /// A part of one; a short one fits into the lane's own memory.
    Part(Arc<Large>, usize, Option<Buffer>),
    /// To claim more.
    Claim,
}

pub(super) type Buffer = MmapMut;

/// What is to be done, and by how many.
pub(super) struct Board {
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
}

struct State {
    /// The columns of Parquet objects that are taken; none: all.
    columns: Option<Columns>,
    pace: Pace,
    lanes: usize,
    busy: usize,
    small: VecDeque<(Arc<Chunk>, Range<usize>)>,
    big: VecDeque<Item>,
    open: VecDeque<(Arc<Large>, VecDeque<usize>)>,
    /// Large objects that were opened and are not finished.
    opened: usize,
    buffers: Vec<Buffer>,
    /// Buffers made so far, and how many there may be.
    made: usize,
    most: usize,
    claiming: bool,
    exhausted: bool,
    complete: Vec<u32>,
    failures: Failures,
    fatal: Option<StageError>,
}

/// What could not be staged.
#[derive(Default)]
pub(super) struct Failures {
    pub count: u64,
    pub first: Vec<SourceError>,
    in_a_row: u32,
}

impl Board {
    pub(super) fn new(now: Instant) -> Self {
        let state = State {
            columns: None,
            pace: Pace::new(LANES, now),
            lanes: 0,
            busy: 0,
            small: VecDeque::new(),
            big: VecDeque::new(),
            open: VecDeque::new(),
            opened: 0,
            buffers: Vec::new(),
            made: 0,
            most: BUFFERS,
            claiming: false,
            exhausted: false,
            complete: Vec::new(),
            failures: Failures::default(),
            fatal: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), stopped: AtomicBool::new(false) }
    }

    /// The same, for staging some columns of Parquet objects.
    pub(super) fn of_columns(self, columns: Option<Columns>) -> Self {
        self.state().columns = columns;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Whether lanes are to end at once.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Ends all lanes, for a reason that no lane can get past.
    pub(super) fn stop(&self, error: Option<StageError>) {
        let mut state = self.state();
        self.stopped.store(true, Ordering::Relaxed);
        if state.fatal.is_none() {
            state.fatal = error;
        }
        self.changed.notify_all();
    }

    /// What has ended all lanes.
    pub(super) fn take_fatal(&self) -> Option<StageError> {
        self.state().fatal.take()
    }

    pub(super) fn take_failures(&self) -> Failures {
        std::mem::take(&mut self.state().failures)
    }

    /// All lanes have ended, and new ones may claim again: what others had may have come free.
    pub(super) fn reopen(&self) {
        let mut state = self.state();
        state.exhausted = false;
        state.lanes = 0;
    }

    /// Blocks until another lane would have something to do (true), or all work is done (false).
    pub(super) fn wants_lane(&self) -> bool {
        let mut state = self.state();
        loop {
            if self.is_stopped() || state.is_done() {
                return false;
            }
            if state.lanes < state.pace.limit() && (state.lanes == state.busy) && state.has_work() {
                state.lanes += 1;
                return true;
            }
            state = self.changed.wait(state).expect("no holder panics");
        }
    }

    /// The next job of the lane with this number; none when all is done.
    pub(super) fn next(&self, lane: usize) -> Option<Job> {
        let mut state = self.state();
        loop {
            if self.is_stopped() || state.is_done() {
                self.changed.notify_all();
                return None;
            }
            if lane < state.pace.limit()
                && let Some(job) = state.take(lane)
            {
                state.busy += 1;
                // Another lane may find something too, or be made for it.
                self.changed.notify_one();
                return Some(job);
            }
            if state.fatal.is_some() {
                self.stopped.store(true, Ordering::Relaxed);
                continue;
            }
            state = self.changed.wait(state).expect("no holder panics");
        }
    }

    /// A lane has done its job and gives its buffer back.
    pub(super) fn done(&self, buffer: Option<Buffer>) {
        let mut state = self.state();
        state.busy -= 1;
        let idle = buffer.is_some() || state.busy == 0;
        state.buffers.extend(buffer);
        if idle {
            self.changed.notify_all();
        }
    }

    /// A chunk was claimed, or, with none, there is none left to claim.
    pub(super) fn claimed(&self, chunk: Option<Arc<Chunk>>) {
        let mut state = self.state();
        state.claiming = false;
        match chunk {
            None => state.exhausted = true,
            Some(chunk) => {
                if chunk.rows.is_empty() {
                    state.complete.push(chunk.index);
                }
                state.add(&chunk);
            }
        }
        self.changed.notify_all();
    }

    /// The parts of a large object that are still to come are these.
    pub(super) fn opened(&self, large: Arc<Large>, parts: VecDeque<usize>) {
        let mut state = self.state();
        if !parts.is_empty() {
            state.open.push_back((large, parts));
        }
        self.changed.notify_all();
    }

    /// An object that came in parts is done with, for good or to be begun anew.
    pub(super) fn closed(&self, again: Option<Item>) {
        let mut state = self.state();
        state.opened -= 1;
        state.big.extend(again);
        self.changed.notify_all();
    }

    /// An object that turned out to be a large one.
    pub(super) fn is_large(&self, item: Item) {
        self.state().big.push_back(item);
        self.changed.notify_all();
    }

    /// A row is done with.
    pub(super) fn finished(&self, item: &Item) {
        self.state().failures.in_a_row = 0;
        self.row_ended(&item.chunk);
    }

    /// A row has failed for good; the others go on, unless it is hopeless.
    pub(super) fn failed(&self, item: &Item, error: SourceError) {
        let mut state = self.state();
        tracing::warn!(key = item.row().object.key, %error, "could not be staged");
        item.chunk.failed.store(true, Ordering::Relaxed);
        let failures = &mut state.failures;
        failures.count += 1;
        failures.in_a_row += 1;
        if failures.first.len() < TOLD {
            failures.first.push(error);
        }
        if failures.in_a_row >= HOPELESS {
            self.stopped.store(true, Ordering::Relaxed);
            self.changed.notify_all();
        }
        drop(state);
        self.row_ended(&item.chunk);
    }

    fn row_ended(&self, chunk: &Arc<Chunk>) {
        if chunk.left.fetch_sub(1, Ordering::AcqRel) == 1 && !chunk.failed.load(Ordering::Relaxed) {
            self.state().complete.push(chunk.index);
            self.changed.notify_all();
        }
    }

    /// Blocks until chunks are complete, and takes them; empty when no more will be.
    pub(super) fn complete_chunks(&self) -> Vec<u32> {
        let mut state = self.state();
        loop {
            if !state.complete.is_empty() {
                return std::mem::take(&mut state.complete);
            }
            if self.is_stopped() || state.is_done() {
                return Vec::new();
            }
            state = self.changed.wait(state).expect("no holder panics");
        }
    }

    /// A request has succeeded.
    pub(super) fn succeeded(&self, bytes: u64) {
        let mut state = self.state();
        let limit = state.pace.limit();
        state.pace.succeeded(bytes, Instant::now());
        if state.pace.limit() > limit {
            self.changed.notify_all();
        }
    }

    /// The server, or the volume, does not keep up.
    pub(super) fn overloaded(&self) {
        self.state().pace.overloaded(Instant::now());
    }

    /// Waits, unless all lanes are to end before.
    pub(super) fn pause(&self, time: std::time::Duration) {
        let end = Instant::now() + time;
        let mut state = self.state();
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|_| !self.is_stopped()) {
            (state, _) = self.changed.wait_timeout(state, left).expect("no holder panics");
        }
    }
}

impl State {
    fn is_done(&self) -> bool {
        self.exhausted && self.busy == 0 && self.opened == 0 && self.small.is_empty() && self.big.is_empty()
    }

    fn has_work(&self) -> bool {
        let room = self.has_buffer();
        !self.small.is_empty() || self.ready(room).is_some() || !self.big.is_empty() && room || self.may_claim()
    }

    fn has_buffer(&self) -> bool {
        !self.buffers.is_empty() || self.made < self.most
    }

    fn may_claim(&self) -> bool {
        let waiting =
            self.small.len() * RUN + self.big.len() + self.open.iter().map(|(_, parts)| parts.len()).sum::<usize>();
        !self.claiming && !self.exhausted && waiting < 2 * self.pace.limit()
    }

    fn take(&mut self, lane: usize) -> Option<Job> {
        if self.may_claim() {
            self.claiming = true;
            return Some(Job::Claim);
        }
        // What takes longest begins first; what needs no buffer goes on when there is none.
        if self.open.len() < OPEN
            && let Some(at) = self.big.iter().position(|item| self.in_parts(item))
        {
            self.opened += 1;
            return self.big.remove(at).map(Job::Open);
        }
        // Taken first, and given back where it is not needed.
        let mut buffer = self.buffer();
        if let Some((large, mut parts)) = self.ready(buffer.is_some()).and_then(|at| self.open.remove(at)) {
            let part = parts.pop_front().expect("only objects with parts left are kept");
            if !parts.is_empty() {
                self.open.push_back((Arc::clone(&large), parts));
            }
            if large.is_short(part) {
                self.buffers.extend(buffer.take());
            }
            return Some(Job::Part(large, part, buffer));
        }
        if let Some(buffer) = buffer {
            let at = self.big.iter().position(|item| !self.in_parts(item));
            if let Some(item) = at.and_then(|at| self.big.remove(at)) {
                return Some(Job::Whole(item, buffer));
            }
            self.buffers.push(buffer);
        }
        // Lanes that are not all in one directory wait less for its lock, which an NFS client holds over a round trip.
        let at = lane % self.small.len().max(1);
        self.small.remove(at).map(|(chunk, rows)| Job::Small(chunk, rows))
    }

    /// The first open object of which a part can be taken now.
    fn ready(&self, room: bool) -> Option<usize> {
        self.open.iter().position(|(large, parts)| room || parts.front().is_some_and(|part| large.is_short(*part)))
    }

    fn in_parts(&self, item: &Item) -> bool {
        let object = item.object();
        object.size > super::large::FROM || columns::taken_of(self.columns.as_ref(), object).is_some()
    }

    /// None while all are in use. Where memory is short, those that there are have to do.
    fn buffer(&mut self) -> Option<Buffer> {
        if let Some(buffer) = self.buffers.pop() {
            return Some(buffer);
        }
        if self.made == self.most || self.big.is_empty() && self.open.is_empty() {
            return None;
        }
        match MmapMut::map_anon(BUFFER) {
            Ok(buffer) => {
                self.made += 1;
                Some(buffer)
            }
            Err(error) => {
                tracing::warn!(%error, buffers = self.made, "no memory for more buffers");
                self.most = self.made;
                if self.made == 0 {
                    self.fatal.get_or_insert(StageError::NoMemory(error));
                }
                None
            }
        }
    }

    fn add(&mut self, chunk: &Arc<Chunk>) {
        let is_small = |row: &Row| row.shared.is_some() || row.object.size <= SMALL;
        let mut run = 0..0;
        for (at, row) in chunk.rows.iter().enumerate() {
            if is_small(row) {
                run.end = at + 1;
            } else {
                self.big.push_back(Item { chunk: Arc::clone(chunk), row: at, tries: 0, now: None });
            }
            if !is_small(row) || run.len() == RUN || at + 1 == chunk.rows.len() {
                if !run.is_empty() {
                    self.small.push_back((Arc::clone(chunk), run.clone()));
                }
                run = at + 1..at + 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
