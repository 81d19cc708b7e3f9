//! What queries are over: files of every kind, whole and spoilt.

use arrow::ipc;
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    file::properties::WriterProperties,
};

use super::{
    super::*,
    shelf::{Shelf, batch, numbers, parquet, published, spec, texts},
};

#[tokio::test]
async fn every_format_is_a_table_and_csv_is_as_it_is_said_to_be() {
    let rows = batch(&[("id", numbers([1, 2])), ("name", texts(["one", "two"]))]);
    let (mut file, mut stream) = (Vec::new(), Vec::new());
    let mut writer = ipc::writer::FileWriter::try_new(&mut file, &rows.schema()).unwrap();
    writer.write(&rows).unwrap();
    writer.finish().unwrap();
    let mut writer = ipc::writer::StreamWriter::try_new(&mut stream, &rows.schema()).unwrap();
    writer.write(&rows).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let shelf = Shelf::new([
        ("a.arrow", file),
        ("s.feather", stream),
        ("p.parquet", parquet(&[("id", numbers([1, 2, 3])), ("x", numbers([10, 20, 30]))])),
        ("n.jsonl", b"{\"id\": 1, \"t\": [1, 2]}\n{\"t\": [3], \"id\": 3}\n".to_vec()),
        ("c.txt", b"\xef\xbb\xbf# no data\n1;'a;b';NA\n2;'it\\'s';2.5\n".to_vec()),
    ]);
    let lines = shelf
        .lines(
            "[sql]\nquery = \"\"\"create view both as select * from a union all select * from s;
             create view sums as select id, count(*) as n from both group by id;
             select sums.id, sums.n, x, t[1] as t, c.name as c, v from sums join p on p.id = sums.id left join n on n.id = sums.id
             join c on c.id = sums.id order by 1\"\"\"
             tables.a = '*.arrow'\ntables.s = '*.feather'\ntables.p = '*.parquet'\ntables.n = 'n.jsonl'
             [sql.tables.c]\ninclude = ['c.*']\nformat = 'csv'\nheader = false\ncolumns = ['id', 'name', 'v']
             delimiter = ';'\nquote = \"'\"\nescape = '\\'\ncomment = '#'\nnull = ['NA', '-']\nschema = { v = 'DECIMAL(6, 2)' }",
        )
        .await
        .unwrap();
    assert_eq!(lines, ["id,n,x,t,c,v", "1,2,10,1,a;b,", "2,2,20,,it's,2.50"]);
}

#[tokio::test]
async fn a_large_csv_without_newlines_in_quotes_is_read_by_several_threads() {
    let rows: String = (0..700_000).map(|n| format!("{n},\"x{n}\"\n")).collect();
    let shelf = Shelf::new([("t.csv", format!("n,t\n{rows}"))]);
    let job = |newlines: bool| {
        format!(
            "[sql]\nquery = 'select count(*) as r, sum(n) as s, count(distinct t) as d from t'\n\
             tables.t = {{ include = 't.csv', newlines = {newlines} }}"
        )
    };
    let expected = ["r,s,d".to_owned(), format!("700000,{},700000", 700_000_u64 * 699_999 / 2)];
    for newlines in [true, false] {
        assert_eq!(shelf.lines(&job(newlines)).await.unwrap(), expected);
        let plan = explain(&shelf.volume(), &spec(&job(newlines)), (&shelf.split(), None), 2).await.unwrap();
        let is_cut = plan.contains("t.csv:0..");
        assert_eq!(is_cut, !newlines, "{plan}");
    }
}

fn year(at: i64) -> Vec<u8> {
    parquet(&[("n", numbers([at, at + 1])), ("year", numbers([0, 0]))])
}

#[tokio::test]
async fn keys_tell_columns_and_files_that_no_filter_lets_through_are_not_opened() {
    let shelf = Shelf::new([
        ("t/year=2011/kind=a%2Fb/1.parquet", b"PAR1 is how it begins, and no more".to_vec()),
        ("t/year=2012/kind=a%2Fb/1.parquet", year(10)),
        ("t/year=2012/kind=__HIVE_DEFAULT_PARTITION__/1.parquet", year(20)),
        ("t/year=2013/kind=c/1.parquet", parquet(&[("m", numbers([7])), ("n", numbers([30]))])),
    ]);
    let query = |query: &str| format!("[sql]\nquery = \"\"\"{query}\"\"\"\ntables.t = 't/**'");
    let lines = async |text: &str| shelf.lines(&query(text)).await;
    let rows =
        lines("select year, kind, sum(n) as s from t where year >= 2012 group by 1, 2 order by 3").await.unwrap();
    assert_eq!(rows, ["year,kind,s", "2012,a/b,21", "2013,c,30", "2012,,41"], "the key's year, and not the file's");
    assert_eq!(
        lines("select n from t where kind is null and year > 2011 order by n").await.unwrap(),
        ["n", "20", "21"]
    );
    // What has no value is neither equal nor different.
    for text in ["kind <> 'c'", "not (kind = 'c')", "kind < 'b'", "coalesce(kind, 'c') <> 'c'"] {
        let rows = lines(&format!("select n from t where {text} and year > 2011 order by n")).await.unwrap();
        assert_eq!(rows, ["n", "10", "11"], "{text}");
    }
    assert_eq!(lines("select count(kind) as k, count(*) as c from t where year = 2012").await.unwrap(), ["k,c", "2,4"]);
    assert_eq!(lines("select m, n from t where kind = 'c'").await.unwrap(), ["m,n", "7,30"], "the first has no m");
    assert_eq!(lines("select count(*) as c from t where year = 1999").await.unwrap(), ["c", "0"]);
    let both = "select (select count(*) from t where year = 2012) + (select count(*) from t where year = 2013) as c";
    assert_eq!(lines(both).await.unwrap(), ["c", "5"]);
    let error = lines("select sum(n) from t where year < 2012").await.unwrap_err();
    assert!(error.starts_with("the table `t`: `t/year=2011/kind=a%2Fb/1.parquet`: "), "{error}");
    lines("select sum(n) from t").await.unwrap_err();

    let plan = explain(&shelf.volume(), &spec(&query("select n from t where year > 2012")), (&shelf.split(), None), 2)
        .await
        .unwrap();
    assert!(plan.contains("[[data/t/year=2013/") && !plan.contains("year=2012/kind"), "{plan}");
}

#[tokio::test]
async fn what_a_key_tells_can_be_given_a_type_or_be_left_alone() {
    let shelf = Shelf::new([("t/zip=01234/1.csv", "n\n1\n"), ("t/zip=99999/1.csv", "n\n2\n")]);
    let job =
        |more: &str| format!("[sql]\nquery = 'select * from t order by n'\ntables.t = {{ include = 't/**'{more} }}");
    assert_eq!(shelf.lines(&job("")).await.unwrap(), ["n,zip", "1,1234", "2,99999"]);
    assert_eq!(shelf.lines(&job(", schema = { zip = 'VARCHAR' }")).await.unwrap(), ["n,zip", "1,01234", "2,99999"]);
    assert_eq!(shelf.lines(&job(", partitions = false")).await.unwrap(), ["n", "1", "2"]);
    let error = shelf.lines(&job(", schema = { zipp = 'VARCHAR' }")).await.unwrap_err();
    assert_eq!(error, "the table `t`: `schema` names the column `zipp`, and there are n");
}

#[tokio::test]
async fn files_whose_columns_differ_are_one_table_or_the_message_names_both() {
    let old = parquet(&[("id", Arc::new(arrow::array::Int32Array::from(vec![1, 2])))]);
    let new = parquet(&[("id", numbers([3])), ("x", texts(["y"]))]);
    let shelf = Shelf::new([("1.parquet", old), ("2.parquet", new), ("3.parquet", parquet(&[("id", texts(["4"]))]))]);
    let job = |table: &str| format!("[sql]\nquery = 'select * from t order by 1'\ntables.t = {{ {table} }}");
    let two = "include = '*', exclude = ['3*']";
    assert_eq!(shelf.lines(&job(two)).await.unwrap(), ["id,x", "1,", "2,", "3,y"]);
    let error = shelf.lines(&job("include = '*'")).await.unwrap_err();
    assert_eq!(
        error,
        "the table `t`: the column `id` is Int64 in `1.parquet` and Utf8 in `3.parquet`: give its type in `schema`"
    );
    let as_text = shelf.lines(&job("include = '*', schema = { id = 'VARCHAR' }")).await.unwrap();
    assert_eq!(as_text, ["id,x", "1,", "2,", "3,y", "4,"]);
    // What a footer says of numbers says nothing of texts.
    let shelf = Shelf::new([
        ("1.parquet", parquet(&[("id", numbers(1..=20))])),
        ("2.parquet", parquet(&[("id", numbers(21..=30))])),
    ]);
    let texts = |query: &str| {
        format!("[sql]\nquery = \"{query}\"\ntables.t = {{ include = '*', schema = {{ id = 'VARCHAR' }} }}")
    };
    assert_eq!(shelf.lines(&texts("select min(id) as a, max(id) as b from t")).await.unwrap(), ["a,b", "1,9"]);
    assert_eq!(shelf.lines(&texts("select count(*) as c from t where id > '3'")).await.unwrap(), ["c", "7"]);
}

#[tokio::test]
async fn a_column_of_which_nothing_came_at_first_still_takes_what_comes_later() {
    let rows: String = (0..150_000).map(|n| format!("{n},\n")).collect();
    let shelf = Shelf::new([("t.csv", format!("n,t\n{rows}7,late\n"))]);
    let lines = shelf.lines("[sql]\nquery = 'select max(t) as t, count(t) as c from t'\ntables.t = '*'").await.unwrap();
    assert_eq!(lines, ["t,c", "late,1"]);
}

#[tokio::test]
async fn bad_records_are_named_by_file_line_and_column_or_skipped_and_listed() {
    let good: String = (0..150_000).map(|n| format!("{n},ok\n")).collect();
    let shelf = Shelf::new([
        ("1.csv", format!("n,t\n{good}x,late\n1,2,3\n7,end\n").into_bytes()),
        ("2.csv", [&b"n,t\n1,fine\n2,"[..], b"\xff\n3,fine\n"].concat()),
    ]);
    let job = |on: &str, include: &str| {
        format!(
            "on_bad_record = '{on}'\n[sql]\nquery = 'select count(*) as c, sum(n) as s from t'\ntables.t = '{include}'"
        )
    };
    let error = shelf.lines(&job("fail", "1.csv")).await.unwrap_err();
    assert_eq!(error, "`1.csv`, line 150002: the column `n`: `x` is no Int64");
    let error = shelf.lines(&job("fail", "2.csv")).await.unwrap_err();
    assert_eq!(error, "the table `t`: `2.csv`, line 3: the column `t` is not UTF-8");

    let output = shelf.run(&format!("{}\n[output]\nformat = 'csv'", job("skip", "*.csv")), None).await.unwrap();
    let files = published(&output);
    let sum = 150_000_u64 * 149_999 / 2 + 7 + 1 + 3;
    assert_eq!(files["part-00000.csv"], format!("c,s\n150003,{sum}\n"));
    let listed: Vec<serde_json::Value> =
        files["_skipped/part-00000.ndjson"].lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let places: Vec<_> =
        listed.iter().map(|record| (record["key"].as_str().unwrap(), record["line"].as_u64().unwrap())).collect();
    assert_eq!(places, [("1.csv", 150_002), ("1.csv", 150_003), ("2.csv", 3)]);
    assert_eq!(listed[1]["why"], "it has 3 fields, and the table 2 columns");
    assert_eq!(output.metrics["skipped_records"], 3.0);
    let none = shelf
        .run(&job("skip", "1.csv").replace("count(*) as c, sum(n) as s", "1 as x").replace("from t", ""), None)
        .await;
    assert_eq!((none.as_ref().unwrap().files.len(), none.unwrap().metrics["skipped_records"]), (1, 0.0));
}

#[tokio::test]
async fn a_page_that_is_spoilt_is_found_by_file_row_group_and_column() {
    let mut bytes = parquet(&[("a", numbers(0..5000)), ("b", numbers((0..5000).map(|n| n * 7919)))]);
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes.clone())).unwrap();
    let (start, length) = reader.metadata().row_group(0).column(1).byte_range();
    let middle = usize::try_from(start + length / 2).unwrap();
    bytes[middle - 200..middle + 200].fill(0xff);
    let shelf =
        Shelf::new([("1.parquet", parquet(&[("a", numbers(0..10)), ("b", numbers(0..10))])), ("2.parquet", bytes)]);
    let job = |column: &str| {
        format!("[sql]\nquery = 'select sum({column}) as s, count(distinct {column}) as d from t'\ntables.t = '*'")
    };
    shelf.lines(&job("a")).await.unwrap();
    let viewed =
        job("b").replace("query = '", "query = 'create view u as select * from t; ").replace("from t'", "from u'");
    assert!(shelf.lines(&viewed).await.unwrap_err().starts_with("`2.parquet`"), "views are made again");
    let error = shelf.lines(&job("b")).await.unwrap_err();
    assert!(error.starts_with("`2.parquet`: the column `b`, row group 0: "), "{error}");
}

#[tokio::test]
async fn only_what_a_filter_lets_through_is_read() {
    let rows = 400_000_i64;
    let noise = |n: i64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64);
    let batch = batch(&[("v", numbers(0..rows)), ("noise", numbers((0..rows).map(noise)))]);
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(50_000))
        .set_data_page_row_count_limit(2000)
        .set_write_batch_size(1000)
        .set_dictionary_enabled(false)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    let file = writer.into_inner().unwrap();
    let size = file.len() as f64;
    let shelf = Shelf::new([("t.parquet", file)]);
    let job = |options: &str| {
        format!(
            "[sql]\nquery = 'select sum(noise) as s from t where v = 123456'\ntables.t = '*'\n[sql.options]\n{options}\n[output]\nformat = 'csv'"
        )
    };
    let read = async |options: &str| {
        let output = shelf.run(&job(options), None).await.unwrap();
        assert_eq!(published(&output)["part-00000.csv"], format!("s\n{}\n", noise(123_456)));
        output.metrics["bytes_scanned"] / size
    };
    let pages = read("").await;
    assert!(pages < 0.03, "{pages}");
    let groups = read("datafusion.execution.parquet.enable_page_index = false").await;
    assert!((0.04..0.2).contains(&groups), "{groups}");
    let unpruned =
        "datafusion.execution.parquet.pruning = false\ndatafusion.execution.parquet.enable_page_index = false";
    let all = read(unpruned).await;
    assert!(all > 0.9, "{all}");
    let late = "datafusion.execution.parquet.pushdown_filters = true";
    for (options, filters_after) in [("", true), (late, false)] {
        let plan = explain(&shelf.volume(), &spec(&job(options)), (&shelf.split(), None), 2).await.unwrap();
        assert!(plan.contains("predicate=v@0 = 123456") && plan.contains("FilterExec") == filters_after, "{plan}");
    }
}
