//! Map and reduce tasks over real files: the output is the same however the dataset is cut and however little is held.

use std::{collections::BTreeMap, fs};

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
        let mut fed = Vec::new();
        for file in this.outputs(&files) {
            this.task(TaskInput::Shuffle(vec![file]), |ctx| program::feed(ctx, &mut fed).unwrap());
        }
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
    let mut fed = Vec::new();
    this.task(TaskInput::Split(Split { pieces }), |ctx| program::feed(ctx, &mut fed).unwrap());
    assert_eq!(String::from_utf8(fed).unwrap(), "1\n2\n3\n4\n");
}
