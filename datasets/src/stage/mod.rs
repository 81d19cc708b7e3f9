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
//! Where columns are chosen, of each Parquet object only its footer and the chunks of these are fetched (`lane::columns`):
//! ranges, each with our checksum and with none of S3's, which has none of a range.
//!
//! An object without a checksum of S3's and without an MD5 as its ETag (a multipart or KMS-encrypted upload made
//! without checksums) is checked by length and ETag only; what TLS and TCP guarantee must do for the rest.

mod board;
mod commit;
mod crew;
mod error;
mod follow;
mod lane;
mod large;
mod ledger;
mod listing;
mod pace;
mod plan;
pub mod preview;
mod rows;
mod site;
mod spool;
mod technique;
mod work;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use self::{commit::Commit, follow::Announcer, lane::Counts, rows::RowFile, site::Site, work::Work};
pub(crate) use self::{crew::is_abandoned, spool::Spool};
pub use self::{
    error::StageError,
    follow::{Expected, Follow, Staging},
};
use crate::{
    columns::Columns,
    snapshot::{self, SnapshotError, SnapshotRecord},
    source::{Source, SourceError, SourceOptions, SourceUrl},
    volume::{Volume, VolumeError},
};

/// What is to be staged.
#[derive(Clone, Debug)]
pub struct StageRequest {
    /// The dataset's name on the volume.
    pub name: String,
    /// Where it comes from.
    pub url: SourceUrl,
    /// How it is reached, and what of it is taken.
    pub options: SourceOptions,
    /// The columns of its Parquet objects that are taken; none: all.
    pub columns: Option<Columns>,
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
        /// Bytes to be fetched, as far as they are known.
        fetch_bytes: u64,
    },
    /// The columns of an object were found.
    Found {
        /// Bytes more that are to be fetched.
        bytes: u64,
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
    /// The snapshot's commit record.
    pub record: SnapshotRecord,
    /// Objects that had to be fetched.
    pub fetched_objects: u64,
    /// Bytes that had to be fetched.
    pub fetched_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Stages a source. What is staged already is not fetched again.
pub async fn stage(
    volume: &Volume,
    request: &StageRequest,
    progress: &(dyn Fn(StageProgress) + Send + Sync),
) -> Result<Staged, StageError> {
    stage_followed(volume, request, progress, None).await
}

/// Stages a source for one who begins before all of it is there.
pub async fn stage_followed(
    volume: &Volume,
    request: &StageRequest,
    progress: &(dyn Fn(StageProgress) + Send + Sync),
    follower: Option<Arc<dyn Follow>>,
) -> Result<Staged, StageError> {
    let (started, counts) = (Instant::now(), Arc::new(Counts::default()));
    let mut tries = 0;
    let record = loop {
        tries += 1;
        match stage_once(volume, request, progress, follower.clone(), (started, &counts)).await {
            // Another stager has published what both were at; the next listing finds it.
            Err(Missed::Overtaken(_)) if tries < OVERTAKEN => {}
            Err(Missed::Overtaken(error) | Missed::Failed(error)) => return Err(error),
            Ok(record) => break record,
        }
    };
    let fetched = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Ok(Staged {
        record,
        fetched_objects: fetched(&counts.fetched_objects),
        fetched_bytes: fetched(&counts.fetched_bytes),
        seconds: started.elapsed().as_secs_f64(),
    })
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
    follower: Option<Arc<dyn Follow>>,
    (started, counts): (Instant, &Arc<Counts>),
) -> Result<SnapshotRecord, Missed> {
    let wanted = request.columns.as_ref();
    let dataset = snapshot::dataset_dir(volume, &request.name)?;
    let mut source = Source::connect(&request.url, &request.options).await?;
    let spool = Spool::new(volume, &dataset)?;
    let (listing, survey) = site::list(&mut source, &spool, progress).await?;
    let url = request.url.to_string();
    let records = snapshot::records(volume, &request.name)?;
    let dir = dataset.join("staging").join(survey.site_name(&url, wanted));
    let site = Site { volume, dir, dataset, columns: wanted };
    if let Some(same) = survey.unchanged(&records, &url, wanted) {
        snapshot::check_manifest(volume, same)?;
        snapshot::set_latest(&site.dataset, &same.id)?;
        site.clear_published()?;
        return Ok(same.clone());
    }
    site.clear_leftovers(&spool);
    let facts = site.plan(listing, &survey.mapping, &site::bases(&site.dataset, &records, &url)?, &spool)?;
    progress(StageProgress::Planned {
        objects: facts.objects,
        bytes: facts.bytes,
        fetch_objects: facts.fetch_objects,
        fetch_bytes: facts.fetch_bytes,
    });
    drop(spool);
    let plan = RowFile::open(&site.dir.join(PLAN))?;
    let (mut order, mut announcer) = (follow::order(&[], plan.chunks()), None);
    if let Some(follower) = follower.filter(|_| survey.tells_changes) {
        let staging = Staging::read(plan, survey.digest)?;
        let chunks = staging.chunks.clone();
        if let Some(wanted) = follower.planned(staging) {
            order = follow::order(&wanted, chunks.len());
            announcer = Some(Announcer::new(follower, site.dir.join(TREE).join(DATA), chunks));
        }
    }
    let work = Work {
        volume: volume.clone(),
        dir: site.dir.clone(),
        readers: source.readers().await?,
        durable: request.durable,
        columns: request.columns.clone(),
        facts,
        order,
        announcer: announcer.map(Mutex::new),
        counts: Arc::clone(counts),
    };
    let commit = Commit {
        volume: volume.clone(),
        dataset: site.dataset.clone(),
        name: request.name.clone(),
        source: url,
        columns: request.columns.clone(),
        durable: request.durable,
        begun: started,
        counts: Arc::clone(counts),
    };
    work::beside(work, commit, counts, progress).await
}

const PLAN: &str = "plan.arrow";
const TREE: &str = "tree";
const DATA: &str = "data";
