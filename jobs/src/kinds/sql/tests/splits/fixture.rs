//! Runs of queries by splits, and the data that they are cut over.

use std::{cell::Cell, fs};

use arrow::array::{ArrayRef, Date32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};
use tokio_util::sync::CancellationToken;

use super::super::{
    super::*,
    shelf::{Shelf, batch, published, spec},
};
use crate::{
    id::TaskId,
    kinds::{TaskContext, TaskOutput},
    plan::Plan,
    task::{TaskInput, TaskSpec},
};

/// A run of a job by splits.
pub(super) struct Run {
    pub(super) volume: Volume,
    pub(super) job: JobSpec,
    pub(super) plan: Plan,
    pub(super) attempts: Cell<u32>,
}

impl Run {
    pub(super) async fn plan(shelf: &Shelf, job: &str) -> Result<Self, String> {
        let (data, splits) = ("data".to_owned(), vec![shelf.split()]);
        let plan = Plan { snapshot: None, listing: None, data, splits, partitions: None, table: None };
        Self::of(shelf.volume(), spec(job), plan).await
    }

    /// Of a plan of one task.
    pub(super) async fn of(volume: Volume, job: JobSpec, plan: Plan) -> Result<Self, String> {
        let scan = check_staged(&volume, &job, &plan.splits[0]).await.map_err(|error| error.to_string())?;
        let plan = plan.over_scan(&job, &volume, scan.expect("a query by splits")).unwrap();
        // As a worker has it.
        let path = volume.root().join("plan.ndjson");
        plan.write(&path).unwrap();
        Ok(Self { volume, job, plan: Plan::read(&path).unwrap(), attempts: Cell::new(0) })
    }

    pub(super) async fn attempt(
        &self,
        task: TaskId,
        input: TaskInput,
        memory: Option<u64>,
    ) -> Result<TaskOutput, TaskError> {
        let number = self.attempts.replace(self.attempts.get() + 1);
        let dirs = ["o", "s"].map(|kind| self.volume.root().join(format!("{kind}-{number}")));
        dirs.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        let spec = TaskSpec { task, count: 1, input };
        let (table, never) = (self.plan.table.as_ref(), CancellationToken::new());
        let plain = TaskContext::plain((&self.volume, &self.job, &spec), &dirs, &never);
        execute(&TaskContext { table, memory, ..plain }).await
    }

    pub(super) async fn first(&self, index: u32, memory: Option<u64>) -> Result<TaskOutput, TaskError> {
        let input = TaskInput::Split(self.plan.splits[index as usize].clone());
        self.attempt(TaskId { phase: 0, index }, input, memory).await
    }

    pub(super) async fn last(&self, first: &[TaskOutput], memory: Option<u64>) -> Result<TaskOutput, TaskError> {
        let files = first.iter().flat_map(|output| &output.files).filter(|file| file.partition.is_some());
        let files = files.map(|file| file.handed_on(&self.volume));
        self.attempt(TaskId { phase: 1, index: 0 }, TaskInput::Shuffle(files.collect()), memory).await
    }

    /// All tasks, each once.
    pub(super) async fn output(&self, memory: Option<u64>) -> Result<(Vec<TaskOutput>, TaskOutput), TaskError> {
        let mut first = Vec::new();
        for index in 0..self.plan.splits.len() {
            first.push(self.first(index as u32, memory).await?);
        }
        let last = self.last(&first, memory).await?;
        Ok((first, last))
    }
}

/// How a table is read, beside its globs, and how it is cut.
#[derive(Clone, Copy, Default)]
pub(super) struct Cut<'a> {
    pub(super) table: &'a str,
    pub(super) split: &'a str,
}

impl Cut<'_> {
    /// A query by splits.
    pub(super) fn job(self, query: &str) -> String {
        let Self { table, split } = self;
        let split = if split.is_empty() { String::new() } else { format!("[split]\n{split}\n") };
        format!(
            "{split}[output]\nformat = 'csv'\n[sql]\nquery = \"\"\"{query}\"\"\"\nengine = 'splits'\n\
             tables.t = {{ include = 't/**'{table} }}"
        )
    }

    /// Its lines, and how many splits there were.
    pub(super) async fn lines(self, shelf: &Shelf, query: &str) -> Result<(Vec<String>, usize), String> {
        let run = Run::plan(shelf, &self.job(query)).await?;
        let (_, last) = run.output(None).await.map_err(|error| error.to_string())?;
        let text = &published(&last)["part-00000.csv"];
        Ok((text.lines().map(str::to_owned).collect(), run.plan.splits.len()))
    }

    /// Those of one task.
    pub(super) async fn lines_of_one(self, shelf: &Shelf, query: &str) -> Result<Vec<String>, String> {
        let table = self.table;
        shelf.lines(&format!("[sql]\nquery = \"\"\"{query}\"\"\"\ntables.t = {{ include = 't/**'{table} }}")).await
    }

    /// Asserts that all queries give the same, over so many splits at least.
    pub(super) async fn check(self, shelf: &Shelf, least: usize) {
        for query in QUERIES {
            let expected = self.lines_of_one(shelf, query).await.unwrap();
            let (given, splits) = self.lines(shelf, query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
            assert!(splits >= least, "{splits} splits");
            assert_same(query, &given, &expected);
        }
    }
}

/// Rows of every kind of value, and some without.
pub(super) fn rows(range: std::ops::Range<i64>) -> RecordBatch {
    let at = |n: i64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64).rotate_left(29);
    let some = |n: &i64, each: i64| at(*n + each).rem_euclid(each) != 0;
    let optional = |n: i64, value: i64| some(&n, 7).then_some(value);
    let whole: Vec<i64> = range.collect();
    let columns: [(&str, ArrayRef); 6] = [
        ("n", Arc::new(Int64Array::from_iter_values(whole.iter().copied()))),
        ("i", Arc::new(whole.iter().map(|n| optional(*n, at(*n) % 100).map(|i| i as i32)).collect::<Int32Array>())),
        ("x", Arc::new(whole.iter().map(|n| some(n, 11).then_some(at(*n) as f64 / 1e15)).collect::<Float64Array>())),
        ("s", Arc::new(whole.iter().map(|n| some(n, 5).then(|| format!("s{}", at(*n) % 4))).collect::<StringArray>())),
        (
            "d",
            Arc::new(
                whole.iter().map(|n| optional(*n, at(*n) % 3).map(|d| d as i32 + 15_000)).collect::<Date32Array>(),
            ),
        ),
        ("b", Arc::new(arrow::array::BooleanArray::from_iter(whole.iter().map(|n| some(n, 13).then_some(n % 2 == 0))))),
    ];
    batch(&columns)
}

pub(super) fn row_groups(batch: &RecordBatch, rows: usize) -> Vec<u8> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(rows))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

pub(super) fn csv(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow::csv::Writer::new(Vec::new());
    writer.write(batch).unwrap();
    writer.into_inner()
}

pub(super) fn ndjson(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner()
}

const QUERIES: &[&str] = &[
    "select count(*) as c from t",
    "select count(i) as c, sum(i) as s, min(i) as a, max(x) as b, avg(i) as v from t",
    "select s, count(*) as c, sum(n) as n, avg(x) as v, min(d) as a, max(s) as m from t group by s order by s",
    "select s, d, i % 3 as r, count(x) as c, stddev(x) as v, var_pop(i) as w from t group by s, d, r order by s, d, r",
    "select s from t group by s having count(*) > 90 and min(n) < 3 order by s desc",
    "select i, sum(x) as v from t group by i order by v desc nulls last, i limit 5 offset 2",
    "select case when i > 50 then 'much' when i is null then 'none' else s end as k, count(*) as c from t group by k order by k",
    "select count(*) as c, sum(x) as s from t where n > 1000000",
    "select s, sum(n) as c from t where n > 1000000 group by s",
    "select d, count(*) as c from t where s = 's1' and (i > 3 or b) and n % 7 = 3 group by d order by d",
    "select sum(n) + 1 as a, sum(n) / nullif(count(x), 0) as b, 2 * avg(i + 1) as c from t",
    "select distinct s, b from t order by s, b",
    "select count(distinct i) as c from t",
    "select s, count(distinct i) as c, sum(distinct i) as d, count(*) as e from t group by s order by s",
    "select count(distinct i) as a, count(distinct s) as b, avg(distinct i) as c, max(n) as m from t",
    "select s, b, count(*) as c, grouping(s) + grouping(b) as g from t group by rollup (s, b) order by s, b, g",
    "select s, sum(i) filter (where b) as a, count(*) filter (where x > 0) as c from t group by s order by s",
    "select bool_and(b) as a, bool_or(b) as o, bit_and(i) as p, bit_or(i) as q, bit_xor(n) as r from t",
    "select corr(x, i) as a, covar_pop(x, n) as b, covar_samp(x, i) as c, regr_slope(x, i) as d, regr_r2(i, x) as e from t",
    "select s, approx_distinct(i) as a, median(i) as m from t group by s order by s",
    "select s, c, rank() over (order by c desc, s) as r from (select s, count(*) as c from t group by s) order by r",
    "select avg(c) as a, max(c) as m from (select i, count(*) as c from t group by i)",
    "create view v as select *, i * 2 as j from t where b; select s, sum(j) as j from v group by s order by s",
    "with a as (select upper(s) as u, n from t) select u, max(n) - min(n) as r from a where u like '%S%' group by u order by u",
    "select date_trunc('year', d) as y, extract(month from d) as m, count(*) as c from t group by y, m order by y, m",
];

/// Asserts that two CSVs are the same, floats to their last digits but three.
#[track_caller]
pub(super) fn assert_same(query: &str, given: &[String], expected: &[String]) {
    assert_eq!(given.len(), expected.len(), "{query}: {given:?} {expected:?}");
    for (given, expected) in given.iter().zip(expected) {
        let fields = |line: &String| line.split(',').map(str::to_owned).collect::<Vec<_>>();
        let (given, expected) = (fields(given), fields(expected));
        assert_eq!(given.len(), expected.len(), "{query}");
        for (given, expected) in given.iter().zip(&expected) {
            let close = match (given.parse::<f64>(), expected.parse::<f64>()) {
                (Ok(given), Ok(expected)) => (given - expected).abs() <= 1e-12 * expected.abs().max(1e-3),
                _ => given == expected,
            };
            assert!(close, "{query}: {given} {expected}");
        }
    }
}
