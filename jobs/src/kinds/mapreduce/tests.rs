//! Map and reduce tasks over real files: the output is the same however the dataset is cut and however little is held.

use std::{collections::BTreeMap, fs, io::Read};

use forebay_datasets::{
    read::lines,
    split::{Cut, Cuttable, Part, Piece, Size, Split, split},
    volume::Volume,
};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    id::TaskId,
    kinds::Written,
    spec::{JobSpec, parse},
    task::{OutputFile, TaskSpec},
};

mod native;

struct Fixture {
    dir: tempfile::TempDir,
    volume: Volume,
    job: JobSpec,
    natives: Natives,
    tasks: std::cell::Cell<u32>,
}

impl Fixture {
    fn new(mapreduce: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        let text = format!(
            "name = 't'\n[dataset]\nsource = 'file:///d'\n[mapreduce]\n{mapreduce}\npartitions = 2\n{}",
            if mapreduce.contains('[') { "" } else { "[output]\nformat = 'csv'\n" }
        );
        let job = parse::job_file(&text, dir.path(), &[]).unwrap();
        Self { dir, volume, job, natives: Natives::default(), tasks: 0.into() }
    }

    fn put(&self, key: &str, text: &[u8]) -> Cuttable {
        fs::write(self.dir.path().join(key), text).unwrap();
        let (path, size) = (key.to_owned(), text.len() as u64);
        Cuttable { key: key.to_owned(), path, size, partial: false, lines: true, row_groups: None }
    }

    /// Does a task in directories of its own.
    fn task<T>(&self, input: TaskInput, work: impl FnOnce(&TaskContext<'_>) -> T) -> T {
        let index = self.tasks.replace(self.tasks.get() + 1);
        let dirs = ["out", "scratch"].map(|kind| self.dir.path().join(format!("{kind}-{index}")));
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let spec = TaskSpec { task: TaskId { phase: 0, index }, count: 1, input };
        let never = CancellationToken::new();
        work(&TaskContext::plain((&self.volume, &self.job, &spec), &dirs, &never))
    }

    /// As the coordinator has them.
    fn outputs(&self, files: &[Written]) -> Vec<OutputFile> {
        files.iter().map(|file| file.handed_on(&self.volume)).collect()
    }

    /// What a program gets.
    fn fed(&self, input: TaskInput) -> Vec<u8> {
        let (mut read, write) = std::io::pipe().unwrap();
        let reader = std::thread::spawn(move || {
            let mut fed = Vec::new();
            read.read_to_end(&mut fed).unwrap();
            fed
        });
        self.task(input, |ctx| program::feed(ctx, write).unwrap());
        reader.join().unwrap()
    }

    /// Reduces what map tasks have made: the output of each partition.
    fn reduced(&self, mapped: &[Vec<Written>]) -> Vec<String> {
        let reduce = |partition| {
            let files: Vec<_> =
                mapped.iter().flatten().filter(|file| file.partition == Some(partition)).cloned().collect();
            let output =
                self.task(TaskInput::Shuffle(self.outputs(&files)), |ctx| execute(ctx, &self.natives).unwrap());
            fs::read_to_string(&output.files[0].path).unwrap()
        };
        (0..2).map(reduce).collect()
    }
}

fn runs(ctx: &TaskContext<'_>) -> usize {
    let names = fs::read_dir(ctx.scratch_dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("run-")).count()
}

/// How often each word is in the texts: the output of both partitions.
fn counted(texts: &[String]) -> Vec<String> {
    let mut counts = vec![BTreeMap::<&str, u64>::new(); 2];
    for word in texts.iter().flat_map(|text| text.split_ascii_whitespace()) {
        *counts[shuffle::partition(word.as_bytes(), 2) as usize].entry(word).or_default() += 1;
    }
    let csv = |counts: &BTreeMap<&str, u64>| {
        let rows = counts.iter().map(|(word, count)| format!("{word},{count}\n"));
        std::iter::once("word,count\n".to_owned()).chain(rows).collect()
    };
    counts.iter().map(csv).collect()
}

/// Texts in objects, how they are cut, and what a task may hold.
fn datasets() -> impl Strategy<Value = (Vec<String>, u64, usize)> {
    let text = "([ab]{1,3}[ \n\r\t]{1,2}|longer-words-[a-c]{1,3}\n){0,12}[ab]{0,2}";
    (prop::collection::vec(text, 1..5), 1u64..60, prop::sample::select(vec![0, 200, 1 << 20]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn words_are_the_same_for_every_cut_and_every_budget((texts, size, budget) in datasets()) {
        let this = Fixture::new("map = 'word-count'");
        let objects: Vec<_> = texts.iter().enumerate().map(|(n, text)| this.put(&format!("{n}.txt"), text.as_bytes())).collect();
        let map = |split: Split| this.task(TaskInput::Split(split.clone()), |ctx| {
            let output = builtin::count_words_within(ctx, &split.pieces, 2, budget).unwrap();
            // Even an empty table is more than the small budgets; what is left at the end is a run too, then.
            let expected = if budget < 1 << 20 { split.pieces.len() + 1 } else { 0 };
            assert_eq!(runs(ctx), expected);
            output.files
        });
        let mapped: Vec<_> = split(&objects, Cut::Bytes, Size::Bytes(size)).into_iter().map(map).collect();
        prop_assert_eq!(this.reduced(&mapped), counted(&texts));
        // A map task tells of each word once, spilled or not.
        for files in mapped {
            let keys = this.task(TaskInput::Split(Split::default()), |ctx| {
                let mut keys = Vec::new();
                for file in this.outputs(&files) {
                    shuffle::merge(ctx, &[file], |key, _| { keys.push(key.to_vec()); Ok(()) }).unwrap();
                }
                keys
            });
            let unique: std::collections::BTreeSet<_> = keys.iter().collect();
            prop_assert_eq!(unique.len(), keys.len());
        }
    }

    #[test]
    fn matches_and_lines_are_the_same_for_every_cut_and_every_budget((texts, size, budget) in datasets()) {
        let this = Fixture::new("map = 'grep a$|^b'");
        let objects: Vec<_> = texts.iter().enumerate().map(|(n, text)| this.put(&format!("{n}.txt"), text.as_bytes())).collect();
        let splits = || split(&objects, Cut::Bytes, Size::Bytes(size));
        let map = |split: Split| this.task(TaskInput::Split(split.clone()), |ctx| {
            builtin::grep_within(ctx, &split.pieces, "a$|^b", 2, budget).unwrap().files
        });
        let mapped: Vec<_> = splits().into_iter().map(map).collect();
        let mut expected = vec!["key,offset,line\n".to_owned(); 2];
        for (object, text) in objects.iter().zip(&texts) {
            for (at, line) in lines(text.as_bytes()) {
                let line = String::from_utf8_lossy(line);
                if line.ends_with('a') || line.starts_with('b') {
                    // As the CSV writer quotes them.
                    let quoted = if line.contains('\r') { format!("\"{line}\"") } else { line.into_owned() };
                    let partition = shuffle::partition(object.key.as_bytes(), 2) as usize;
                    expected[partition].push_str(&format!("{},{at},{quoted}\n", object.key));
                }
            }
        }
        prop_assert_eq!(this.reduced(&mapped), expected);
        let count = |split: Split| this.task(TaskInput::Split(split.clone()), |ctx| {
            builtin::count_lines(ctx, &split.pieces, 2).unwrap().metrics["lines"]
        });
        let lines: usize = texts.iter().map(|text| lines(text.as_bytes()).count()).sum();
        prop_assert_eq!(splits().into_iter().map(count).sum::<f64>(), lines as f64);
    }
}

#[test]
fn what_outgrows_the_memory_of_a_slot_is_spilled_and_counted_all_the_same() {
    let text: String = (0..400_000).map(|n| format!("word{} {n}\n", n % 7)).collect();
    let expected: BTreeMap<String, u64> = (0..7)
        .map(|n| (format!("word{n}"), (400_000_u64 - n).div_ceil(7)))
        .chain((0..400_000).map(|n| (n.to_string(), 1)))
        .collect();
    let mut maps = [Fixture::new("map = 'word-count'"), native::word_count()];
    for this in &mut maps {
        (this.job.workers.memory, this.job.workers.slots) = (Some(4 << 20), Some(1));
        let objects = [this.put("x.txt", text.as_bytes())];
        let [whole] = &split(&objects, Cut::Bytes, Size::Bytes(1 << 30))[..] else { panic!() };
        let files = this.task(TaskInput::Split(whole.clone()), |ctx| {
            let files = execute(ctx, &this.natives).unwrap().files;
            assert!(runs(ctx) > 1, "{}", runs(ctx));
            files
        });
        let parts = this.reduced(&[files]);
        let rows = parts.iter().flat_map(|part| part.lines().skip(1)).map(|row| row.split_once(',').unwrap());
        let found: BTreeMap<_, _> = rows.map(|(word, count)| (word.to_owned(), count.parse().unwrap())).collect();
        assert!(found == expected);
    }
}

#[test]
fn more_runs_than_may_be_open_are_merged_in_order() {
    let this = Fixture::new("map = 'grep x'");
    let text: String = (0..400).map(|n| format!("x{n}\n")).collect();
    let object = this.put("x.txt", text.as_bytes());
    let piece = Piece { key: object.key, path: object.path, size: object.size, partial: false, part: Part::Whole };
    let files = this.task(TaskInput::Split(Split { pieces: vec![piece.clone()] }), |ctx| {
        let files = builtin::grep_within(ctx, &[piece], "x", 2, 0).unwrap().files;
        assert_eq!(runs(ctx), 401);
        files
    });
    let rows: Vec<_> = this
        .reduced(&[files])
        .iter()
        .flat_map(|part| part.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let found: Vec<_> = rows.iter().map(|row| row.rsplit(',').next().unwrap()).collect();
    assert_eq!(found, (0..400).map(|n| format!("x{n}")).collect::<Vec<_>>());
}

#[test]
fn what_a_program_writes_becomes_pairs_whatever_a_read_gives() {
    let this = Fixture::new("map = ['cat']\nreduce = ['cat']");
    let text = "b\t1\n\na\nb\t2\t3\nlast\tone";
    for capacity in [1, 2, 3, 5, 64] {
        let input = TaskInput::Split(Split::default());
        let files = this.task(input, |ctx| {
            program::take(ctx, std::io::BufReader::with_capacity(capacity, text.as_bytes())).unwrap().files
        });
        let fed: Vec<u8> =
            this.outputs(&files).into_iter().flat_map(|file| this.fed(TaskInput::Shuffle(vec![file]))).collect();
        let mut lines: Vec<_> = fed.split_inclusive(|byte| *byte == b'\n').map(String::from_utf8_lossy).collect();
        lines.sort_by(|a, b| a.split('\t').next().cmp(&b.split('\t').next()));
        assert_eq!(lines, ["\t\n", "a\t\n", "b\t1\n", "b\t2\t3\n", "last\tone\n"], "{capacity}");
    }
}

#[test]
fn a_program_is_fed_lines_and_each_object_begins_one_of_its_own() {
    let this = Fixture::new("map = ['cat']\nreduce = ['cat']");
    let pieces: Vec<_> = [("a.txt", "1\n2"), ("b.txt", ""), ("c.txt", "3\n"), ("d.txt", "4")]
        .map(|(key, text)| this.put(key, text.as_bytes()))
        .map(|Cuttable { key, path, size, .. }| Piece { key, path, size, partial: false, part: Part::Whole })
        .into();
    let fed = this.fed(TaskInput::Split(Split { pieces }));
    assert_eq!(String::from_utf8(fed).unwrap(), "1\n2\n3\n4\n");
}

#[test]
fn a_program_is_fed_each_line_once_however_large_the_pieces_are() {
    let this = Fixture::new("map = ['cat']\nreduce = ['cat']");
    let text: String = (0..60_000).map(|n| format!("line {n}\n")).collect();
    let objects = [this.put("a.txt", text.as_bytes()), this.put("b.txt", text.trim_end().as_bytes())];
    for size in [1_000, 100_000, 1 << 30] {
        let splits = split(&objects, Cut::Bytes, Size::Bytes(size));
        let fed: Vec<u8> = splits.into_iter().flat_map(|split| this.fed(TaskInput::Split(split))).collect();
        assert!(fed == text.repeat(2).into_bytes(), "{size}");
    }
    // A program that takes nothing, or only the beginning, is no error of the feeder's.
    let [whole] = &split(&objects[..1], Cut::Bytes, Size::Bytes(1 << 30))[..] else { panic!() };
    for taken in [0, 10_000] {
        let (mut read, write) = std::io::pipe().unwrap();
        let reader = std::thread::spawn(move || read.read_exact(&mut vec![0; taken]).unwrap());
        this.task(TaskInput::Split(whole.clone()), |ctx| program::feed(ctx, write).unwrap());
        reader.join().unwrap();
    }
}
