//! What a query is over, and what it leaves, from S3 to the published output.

use std::{path::Path, sync::Arc};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use parquet::arrow::ArrowWriter;
use serde_json::Value;

use crate::support::{Cluster, output};

pub(super) fn parquet(columns: &[(&str, Vec<i64>)]) -> Vec<u8> {
    let array = |values: &Vec<i64>| -> ArrayRef { Arc::new(Int64Array::from(values.clone())) };
    let batch = RecordBatch::try_from_iter(columns.iter().map(|(name, values)| (*name, array(values)))).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn run(cluster: &Cluster, job: &str) -> Value {
    cluster.forebay(["run", &cluster.file("job.toml", job), "--json"]).json(0)
}

fn texts(run: &Value) -> Vec<(String, String)> {
    output(run).into_iter().map(|(name, bytes)| (name, String::from_utf8(bytes).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_in_partitions_is_published_and_is_the_next_job_s_dataset() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "in.csv", "day;kind;n\n2013-01-02;a/b;1\n2013-01-02;;2\n2013-01-03;a/b;3\n");
    let to = cluster.volume().join("copy");
    let parted = run(
        &cluster,
        &format!(
            "name = 'part'\n[dataset]\nsource = 's3://data'\n[sql]\nquery = '''
             create view dated as select cast(day as date) as day, kind, n from t;
             select n, n * 2 as m, day, kind from dated order by n desc'''
             tables.t = {{ include = '*.csv', delimiter = ';' }}
             [output]\nformat = 'csv'\npartition_by = ['day', 'kind']\nto = 'file://{}'",
            to.display()
        ),
    );
    let expected = [
        ("day=2013-01-02/kind=__HIVE_DEFAULT_PARTITION__/part-00000.csv", "n,m\n2,4\n"),
        ("day=2013-01-02/kind=a%2Fb/part-00000.csv", "n,m\n1,2\n"),
        ("day=2013-01-03/kind=a%2Fb/part-00000.csv", "n,m\n3,6\n"),
    ];
    assert_eq!(texts(&parted), expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    assert_eq!(parted["output"]["rows"], 3);
    let job = format!(
        "name = 'back'\n[dataset]\nsource = 'file://{}'\nname = 'back'\ninclude = ['day=*/**']\n[sql]\n\
         query = \"select kind, day, sum(m) as m from back where day > '2013-01-01' group by 1, 2 order by 3\"\n\
         [output]\nformat = 'csv'",
        to.display()
    );
    let back = run(&cluster, &job);
    let rows = "kind,day,m\na/b,2013-01-02,2\n,2013-01-02,4\na/b,2013-01-03,6\n";
    assert_eq!(texts(&back), [("part-00000.csv".to_owned(), rows.to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_partitions_only_the_columns_that_are_in_the_files_are_staged() {
    let cluster = Cluster::start().await;
    let noise = |seed: i64| (0..20_000).map(|n: i64| (n ^ seed << 40).wrapping_mul(0x1e37_79b9_7f4a_7c15)).collect();
    let file = |year: i64| {
        let columns: Vec<_> = (0..30).map(|n| (format!("c{n:02}"), noise(year * 100 + n))).collect();
        parquet(
            &columns
                .iter()
                .map(|(name, values): &(String, Vec<i64>)| (name.as_str(), values.clone()))
                .collect::<Vec<_>>(),
        )
    };
    for year in [2012, 2013] {
        cluster.s3.put("data", &format!("t/year={year}/1.parquet"), file(year));
    }
    let job = |columns: &str| {
        format!(
            "name = 'j'\n[dataset]\nsource = 's3://data'\nname = 'd'\ncolumns = '{columns}'\n[sql]\n\
             query = 'select year, sum(c07 % 1000) as s from t where year > 2012 group by year'\ntables.t = 't/**'\n\
             [output]\nformat = 'csv'"
        )
    };
    let narrow = run(&cluster, &job("needed"));
    let fetched = narrow["staged"]["fetched_bytes"].as_u64().unwrap();
    assert!(fetched * 4 < file(2012).len() as u64 * 2, "{fetched}");
    let shown = cluster.forebay(["dataset", "show", "d", "--json"]).json(0);
    assert_eq!(shown["snapshot"]["columns"], serde_json::json!(["c07"]));
    let whole = run(&cluster, &job("all"));
    assert_eq!(texts(&narrow), texts(&whole));
    assert!(texts(&whole)[0].1.starts_with("year,s\n2013,"), "{:?}", texts(&whole));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_s_memory_is_what_a_query_has_and_beyond_it_spills() {
    let cluster = Cluster::start().await;
    let keys = |n: i64| n.wrapping_mul(0x1e37_79b9_7f4a_7c15) >> 8;
    let rows = 1_200_000;
    cluster.s3.put("data", "t.parquet", parquet(&[("k", (0..rows).map(keys).collect()), ("v", (0..rows).collect())]));
    let job = "name = 'j'\n[dataset]\nsource = 's3://data'\n[sql]\noptions = { 'datafusion.execution.batch_size' = 4096 }\n\
               query = 'select count(*) as c, sum(s) as s from (select k, sum(v) as s from data group by k)'\n\
               [workers]\nmemory = '96MiB'\n[output]\nformat = 'csv'";
    let given = run(&cluster, job);
    assert_eq!(texts(&given)[0].1, format!("c,s\n{rows},{}\n", rows * (rows - 1) / 2));
    let explained = cluster.forebay(["explain", given["run"].as_str().unwrap(), "0", "--json"]).json(0);
    let metrics = &explained["attempts"][0]["metrics"];
    assert!(metrics["spilled_bytes"].as_f64().unwrap() > 0.0, "{explained}");
    let shown = cluster.forebay(["explain", given["run"].as_str().unwrap(), "0"]).code(0).stdout;
    assert!(shown.replace('\n', " ").contains("spilled_bytes"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_records_fail_with_their_place_or_are_listed_in_the_output() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "a.ndjson", "{\"n\": 1}\n{\"n\": 2\n{\"n\": 3}\n");
    let job = |on: &str| {
        format!(
            "name = 'j'\n[dataset]\nsource = 's3://data'\non_bad_record = '{on}'\n[sql]\nquery = 'select sum(n) as s from data'\n\
             [output]\nformat = 'csv'"
        )
    };
    let error = cluster.forebay(["run", &cluster.file("job.toml", &job("fail"))]).code(2).words();
    assert!(error.contains("`a.ndjson`, line 2"), "{error}");
    let given = run(&cluster, &job("skip"));
    let files = texts(&given);
    assert_eq!(files.iter().find(|(name, _)| name == "part-00000.csv").unwrap().1, "s\n4\n");
    assert_eq!((&given["output"]["rows"], &given["output"]["skipped_records"]), (&1.into(), &1.into()));
    let said = cluster.forebay(["run", &cluster.file("job.toml", &job("skip"))]).code(0).stderr;
    assert!(said.contains("1 record left out, listed in _skipped/"), "{said}");
    assert_eq!(given["output"]["files"].as_array().unwrap().len(), 2, "{given}");
    let listed = std::fs::read_to_string(
        Path::new(given["output"]["path"].as_str().unwrap()).join("_skipped/part-00000.ndjson"),
    );
    let record: Value = serde_json::from_str(listed.unwrap().trim()).unwrap();
    assert_eq!((&record["key"], &record["line"]), (&"a.ndjson".into(), &2.into()), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_shows_the_plan_before_and_after_staging() {
    let cluster = Cluster::start().await;
    for year in [2012, 2013] {
        cluster.s3.put("data", &format!("t/year={year}/1.parquet"), parquet(&[("a", vec![1, 2]), ("b", vec![3, 4])]));
    }
    let job = |query: &str| {
        let text = format!("name = 'j'\n[dataset]\nsource = 's3://data'\n[sql]\nquery = '{query}'\ntables.t = 't/**'");
        cluster.file("job.toml", &text)
    };
    let good = job("select sum(a) from t where year = 2013");
    let plan = || cluster.forebay(["check", &good, "--json"]).json(0)["plan"].as_str().unwrap().to_owned();
    let before = plan();
    cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    for plan in [before, plan()] {
        let parts = ["AggregateExec", "projection=[a]", "year=2013/1.parquet"];
        assert!(parts.iter().all(|part| plan.contains(part)), "{plan}");
        assert!(!plan.contains("year=2012"), "{plan}");
    }
    assert!(cluster.forebay(["check", &good]).code(0).stdout.contains("plan:\n"));
    cluster.s3.put("other", "x.csv", "a\n1\n");
    let bad =
        cluster.file("bad.toml", "name = 'j'\n[dataset]\nsource = 's3://other'\n[sql]\nquery = 'select b from other'");
    let noted = cluster.forebay(["check", &bad]).code(0).stderr;
    assert!(noted.contains("by the first object of each table: No field named b"), "{noted}");
}
