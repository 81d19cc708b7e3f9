//! A record costs no allocation: ten times as many of them cost hardly more allocations.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    path::Path,
};

use forebay_datasets::{
    split::{Part, Piece, Split},
    volume::Volume,
};
use forebay_jobs::{
    Column, Emit, Job, Map, Record, Reduce, Result, Rows, Values,
    id::TaskId,
    kinds::{
        TaskContext,
        mapreduce::{self, native::Natives},
    },
    spec::parse,
    task::{OutputFile, TaskInput, TaskSpec},
};
use tokio_util::sync::CancellationToken;

/// The system's, and counts for each thread what it is asked.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has no counter any more, and is not looked at.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: all is the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller has it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller has it.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as the caller has it.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The length of each line by its first word.
struct Lengths;

impl Map for Lengths {
    fn map(&mut self, record: Record<'_>, out: &mut Emit<'_>) -> Result {
        let text = record.text()?;
        out.emit(text.split(' ').next().unwrap_or_default(), text.len() as u64);
        Ok(())
    }
}

struct Sum;

impl Reduce for Sum {
    fn reduce(&mut self, key: &[u8], values: &mut Values<'_>, out: &mut Rows<'_>) -> Result {
        out.row(&[key.into(), values.of::<u64>().sum::<u64>().into()]);
        Ok(())
    }
}

/// Allocations of a map task over so many lines, and of the reduce task after it.
fn asked(map: &str, lines: usize) -> (u64, u64) {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::open_or_create(dir.path()).unwrap();
    let text: String = (0..lines).map(|n| format!("word{} and another{}\n", n % 100, n % 70)).collect();
    fs::write(dir.path().join("x.txt"), &text).unwrap();
    let job = format!(
        "name = 't'\n[dataset]\nsource = 'file:///d'\n[mapreduce]\nmap = {map}\npartitions = 1\n[output]\nformat = 'csv'\n"
    );
    let job = parse::job_file(&job, dir.path(), &[]).unwrap();
    let lengths = Job::named("lengths").map(|_| Ok(Lengths));
    let lengths = lengths.combine(|some: u64, more: u64| some + more);
    let columns = [Column::text("word"), Column::uint("bytes")];
    let natives = Natives::new([lengths.reduce(columns, |_| Ok(Sum))]).unwrap();
    let never = CancellationToken::new();
    let task = |name: &str, input: TaskInput| {
        let dirs = ["out", "scratch"].map(|kind| dir.path().join(format!("{kind}-{name}")));
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let spec = TaskSpec { task: TaskId { phase: 0, index: 0 }, count: 1, input };
        let context = TaskContext {
            volume: &volume,
            job: &job,
            spec: &spec,
            out_dir: &dirs[0],
            scratch_dir: &dirs[1],
            threads: 1,
            table: None,
            memory: None,
            run_dir: dir.path(),
            cluster: tokio::sync::watch::channel(None).1,
            cancel: &never,
            yields: &never,
        };
        let before = ASKED.get();
        let output = mapreduce::execute(&context, &natives).unwrap();
        (output.files, ASKED.get() - before)
    };
    let piece =
        Piece { key: "x.txt".into(), path: "x.txt".into(), size: text.len() as u64, partial: false, part: Part::Whole };
    let (files, mapped) = task("map", TaskInput::Split(Split { pieces: vec![piece] }));
    let shuffled = |path: &Path| volume.relative(path).unwrap();
    let files = files.iter().map(|file| OutputFile {
        path: shuffled(&file.path),
        publish_as: None,
        partition: file.partition,
        size: file.size,
        checksum: file.checksum,
        rows: file.rows,
    });
    let (_, reduced) = task("reduce", TaskInput::Shuffle(files.collect()));
    (mapped, reduced)
}

const FEW: usize = 20_000;

#[test]
fn what_leaves_a_row_a_key_allocates_the_same_for_ten_times_the_records() {
    for map in ["'word-count'", "'line-count'"] {
        let (few, many) = (asked(map, FEW), asked(map, 10 * FEW));
        // A word's count may need a byte more, somewhere.
        assert!(many.0.abs_diff(few.0) <= 8 && many.1.abs_diff(few.1) <= 8, "{map}: {few:?} and {many:?}");
    }
}

#[test]
fn what_leaves_a_row_a_record_allocates_by_batches_of_them() {
    for map in ["'grep word'", "{ native = 'lengths' }"] {
        let (few, many) = (asked(map, FEW), asked(map, 10 * FEW));
        let more = 9 * FEW as u64;
        assert!(many.0 - few.0 <= more / 100 && many.1 <= few.1 + more / 100, "{map}: {few:?} and {many:?}");
    }
}
