//! The jobs of the examples, each over its data: what they publish is known.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use arrow::{
    array::{Array, Float64Array, Int32Array},
    compute::concat_batches,
};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::support::{Cluster, examples::example, files, output};

async fn run(name: &str) -> (Value, BTreeMap<String, Vec<u8>>) {
    let cluster = Cluster::start().await;
    let job = example(name);
    cluster.forebay(["check", job.to_str().unwrap()]).code(0);
    let result = cluster.forebay(["run", job.to_str().unwrap(), "--json"]).json(0);
    let output = output(&result);
    (result, output)
}

fn text(output: &BTreeMap<String, Vec<u8>>, name: &str) -> String {
    String::from_utf8(output[name].clone()).unwrap()
}

fn generate(kind: &str, dir: &Path, size: &str) {
    let generated = Command::new("python3").arg(example("generate.py")).args([kind]).arg(dir).arg(size).status();
    assert!(generated.unwrap().success());
}

/// By DuckDB, over the same Parquet file and the CSV that the weather is of.
const WEEKS: &str = "\
week,origin,flights,in_rain,in_wind,cancelled,mean_delay,mean_delay_in_rain
2012-12-31,EWR,1869,0,55,14,14.007547169811321,
2012-12-31,JFK,1863,0,98,5,9.741119483315392,
2012-12-31,LGA,1434,0,0,13,4.695988740323716,
2013-01-07,EWR,2231,94,0,10,8.133723547951373,12.902173913043478
2013-01-07,JFK,2068,132,29,16,6.658382066276803,7.931297709923665
2013-01-07,LGA,1815,93,29,22,0.05465699944227551,1.4367816091954022
2013-01-14,EWR,2222,141,189,40,12.708065994500458,27.082089552238806
2013-01-14,JFK,2034,109,118,25,5.677949228471877,4.745283018867925
2013-01-14,LGA,1778,114,108,20,3.1012514220705345,12.551401869158878
2013-01-21,EWR,2217,92,267,39,19.39348025710662,39.96551724137931
2013-01-21,JFK,2030,79,171,17,9.300546448087431,38.28
2013-01-21,LGA,1802,64,244,40,8.717934165720772,49.258620689655174
2013-01-28,EWR,1354,132,321,135,24.526661197703035,20.859504132231404
2013-01-28,JFK,1166,266,458,37,14.32860938883968,19.976653696498055
2013-01-28,LGA,1121,211,253,88,15.71539206195547,10.47
";

#[tokio::test(flavor = "multi_thread")]
async fn delays_of_each_week_are_told_with_their_weather() {
    let (_, output) = run("weekly-delays.toml").await;
    super::queries::same_rows(&text(&output, "part-00000.csv"), WEEKS);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_a_table() {
    let (_, output) = run("log-analysis.toml").await;
    // By DuckDB.
    let expected = "path,requests,clients,bytes,failed\n/account,105,10,1875451,9\n/checkout,105,10,1771324,4\n\
                    /help,103,10,2062273,9\n/search,100,10,1948408,0\n/cart,97,10,1804862,6\n/,90,10,1606576,3\n";
    assert_eq!(text(&output, "part-00000.csv"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_become_few() {
    let (result, output) = run("compact-csvs.toml").await;
    assert_eq!((&result["staged"]["objects"], &result["output"]["rows"]), (&24.into(), &576.into()));
    assert_eq!(output.len(), 4);
    let (mut sum, mut known) = (0.0, 0);
    for day in 1..=4 {
        let name = format!("day=2013-01-0{day}/part-00000.parquet");
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(output[&name].clone())).unwrap();
        let schema = reader.schema().clone();
        let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
        let rows = concat_batches(&schema, &batches).unwrap();
        let sensors = rows.column_by_name("sensor").unwrap().as_any().downcast_ref::<Int32Array>().unwrap();
        assert!(sensors.len() == 144 && sensors.values().is_sorted(), "{name}");
        let degrees = rows.column_by_name("degrees").unwrap().as_any().downcast_ref::<Float64Array>().unwrap();
        sum += degrees.iter().flatten().sum::<f64>();
        known += degrees.len() - degrees.null_count();
    }
    // By DuckDB over the CSV files.
    assert!(known == 539 && (sum - 12_393.32).abs() < 1e-6, "{known} and {sum}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_each_order_the_last_state_is_left() {
    let (_, output) = run("deduplicate.toml").await;
    let value = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let mut last = BTreeMap::<u64, Value>::new();
    let events = files(&example("events")).into_iter().map(|file| fs::read_to_string(file).unwrap());
    for event in events.collect::<String>().lines().map(value) {
        let held = last.entry(event["order"].as_u64().unwrap()).or_insert_with(|| event.clone());
        if held["version"].as_u64() < event["version"].as_u64() {
            *held = event;
        }
    }
    assert_eq!(last.len(), 150);
    assert!(text(&output, "part-00000.ndjson").lines().map(value).eq(last.into_values()));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_tables_are_joined() {
    const ROWS: u64 = 20_000;
    let cluster = Cluster::start().await;
    let job = cluster.file("join.toml", &fs::read_to_string(example("join-large-tables.toml")).unwrap());
    generate("orders", &cluster.volume().join("generated"), &ROWS.to_string());
    let result = cluster.forebay(["run", &job, "--json"]).json(0);
    let output = output(&result);
    let customers = ROWS / 10;
    let mut countries = vec![(0, std::collections::BTreeSet::new(), 0); 7];
    for n in 0..ROWS {
        let customer = n * 7919 % customers;
        let (orders, seen, cents) = &mut countries[(customer % 7) as usize];
        *orders += 1;
        seen.insert(customer);
        *cents += n % 1000;
    }
    let row = |(n, (orders, seen, cents)): (usize, &(u64, std::collections::BTreeSet<u64>, u64))| {
        format!("country-{n},{orders},{},{cents}\n", seen.len())
    };
    let expected: String = countries.iter().enumerate().map(row).collect();
    assert_eq!(text(&output, "part-00000.csv"), format!("country,orders,customers,cents\n{expected}"));
}

#[test]
fn what_lies_beside_the_jobs_is_what_is_generated() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, name, size) in
        [("logs", "access-logs", "600"), ("readings", "readings", "576"), ("events", "events", "150")]
    {
        let (made, kept) = (dir.path().join(kind), example(name));
        generate(kind, &made, size);
        let content = |root: &Path| -> Vec<_> {
            let name = |path: &Path| path.strip_prefix(root).unwrap().to_owned();
            files(root).iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
        };
        assert!(content(&made) == content(&kept), "{kind}");
    }
}
