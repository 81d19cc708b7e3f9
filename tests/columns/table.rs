//! The table that is staged: wide, and in several row groups.

use std::{io, ops::Range, sync::Arc};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use forebay_datasets::columns::{Columns, Footer, Held, TAIL};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};

use crate::support::{Cluster, Terminal, csv};

/// What the query needs.
pub const NAMES: &str = "c03,c04,c30";
pub const STAGE: [&str; 6] = ["dataset", "stage", "s3://data", "--columns", NAMES, "--json"];
pub const QUERY: &str = "select name, count(*) as r, sum(c30) as s, max(c04) as m from w join names on abs(c03) % 3 = n \
                         group by name order by name";
const TABLES: &str = "tables = { w = 'w/*.parquet', names = 'names.csv' }\n[output]\nformat = 'csv'\n";

/// Forty columns of noise, so that nothing makes them smaller, in four row groups.
pub fn wide(seed: i64) -> Vec<u8> {
    let noise = |n: i64| {
        (0..40_000).map(move |row: i64| (row ^ n << 40 ^ seed << 50).wrapping_mul(0x1e37_79b9_7f4a_7c15) >> 20)
    };
    let array = |n: i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(noise(n))) };
    let batch = RecordBatch::try_from_iter((0..40).map(|n| (format!("c{n:02}"), array(n)))).unwrap();
    let properties =
        WriterProperties::builder().set_dictionary_enabled(false).set_max_row_group_row_count(Some(10_000)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// Another table.
pub const NAMES_CSV: &str = "n,name\n0,zero\n1,one\n2,two\n";

/// A bucket with two files of the table, and another table.
pub async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "w/1.parquet", wide(1));
    cluster.s3.put("data", "w/2.parquet", wide(2));
    cluster.s3.put("data", "names.csv", NAMES_CSV);
    cluster
}

pub fn job(dataset: &str, query: &str) -> String {
    job_of("s3://data", dataset, query)
}

pub fn job_of(source: &str, dataset: &str, query: &str) -> String {
    format!("name = 'j'\n[dataset]\nsource = '{source}'\n{dataset}\n[sql]\nquery = \"\"\"{query}\"\"\"\n{TABLES}")
}

/// A run, and its rows.
pub fn result(cluster: &Cluster, terminal: &Terminal, job: &str) -> (serde_json::Value, String) {
    let run = terminal.forebay(["run", &cluster.file("job.toml", job), "--json"]).json(0);
    let rows = csv(&run);
    (run, rows)
}

/// The ranges that are held of a file for [`NAMES`].
pub fn held(bytes: &[u8]) -> Vec<Range<u64>> {
    let wanted: Columns = NAMES.split(',').collect();
    let mut read = |range: Range<u64>| Ok::<_, io::Error>(bytes[range.start as usize..range.end as usize].to_vec());
    let footer = Footer::read(bytes.len() as u64, TAIL, &mut read).unwrap();
    let Held::Ranges(ranges) = footer.held(&wanted).unwrap() else { panic!("no part of it pays") };
    ranges
}

/// The bytes that are fetched of a file for [`NAMES`]: its end, and what of the columns lies before that.
pub fn fetched(bytes: &[u8]) -> u64 {
    let end = bytes.len() as u64 - TAIL;
    TAIL + held(bytes).iter().map(|range| range.end.min(end).saturating_sub(range.start)).sum::<u64>()
}
