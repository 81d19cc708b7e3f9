//! The plan of a run: every task of every phase, fixed before the first one starts.

use std::path::Path;

use forebay_datasets::{
    format::{self, Format},
    snapshot::{Object, Snapshot},
    source::{SourceError, globs},
    split::{Cut, Cuttable, Part, Piece, Size, Split, split},
    volume::{self, Volume, VolumeError},
};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde::{Deserialize, Serialize, de::Error};

use crate::{
    id::TaskId,
    spec::{JobSpec, SplitBy, SplitSize, SqlSpec, Work},
    task::{TaskInput, TaskSpec},
};

/// All tasks of a run over one snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Id of the snapshot.
    pub snapshot: String,
    /// The splits of the first phase's tasks.
    pub splits: Vec<Split>,
    /// Tasks of the second phase, if the kind of work has one; each reads one partition.
    pub partitions: Option<u32>,
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
    let cut = match (job.split.by, &job.work) {
        (_, Work::Sql(_)) | (SplitBy::Whole, _) => Cut::Whole,
        (SplitBy::File, _) => Cut::File,
        (SplitBy::Bytes, _) => Cut::Bytes,
        (SplitBy::RowGroups, _) => Cut::RowGroups,
    };
    let size = match job.split.size {
        SplitSize::Bytes(bytes) => Size::Bytes(bytes),
        SplitSize::Count(count) => Size::Count(count),
        SplitSize::Each => Size::Each,
    };
    let selected = match &job.work {
        Work::Sql(sql) => objects_of_tables(sql, &snapshot.manifest.objects)?,
        _ => snapshot.manifest.objects.iter().collect(),
    };
    let cuttable = |object: &Object| -> Result<Cuttable, PlanError> {
        let format = Format::of(&object.key);
        let row_groups = match format == Format::Parquet && cut == Cut::RowGroups {
            true => {
                let path = snapshot.data_path(volume, object)?;
                let footer = format::row_groups(&path);
                Some(footer.map_err(|source| PlanError::Footer { key: object.key.clone(), source })?)
            }
            false => None,
        };
        Ok(Cuttable {
            key: object.key.clone(),
            path: snapshot.volume_path(object),
            size: object.size,
            lines: format.is_lines(),
            row_groups,
        })
    };
    // A footer is a seek or a round trip each: on a network file system they are read side by side.
    let objects = selected.into_par_iter().map(cuttable).collect::<Result<Vec<_>, _>>()?;
    if let (Cut::Bytes, Size::Bytes(bytes)) = (cut, size) {
        // Before they are made: they would not fit into memory.
        let tasks = objects.iter().filter(|object| object.lines).map(|object| object.size / bytes.max(1)).sum();
        if tasks > u64::from(MOST_TASKS) {
            return Err(PlanError::TooMany { tasks });
        }
    }
    let splits = split(&objects, cut, size);
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
    Ok(Plan { snapshot: snapshot.record.id.to_string(), splits, partitions })
}

/// The objects that the tables of a query are made of, each once.
fn objects_of_tables<'a>(sql: &SqlSpec, objects: &'a [Object]) -> Result<Vec<&'a Object>, PlanError> {
    let mut taken = vec![false; objects.len()];
    for (table, glob) in &sql.tables {
        let matcher = globs(std::slice::from_ref(glob))?;
        let mut any = false;
        for (taken, object) in taken.iter_mut().zip(objects) {
            let matches = matcher.is_match(&object.key) && !object.key.ends_with('/');
            *taken |= matches;
            any |= matches;
        }
        if !any {
            return Err(PlanError::EmptyTable { table: table.clone(), glob: glob.clone() });
        }
    }
    Ok(objects.iter().zip(taken).filter_map(|(object, taken)| taken.then_some(object)).collect())
}

impl Plan {
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
        let (snapshot, splits) = (self.snapshot.clone(), self.splits.len());
        let head = Head { version: VERSION, snapshot, splits, partitions: self.partitions };
        let mut text = serde_json::to_vec(&head).expect("plain fields serialise");
        for split in &self.splits {
            text.push(b'\n');
            serde_json::to_writer(&mut text, split).expect("plain fields serialise");
        }
        volume::replace(path, &text)
    }

    /// Reads a plan.
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let text = std::fs::read(path).map_err(|error| VolumeError::io("read", path, error))?;
        let bad = |source| PlanError::Malformed { path: path.to_owned(), source };
        let mut lines = text.split(|byte| *byte == b'\n');
        let head: Head = serde_json::from_slice(lines.next().unwrap_or_default()).map_err(bad)?;
        let splits = lines.map(|line| serde_json::from_slice(line).map_err(bad)).collect::<Result<Vec<_>, _>>()?;
        if head.version != VERSION {
            return Err(bad(Error::custom(format!("its version is {}, and {VERSION} is known", head.version))));
        }
        // A run over a part of its plan would publish a part of its output as the whole.
        if splits.len() != head.splits || splits.len() > MOST_TASKS as usize {
            return Err(bad(Error::custom(format!("it has {} of {} splits", splits.len(), head.splits))));
        }
        Ok(Self { snapshot: head.snapshot, splits, partitions: head.partitions })
    }
}

/// Of the plan's file.
const VERSION: u32 = 1;

/// The first line of the plan's file.
#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    snapshot: String,
    splits: usize,
    partitions: Option<u32>,
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
mod tests {
    use std::{fs, sync::Arc};

    use arrow::{
        array::{ArrayRef, Int32Array, RecordBatch},
        datatypes::{DataType, Field, Schema},
    };
    use forebay_datasets::{
        checksum::Crc64,
        snapshot::{Manifest, SnapshotRecord},
    };
    use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};

    use super::*;
    use crate::spec::parse::job_file;

    struct Bench {
        dir: tempfile::TempDir,
        volume: Volume,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let volume = Volume::open_or_create(dir.path()).unwrap();
            Self { dir, volume }
        }

        /// A snapshot's manifest: of the objects themselves, a plan reads footers at most.
        fn snapshot(&self, objects: &[(&str, u64)]) -> Snapshot {
            let object = |(key, size): &(&str, u64)| {
                let (key, path) = ((*key).to_owned(), (*key).to_owned());
                Object { key, path, size: *size, etag: None, version_id: None, checksum: Crc64(0) }
            };
            let manifest = Manifest { objects: objects.iter().map(object).collect() };
            let record = SnapshotRecord {
                version: 1,
                id: manifest.id(),
                name: "d".into(),
                source: "s3://b/".into(),
                listing: String::new(),
                objects: objects.len() as u64,
                bytes: objects.iter().map(|(_, size)| size).sum(),
                created: String::new(),
                fetched: None,
            };
            let dir = self.dir.path().join("datasets/d/snapshots").join(manifest.id().to_string());
            Snapshot { record, manifest, dir }
        }

        fn plan(&self, work: &str, snapshot: &Snapshot) -> Result<Plan, PlanError> {
            let text = format!("name = 'j'\n[dataset]\nsource = 's3://b'\nname = 'd'\n{work}");
            plan(&job_file(&text, Path::new("/"), &[]).unwrap(), snapshot, &self.volume)
        }
    }

    /// What each split holds.
    fn shown(plan: &Plan) -> Vec<Vec<String>> {
        plan.splits.iter().map(|split| split.pieces.iter().map(describe).collect()).collect()
    }

    #[test]
    fn a_command_has_a_task_a_file() {
        let bench = Bench::new();
        let snapshot = bench.snapshot(&[("a", 3), ("b/", 0), ("b/c.csv", 0)]);
        let plan = bench.plan("[command]\nargv = ['x']", &snapshot).unwrap();
        assert_eq!(shown(&plan), [["a"], ["b/c.csv"]]);
        assert_eq!((plan.phases(), plan.snapshot.clone()), (vec![2], snapshot.record.id.to_string()));
        let path = &plan.splits[1].pieces[0].path;
        assert_eq!(*path, format!("datasets/d/snapshots/{}/data/b/c.csv", snapshot.record.id));
        let task = |index| plan.task(TaskId { phase: 0, index });
        let spec = task(1).unwrap();
        assert_eq!((spec.count, spec.input), (2, TaskInput::Split(plan.splits[1].clone())));
        assert_eq!(task(2), None);
        assert_eq!(plan.task(TaskId { phase: 1, index: 0 }), None);
    }

    #[test]
    fn mapreduce_has_a_second_phase_of_one_task_a_partition() {
        let bench = Bench::new();
        let snapshot = bench.snapshot(&[("a.csv", 25), ("b.txt", 25), ("c.txt", 3)]);
        let work = "[mapreduce]\nmap = 'word-count'\npartitions = 3\n[split]\nsize = '10B'";
        let plan = bench.plan(work, &snapshot).unwrap();
        let splits = shown(&plan);
        assert_eq!(
            splits[..3],
            [["a.csv"], ["b.txt bytes 0..10"], ["b.txt bytes 10..20"]],
            "lines are cut, CSV is not"
        );
        assert_eq!(splits[3], ["b.txt bytes 20..25", "c.txt"]);
        assert_eq!(plan.phases(), [4, 3]);
        let spec = plan.task(TaskId { phase: 1, index: 2 }).unwrap();
        assert_eq!((spec.count, spec.input), (3, TaskInput::Shuffle(vec![])));
        assert_eq!(plan.task(TaskId { phase: 1, index: 3 }), None);
    }

    #[test]
    fn a_query_is_one_task_over_the_objects_of_its_tables() {
        let bench = Bench::new();
        let snapshot = bench.snapshot(&[("f/1.csv", 9), ("f/2.csv", 9), ("notes.md", 9), ("p.csv", 9)]);
        let query = |tables: &str| format!("[sql]\nquery = 'select 1'\ntables = {tables}");
        let plan = bench.plan(&query("{ f = 'f/*.csv', p = '{p,f/1}.csv' }"), &snapshot).unwrap();
        assert_eq!(shown(&plan), [["f/1.csv", "f/2.csv", "p.csv"]], "each once");
        let error = bench.plan(&query("{ f = 'f/*.csv', q = 'q/*' }"), &snapshot).unwrap_err();
        assert_eq!(error.to_string(), "the table `q` is empty: no key matches `q/*`");
    }

    #[test]
    fn parquet_is_cut_between_the_row_groups_of_its_footer() {
        let bench = Bench::new();
        let snapshot = bench.snapshot(&[("p.parquet", 100), ("t.txt", 5)]);
        fs::create_dir_all(snapshot.dir.join("data")).unwrap();
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int32, false)]));
        let column: ArrayRef = Arc::new(Int32Array::from_iter_values(0..30));
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(10)).build();
        let file = fs::File::create(snapshot.dir.join("data/p.parquet")).unwrap();
        let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(properties)).unwrap();
        writer.write(&RecordBatch::try_new(schema, vec![column]).unwrap()).unwrap();
        writer.close().unwrap();
        let work = "[command]\nargv = ['x']\n[split]\nby = 'row-groups'";
        let splits = shown(&bench.plan(work, &snapshot).unwrap());
        assert_eq!(splits[..3], [0, 1, 2].map(|i| vec![format!("p.parquet row groups {i}..{}", i + 1)]));
        assert_eq!(splits[3], ["t.txt"]);
        fs::write(snapshot.dir.join("data/p.parquet"), "no footer").unwrap();
        let error = bench.plan(work, &snapshot).unwrap_err();
        assert_eq!(error.to_string(), "`p.parquet` is not a readable Parquet file");
    }

    #[test]
    fn what_can_never_run_is_refused() {
        let bench = Bench::new();
        let nothing = bench.snapshot(&[("a/", 0), ("b/", 0)]);
        assert!(matches!(bench.plan("[command]\nargv = ['x']", &nothing), Err(PlanError::Nothing)));
        let vast = bench.snapshot(&[("a.txt", 1 << 50)]);
        let work = "[mapreduce]\nmap = 'word-count'\n[split]\nsize = '1B'";
        assert!(matches!(bench.plan(work, &vast), Err(PlanError::TooMany { tasks }) if tasks == 1 << 50));
    }

    #[test]
    fn a_plan_survives_its_file_and_a_part_of_one_is_none() {
        let bench = Bench::new();
        let snapshot = bench.snapshot(&[("a \"\nä.txt", 25), ("b.txt", 3)]);
        let plan = bench.plan("[mapreduce]\nmap = 'line-count'\n[split]\nsize = '10B'", &snapshot).unwrap();
        let path = bench.dir.path().join("plan");
        plan.write(&path).unwrap();
        assert_eq!(Plan::read(&path).unwrap(), plan);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(Plan::read(&path), Err(PlanError::Malformed { .. })), "cut at {cut}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(Plan::read(&path), Err(PlanError::Volume(_))));
    }
}
