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
            Object { key, path, size: *size, etag: None, version_id: None, checksum: Crc64(0), held: None }
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
            columns: None,
            held_bytes: None,
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
    assert_eq!((plan.phases(), plan.snapshot.clone()), (vec![2], Some(snapshot.record.id.to_string())));
    assert_eq!(plan.data, format!("datasets/d/snapshots/{}/data", snapshot.record.id));
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
    assert_eq!(splits[..3], [["a.csv"], ["b.txt bytes 0..10"], ["b.txt bytes 10..20"]], "lines are cut, CSV is not");
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
fn a_part_is_for_queries_alone_and_each_of_its_pieces_says_so() {
    let bench = Bench::new();
    let mut snapshot = bench.snapshot(&[("a.parquet", 9), ("b.csv", 9)]);
    snapshot.manifest.objects[0].held = Some(vec![]);
    snapshot.record.columns = Some(["x", "y"].into_iter().collect());
    let plan = bench.plan("[sql]\nquery = 'select 1'", &snapshot).unwrap();
    assert_eq!(plan.splits[0].pieces.iter().map(|piece| piece.partial).collect::<Vec<_>>(), [true, false]);
    let path = bench.dir.path().join("plan");
    plan.write(&path).unwrap();
    assert_eq!(Plan::read(&path).unwrap(), plan);
    for work in ["[command]\nargv = ['x']", "[mapreduce]\nmap = 'column-stats'"] {
        let error = bench.plan(work, &snapshot).unwrap_err();
        assert!(error.to_string().contains("of `d` holds only the columns x, y"), "{error}");
    }
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

#[test]
fn a_gang_has_as_many_ranks_as_were_asked_for() {
    let bench = Bench::new();
    let snapshot = bench.snapshot(&[("a.txt", 1), ("b.txt", 1)]);
    let ranks = |work: &str| shown(&bench.plan(work, &snapshot).unwrap());
    let program = "[command]\nargv = ['x']\n";
    assert_eq!(ranks(&format!("{program}gang = true\n[split]\ncount = 3")), [&["a.txt"][..], &["b.txt"], &[]]);
    assert_eq!(ranks(&format!("{program}gang = true")), [["a.txt"], ["b.txt"]]);
    assert_eq!(
        ranks(&format!("{program}[split]\ncount = 3")),
        [["a.txt"], ["b.txt"]],
        "tasks without input do nothing"
    );
}

#[test]
fn a_gang_that_this_host_could_never_run_at_once_is_no_plan() {
    let bench = Bench::new();
    let snapshot = bench.snapshot(&[("a.txt", 1)]);
    let host = Host { cores: 8, memory: None, gpus: vec!["0".into(), "1".into()] };
    let fits = |gang: bool, workers: &str| {
        let work = format!("[command]\nargv = ['x']\ngang = {gang}\n[split]\ncount = 4\n[workers]\n{workers}");
        let text = format!("name = 'j'\n[dataset]\nsource = 's3://b'\nname = 'd'\n{work}");
        let job = job_file(&text, Path::new("/"), &[]).unwrap();
        plan(&job, &snapshot, &bench.volume).unwrap().fits(&job, &host).map_err(|error| error.to_string())
    };
    assert_eq!((fits(true, "count = 2\nslots = 2"), fits(true, "")), (Ok(()), Ok(())));
    let error = fits(true, "count = 3\nslots = 1").unwrap_err();
    assert!(error.contains("4 tasks are a gang and run at once, and all workers together have 3 slots"));
    // Two of the four workers have no gpu here.
    assert!(fits(true, "count = 4\ngpus = 1").unwrap_err().contains("have 2 slots"));
    assert_eq!(fits(true, "count = 1\nslots = 1\nfleet = 'external'"), Ok(()));
    assert_eq!(fits(false, "slots = 1"), Ok(()));
}
