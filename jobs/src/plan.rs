//! The plan of a run: every task of every phase, fixed before the first one starts.

mod ahead;
mod scan;

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use forebay_datasets::{
    columns::Columns,
    format::{self, Format},
    snapshot::{Object, Snapshot},
    source::SourceError,
    split::{Cut, Cuttable, Part, Piece, Size, Split, split},
    volume::{self, Volume, VolumeError},
};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde::{Deserialize, Serialize, de::Error};

use crate::{
    host::Host,
    id::TaskId,
    kinds::sql::KnownTable,
    spec::{FleetKind, JobSpec, SplitBy, SplitSize, SqlSpec, Work},
    task::{TaskInput, TaskSpec},
};

pub use self::ahead::{plan_ahead, starts_early};

/// All tasks of a run over one snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Id of the snapshot; none of a plan that was made ahead of it.
    pub snapshot: Option<String>,
    /// Digest of the listing that a plan was made of, ahead of the snapshot.
    pub listing: Option<String>,
    /// Where the objects lie, relative to the volume's root.
    pub data: String,
    /// The splits of the first phase's tasks.
    pub splits: Vec<Split>,
    /// Tasks of the second phase, if the kind of work has one; each reads one partition.
    pub partitions: Option<u32>,
    /// Of a query by splits, what no task could learn of its split alone.
    pub table: Option<KnownTable>,
}

/// The most tasks that a phase may have. Beyond it a coordinator's state, and not the work, would fill a host.
pub const MOST_TASKS: u32 = 10_000_000;

/// Why a plan cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// No object holds anything to work on.
    #[error("the snapshot has nothing to work on: its objects are all folders")]
    Nothing,
    /// The splits are too small for the dataset.
    #[error("the dataset would be cut into {tasks} splits, and a run takes {MOST_TASKS}: make [split] size larger")]
    TooMany {
        /// How many.
        tasks: u64,
    },
    /// A table is made of no object.
    #[error("the table `{table}` is empty: no key matches `{glob}`")]
    EmptyTable {
        /// Its name.
        table: String,
        /// Its glob.
        glob: String,
    },
    /// Some objects are held in part, and the work reads whole ones.
    #[error(
        "the snapshot {snapshot} of `{dataset}` holds only the columns {columns} of its Parquet objects, and this job \
reads whole ones: stage {source_url} without choosing columns, or name no version"
    )]
    Partial {
        /// The dataset.
        dataset: String,
        /// The snapshot.
        snapshot: String,
        /// The columns that it was staged for.
        columns: Columns,
        /// Where it came from.
        source_url: String,
    },
    /// A gang's tasks would never run at once.
    #[error(
        "the job's {members} tasks are a gang and run at once, and all workers together have {slots} slots: \
give [workers] more, or cut the dataset into fewer splits"
    )]
    TooFewSlots {
        /// Its tasks.
        members: u32,
        /// Of all workers that fit.
        slots: u64,
    },
    /// A table's glob is none.
    #[error(transparent)]
    Glob(#[from] SourceError),
    /// A Parquet object has no readable footer.
    #[error("`{key}` is not a readable Parquet file")]
    Footer {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A plan on the volume cannot be understood.
    #[error("{} is not a plan", path.display())]
    Malformed {
        /// Its path.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Plans a job over a snapshot.
pub fn plan(job: &JobSpec, snapshot: &Snapshot, volume: &Volume) -> Result<Plan, PlanError> {
    let cut = cut(job);
    let selected = match &job.work {
        Work::Sql(sql) => objects_of_tables(sql, &snapshot.manifest.objects)?,
        _ => snapshot.manifest.objects.iter().collect(),
    };
    if !matches!(job.work, Work::Sql(_)) && snapshot.manifest.is_partial() {
        // A program is given the whole directory, whatever its split.
        return Err(PlanError::Partial {
            dataset: snapshot.record.name.clone(),
            snapshot: snapshot.record.id.to_string(),
            columns: snapshot.record.columns.clone().unwrap_or_default(),
            source_url: snapshot.record.source.clone(),
        });
    }
    let cuttable = |object: &Object| -> Result<Cuttable, PlanError> {
        let format = Format::of(&object.key);
        let row_groups = match format == Format::Parquet && cut == Cut::RowGroups {
            true => Some(row_groups(&object.key, &snapshot.data_path(volume, object)?)?),
            false => None,
        };
        Ok(Cuttable {
            key: object.key.clone(),
            path: snapshot.volume_path(object),
            size: object.size,
            partial: object.held.is_some(),
            lines: format.is_lines(),
            row_groups,
        })
    };
    // A footer is a seek or a round trip each: on a network file system they are read side by side.
    let objects = selected.into_par_iter().map(cuttable).collect::<Result<Vec<_>, _>>()?;
    let snapshot = &snapshot.record;
    let data = format!("datasets/{}/snapshots/{}/data", snapshot.name, snapshot.id);
    Ok(Plan { snapshot: Some(snapshot.id.to_string()), data, ..tasks(job, cut, &objects)? })
}

/// Bytes of the row groups of a Parquet object.
fn row_groups(key: &str, path: &Path) -> Result<Vec<u64>, PlanError> {
    format::row_groups(path).map_err(|source| PlanError::Footer { key: key.to_owned(), source })
}

fn cut(job: &JobSpec) -> Cut {
    match (job.split.by, &job.work) {
        (_, Work::Sql(_)) | (SplitBy::Whole, _) => Cut::Whole,
        (SplitBy::File, _) => Cut::File,
        (SplitBy::Bytes, _) => Cut::Bytes,
        (SplitBy::RowGroups, _) => Cut::RowGroups,
    }
}

/// A plan that does not say yet what it is over.
fn tasks(job: &JobSpec, cut: Cut, objects: &[Cuttable]) -> Result<Plan, PlanError> {
    let size = match job.split.size {
        SplitSize::Bytes(bytes) => Size::Bytes(bytes),
        SplitSize::Count(count) => Size::Count(count),
        SplitSize::Each => Size::Each,
    };
    if let (Cut::Bytes, Size::Bytes(bytes)) = (cut, size) {
        // Before they are made: they would not fit into memory.
        let tasks = objects.iter().filter(|object| object.lines).map(|object| object.size / bytes.max(1)).sum();
        if tasks > u64::from(MOST_TASKS) {
            return Err(PlanError::TooMany { tasks });
        }
    }
    let mut splits = split(objects, cut, size);
    if let (true, Size::Count(count), false) = (job.is_gang(), size, splits.is_empty()) {
        // As many ranks as were asked for, be it that there is nothing for some of them.
        splits.resize_with(splits.len().max(count as usize), Split::default);
    }
    if splits.len() > MOST_TASKS as usize {
        return Err(PlanError::TooMany { tasks: splits.len() as u64 });
    }
    if splits.is_empty() {
        return Err(PlanError::Nothing);
    }
    let partitions = match &job.work {
        Work::Mapreduce(mapreduce) => Some(mapreduce.partitions),
        _ => None,
    };
    Ok(Plan { snapshot: None, listing: None, data: String::new(), splits, partitions, table: None })
}

/// The objects that the tables of a query are made of, each once.
fn objects_of_tables<'a>(sql: &SqlSpec, objects: &'a [Object]) -> Result<Vec<&'a Object>, PlanError> {
    let mut taken = vec![false; objects.len()];
    for (name, table) in &sql.tables {
        let is_of_table = table.matcher()?;
        let mut any = false;
        for (taken, object) in taken.iter_mut().zip(objects) {
            let matches = is_of_table(&object.key);
            *taken |= matches;
            any |= matches;
        }
        if !any {
            return Err(PlanError::EmptyTable { table: name.clone(), glob: table.include.join("`, `") });
        }
    }
    Ok(objects.iter().zip(taken).filter_map(|(object, taken)| taken.then_some(object)).collect())
}

impl Plan {
    /// Whether the tasks of a gang can run at once in workers that the run starts; of others nobody knows before they come.
    pub fn fits(&self, job: &JobSpec, host: &Host) -> Result<(), PlanError> {
        if !job.is_gang() {
            return Ok(());
        }
        let (members, wanted) = (self.phases()[0], &job.workers);
        let (workers, slots) = match wanted.fleet {
            FleetKind::External => return Ok(()),
            FleetKind::Slurm | FleetKind::Ecs | FleetKind::Kubernetes => (wanted.count, job.slots(0)),
            // That not even one worker fits is told where workers are started.
            FleetKind::Local => {
                let workers = host.holds(wanted).map_or(wanted.count, |fit| fit.min(wanted.count));
                (workers, job.slots(host.cores))
            }
        };
        let slots = u64::from(workers) * u64::from(slots);
        match u64::from(members) <= slots {
            true => Ok(()),
            false => Err(PlanError::TooFewSlots { members, slots }),
        }
    }

    /// Tasks of each phase.
    pub fn phases(&self) -> Vec<u32> {
        let first = u32::try_from(self.splits.len()).expect("a plan has at most MOST_TASKS splits");
        std::iter::once(first).chain(self.partitions).collect()
    }

    /// What a task is to do. A task of the second phase gets its files from the driver.
    pub fn task(&self, task: TaskId) -> Option<TaskSpec> {
        let count = *self.phases().get(task.phase as usize)?;
        let input = match task.phase {
            0 => TaskInput::Split(self.splits.get(task.index as usize)?.clone()),
            _ if task.index < count => TaskInput::Shuffle(Vec::new()),
            _ => return None,
        };
        Some(TaskSpec { task, count, input })
    }

    /// Writes the plan, one line a split after a line that says the rest.
    pub fn write(&self, path: &Path) -> Result<(), VolumeError> {
        let (snapshot, listing, data) = (self.snapshot.clone(), self.listing.clone(), self.data.clone());
        let (splits, partitions) = (self.splits.len(), self.partitions);
        let table = self.table.clone();
        let head = PlanHead { version: VERSION, snapshot, listing, data, splits, partitions, table };
        let mut text = serde_json::to_vec(&head).expect("plain fields serialise");
        for split in &self.splits {
            text.push(b'\n');
            serde_json::to_writer(&mut text, split).expect("plain fields serialise");
        }
        volume::hand_over(path, &text)
    }

    /// Reads a plan.
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let text = std::fs::read(path).map_err(|error| VolumeError::io("read", path, error))?;
        let bad = |source| PlanError::Malformed { path: path.to_owned(), source };
        let mut lines = text.split(|byte| *byte == b'\n');
        let head = PlanHead::parsed(path, lines.next().unwrap_or_default())?;
        let splits = lines.map(|line| serde_json::from_slice(line).map_err(bad)).collect::<Result<Vec<_>, _>>()?;
        // A run over a part of its plan would publish a part of its output as the whole.
        if splits.len() != head.splits || splits.len() > MOST_TASKS as usize {
            return Err(bad(Error::custom(format!("it has {} of {} splits", splits.len(), head.splits))));
        }
        let PlanHead { snapshot, listing, data, partitions, table, .. } = head;
        Ok(Self { snapshot, listing, data, splits, partitions, table })
    }
}

/// Of the plan's file.
const VERSION: u32 = 2;

/// The first line of the plan's file: all but the splits.
#[derive(Debug, Serialize, Deserialize)]
pub struct PlanHead {
    version: u32,
    snapshot: Option<String>,
    listing: Option<String>,
    /// Where the objects lie, relative to the volume's root.
    pub data: String,
    splits: usize,
    partitions: Option<u32>,
    /// Of a query by splits, what no task could learn of its split alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<KnownTable>,
}

impl PlanHead {
    /// Reads the head of a plan, and no more of it.
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let mut line = String::new();
        let read = File::open(path).and_then(|file| BufReader::new(file).read_line(&mut line));
        read.map_err(|error| VolumeError::io("read", path, error))?;
        Self::parsed(path, line.as_bytes())
    }

    fn parsed(path: &Path, line: &[u8]) -> Result<Self, PlanError> {
        let bad = |source| PlanError::Malformed { path: path.to_owned(), source };
        let head: Self = serde_json::from_slice(line).map_err(bad)?;
        match head.version {
            VERSION => Ok(head),
            version => Err(bad(Error::custom(format!("its version is {version}, and {VERSION} is known")))),
        }
    }
}

/// How a piece is shown to people: its key, and what of it.
pub fn describe(piece: &Piece) -> String {
    match piece.part {
        Part::Whole => piece.key.clone(),
        Part::Bytes { offset, length } => format!("{} bytes {offset}..{}", piece.key, offset + length),
        Part::RowGroups { first, count } => format!("{} row groups {first}..{}", piece.key, first + count),
    }
}

#[cfg(test)]
mod tests;
