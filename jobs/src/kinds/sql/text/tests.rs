use std::io::Write as _;

use arrow::{array::AsArray, datatypes::Int64Type};
use tempfile::NamedTempFile;

use super::*;
use crate::spec::OnBadRecord;

fn csv(change: impl FnOnce(&mut CsvSpec)) -> TextFormat {
    let mut table = TableSpec::of_glob("*");
    change(&mut table.csv);
    TextFormat::of(&table, TableFormat::Csv).unwrap()
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// All chunks of a file, put together, with what each range of a cut has.
fn read(path: &Path, range: Option<Range<u64>>, format: &TextFormat) -> Vec<u8> {
    let mut chunks = Chunks::open(path, range, format).unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().unwrap() {
        bytes.extend(chunk.bytes);
    }
    bytes
}

#[test]
fn a_record_ends_where_the_decoder_says_and_however_the_bytes_come() {
    let escaped = csv(|csv| (csv.escape, csv.comment) = (Some(b'\\'), Some(b'#')));
    for (format, text) in [
        (csv(|_| {}), "a,b\n1,\"x\ny\"\n2,\"he said \"\"hi\n\"\"\"\n\n3,5\" disk\n4,\"end\"\r\n5,z"),
        (csv(|csv| csv.delimiter = b';'), "1;\"a;\nb\"\n2;c,\"d\n3;\"\"\n"),
        (escaped, "# a \"comment\n1,\"a\\\"\nb\"\n2,\"x\\\\\"\n# \"\n3,z\n"),
        (csv(|csv| csv.quote = b'\''), "1,'a\nb'\n2,\"\n"),
    ] {
        let whole = records(text.as_bytes(), &format);
        assert_eq!(whole.iter().map(|record| &text[record.clone()]).collect::<String>(), text);
        let name = |n| Field::new(format!("c{n}"), DataType::Utf8, true);
        let schema = Arc::new(Schema::new(vec![name(0), name(1)]));
        let rows = |bytes: &[u8]| -> Vec<String> {
            let batches = format.decode(bytes, (&schema, &[0, 1]), 2).unwrap();
            let shown = |batch: RecordBatch| {
                let columns = [0, 1].map(|at| batch.column(at).as_string::<i32>().clone());
                (0..batch.num_rows()).map(move |row| format!("{:?} {:?}", columns[0].value(row), columns[1].value(row)))
            };
            batches.into_iter().flat_map(shown).collect()
        };
        let alone: Vec<_> = whole.iter().flat_map(|record| rows(&text.as_bytes()[record.clone()])).collect();
        assert_eq!(alone, rows(text.as_bytes()), "{text}");
        let file = file(text.as_bytes());
        assert_eq!(read(file.path(), None, &format), text.as_bytes());
    }
}

#[test]
fn each_line_is_in_the_one_range_that_it_begins_in() {
    let text = b"{\"n\":1}\n\n{\"n\":22}\n{\"n\":333}";
    let file = file(text);
    for at in 0..=text.len() as u64 {
        let (one, other) = (0..at, at..text.len() as u64);
        let both = [one, other].map(|range| read(file.path(), Some(range), &TextFormat::Ndjson)).concat();
        assert_eq!(both, text, "cut at {at}");
    }
}

#[test]
fn what_is_longer_than_a_read_comes_in_whole_records() {
    let line = |n: usize| format!("{n},\"{}\n\"\n", "x".repeat(n % 4000));
    let text: String = std::iter::once("n,t\n".to_owned()).chain((0..3000).map(line)).collect();
    assert!(text.len() > 2 << 20);
    let (file, format) = (file(text.as_bytes()), csv(|_| {}));
    let mut chunks = Chunks::open(file.path(), None, &format).unwrap();
    let (mut count, mut at) = (0, 0);
    while let Some(chunk) = chunks.next().unwrap() {
        assert_eq!(chunk.offset, at);
        assert!(chunk.bytes.ends_with(b"\n\"\n"), "{count}");
        (count, at) = (count + 1, at + chunk.bytes.len() as u64);
    }
    assert_eq!((count > 2, at), (true, text.len() as u64));
}

/// The columns of a file as the message of what is wrong with it, or as names and types.
fn inferred(format: &TextFormat, text: &[u8], on: OnBadRecord) -> (Result<String, String>, Vec<u64>) {
    let (file, bad) = (file(text), BadRecords::new(on));
    let schema = format.infer(TextFile { key: "k", path: file.path() }, &bad);
    let shown = |schema: Schema| {
        let field = |field: &Arc<Field>| format!("{} {}", field.name(), field.data_type());
        schema.fields().iter().map(field).collect::<Vec<_>>().join(", ")
    };
    let message = |error: DataFusionError| match super::super::cause::<super::super::bad::BadRecord>(&error) {
        Some(record) => record.to_string(),
        None => error.to_string(),
    };
    (schema.map(shown).map_err(message), bad.skipped().unwrap().into_iter().map(|record| record.line).collect())
}

#[test]
fn a_record_that_tells_no_types_is_named_or_skipped() {
    let fine = |text: &str| Ok(text.to_owned());
    let (fail, skip) = (OnBadRecord::Fail, OnBadRecord::Skip);
    let ragged = b"a,b\n1,x\n\"2\n2\",y,z\n3,\"\"\n";
    assert_eq!(inferred(&csv(|_| {}), b"\xef\xbb\xbfa,b\n1,x\n", fail).0, fine("a Int64, b Utf8"));
    assert_eq!(
        inferred(&csv(|_| {}), ragged, fail).0.unwrap_err(),
        "`k`, line 3: it has 3 fields, and the table 2 columns"
    );
    assert_eq!(inferred(&csv(|_| {}), ragged, skip), (fine("a Int64, b Utf8"), vec![3]));
    assert_eq!(
        inferred(&csv(|_| {}), b"a,b\n1,x\n2,\xff\n", fail).0.unwrap_err(),
        "`k`, line 3: the column `b` is not UTF-8"
    );
    let named = csv(|csv| (csv.header, csv.columns) = (false, vec!["x".to_owned(), "y".to_owned()]));
    assert_eq!(inferred(&named, b"1,2\n3,4\n", fail).0, fine("x Int64, y Int64"));
    assert_eq!(inferred(&named, b"1\n3,4\n", skip), (fine("x Int64, y Int64"), vec![1]));
    let null = csv(|csv| csv.null = vec!["NA".to_owned(), String::new()]);
    assert_eq!(inferred(&null, b"a\n1\nNA\n\n", fail).0, fine("a Int64"));

    let lines = b"{\"b\": 1, \"a\": \"x\"}\n{\"b\": 2.5\n[1]\n{\"c\": true}\n";
    let message = inferred(&TextFormat::Ndjson, lines, fail).0.unwrap_err();
    assert!(message.starts_with("`k`, line 2: "), "{message}");
    assert_eq!(inferred(&TextFormat::Ndjson, lines, skip), (fine("a Utf8, b Int64, c Boolean"), vec![2, 3]));
}

#[test]
fn a_quote_that_nobody_closes_does_not_swallow_the_file() {
    let text = b"a,b\n1,x\n2,\"y\n3,z\n";
    let message = inferred(&csv(|_| {}), text, OnBadRecord::Fail).0.unwrap_err();
    assert_eq!(message, "`k`, line 3: the record has no end: a quote that opens is not closed");
    assert_eq!(inferred(&csv(|_| {}), text, OnBadRecord::Skip).1, [3]);
}

#[test]
fn only_the_records_to_blame_are_sifted_out() {
    let text: String = (0..1000).map(|n| if n % 300 == 7 { "x\n".to_owned() } else { format!("{n}\n") }).collect();
    let format = csv(|csv| csv.header = false);
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    let mut try_some = |bytes: &[u8]| format.decode(bytes, (&schema, &[0]), 100);
    sift(&format, (text.as_bytes(), 5), &mut try_some, &mut |batches| rows.extend(batches), &mut |at, error| {
        bad.push((at, format.why(error, &schema)));
        Ok(())
    })
    .unwrap();
    let sum: i64 = rows.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).sum();
    assert_eq!(sum, (0..1000).filter(|n| n % 300 != 7).sum::<i64>());
    let at = |line: usize| 5 + text.lines().take(line).map(|line| line.len() as u64 + 1).sum::<u64>();
    let why = "the column `n`: `x` is no Int64".to_owned();
    assert_eq!(bad, [7, 307, 607, 907].map(|line| (at(line), why.clone())));
}

#[test]
fn as_many_null_values_as_a_job_file_takes_are_an_expression() {
    // What is escaped, or not ASCII, takes the most.
    for text in [".", "\u{10ffff}"] {
        let mut table = TableSpec::of_glob("a.csv");
        table.csv.null = vec![text.repeat((16 << 10) / text.len())];
        assert!(matches!(TextFormat::of(&table, TableFormat::Csv), Some(TextFormat::Csv { null: Some(_), .. })));
    }
}
