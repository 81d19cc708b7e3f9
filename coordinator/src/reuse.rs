//! What earlier runs have made, and what this one leaves for later ones.
//!
//! When a run has ended, the directory of its attempts becomes its results ([`forebay_datasets::results`]), with a line
//! beside it for each task that tells its identity and its files. A later run of the same work that has a task of the same
//! identity gives these files second names among its own, and goes on as if an attempt had made them: what it keeps in
//! the end is whole by itself, and the earlier results can go at any time.

mod why;

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, BufWriter, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use forebay_datasets::{
    checksum::Crc64,
    results::{self, Record, Results},
    room,
    snapshot::{self, Snapshot},
    volume::{self, Volume, VolumeError},
};
use forebay_jobs::{
    id::{AttemptId, Epoch, RunId, TaskId},
    identity::{Contents, Identity, WorkIdentity},
    kinds::published_at,
    plan::Plan,
    task::OutputFile,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use self::why::why;
use crate::{
    run::{Reused, Run, TaskState},
    rundir::{ATTEMPTS, RunDir},
};

const TASKS: &str = "tasks.ndjson";

/// Why nothing is reused, or kept.
#[derive(Debug, thiserror::Error)]
pub enum ReuseError {
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] snapshot::SnapshotError),
    /// There is no room for results.
    #[error(transparent)]
    Room(#[from] room::RoomError),
    /// A file that the work consists of cannot be read.
    #[error("what the job's work consists of cannot be read")]
    Work(#[source] std::io::Error),
}

/// What one task of an earlier run has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What its output hangs on.
    pub identity: Identity,
    /// Which task it was.
    pub task: TaskId,
    /// Of a task of the first phase, the keys of its input and what these held.
    pub input: Vec<(String, String)>,
    files: Vec<Kept>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Path below the directory of attempts.
    path: String,
    publish_as: Option<String>,
    partition: Option<u32>,
    size: u64,
    checksum: Crc64,
    rows: Option<u64>,
    /// Time of its last change, in nanoseconds: whoever wrote into it since, it is not what it was.
    modified: i128,
}

/// What a run's tasks read, as far as identities hang on it.
pub struct Inputs<'a> {
    work: &'a WorkIdentity,
    plan: &'a Plan,
    contents: Contents<'a>,
}

impl<'a> Inputs<'a> {
    /// Of a planned run over a snapshot.
    pub fn new(work: &'a WorkIdentity, plan: &'a Plan, snapshot: &'a Snapshot) -> Self {
        Self { work, plan, contents: Contents::of_objects(&snapshot.manifest.objects) }
    }

    /// The identity of a task of the first phase.
    pub fn of_split(&self, index: u32) -> Option<Identity> {
        self.work.of_split(self.plan, index, &self.contents)
    }

    /// The keys of what such a task reads, and what they hold.
    pub fn read_by(&self, index: u32) -> Vec<(String, String)> {
        let pieces = self.plan.splits.get(index as usize).into_iter().flat_map(|split| &split.pieces);
        pieces.filter_map(|piece| Some((piece.key.clone(), self.contents.of(piece)?))).collect()
    }
}

/// The identity of a run's work.
pub fn work_of(run: &RunDir) -> Result<WorkIdentity, ReuseError> {
    WorkIdentity::of(run.job(), &run.files_dir()).map_err(ReuseError::Work)
}

/// The snapshot that a run reads.
pub fn snapshot_of(volume: &Volume, run: &RunDir, id: &str) -> Result<Snapshot, ReuseError> {
    let record = snapshot::find(volume, &run.job().dataset.name, Some(id))?;
    Ok(snapshot::load(volume, record)?)
}

/// Whether an earlier run of the same work has left anything.
pub fn is_known(volume: &Volume, work: &WorkIdentity) -> Result<bool, ReuseError> {
    Ok(!results::of_work(volume, work.whole.as_str())?.is_empty())
}

/// What earlier runs of the same work have left: of each task that which was made last.
#[derive(Default)]
pub struct Earlier {
    results: Vec<Results>,
    entries: HashMap<Identity, (usize, Entry)>,
}

impl Earlier {
    /// Reads all of it.
    pub fn of_work(volume: &Volume, work: &WorkIdentity) -> Result<Self, ReuseError> {
        Self::of(results::of_work(volume, work.whole.as_str())?)
    }

    /// Reads what is there of what some runs have left.
    fn of_runs(volume: &Volume, work: &WorkIdentity, among: &[RunId]) -> Result<Self, ReuseError> {
        let mut results = results::of_work(volume, work.whole.as_str())?;
        results.retain(|results| among.iter().any(|run| run.as_str() == results.record.run));
        Self::of(results)
    }

    fn of(results: Vec<Results>) -> Result<Self, ReuseError> {
        let mut entries = HashMap::new();
        for (at, results) in results.iter().enumerate() {
            each_entry(&results.dir, |entry| drop(entries.insert(entry.identity.clone(), (at, entry))))?;
        }
        Ok(Self { results, entries })
    }

    /// The runs.
    pub fn among(&self) -> Vec<RunId> {
        self.results.iter().filter_map(|results| results.record.run.parse().ok()).collect()
    }

    /// All entries of a run, with the run.
    fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.values().map(|(at, entry)| (self.results[*at].record.run.as_str(), entry))
    }

    /// Gives what earlier runs have made for these attempts second names in this run. What is not there any more, or is
    /// not what it was, is left out.
    pub fn take(
        &self,
        volume: &Volume,
        run: &RunDir,
        epoch: Epoch,
        wanted: Vec<(AttemptId, Identity)>,
    ) -> Result<Vec<Reused>, ReuseError> {
        let found: Vec<_> =
            wanted.into_iter().filter_map(|(id, wanted)| Some((id, self.entries.get(&wanted)?))).collect();
        let Some((AttemptId { task, .. }, _)) = found.first() else { return Ok(Vec::new()) };
        let dir = run.path().join(ATTEMPTS).join(format!("reused.{}.{epoch}", task.phase));
        fs::create_dir_all(&dir).map_err(|error| VolumeError::io("create", &dir, error))?;
        let reused = |(attempt, (at, entry)): (AttemptId, &(usize, Entry))| {
            let results = &self.results[*at];
            let taken = entry.take(volume, &results.dir, &dir, attempt.task.index);
            let outputs = taken.inspect_err(|why| {
                tracing::info!(task = %attempt.task, from = results.record.run, %why, "what was made of it is not reused");
            });
            Some(Reused { attempt, outputs: outputs.ok()?, from: results.record.run.parse().ok()? })
        };
        let reused = found.into_par_iter().filter_map(reused).collect();
        volume::sync_dir(&dir)?;
        Ok(reused)
    }
}

fn each_entry(dir: &Path, mut each: impl FnMut(Entry)) -> Result<(), VolumeError> {
    let path = dir.join(TASKS);
    let failed = |error| VolumeError::io("read", &path, error);
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        // Removed in this moment.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for line in BufReader::new(file).lines() {
        match serde_json::from_str(&line.map_err(failed)?) {
            Ok(entry) => each(entry),
            Err(error) => tracing::warn!(path = %path.display(), %error, "not a line that this forebay knows"),
        }
    }
    Ok(())
}

impl Entry {
    /// Second names, in a directory, for what the task has made, which is now the work of the task at this place.
    fn take(&self, volume: &Volume, results: &Path, dir: &Path, index: u32) -> Result<Vec<OutputFile>, String> {
        let take = |(n, kept): (usize, &Kept)| {
            let from = results.join(ATTEMPTS).join(&kept.path);
            let to = dir.join(format!("{index}-{n}"));
            let meta = fs::metadata(&from).map_err(|error| format!("{}: {error}", from.display()))?;
            if (meta.len(), modified(&meta)) != (kept.size, kept.modified) {
                return Err(format!("{} was changed since", from.display()));
            }
            volume::link_or_copy(&from, &to).map_err(|error| error.to_string())?;
            let publish_as = match &kept.publish_as {
                None => None,
                Some(name) => Some(published_at(name, self.task.index, index).ok_or("its name has no place")?),
            };
            let Kept { partition, size, checksum, rows, .. } = *kept;
            let path = volume.relative(&to).ok_or("it is not on the volume")?;
            Ok(OutputFile { path, publish_as, partition, size, checksum, rows })
        };
        self.files.iter().enumerate().map(take).collect()
    }
}

fn modified(meta: &fs::Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

/// Keeps what the tasks of a run that has ended have made, in place of the directory of its attempts.
pub fn keep(volume: &Volume, run: &RunDir, machine: &Run, plan: &Plan) -> Result<(), ReuseError> {
    let Some(id) = machine.snapshot().filter(|_| run.job().may_reuse()) else { return Ok(()) };
    if machine.tasks().all(|(_, task)| outputs(&task.state).is_empty()) {
        return Ok(());
    }
    let snapshot = snapshot_of(volume, run, id)?;
    let work = match machine.work() {
        Some(work) => work.clone(),
        None => work_of(run)?,
    };
    let entries = entries(volume, run, machine, &Inputs::new(&work, plan, &snapshot))?;
    if entries.is_empty() {
        return Ok(());
    }
    let record = Record {
        version: 0,
        work: work.whole.to_string(),
        parts: work.parts.iter().map(|(part, identity)| (part.clone(), identity.to_string())).collect(),
        run: run.id().to_string(),
        job: run.job().name.clone(),
        made: jiff::Timestamp::now(),
        tasks: entries.len() as u64,
    };
    results::keep(volume, record, |dir| {
        let path = dir.join(TASKS);
        let failed = |error| VolumeError::io("write", &path, error);
        let mut file = BufWriter::new(fs::File::create_new(&path).map_err(failed)?);
        for entry in &entries {
            let mut line = serde_json::to_vec(entry).expect("plain fields serialise");
            line.push(b'\n');
            file.write_all(&line).map_err(failed)?;
        }
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        // What failed attempts have left in it is nobody's; a rename is all that is done for a million tasks.
        let (from, to) = (run.path().join(ATTEMPTS), dir.join(ATTEMPTS));
        fs::rename(&from, &to).map_err(|error| VolumeError::io("rename", &from, error))
    })?;
    Ok(room::make_room(volume, 0)?)
}

fn entries(volume: &Volume, run: &RunDir, machine: &Run, inputs: &Inputs<'_>) -> Result<Vec<Entry>, ReuseError> {
    let (cut, attempts) = (machine.cut_tasks(), run.path().join(ATTEMPTS));
    let kept = |file: &OutputFile| -> Result<Kept, VolumeError> {
        let path = volume.resolve(&file.path)?;
        let meta = fs::metadata(&path).map_err(|error| VolumeError::io("inspect", &path, error))?;
        let below: PathBuf = path.strip_prefix(&attempts).unwrap_or(&path).to_owned();
        let OutputFile { publish_as, partition, size, checksum, rows, .. } = file.clone();
        let (path, modified) = (below.display().to_string(), modified(&meta));
        Ok(Kept { path, publish_as, partition, size, checksum, rows, modified })
    };
    let mut entries = Vec::new();
    let mut partitions: HashMap<u32, Vec<OutputFile>> = HashMap::new();
    let mut phase = 0;
    for (task, state) in machine.tasks() {
        if task.phase != phase {
            phase = task.phase;
            partitions = machine.partitions_before(phase).into_iter().collect();
        }
        let files = outputs(&state.state);
        // What was skipped is counted when it is skipped.
        let skips = |file: &OutputFile| file.publish_as.as_deref().is_some_and(|name| name.starts_with("_skipped/"));
        if files.is_empty() || cut.contains(&task) || files.iter().any(skips) {
            continue;
        }
        let (identity, input) = match phase {
            0 => (inputs.of_split(task.index), inputs.read_by(task.index)),
            _ => {
                let read = partitions.get(&task.index).map_or(&[][..], Vec::as_slice);
                (Some(inputs.work.of_partition(phase, task.index, read)), Vec::new())
            }
        };
        let Some(identity) = identity else { continue };
        let files = files.iter().map(kept).collect::<Result<_, _>>()?;
        entries.push(Entry { identity, task, input, files });
    }
    Ok(entries)
}

fn outputs(state: &TaskState) -> &[OutputFile] {
    match state {
        TaskState::Committed { outputs, .. } => outputs,
        _ => &[],
    }
}
