//! What queries leave, and what memory they take.

use std::fs;

use arrow::{array::RecordBatch, ipc, util::pretty::pretty_format_batches};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::shelf::{Shelf, numbers, parquet, published};

#[tokio::test]
async fn an_output_in_partitions_is_read_back_as_it_was() {
    let kinds = ["a/b", "", "ü=%", "..", "__HIVE_DEFAULT_PARTITION__"];
    let rows: String = (0..50).map(|n| format!("{n},\"{}\",{}\n", kinds[n % 5], n % 3)).collect();
    let shelf = Shelf::new([("t.csv", format!("n,kind,d\n{rows}"))]);
    let query = "[sql]\nquery = \"\"\"select n, nullif(kind, '..') as kind, d from t order by n desc\"\"\"\ntables.t = 't.csv'\n[output]\n\
                 format = 'csv'\npartition_by = ['kind', 'd']";
    // CSV knows no empty text: it is no value there.
    let output = shelf.run(query, None).await.unwrap();
    let files = published(&output);
    assert_eq!(files.len(), 12, "{files:?}");
    assert_eq!(files["kind=a%2Fb/d=0/part-00000.csv"], "n\n45\n30\n15\n0\n", "the order is kept");
    assert!(files.contains_key("kind=ü%3D%25/d=2/part-00000.csv"));
    assert!(files.contains_key("kind=__HIVE_DEFAULT_PARTITION__/d=1/part-00000.csv"));
    assert!(files.contains_key("kind=%5F_HIVE_DEFAULT_PARTITION__/d=1/part-00000.csv"));
    assert_eq!(output.files.iter().map(|file| file.rows.unwrap()).sum::<u64>(), 50);

    let back = Shelf::new(files);
    let same = "[sql]\nquery = \"\"\"select kind, count(*) as c, sum(n) as s, max(d) as d from t group by 1 order by 3\"\"\"\ntables.t = '**'";
    let first = "[sql]\nquery = \"\"\"select nullif(kind, '..') as kind, count(*) as c, sum(n) as s, max(d) as d from t group by 1 order by 3\"\"\"\ntables.t = 't.csv'";
    assert_eq!(back.lines(same).await.unwrap(), shelf.lines(first).await.unwrap());
}

#[tokio::test]
async fn more_partitions_than_files_may_be_open_are_written_in_turns() {
    let rows: String = (0..1000).map(|n| format!("{n},{}\n", n % 200)).collect();
    let shelf = Shelf::new([("t.csv", format!("n,k\n{rows}"))]);
    let query = "[sql]\nquery = 'select n, k from t order by n'\noptions = { 'datafusion.execution.batch_size' = 100 }\n\
                 tables.t = 't.csv'\n[output]\nformat = 'ndjson'\npartition_by = ['k']";
    let output = shelf.run(query, None).await.unwrap();
    let files = published(&output);
    let of = |name: &str| files.get(name).map(String::as_str).unwrap_or_default();
    let k0 = [of("k=0/part-00000.ndjson"), of("k=0/part-00000-1.ndjson")].concat();
    assert!(files.len() > 200 && k0.starts_with("{\"n\":0}\n{\"n\":200}\n"), "{k0}");
    assert_eq!(output.files.iter().map(|file| file.rows.unwrap()).sum::<u64>(), 1000);
}

#[test]
fn an_output_that_cannot_be_is_found_before_the_query_runs() {
    let shelf = Shelf::new([("t.csv", "a,b\n1,2\n")]);
    let check = |query: &str, output: &str| {
        shelf.check(&format!("[sql]\nquery = '{query}'\ntables.t = 't.csv'\n[output]\n{output}"))
    };
    check("select a, b from t", "partition_by = ['a']").unwrap();
    for (query, output, message) in [
        ("select a, b from t", "partition_by = ['c']", "names the column `c`, and the query gives a, b"),
        ("select a, b from t", "partition_by = ['b', 'a']", "none is left"),
        ("select a, [b] as b from t", "partition_by = ['b']", "no directory can be named"),
        ("select a, [b] as b from t", "format = 'csv'", "CSV cannot hold"),
    ] {
        let error = check(query, output).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

#[tokio::test]
async fn what_does_not_fit_into_memory_is_spilled_and_right() {
    let rows = 1_500_000_i64;
    let scattered = |n: i64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64) >> 8;
    let table = |of: &dyn Fn(i64) -> i64| {
        parquet(&[("k", numbers((0..rows).map(scattered))), ("v", numbers((0..rows).map(of)))])
    };
    let shelf = Shelf::new([("a.parquet", table(&|n| n)), ("b.parquet", table(&|n| n * 2))]);
    let job = |query: &str| {
        format!(
            "[sql]\nquery = '''{query}'''\ntables.a = 'a.parquet'\ntables.b = 'b.parquet'\n[output]\nformat = 'csv'"
        )
    };
    let sum = |times: i64| rows * (rows - 1) / 2 * times;
    for (query, expected) in [
        (
            "select count(*) as c, sum(s) as s from (select k, sum(v) as s from a group by k)",
            format!("{rows},{}", sum(1)),
        ),
        (
            "select count(*) as c, sum(case when k >= p then v else -1 end) as s from \
             (select k, v, coalesce(lag(k) over (order by k), k) as p from a)",
            format!("{rows},{}", sum(1)),
        ),
        ("select count(*) as c, sum(a.v + b.v) as s from a join b using (k)", format!("{rows},{}", sum(3))),
    ] {
        let output = shelf.run(&job(query), Some(96 << 20)).await.unwrap();
        assert_eq!(published(&output)["part-00000.csv"], format!("c,s\n{expected}\n"), "{query}");
        let spilled = output.metrics["spilled_bytes"];
        assert!(spilled > 0.0, "{query}: {:?}", output.metrics);
        println!("{query}: {:?}", output.metrics);
        let left: Vec<_> = fs::read_dir(shelf.root.path().join("scratch")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let output =
        shelf.run(&job("select count(*) as c, sum(a.v + b.v) as s from a join b using (k)"), None).await.unwrap();
    assert_eq!((output.metrics["spilled_bytes"], output.metrics["plans"]), (0.0, 1.0), "enough is enough");
}

#[tokio::test]
async fn a_query_that_cannot_be_had_in_its_memory_says_so() {
    let shelf = Shelf::new([("t.csv", "n\n1\n")]);
    let query = "[sql]\nquery = 'select array_agg(value) as a from generate_series(1, 20000000)'\ntables.t = 't.csv'";
    let error = shelf.run(query, Some(64 << 20)).await.unwrap_err();
    assert!(error.to_string().contains("give [workers] memory more"), "{error}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn rows_that_are_asked_for_in_small_row_groups_are_written_so() {
    let shelf = Shelf::new([("t.csv", "n\n1\n")]);
    let query = "[sql]\nquery = '''select value as n, cast(value * 2654435761 % 1000000007 as varchar) as t from generate_series(1, 200000)'''\n\
                 tables.t = 't.csv'\n[output]\nrow_group_size = '1MiB'";
    let output = shelf.run(query, None).await.unwrap();
    let file = fs::File::open(&output.files[0].path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let sizes: Vec<_> = reader.metadata().row_groups().iter().map(|group| group.total_byte_size()).collect();
    assert!(sizes.len() > 3 && sizes.iter().all(|size| *size < 2 << 20), "{sizes:?}");
    let arrow = shelf.run(&query.replace("row_group_size = '1MiB'", "format = 'arrow'"), None).await.unwrap();
    let file = fs::File::open(&arrow.files[0].path).unwrap();
    let batches: Vec<_> = ipc::reader::FileReader::try_new(file, None).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 200_000);
    assert!(pretty_format_batches(&[batches[0].slice(0, 1)]).unwrap().to_string().contains("654435747"));
}
