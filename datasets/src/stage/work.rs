//! The threads of a staging: lanes, and one that makes durable what they have completed.

use std::{
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Commit, DATA, Missed, PLAN, StageError, StageProgress, TREE,
    board::Board,
    crew::Crew,
    follow::Announcer,
    lane::{self, Counts, Floor},
    ledger::Record,
    rows::{Facts, RowFile},
    technique::Technique,
};
use crate::{columns::Columns, room::Allowance, snapshot::SnapshotRecord, source::Readers, volume::Volume};

/// How often one that waits for what other stagers do looks at it: no event tells it across hosts.
const LOOK: Duration = Duration::from_millis(200);
/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);

/// What the threads of a staging own.
pub(super) struct Work {
    pub volume: Volume,
    pub dir: PathBuf,
    pub readers: Readers,
    pub durable: bool,
    /// The columns of Parquet objects that are taken; none: all.
    pub columns: Option<Columns>,
    pub facts: Facts,
    /// All chunks, in the order in which they are wanted.
    pub order: Vec<u32>,
    pub announcer: Option<Mutex<Announcer>>,
    pub counts: Arc<Counts>,
}

/// Does the work on threads of its own, and tells how far it is. Dropped, it ends them.
pub(super) async fn beside(
    work: Work,
    commit: Commit,
    counts: &Counts,
    progress: &(dyn Fn(StageProgress) + Send + Sync),
) -> Result<SnapshotRecord, Missed> {
    let ended = Arc::new(AtomicBool::new(false));
    let _guard = EndOnDrop(Arc::clone(&ended));
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = tell.send(work.stage(&commit, &ended));
    });
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let done = || {
        let objects = load(&counts.fetched_objects) + load(&counts.found_objects);
        (objects, load(&counts.fetched_bytes) + load(&counts.found_bytes))
    };
    // An earlier try may have told of some.
    let (mut so_far, mut known) = (done(), load(&counts.column_bytes));
    let mut report = || {
        let column_bytes = load(&counts.column_bytes);
        if column_bytes != known {
            progress(StageProgress::Found { bytes: column_bytes - known });
            known = column_bytes;
        }
        let (objects, bytes) = done();
        if (objects, bytes) != so_far {
            progress(StageProgress::Fetched { objects: objects - so_far.0, bytes: bytes - so_far.1 });
            so_far = (objects, bytes);
        }
    };
    let mut ticks = tokio::time::interval(TELL);
    tokio::pin!(told);
    loop {
        tokio::select! {
            staged = &mut told => {
                report();
                // Without a word only a panic ends the thread, and it has said why.
                return staged.unwrap_or(Err(Missed::Failed(StageError::Ended)));
            }
            _ = ticks.tick() => report(),
        }
    }
}

struct EndOnDrop(Arc<AtomicBool>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Work {
    fn stage(&self, commit: &Commit, ended: &AtomicBool) -> Result<SnapshotRecord, Missed> {
        let crew = Crew::join(&self.dir)?;
        let staged = self.run(&crew, ended).and_then(|()| commit.publish(&self.dir, &crew));
        // On NFS what was once seen to be there is believed to be there for a while, a directory even when it is opened.
        let gone = || File::open(self.dir.join(TREE)).is_err();
        let overtaken = staged.as_ref().is_err_and(|error| error.misses_a_file() || gone());
        let is_needed = match &staged {
            Ok(_) => false,
            // What is there now may be the work of others who have begun since.
            Err(_) if overtaken => true,
            // Others may have had more luck, and room.
            Err(error) => error.leaves_work() || crew.has_live_peers(),
        };
        drop(crew);
        if !is_needed && let Err(error) = self.volume.trash(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "could not be removed");
        }
        staged.map_err(|error| if overtaken { Missed::Overtaken(error) } else { Missed::Failed(error) })
    }

    /// Until every chunk is durable, done by whomever.
    fn run(&self, crew: &Crew, ended: &AtomicBool) -> Result<(), StageError> {
        let technique = Technique::of(&self.volume, self.durable)?;
        let plan = RowFile::open(&self.dir.join(PLAN))?;
        let chunks = plan.chunks();
        let allowance = self.columns.as_ref().map(|_| Allowance::of(&self.volume)).transpose()?;
        let floor = Floor {
            volume: &self.volume,
            data: self.dir.join(TREE).join(DATA),
            crew,
            board: Board::new(Instant::now()).of_columns(self.columns.clone()),
            columns: self.columns.as_ref().zip(allowance.as_ref()),
            readers: &self.readers,
            technique: &technique,
            counts: &self.counts,
            plan: Mutex::new(plan),
            order: &self.order,
            cursor: Mutex::new(0),
        };
        loop {
            self.work_off(&floor, ended);
            if let Some(error) = floor.board.take_fatal() {
                return Err(error);
            }
            let failures = floor.board.take_failures();
            let mut failed = failures.first.into_iter();
            match (failures.count, failed.next()) {
                (0, _) => {}
                (1, Some(first)) => return Err(first.into()),
                (failed_objects, first) => {
                    return Err(StageError::Failed {
                        failed: failed_objects,
                        objects: self.facts.objects,
                        first: Box::new(first.expect("of several failures some are kept")),
                        more: failed.collect(),
                    });
                }
            }
            if floor.board.is_stopped() || ended.load(Ordering::Relaxed) {
                return Err(StageError::Ended);
            }
            crew.refresh()?;
            self.announce(crew)?;
            if crew.ledger().chunks() >= chunks {
                return Ok(());
            }
            // Others have what is missing.
            floor.board.pause(LOOK);
            crew.refresh()?;
            *floor.cursor.lock().expect("no holder panics") = 0;
            floor.board.reopen();
        }
    }

    /// Lanes work until there is nothing left that can be claimed.
    fn work_off(&self, floor: &Floor<'_>, ended: &AtomicBool) {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                loop {
                    let complete = floor.board.complete_chunks();
                    if complete.is_empty() {
                        return;
                    }
                    if let Err(error) = self.make_durable(floor, &complete) {
                        floor.board.stop(Some(error));
                    }
                }
            });
            let mut beside = vec![scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if ended.load(Ordering::Relaxed) {
                        floor.board.stop(None);
                    }
                    std::thread::park_timeout(TELL);
                }
            })];
            if self.announcer.is_some() {
                beside.push(scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) && !floor.board.is_stopped() {
                        if let Err(error) = self.announce(floor.crew) {
                            floor.board.stop(Some(error));
                        }
                        std::thread::park_timeout(LOOK);
                    }
                }));
            }
            let mut lanes = 0;
            while floor.board.wants_lane() {
                let number = lanes;
                lanes += 1;
                scope.spawn(move || lane::work(floor, number));
            }
            over.store(true, Ordering::Relaxed);
            beside.iter().for_each(|beside| beside.thread().unpark());
        });
    }

    fn announce(&self, crew: &Crew) -> Result<(), StageError> {
        match &self.announcer {
            Some(announcer) => announcer.lock().expect("no holder panics").tell(crew),
            None => Ok(()),
        }
    }

    fn make_durable(&self, floor: &Floor<'_>, chunks: &[u32]) -> Result<(), StageError> {
        floor.technique.sync(&self.volume)?;
        for chunk in chunks {
            floor.crew.record(Record::Chunk { chunk: *chunk })?;
        }
        if self.durable { floor.crew.sync_log() } else { Ok(()) }
    }
}
