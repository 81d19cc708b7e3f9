//! Repair: the damaged files of a snapshot become again what its manifest says.
//!
//! Nothing on a volume is ever overwritten, and a snapshot never changes; a damaged file is the exception, since it is
//! not what was published. It is replaced only by the very bytes: size and checksum are the manifest's. They come from
//! another snapshot of the dataset that has them whole, else from the source, if it still has that very object.
//!
//! A file may have further names in other snapshots, and a rename gives only one of them the new bytes. So every
//! snapshot of the dataset that has the object is looked at too, and repaired with it.

mod fetch;
mod survey;

use std::{path::Path, sync::Arc};

use self::survey::{Patient, Place, THREADS};
use crate::{
    checksum::Crc64,
    snapshot::{self, Snapshot, SnapshotId},
    source::{Readers, S3Options, Source, SourceError, SourceOptions},
    stage::{Spool, StageError},
    threads::on_threads,
    verify::BadObject,
    volume::{self, Volume, VolumeError},
};

/// What became of a damaged object.
#[derive(Debug)]
pub struct Repair {
    /// What was wrong.
    pub bad: BadObject,
    /// Where the right bytes came from, or why there are none.
    pub outcome: Result<Origin, Arc<RepairError>>,
    /// The other snapshots of the dataset in which it was damaged too.
    pub others: Vec<OtherRepair>,
}

impl Repair {
    /// Whether nothing of it is damaged any more.
    pub fn is_complete(&self) -> bool {
        self.outcome.is_ok() && self.others.iter().all(|other| other.outcome.is_ok())
    }
}

/// What became of the same object in another snapshot.
#[derive(Debug)]
pub struct OtherRepair {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Whether it is whole again.
    pub outcome: Result<(), Arc<RepairError>>,
}

/// Where the right bytes came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From another snapshot of the dataset.
    Snapshot(SnapshotId),
    /// From the source.
    Source,
}

/// Why an object could not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The key has other content, or none, by now, and no version of it is the one that was staged.
    #[error("the source does not have the object that was staged any more")]
    Replaced,
    /// ETag and size are the same, the bytes are not.
    #[error("what the source has under the same ETag has the checksum {found} in place of {wanted}")]
    Differs {
        /// Of the source's bytes.
        found: Crc64,
        /// The manifest's.
        wanted: Crc64,
    },
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl RepairError {
    /// What a user can do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Replaced => "stage again for what the source has now; the damaged snapshot stays damaged",
            Self::Differs { .. } => "find out how the source's object changed under its ETag, then stage again",
            Self::Source(_) => "verify with --repair again when the source can be read",
            Self::Volume(_) => "verify with --repair again when the volume can be written",
        }
    }
}

/// Repairs what a verification of the snapshot found. `progress` is told the bytes that are written.
///
/// # Errors
/// Those that leave everything as it was; what concerns one object is in its [`Repair`].
pub async fn repair(
    volume: &Volume,
    snapshot: &Snapshot,
    bad: &[BadObject],
    s3: &S3Options,
    progress: Arc<dyn Fn(u64) + Send + Sync>,
) -> Result<Vec<Repair>, StageError> {
    if bad.is_empty() {
        return Ok(Vec::new());
    }
    let spool = Spool::new(volume, &snapshot::dataset_dir(volume, &snapshot.record.name)?)?;
    let mut surgery = Surgery { volume: volume.clone(), spool, patients: survey::patients(snapshot, bad), progress };
    let record = snapshot.record.clone();
    let (surgery, outcomes) = blocking(move || {
        survey::look_elsewhere(&surgery.volume, &record, &mut surgery.patients)?;
        let outcomes = surgery.share();
        Ok::<_, StageError>((Arc::new(surgery), outcomes))
    })
    .await??;
    let fetched = match outcomes.iter().all(Option::is_some) {
        true => Ok(Vec::new()),
        false => fetch_all(&surgery, &outcomes, &snapshot.record.source, s3).await,
    };
    // Where there is no source to be had at all, each that needs it has failed.
    let (mut fetched, failed) = match fetched {
        Ok(fetched) => (fetched.into_iter(), None),
        Err(error) => (Vec::new().into_iter(), Some(Arc::new(RepairError::Source(error)))),
    };
    let outcome = |outcome: Option<Outcome>| match (outcome, &failed) {
        (Some(outcome), _) => outcome,
        (None, Some(failed)) => Err(Arc::clone(failed)),
        (None, None) => fetched.next().expect("as many were fetched as were left"),
    };
    let outcomes = outcomes.into_iter().map(outcome).collect();
    blocking(move || surgery.pass_on(outcomes)).await
}

type Outcome = Result<Origin, Arc<RepairError>>;

/// Fetches what has no outcome yet, in the region in which the bucket is.
async fn fetch_all(
    surgery: &Arc<Surgery>,
    outcomes: &[Option<Outcome>],
    url: &str,
    s3: &S3Options,
) -> Result<Vec<Outcome>, SourceError> {
    let left = outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_none()).map(|(at, _)| at);
    let left: Arc<[usize]> = left.collect();
    let options = SourceOptions { s3: s3.clone(), ..SourceOptions::default() };
    let mut source = Source::connect(&url.parse()?, &options).await?;
    let mut moved = false;
    loop {
        let (surgery, left, readers) = (Arc::clone(surgery), Arc::clone(&left), source.readers().await?);
        let fetched = tokio::task::spawn_blocking(move || surgery.fetch(&left, &readers)).await;
        let fetched = fetched.expect("no thread panics");
        let elsewhere = fetched.iter().find_map(|outcome| match outcome.as_ref().err()?.as_ref() {
            RepairError::Source(SourceError::Elsewhere { region, .. }) => Some(region.clone()),
            _ => None,
        });
        match elsewhere {
            Some(region) if !moved => source.move_to(region).await?,
            _ => return Ok(fetched),
        }
        moved = true;
    }
}

/// Off the threads of the runtime, which the readers need.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StageError> {
    // Without a value only a panic ends it, and it has said why.
    tokio::task::spawn_blocking(work).await.map_err(|_| StageError::Ended)
}

/// What the steps of a repair work with.
struct Surgery {
    volume: Volume,
    /// Where files are made before they replace others.
    spool: Spool,
    patients: Vec<Patient>,
    progress: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Surgery {
    /// Takes from other snapshots what they have whole.
    fn share(&self) -> Vec<Option<Outcome>> {
        let share = |patient: &Patient| {
            let (snapshot, whole) = patient.whole.as_ref()?;
            match self.share_into(whole, &patient.place) {
                Ok(()) => {
                    (self.progress)(patient.object.size);
                    Some(Ok(Origin::Snapshot(snapshot.clone())))
                }
                // The source is asked instead.
                Err(error) => {
                    tracing::warn!(key = patient.object.key, %error, "could not be taken from another snapshot");
                    None
                }
            }
        };
        self.patients.iter().map(share).collect()
    }

    /// Fetches these from the source.
    fn fetch(&self, patients: &[usize], readers: &Readers) -> Vec<Outcome> {
        let fetch = |reader: &mut _, at: &usize| {
            let Patient { object, place, .. } = &self.patients[*at];
            let draft = self.spool.dir().join(volume::nonce());
            fetch::fetch(reader, object, &draft, &*self.progress)?;
            self.put(&draft, place)?;
            Ok(Origin::Source)
        };
        on_threads(THREADS, patients, || readers.reader(), |reader, at| fetch(reader, at).map_err(Arc::new))
    }

    /// Gives what is whole again to the other snapshots in which it was damaged.
    fn pass_on(&self, outcomes: Vec<Outcome>) -> Vec<Repair> {
        let repair = |(patient, outcome): (&Patient, Outcome)| {
            let whole = patient.place.file();
            let others = patient.damaged.iter().map(|(snapshot, place)| {
                let outcome = match &outcome {
                    Ok(_) => self.share_into(&whole, place).map_err(|error| Arc::new(error.into())),
                    Err(why) => Err(Arc::clone(why)),
                };
                OtherRepair { snapshot: snapshot.clone(), outcome }
            });
            let others = others.collect();
            Repair { bad: patient.bad.clone(), outcome, others }
        };
        self.patients.iter().zip(outcomes).map(repair).collect()
    }

    fn share_into(&self, from: &Path, to: &Place) -> Result<(), VolumeError> {
        let draft = self.spool.dir().join(volume::nonce());
        self.volume.share(from, &draft)?;
        self.put(&draft, to)
    }

    /// Into a snapshot that is there: of one that was removed meanwhile, nothing is made anew.
    fn put(&self, draft: &Path, to: &Place) -> Result<(), VolumeError> {
        volume::create_dirs_below(&to.data, Path::new(&to.path))?;
        volume::rename_over(draft, &to.file())
    }
}
