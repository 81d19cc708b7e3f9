//! Staging: a source becomes an immutable, verified snapshot on the volume.
//!
//! 1. The source is listed. If a snapshot of exactly this listing is there, that is the result.
//! 2. `plan` says for each object whether it is fetched, or shared with a snapshot that is there. The plan lies in
//!    `staging/<digest of the listing>/`, cut into chunks; who stages the same at the same time, on whatever host, meets
//!    others there (`crew`), and who finds what a killed stager has left goes on with it (`ledger`).
//! 3. Lanes fetch the chunks into `tree/data/` (`lane`, handed out by `board`, as many as `pace` says): every byte is
//!    compared with S3's checksum where there is one, and has ours computed in the same pass.
//! 4. When all chunks are durable, the manifest is written, then the commit record, and one rename makes `tree` the
//!    snapshot. Whoever stages the same content at the same time arrives at the same id, and one of them wins.
//!
//! An object without a checksum of S3's and without an MD5 as its ETag (a multipart or KMS-encrypted upload made
//! without checksums) is checked by length and ETag only; what TLS and TCP guarantee must do for the rest.

mod board;
mod commit;
mod crew;
mod lane;
mod large;
mod ledger;
mod listing;
mod pace;
mod plan;
mod rows;
mod technique;

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::error::ArrowError;

pub(crate) use self::crew::is_abandoned;
use self::{
    board::Board,
    crew::Crew,
    lane::{Counts, Floor},
    listing::{Collector, Listing},
    plan::ListingDigest,
    rows::{Facts, RowFile, RowWriter},
    technique::Technique,
};
use crate::{
    keymap::{Census, Mapping},
    room::{self, RoomError},
    snapshot::{self, Snapshot, SnapshotError, SnapshotRecord},
    source::{ErrorKind, Readers, Source, SourceError, SourceOptions, SourceUrl},
    volume::{self, Volume, VolumeError},
};

/// What a stager leaves behind when it is killed is cleared away after this long.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);
/// How often one that waits for other stagers looks at what they have done: no event tells it across hosts.
const LOOK: Duration = Duration::from_millis(200);
/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);

/// What is to be staged.
#[derive(Clone, Debug)]
pub struct StageRequest {
    /// The dataset's name on the volume.
    pub name: String,
    /// Where it comes from.
    pub url: SourceUrl,
    /// How it is reached, and what of it is taken.
    pub options: SourceOptions,
    /// Whether the snapshot outlives a crash of the host. Off only to measure what that costs.
    pub durable: bool,
}

/// How far a staging is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageProgress {
    /// So many objects have been listed.
    Listed {
        /// Objects so far.
        objects: u64,
    },
    /// The plan is made.
    Planned {
        /// Objects of the dataset.
        objects: u64,
        /// Bytes of the dataset.
        bytes: u64,
        /// Objects to be fetched.
        fetch_objects: u64,
        /// Bytes to be fetched.
        fetch_bytes: u64,
    },
    /// So much more has been fetched.
    Fetched {
        /// Objects that are complete now.
        objects: u64,
        /// Bytes that arrived.
        bytes: u64,
    },
}

/// A staged snapshot, and what staging it took.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Objects that had to be fetched.
    pub fetched_objects: u64,
    /// Bytes that had to be fetched.
    pub fetched_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Why staging failed. Nothing was published then. What was staged is kept a day for the next try, unless it was the
/// volume that failed.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A snapshot on the volume is broken.
    #[error(transparent)]
    Snapshot(SnapshotError),
    /// Not enough room, found before the first byte.
    #[error(transparent)]
    NoRoom(#[from] RoomError),
    /// The plan on the volume cannot be written or read.
    #[error("{} is not a plan of staging", path.display())]
    Plan {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: ArrowError,
    },
    /// Several objects failed; the others are kept for the next try.
    #[error("{failed} of {objects} objects could not be staged, the first of them: {first}")]
    Failed {
        /// How many.
        failed: u64,
        /// Of how many.
        objects: u64,
        /// What happened to the first that failed.
        first: Box<SourceError>,
        /// What happened to some more.
        more: Vec<SourceError>,
    },
    /// A lane ended, or was told to end, before its work was done.
    #[error("staging was ended before it was done")]
    Ended,
}

impl From<SnapshotError> for StageError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Volume(error) => Self::Volume(error),
            error => Self::Snapshot(error),
        }
    }
}

impl StageError {
    /// What a user can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Source(error) => error.kind(),
            Self::Failed { first, .. } => first.kind(),
            Self::Snapshot(SnapshotError::BadName { .. }) => ErrorKind::Usage,
            _ => ErrorKind::Storage,
        }
    }

    /// Whether what was staged so far is of use to the next try. Of a full or broken volume the space is given back.
    fn leaves_work(&self) -> bool {
        matches!(self, Self::Source(_) | Self::Failed { .. } | Self::Ended)
    }
}

/// Stages a source. What is staged already is not fetched again.
pub async fn stage(
    volume: &Volume,
    request: &StageRequest,
    progress: &(dyn Fn(StageProgress) + Send + Sync),
) -> Result<Staged, StageError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match stage_once(volume, request, progress).await {
            // Another stager has published what both were at; the next listing finds it.
            Err(Missed::Overtaken(_)) if tries < OVERTAKEN => {}
            Err(Missed::Overtaken(error) | Missed::Failed(error)) => return Err(error),
            Ok(staged) => return Ok(staged),
        }
    }
}

/// How often others may be faster before it is something else that takes the files away.
const OVERTAKEN: u32 = 5;

/// Why one try has no snapshot.
enum Missed {
    /// The place of work has gone from under it.
    Overtaken(StageError),
    Failed(StageError),
}

macro_rules! missed_from {
    ($($error:ty),*) => {$(
        impl From<$error> for Missed {
            fn from(error: $error) -> Self {
                Self::Failed(error.into())
            }
        }
    )*};
}

missed_from!(StageError, SourceError, VolumeError, SnapshotError);

async fn stage_once(
    volume: &Volume,
    request: &StageRequest,
    progress: &(dyn Fn(StageProgress) + Send + Sync),
) -> Result<Staged, Missed> {
    let started = Instant::now();
    let dataset = snapshot::dataset_dir(volume, &request.name)?;
    let mut source = Source::connect(&request.url, &request.options).await?;
    let spool = Spool::new(volume, &dataset)?;
    let (listing, survey) = list(&mut source, &spool, progress).await?;
    let done = |snapshot: Snapshot, fetched_objects, fetched_bytes| {
        let seconds = started.elapsed().as_secs_f64();
        Staged { snapshot, fetched_objects, fetched_bytes, seconds }
    };

    let url = request.url.to_string();
    let records = snapshot::records(volume, &request.name)?;
    let same = |record: &&SnapshotRecord| (&record.source, &record.listing) == (&url, &survey.digest);
    if let Some(same) = records.iter().rfind(same).filter(|_| survey.tells_changes) {
        let snapshot = snapshot::load(&dataset, same.clone())?;
        snapshot::set_latest(&dataset, &snapshot.record.id)?;
        return Ok(done(snapshot, 0, 0));
    }

    let site = Site { volume, dir: dataset.join("staging").join(site_name(&survey, &url)), dataset };
    clear_leftovers(&site, &spool);
    let facts = site.plan(listing, &survey.mapping, base(&site, &records, &url)?, &spool)?;
    progress(StageProgress::Planned {
        objects: facts.objects,
        bytes: facts.bytes,
        fetch_objects: facts.fetch_objects,
        fetch_bytes: facts.fetch_bytes,
    });
    drop(spool);
    let counts = Arc::new(Counts::default());
    let work = Work {
        volume: volume.clone(),
        dir: site.dir.clone(),
        readers: source.readers().await?,
        durable: request.durable,
        facts,
        counts: Arc::clone(&counts),
    };
    let commit = commit::Commit {
        volume: volume.clone(),
        dataset: site.dataset.clone(),
        name: request.name.clone(),
        source: url,
        durable: request.durable,
    };
    let snapshot = beside(work, commit, &counts, progress).await?;
    let fetched = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Ok(done(snapshot, fetched(&counts.fetched_objects), fetched(&counts.fetched_bytes)))
}

/// What going through a listing tells.
struct Survey {
    digest: String,
    mapping: Mapping,
    /// Whether another listing of the same digest is a listing of the same objects.
    tells_changes: bool,
}

async fn list(
    source: &mut Source,
    spool: &Spool<'_>,
    progress: &(dyn Fn(StageProgress) + Send + Sync),
) -> Result<(Listing, Survey), StageError> {
    let mut collector = Collector::new(&spool.dir.join("listing"));
    let mut failed = None;
    let mut page = |objects: Vec<crate::source::Listed>| {
        let collected = objects.into_iter().try_for_each(|object| collector.push(object));
        progress(StageProgress::Listed { objects: collector.objects });
        match collected {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    };
    let listed = source.list(&mut page).await;
    if let Some(error) = failed {
        return Err(error);
    }
    listed?;
    let listing = collector.finish()?;
    let (mut digest, mut census, mut tells_changes) = (ListingDigest::default(), Census::default(), true);
    for object in listing.objects()? {
        let object = object?;
        digest.see(&object.key, object.size, object.etag.as_deref());
        census.see(&object.key);
        tells_changes &= object.etag.is_some();
    }
    let mut mapping = census.settle();
    if mapping.has_rivals() {
        for object in listing.objects()? {
            mapping.see_again(&object?.key);
        }
    }
    Ok((listing, Survey { digest: digest.finish(), mapping, tells_changes }))
}

/// Where stagers of one listing of one source meet; of listings that do not tell changes, each has its own.
fn site_name(survey: &Survey, url: &str) -> String {
    let mut digest = ListingDigest::default();
    digest.see(url, 0, Some(&survey.digest));
    if !survey.tells_changes {
        digest.see(&volume::nonce(), 0, None);
    }
    digest.finish()
}

/// The snapshot that unchanged objects are shared with: the latest if it is of this source, else the newest that is.
fn base(site: &Site<'_>, records: &[SnapshotRecord], url: &str) -> Result<Option<SnapshotRecord>, StageError> {
    let latest = snapshot::latest(&site.dataset)?;
    let of_source = || records.iter().filter(|record| record.source == url);
    let base = of_source().find(|record| Some(&record.id) == latest.as_ref()).or_else(|| of_source().next_back());
    Ok(base.cloned())
}

/// A directory of one stager's own, gone with it.
struct Spool<'a> {
    volume: &'a Volume,
    dir: PathBuf,
}

impl<'a> Spool<'a> {
    fn new(volume: &'a Volume, dataset: &Path) -> Result<Self, StageError> {
        let dir = dataset.join("staging").join(format!(".new-{}", volume::nonce()));
        volume::create_dirs(&dir)?;
        Ok(Self { volume, dir })
    }
}

impl Drop for Spool<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.volume.trash(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "could not be removed");
        }
    }
}

/// `staging/<digest>/`
struct Site<'a> {
    volume: &'a Volume,
    dataset: PathBuf,
    dir: PathBuf,
}

impl Site<'_> {
    /// Makes the plan, unless another stager has; it is the same for all.
    fn plan(
        &self,
        listing: Listing,
        mapping: &Mapping,
        base: Option<SnapshotRecord>,
        spool: &Spool<'_>,
    ) -> Result<Facts, StageError> {
        let path = self.dir.join(PLAN);
        if path.exists() && !self.dir.join(TREE).exists() {
            // Its stager was killed after it had published, and before it cleared up.
            self.volume.trash(&self.dir).map_err(|error| VolumeError::io("remove", &self.dir, error))?;
        }
        if path.exists() {
            return Ok(RowFile::open(&path)?.facts);
        }
        let draft = spool.dir.join(PLAN);
        let facts = write_plan(&draft, listing, mapping, base.as_ref(), &self.dataset)?;
        room::check(self.volume, facts.fetch_bytes, facts.fetch_objects)?;
        volume::create_dirs(&self.dir.join(TREE).join(DATA))?;
        match volume::link_or_copy(&draft, &path) {
            Ok(_) => Ok(facts),
            Err(VolumeError::AlreadyExists { .. }) => Ok(RowFile::open(&path)?.facts),
            Err(error) => Err(error.into()),
        }
    }
}

const PLAN: &str = "plan.arrow";
const TREE: &str = "tree";
const DATA: &str = "data";

fn write_plan(
    path: &Path,
    listing: Listing,
    mapping: &Mapping,
    base: Option<&SnapshotRecord>,
    dataset: &Path,
) -> Result<Facts, StageError> {
    let snapshot = base.map(|base| dataset.join("snapshots").join(&base.id.0));
    let held = snapshot.as_ref().map(|dir| snapshot::objects(&dir.join("manifest.parquet"))).transpose()?;
    let held = held.into_iter().flatten().map(|object| object.map_err(StageError::from));
    let place = |object: &snapshot::Object| base.map_or_else(String::new, |base| base.volume_path(object));
    let (mut writer, mut facts) = (RowWriter::create(path)?, Facts::default());
    for row in plan::rows(listing.objects()?, held, mapping, place) {
        let row = row?;
        facts.objects += 1;
        facts.bytes += row.object.size;
        if row.shared.is_none() {
            facts.fetch_objects += 1;
            facts.fetch_bytes += row.object.size;
        }
        writer.push(row)?;
    }
    writer.finish(&facts)?;
    Ok(facts)
}

/// What the threads of a staging own.
struct Work {
    volume: Volume,
    dir: PathBuf,
    readers: Readers,
    durable: bool,
    facts: Facts,
    counts: Arc<Counts>,
}

/// Does the work on threads of its own, and tells how far it is. Dropped, it ends them.
async fn beside(
    work: Work,
    commit: commit::Commit,
    counts: &Counts,
    progress: &(dyn Fn(StageProgress) + Send + Sync),
) -> Result<Snapshot, Missed> {
    let ended = Arc::new(AtomicBool::new(false));
    let _guard = EndOnDrop(Arc::clone(&ended));
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = tell.send(work.stage(&commit, &ended));
    });
    let mut so_far = (0, 0);
    let mut report = || {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let objects = load(&counts.fetched_objects) + load(&counts.found_objects);
        let bytes = load(&counts.fetched_bytes) + load(&counts.found_bytes);
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
    fn stage(&self, commit: &commit::Commit, ended: &AtomicBool) -> Result<Snapshot, Missed> {
        let crew = Crew::join(&self.dir)?;
        let staged = self.run(&crew, ended).and_then(|()| commit.publish(&self.dir, &crew));
        let overtaken = !self.dir.join(TREE).exists();
        let is_needed = match &staged {
            Ok(_) => false,
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
        let floor = Floor {
            volume: &self.volume,
            data: self.dir.join(TREE).join(DATA),
            crew,
            board: Board::new(Instant::now()),
            readers: &self.readers,
            technique: &technique,
            counts: &self.counts,
            plan: Mutex::new(plan),
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
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if ended.load(Ordering::Relaxed) {
                        floor.board.stop(None);
                    }
                    std::thread::park_timeout(TELL);
                }
            });
            let mut lanes = 0;
            while floor.board.wants_lane() {
                let number = lanes;
                lanes += 1;
                scope.spawn(move || lane::work(floor, number));
            }
            over.store(true, Ordering::Relaxed);
        });
    }

    fn make_durable(&self, floor: &Floor<'_>, chunks: &[u32]) -> Result<(), StageError> {
        floor.technique.sync(&self.volume)?;
        for chunk in chunks {
            floor.crew.record(ledger::Record::Chunk { chunk: *chunk })?;
        }
        if self.durable { floor.crew.sync_log() } else { Ok(()) }
    }
}

/// Clears away what stagers that were killed left long ago.
fn clear_leftovers(site: &Site<'_>, spool: &Spool<'_>) {
    let (Some(all), Ok(Some(now))) = (spool.dir.parent(), volume::server_time(&spool.dir)) else { return };
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let dir = entry.path();
        if dir != site.dir && dir != spool.dir && is_abandoned(&dir, now, LEFTOVER_AGE) {
            let _ = site.volume.trash(&dir);
        }
    }
}
