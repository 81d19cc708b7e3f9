//! Queries by splits: the answers of one task, whatever the cuts; and what cannot be cut.

mod fixture;

use std::fs;

use arrow::array::Int32Array;
use forebay_datasets::snapshot::Snapshot;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use self::fixture::{Cut, Run, assert_same, csv, ndjson, row_groups, rows};
use super::{
    super::*,
    shelf::{Shelf, batch, numbers, parquet, published, spec, texts},
};

#[tokio::test]
async fn parquet_by_row_groups_gives_what_one_task_gives() {
    let shelf = Shelf::new([
        ("t/1.parquet", row_groups(&rows(0..500), 100)),
        ("t/2.parquet", row_groups(&rows(500..500), 100)),
        ("t/3.parquet", row_groups(&rows(500..700), 1000)),
    ]);
    Cut { split: "by = 'row-groups'", ..Cut::default() }.check(&shelf, 7).await;
}

#[tokio::test]
async fn csv_and_ndjson_by_bytes_give_what_one_task_gives() {
    let shelf = Shelf::new([("t/1.csv", csv(&rows(0..300))), ("t/2.csv", csv(&rows(300..700)))]);
    Cut { table: ", newlines = false", split: "size = '5KiB'" }.check(&shelf, 5).await;
    let shelf = Shelf::new([("t/1.ndjson", ndjson(&rows(0..300))), ("t/2.ndjson", ndjson(&rows(300..700)))]);
    Cut { split: "size = '10KiB'", ..Cut::default() }.check(&shelf, 5).await;
}

#[tokio::test]
async fn a_cut_may_be_anywhere_also_before_the_data() {
    let text = "\u{feff}# none\n\n# and none\nn,t\n1,a\n2,b\n\n3,c\n4,d\n5,e";
    let shelf = Shelf::new([("t/1.csv", text), ("t/2.csv", "n,t\n"), ("t/3.csv", "n,t\n7,x\n")]);
    for size in 1..text.len() + 2 {
        let cut = Cut { table: ", newlines = false, comment = '#'", split: &format!("size = '{size}B'") };
        let (lines, _) = cut.lines(&shelf, "select count(*) as c, sum(n) as s, max(t) as t from t").await.unwrap();
        assert_eq!(lines, ["c,s,t", "6,22,x"], "{size}");
    }
}

/// Of what the queries of `Cut::check` leave out.
#[tokio::test]
async fn every_aggregate_that_is_said_to_combine_does() {
    let shelf = Shelf::new([("t/1.parquet", row_groups(&rows(0..700), 200))]);
    let cut = Cut { split: "by = 'row-groups'", ..Cut::default() };
    let regr = ["avgx", "avgy", "count", "intercept", "r2", "slope", "sxx", "sxy", "syy"];
    let regr: Vec<_> = regr.iter().map(|name| format!("regr_{name}(x, i) as {name}")).collect();
    for query in [
        format!("select {} from t", regr.join(", ")),
        "select var(x) as a, stddev_pop(x) as b, min(distinct s) as c, max(distinct i) as d, sum(distinct i) as e from t".into(),
        "select s, count(distinct i) as a, avg(distinct i) as b, median(distinct i) as c, median(x) as d from t group by s order by s".into(),
        "select s, array_to_string(array_sort(array_agg(n)), '|') as l, length(string_agg(s, '')) as g from t group by s order by s".into(),
        "select array_to_string(array_sort(array_agg(distinct i)), '|') as l, approx_distinct(n) as d from t".into(),
    ] {
        let expected = cut.lines_of_one(&shelf, &query).await.unwrap();
        assert_same(&query, &cut.lines(&shelf, &query).await.unwrap().0, &expected);
    }
    // It is a sketch, whose values depend on how rows are grouped into it.
    let (lines, splits) = cut.lines(&shelf, "select approx_median(n) as m from t").await.unwrap();
    let close = (lines[1].parse::<f64>().unwrap() - 349.5).abs() < 14.0;
    assert!(close && splits == 4, "{lines:?}");
    let (lines, _) = cut.lines(&shelf, "select string_agg(cast(n as varchar), '.') as l from t").await.unwrap();
    let in_order: Vec<_> = (0..700).map(|n| n.to_string()).collect();
    assert_eq!(lines[1], in_order.join("."), "values come in the order of the dataset");
    let shelf = Shelf::new([("t/1.ndjson", "{\"l\": [1, 2]}\n{\"l\": []}\n{\"l\": [2, null]}\n{\"l\": null}\n")]);
    let unnested = "select v, count(*) as c from (select unnest(l) as v from t) group by v order by v";
    let cut = Cut { split: "size = '10B'", ..Cut::default() };
    assert_eq!(
        cut.lines(&shelf, unnested).await.unwrap(),
        (["v,c", "1,1", "2,2", ",1"].map(str::to_owned).to_vec(), 6)
    );
}

#[tokio::test]
async fn each_way_to_cut_has_its_splits() {
    let shelf = Shelf::new([
        ("t/1.parquet", row_groups(&rows(0..500), 100)),
        ("t/3.parquet", row_groups(&rows(500..700), 1000)),
    ]);
    let sum = format!("{}", 700 * 699 / 2);
    for (split, count) in [
        ("", 1),
        ("by = 'row-groups'", 6),
        ("size = '1B'", 6),
        ("count = 2", 2),
        ("by = 'file'", 2),
        ("by = 'whole'", 1),
    ] {
        let cut = Cut { split, ..Cut::default() };
        let (lines, splits) = cut.lines(&shelf, "select sum(n) as s from t").await.unwrap();
        assert_eq!((&lines[1], splits), (&sum, count), "{split}");
    }
    let shelf = Shelf::new([("t/1.csv", csv(&rows(0..90))), ("t/2.csv", csv(&rows(90..100)))]);
    let lines = ", newlines = false";
    for (table, split, count) in [("", "size = '9B'", 2), (lines, "by = 'row-groups'", 2), (lines, "count = 5", 5)] {
        let cut = Cut { table, split };
        let (lines, splits) = cut.lines(&shelf, "select sum(n) as s from t").await.unwrap();
        assert_eq!((&lines[1][..], splits), ("4950", count), "{table} {split}");
    }
}

#[tokio::test]
async fn a_task_has_the_columns_of_all_files_and_opens_its_own_alone() {
    let old = parquet(&[("id", Arc::new(Int32Array::from(vec![1, 2]))), ("year", numbers([0, 0]))]);
    let new = parquet(&[("id", numbers([3, 1 << 40])), ("x", texts(["y", "z"]))]);
    let shelf = Shelf::new([
        ("t/year=2011/kind=7/1.parquet", b"PAR1 is how it begins, and no more".to_vec()),
        ("t/year=2012/kind=7/1.parquet", old),
        ("t/year=2012/kind=a%2Fb/1.parquet", new.clone()),
        ("t/year=2013/kind=__HIVE_DEFAULT_PARTITION__/1.parquet", new),
    ]);
    let cut = Cut { split: "by = 'row-groups'", ..Cut::default() };
    for (query, count) in [
        ("select kind, max(x) as x, sum(id) as s from t where year > 2011 group by kind order by kind", 3),
        ("select year, count(*) as c, count(x) as x, min(year) as y from t where year = 2012 group by year", 2),
        ("select count(x) as c, max(kind) as k from t where kind is null and year > 2011", 1),
        ("select count(*) as c, max(kind) as k from t where year = 1999", 1),
        ("select kind, count(*) as c from t where year = 1999 group by kind", 1),
    ] {
        let expected = cut.lines_of_one(&shelf, query).await.unwrap();
        assert_eq!(cut.lines(&shelf, query).await.unwrap(), (expected, count), "{query}");
    }
    let error = cut.lines(&shelf, "select count(x) as c from t").await.unwrap_err();
    assert!(error.starts_with("the table `t`: `t/year=2011/kind=7/1.parquet`: "), "{error}");
    // The first of the lines by which a column's type is told are of another split than those that are text.
    let shelf = Shelf::new([("t/1.csv", "a,b\n1,1\n2,2\n"), ("t/2.csv", "a,b\nx,3\n,\n")]);
    let by_file = Cut { split: "by = 'file'", ..Cut::default() };
    let (lines, _) = by_file.lines(&shelf, "select min(a) as a, max(a) as z, sum(b) as s from t").await.unwrap();
    assert_eq!(lines, ["a,z,s", "1,x,6"]);
}

#[tokio::test]
async fn what_does_not_combine_is_refused_before_the_run() {
    let shelf = Shelf::new([("t/1.csv", "n,s\n1,a\n2,b\n")]);
    for (query, what) in [
        ("select n from t", "no aggregate"),
        ("select n from t order by n limit 1", "no aggregate"),
        ("select row_number() over (order by n) from t", "no aggregate"),
        ("select 1", "no rows of a table to read"),
        ("select count(*) from t where false", "no rows of a table to read"),
        ("select sum(a.n) from t a join t b on a.n = b.n", "2 reads of it, as of a join or a subquery"),
        ("select sum(n) from t where n > (select avg(n) from t)", "a subquery"),
        ("select sum(n) from (select n from t union all select n from t)", "2 reads of it, as of a join or a subquery"),
        ("select sum(n) from t cross join (values (1), (2))", "a join below its aggregate"),
        ("select sum(r) from (select rank() over (order by n) as r from t)", "a window function below its aggregate"),
        ("select sum(n) from (select n from t order by n limit 1)", "ORDER BY below its aggregate"),
        ("select sum(n) from (select n from t limit 1)", "LIMIT below its aggregate"),
        ("select sum(n) from (select n from t union all values (1))", "UNION below its aggregate"),
        ("select n, (select count(*) from (values (1)) v) as c from t", "a subquery"),
        ("select first_value(s) from t", "`first_value`, which is not known to combine"),
        ("select last_value(s order by n) from t", "`last_value`, which is not known to combine"),
        ("select nth_value(s, 2) from t", "`nth_value`, which is not known to combine"),
        ("select distinct on (s) s, n from t order by s, n", "`first_value`, which is not known to combine"),
        ("select cardinality(array_agg(s order by n)) from t", "`array_agg` with an order of its own"),
        ("select string_agg(s, ',' order by n) from t", "`string_agg` with an order of its own"),
        (
            "select approx_percentile_cont(0.9) within group (order by n) from t",
            "`approx_percentile_cont`, which is not known to combine",
        ),
        ("select bit_xor(distinct n), count(*) from t", "`bit_xor` with DISTINCT, which is not known to combine"),
        ("select count(*) from t where random() < 0.5", "`random`, which another task finds different"),
        ("select count(*), now() from t", "`now`, which another task finds different"),
        (
            "create view v as select n, current_date() as d from t; select max(d) from v",
            "`current_date`, which another task finds different",
        ),
    ] {
        let error = Cut::default().lines(&shelf, query).await.unwrap_err();
        let expected = format!(
            "by splits a query aggregates the rows of one table, and this one has {what}: use engine = \"datafusion\""
        );
        assert_eq!(error, expected, "{query}");
    }
    let error = Cut::default().lines(&shelf, "select sum(m) from t").await.unwrap_err();
    assert!(error.contains("No field named m"), "{error}");
}

#[tokio::test]
async fn bad_records_are_named_by_their_lines_whatever_the_cuts() {
    let good: String = (0..150_000).map(|n| format!("{n},ok\n")).collect();
    let text = format!("n,t\n{good}x,late\n1,2,3\n7,end\n");
    let shelf = Shelf::new([("t/1.csv", text), ("t/2.csv", "n,t\n1,fine\ny,\n3,fine\n".to_owned())]);
    let cut = Cut { table: ", newlines = false, schema = { n = 'BIGINT' }", split: "size = '300KiB'" };
    let job = cut.job("select count(*) as c, sum(n) as s from t");
    let run = Run::plan(&shelf, &job).await.unwrap();
    let error = run.output(None).await.unwrap_err();
    assert!(!error.is_retryable());
    assert_eq!(error.to_string(), "`t/1.csv`, line 150002: the column `n`: `x` is no Int64");
    let run = Run::plan(&shelf, &format!("on_bad_record = 'skip'\n{job}")).await.unwrap();
    let (first, last) = run.output(None).await.unwrap();
    let sum = 150_000_u64 * 149_999 / 2 + 7 + 1 + 3;
    assert_eq!(published(&last)["part-00000.csv"], format!("c,s\n150003,{sum}\n"));
    let listed = first.iter().flat_map(|output| &output.files).filter(|file| file.publish_as.is_some());
    let lines: String = listed.map(|file| fs::read_to_string(&file.path).unwrap()).collect();
    let records: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let places: Vec<_> = records.iter().map(|record| (record["key"].as_str().unwrap(), &record["line"])).collect();
    assert_eq!(places, [("t/1.csv", &150_002.into()), ("t/1.csv", &150_003.into()), ("t/2.csv", &3.into())]);
    let skipped: f64 = first.iter().chain([&last]).filter_map(|output| output.metrics.get("skipped_records")).sum();
    assert_eq!(skipped, 3.0);
}

#[tokio::test]
async fn a_spoilt_page_fails_its_own_split_and_no_other() {
    let mut bytes = row_groups(&batch(&[("a", numbers((0..9000).map(|n| n * 7919)))]), 3000);
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes.clone())).unwrap();
    let (start, length) = reader.metadata().row_group(1).column(0).byte_range();
    let middle = usize::try_from(start + length / 2).unwrap();
    bytes[middle - 200..middle + 200].fill(0xff);
    let shelf = Shelf::new([("t/1.parquet", bytes)]);
    let cut = Cut { split: "by = 'row-groups'", ..Cut::default() };
    let run = Run::plan(&shelf, &cut.job("select count(distinct a) as d from t")).await.unwrap();
    for (index, whole) in [(0, true), (1, false), (2, true)] {
        let done = run.first(index, None).await;
        assert_eq!(done.is_ok(), whole, "{done:?}");
        if let Err(error) = done {
            assert!(error.to_string().starts_with("`t/1.parquet`: the column `a`, row group 1: "), "{error}");
        }
    }
}

#[tokio::test]
async fn sums_of_floats_are_the_same_to_the_last_bit_whoever_was_first() {
    let shelf = Shelf::new([("t/1.parquet", row_groups(&rows(0..3000), 300))]);
    let cut = Cut { split: "by = 'row-groups'", ..Cut::default() };
    let query = "select i, sum(x) as s, avg(x) as a, stddev(x) as d, array_agg(n) as l from t group by i";
    let run = Run::plan(&shelf, &cut.job(query).replace("'csv'", "'parquet'")).await.unwrap();
    let (first, last) = run.output(None).await.unwrap();
    let expected = fs::read(&last.files[0].path).unwrap();
    let mut order: Vec<_> = (0..10).rev().collect();
    order.swap(2, 7);
    let mut again: Vec<_> = Vec::new();
    for index in order {
        run.first(index, None).await.unwrap();
        again.push((index, run.first(index, None).await.unwrap()));
    }
    again.sort_by_key(|(index, _)| *index);
    let again: Vec<_> = again.into_iter().map(|(_, output)| output).collect();
    assert_eq!(fs::read(&run.last(&again, None).await.unwrap().files[0].path).unwrap(), expected);
    // It is the order that makes the difference, so that it has to be the same.
    let mut turned = first;
    turned.reverse();
    assert_ne!(fs::read(&run.last(&turned, None).await.unwrap().files[0].path).unwrap(), expected);
}

#[tokio::test]
async fn what_outgrows_the_memory_is_spilled_and_still_right() {
    let rows = 200_000_i64;
    let batch = batch(&[("k", numbers((0..rows).map(|n| n * 7919 % rows))), ("n", numbers(0..rows))]);
    let shelf = Shelf::new([("t/1.parquet", row_groups(&batch, 50_000))]);
    let cut = Cut { split: "by = 'row-groups'", ..Cut::default() };
    let query = "select count(*) as g, sum(s) as s, sum(c) as c from \
                 (select k % 150000 as k, sum(n) as s, count(*) as c, max(cast(n as varchar)) as m from t group by 1)";
    let run = Run::plan(&shelf, &cut.job(query)).await.unwrap();
    let (_, last) = run.output(Some(8 << 20)).await.unwrap();
    assert!(last.metrics["spills"] > 0.0, "{:?}", last.metrics);
    let sum = rows * (rows - 1) / 2;
    assert_eq!(published(&last)["part-00000.csv"], format!("g,s,c\n150000,{sum},{rows}\n"));
}

#[tokio::test]
async fn states_of_another_query_are_no_states() {
    let shelf = Shelf::new([("t/1.parquet", row_groups(&rows(0..10), 5))]);
    let other = Run::plan(&shelf, &Cut::default().job("select max(s) as m from t")).await.unwrap();
    let states = [other.first(0, None).await.unwrap()];
    let run = Run::plan(&shelf, &Cut::default().job("select sum(n) as m from t")).await.unwrap();
    let error = run.last(&states, None).await.unwrap_err().to_string();
    assert!(error.ends_with("states.arrows holds other states than those of this query"), "{error}");
    fs::write(&states[0].files[0].path, "no stream").unwrap();
    run.last(&states, None).await.unwrap_err();
}

#[tokio::test]
async fn a_plan_shows_what_each_split_and_what_the_last_task_does() {
    let shelf = Shelf::new([("t/1.parquet", row_groups(&rows(0..20), 5))]);
    let cut = Cut { split: "by = 'row-groups'", ..Cut::default() };
    let run =
        Run::plan(&shelf, &cut.job("select s, sum(n) as m from t where i > 3 group by s order by m")).await.unwrap();
    let of = (&run.plan.splits[0], run.plan.table.as_ref());
    let shown = explain(&shelf.volume(), &run.job, of, 4).await.unwrap();
    let lines: Vec<_> = shown.lines().map(str::trim).collect();
    let begins = |at: usize, text: &str| assert!(lines[at].starts_with(text), "{text}: {shown}");
    begins(0, "each split:");
    begins(1, "AggregateExec: mode=Partial, gby=[s@1 as s]");
    begins(2, "FilterExec: i@1 > 3");
    begins(3, "DataSourceExec: file_groups={1 group: [[data/t/1.parquet]]}");
    begins(4, "then, over the states of all splits:");
    assert!(
        shown.contains("AggregateExec: mode=Final, gby=[s@0 as s]") && lines.last().unwrap().starts_with("Streaming")
    );
}

#[tokio::test]
async fn a_part_of_a_dataset_is_cut_like_the_whole() {
    let file = super::wide(40, 50_000);
    let bench = super::Bench::new(&[("w/1.parquet", &file), super::NAMES]);
    let query = "select abs(c03) % 3 as n, count(*) as c, sum(c30) as s from w group by 1 order by 1";
    let job = format!(
        "columns = ['c03', 'c30']\n[sql]\nquery = '{query}'\nengine = 'splits'\ntables.w = 'w/*.parquet'\n\
         [split]\nby = 'row-groups'\n[output]\nformat = 'csv'"
    );
    let lines = async |snapshot: &Snapshot| {
        let plan = crate::plan::plan(&spec(&job), snapshot, &bench.volume()).unwrap();
        let run = Run::of(bench.volume(), spec(&job), plan).await.unwrap();
        assert_eq!(run.plan.phases(), [3, 1]);
        published(&run.output(None).await.unwrap().1)
    };
    let whole = lines(&bench.staged().await).await;
    assert_eq!(whole["part-00000.csv"].lines().count(), 4);
    for old in ["o", "s"].iter().flat_map(|kind| (0..4).map(move |number| format!("{kind}-{number}"))) {
        fs::remove_dir_all(bench.volume().root().join(old)).unwrap();
    }
    let part = bench.narrow(&["c03", "c30"].into_iter().collect()).await;
    assert_eq!(lines(&part).await, whole);
}
