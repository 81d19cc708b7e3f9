//! SQL over the flights of 2013, staged from S3: what DuckDB answers, forebay answers.

use std::{fs, path::Path};

use crate::support::{Cluster, csv};

const TABLES: &str =
    r#"tables = { flights = "flights/*.parquet", weather = "weather.csv", airlines = "airlines.csv" }"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_flights_of_2013_give_the_rows_that_duckdb_gives() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nycflights13");
    let cluster = Cluster::start().await;
    for part in ["flights", "airlines.csv", "weather.csv"] {
        let path = data.join(part);
        match path.is_dir() {
            true => crate::support::files(&path).iter().for_each(|file| {
                let key = format!("2013/flights/{}", file.file_name().unwrap().to_str().unwrap());
                cluster.s3.put("acme", &key, fs::read(file).unwrap());
            }),
            false => cluster.s3.put("acme", &format!("2013/{part}"), fs::read(path).unwrap()),
        }
    }
    let names = ["busiest_routes", "delay_by_carrier", "delay_by_weather", "monthly", "top_tailnums"];
    for (index, name) in names.into_iter().enumerate() {
        let query = fs::read_to_string(data.join("expected").join(format!("{name}.sql"))).unwrap();
        let job = format!(
            "name = '{name}'\n[dataset]\nsource = 's3://acme/2013/'\n[sql]\nquery = \"\"\"{query}\"\"\"\n{TABLES}\n\
             [output]\nformat = 'csv'\n"
        );
        let result = cluster.forebay(["run", &cluster.file("job.toml", &job), "--json"]).json(0);
        let fetched = if index == 0 { 14 } else { 0 };
        assert_eq!(result["staged"]["fetched_objects"], fetched, "staged once, by the first query");
        let expected = fs::read_to_string(data.join("expected").join(format!("{name}.csv"))).unwrap();
        let rows = same_rows(&csv(&result), &expected);
        assert_eq!(result["output"]["rows"], rows, "{name}");
    }
}

/// Asserts that two CSV texts without quoted fields are the same, numbers to 1e-9 of their size. Gives the rows.
#[track_caller]
pub fn same_rows(given: &str, expected: &str) -> usize {
    assert_eq!(given.lines().count(), expected.lines().count(), "{given}");
    for (given, expected) in given.lines().zip(expected.lines()) {
        assert_eq!(given.split(',').count(), expected.split(',').count(), "{given} and {expected}");
        for (given, expected) in given.split(',').zip(expected.split(',')) {
            let close = match (given.parse::<f64>(), expected.parse::<f64>()) {
                (Ok(given), Ok(expected)) => (given - expected).abs() <= 1e-9 * expected.abs(),
                _ => given == expected,
            };
            assert!(close, "{given} and {expected}");
        }
    }
    given.lines().count() - 1
}

#[tokio::test(flavor = "multi_thread")]
async fn csv_with_newlines_in_quotes_is_not_torn_and_columns_in_another_order_are_refused() {
    let cluster = Cluster::start().await;
    // Large enough to be scanned in several ranges.
    let rows: String = (0..60_000).map(|n| format!("{n},\"a text\nof\nlines, {n}\"\n")).collect();
    cluster.s3.put("data", "a.csv", format!("n,text\n{rows}"));
    let job = |query: &str| {
        let text = format!(
            "name = 'j'\nreuse = 'off'\n[dataset]\nsource = 's3://data'\n[sql]\nquery = \"\"\"{query}\"\"\"\n[workers]\nslots = 4\n\
             [output]\nformat = 'csv'\n"
        );
        cluster.file("job.toml", &text)
    };
    let query = "select count(*) AS r, sum(n) AS s, max(length(text)) AS l, count(distinct text) AS d from data";
    let result = cluster.forebay(["run", &job(query), "--json"]).json(0);
    let expected = format!("r,s,l,d\n60000,{},22,60000\n", 60_000_u64 * 59_999 / 2);
    assert_eq!(csv(&result), expected);
    cluster.s3.put("data", "b.csv", "text,n\nx,1\n");
    let error = cluster.forebay(["run", &job(query)]).code(2);
    assert!(error.stderr.contains("has the columns n, text"), "{}", error.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_an_object_that_is_cut_are_counted_once() {
    let cluster = Cluster::start().await;
    let rows: String = (0..5000).map(|n| format!("{{\"n\": {n}}}\n")).collect();
    cluster.s3.put("data", "x.ndjson", rows);
    let text = "name = 'j'\n[dataset]\nsource = 's3://data'\n[mapreduce]\nmap = 'column-stats'\n\
                [split]\nby = 'bytes'\nsize = '10KiB'\n[output]\nformat = 'csv'\n";
    let result = cluster.forebay(["run", &cluster.file("job.toml", text), "--json"]).json(0);
    assert!(result["tasks"]["total"].as_u64().unwrap() > 5, "{result}");
    let expected = "column,count,nulls,min,max,mean\nn,5000,0,0,4999,2499.5\n";
    assert_eq!(csv(&result), expected);
}
