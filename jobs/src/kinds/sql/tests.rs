//! What is checked, what is needed, and what is held.

mod files;
mod outputs;
mod shelf;
mod splits;
mod travel;

use std::{fs, io, ops::Range};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
    util::pretty::pretty_format_batches,
};
use forebay_datasets::{
    checksum::Crc64,
    columns::{self, Columns, Footer, Held},
    read::ReadError,
    snapshot::{self, HeldRange, Object, Snapshot},
    source::{Source, SourceOptions, SourceUrl},
    split::{Part, Piece},
    stage::{self, StageRequest},
};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use tempfile::TempDir;

use super::*;
use crate::spec::parse::job_file;

#[tokio::test]
async fn an_unknown_column_is_named_with_what_there_is() {
    let schema = Arc::new(Schema::new(vec![Field::new("carrier", DataType::Utf8, true)]));
    let tables = || BTreeMap::from([("flights".to_owned(), schema.clone())]);
    check_columns("select carrier from flights", tables()).await.unwrap();
    let message = check_columns("select carier from flights", tables()).await.unwrap_err();
    assert!(message.contains("carier") && message.contains("carrier"), "{message}");
    let message = check_columns("select 1 from flihgts", tables()).await.unwrap_err();
    assert!(message.contains("flihgts"), "{message}");
}

fn columns(names: &[&str]) -> Columns {
    names.iter().copied().collect()
}

#[tokio::test]
async fn what_a_query_reads_of_each_table_is_what_its_plan_is_left_with() {
    let schema = |names: &str| {
        let field = |name: &str| Field::new(name, DataType::Int64, true);
        Arc::new(Schema::new(names.split(' ').map(field).collect::<Vec<_>>()))
    };
    let tables = BTreeMap::from([("t".to_owned(), schema("id a b c d Big")), ("U".to_owned(), schema("id x y z"))]);
    for (query, t, u) in [
        ("select a from t", &["a"][..], &[][..]),
        ("select count(*) from t", &[], &[]),
        ("select 1", &[], &[]),
        ("select b from t where c > 1 order by d", &["b", "c", "d"], &[]),
        ("select \"Big\" as a from T", &["Big"], &[]),
        ("with f as (select * from t) select a, sum(b) from f where c > 1 group by a", &["a", "b", "c"], &[]),
        ("select t.a, u.x from t join u on t.id = u.id", &["a", "id"], &["id", "x"]),
        ("select u.* from t join u using (id)", &["id"], &["id", "x", "y", "z"]),
        ("select a from t where b in (select x from u where y > 0)", &["a", "b"], &["x", "y"]),
        ("select a from t where exists (select 1 from u where u.x = t.b)", &["a", "b"], &["x"]),
        ("select a, (select max(x) from u) from t", &["a"], &["x"]),
        ("select a from t union all select y from u", &["a"], &["y"]),
        ("select a, row_number() over (partition by b order by c) from t", &["a", "b", "c"], &[]),
        ("select * from t", &["id", "a", "b", "c", "d", "Big"], &[]),
        ("select * exclude (a, id) from t", &["b", "c", "d", "Big"], &[]),
    ] {
        let needed = needed::of_query(query, &tables).await.unwrap();
        let of = |table: &str| needed.get(table).cloned().unwrap_or_default();
        assert_eq!((of("t"), of("u")), (columns(t), columns(u)), "{query}");
    }
    assert!(needed::of_query("select nowhere from t", &tables).await.is_err());
}

/// Columns `c00`, `c01`, … of noise, so that nothing makes them smaller, on several pages and row groups.
fn wide(count: usize, rows: i64) -> Vec<u8> {
    let noise = |n: i64| (0..rows).map(move |row| (row ^ n << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64) >> 20);
    let arrays = (0..count).map(|n| {
        let array: ArrayRef = Arc::new(Int64Array::from_iter_values(noise(n as i64)));
        (format!("c{n:02}"), array)
    });
    let batch = RecordBatch::try_from_iter(arrays).unwrap();
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_bloom_filter_enabled(true)
        .set_bloom_filter_max_ndv(1000)
        .set_data_page_row_count_limit(2000)
        .set_max_row_group_row_count(Some(20_000))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

struct Bench {
    source: TempDir,
    root: TempDir,
}

impl Bench {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let bench = Self { source: tempfile::tempdir().unwrap(), root: tempfile::tempdir().unwrap() };
        for (key, content) in files {
            let path = bench.source.path().join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        bench
    }

    fn url(&self) -> SourceUrl {
        format!("file://{}", self.source.path().display()).parse().unwrap()
    }

    fn volume(&self) -> Volume {
        Volume::open_or_create(self.root.path()).unwrap()
    }

    async fn staged(&self) -> Snapshot {
        let request = StageRequest {
            name: "d".into(),
            url: self.url(),
            options: SourceOptions::default(),
            columns: None,
            durable: true,
        };
        let staged = stage::stage(&self.volume(), &request, &|_| ()).await.unwrap();
        snapshot::load(&self.volume(), staged.record).unwrap()
    }

    /// The same, of which only some columns are held. What is not held is neither what it was nor nothing.
    async fn narrow(&self, wanted: &Columns) -> Snapshot {
        let mut snapshot = self.staged().await;
        for object in snapshot.manifest.objects.iter_mut().filter(|object| object.key.ends_with(".parquet")) {
            let path = snapshot.dir.join("data").join(&object.path);
            let bytes = fs::read(&path).unwrap();
            let mut read =
                |range: Range<u64>| Ok::<_, io::Error>(bytes[range.start as usize..range.end as usize].into());
            let Held::Ranges(ranges) =
                Footer::read(object.size, columns::TAIL, &mut read).unwrap().held(wanted).unwrap()
            else {
                continue;
            };
            let mut file = vec![0xee; bytes.len()];
            let held = ranges.into_iter().map(|range| {
                let part = range.start as usize..range.end as usize;
                file[part.clone()].copy_from_slice(&bytes[part]);
                HeldRange { offset: range.start, length: range.end - range.start, checksum: Crc64(0) }
            });
            object.held = Some(held.collect());
            fs::write(&path, file).unwrap();
        }
        assert!(snapshot.manifest.is_partial());
        let (old, id) = (snapshot.dir, snapshot.manifest.id());
        snapshot.dir = old.with_file_name(&id.0);
        fs::rename(&old, &snapshot.dir).unwrap();
        snapshot.manifest.write(&snapshot.dir.join("manifest.parquet")).unwrap();
        snapshot.record.columns = Some(wanted.clone());
        snapshot.record.id = id;
        fs::write(snapshot.dir.join("snapshot.json"), serde_json::to_vec(&snapshot.record).unwrap()).unwrap();
        snapshot
    }

    fn split(&self, snapshot: &Snapshot) -> Split {
        let piece = |object: &Object| Piece {
            key: object.key.clone(),
            path: snapshot.volume_path(object),
            size: object.size,
            partial: object.held.is_some(),
            part: Part::Whole,
        };
        Split { pieces: snapshot.manifest.objects.iter().map(piece).collect() }
    }

    /// Executes a query without looking first whether it can be.
    async fn rows(&self, query: &str, split: &Split) -> Result<String, DataFusionError> {
        let session = planned(&self.volume(), &job(query), split, (Engine::Datafusion, 2)).await.unwrap();
        let batches = session.frame().await?.collect().await?;
        Ok(pretty_format_batches(&batches).unwrap().to_string())
    }
}

fn job(query: &str) -> JobSpec {
    let text = format!(
        "name = 'j'\n[dataset]\nsource = 's3://b'\n[sql]\nquery = \"{query}\"\n\
         tables = {{ w = 'w/*.parquet', names = 'names.csv' }}"
    );
    job_file(&text, std::path::Path::new("/"), &[]).unwrap()
}

fn sql(query: &str) -> SqlSpec {
    query_of(&job(query)).unwrap().clone()
}

const NAMES: (&str, &[u8]) = ("names.csv", b"n,name\n0,zero\n1,one\n2,two\n");

#[tokio::test]
async fn a_part_gives_the_rows_of_the_whole_and_nothing_that_is_not_held() {
    let (one, two) = (wide(40, 50_000), wide(40, 30_000));
    let bench = Bench::new(&[("w/1.parquet", &one), ("w/2.parquet", &two), NAMES]);
    let wanted = columns(&["c03", "c04", "c30"]);
    let query = "select abs(c03) % 3 as n, name, count(*), sum(c30), max(c04) from w join names on abs(c03) % 3 = n \
                 where c04 > 5 and c30 <> 17 group by 1, 2 order by 1";
    let whole = bench.staged().await;
    let expected = bench.rows(query, &bench.split(&whole)).await.unwrap();
    assert_eq!(expected.lines().count(), 7, "{expected}");
    let snapshot = bench.narrow(&wanted).await;
    let (held, all) = (snapshot.manifest.held_bytes(), snapshot.manifest.bytes());
    assert!(held * 8 < all, "{held} of {all}");
    let split = bench.split(&snapshot);
    assert_eq!(bench.rows(query, &split).await.unwrap(), expected);
    check_staged(&bench.volume(), &job(query), &split).await.unwrap();
    let count = bench.rows("select count(*) as all from w", &split).await.unwrap();
    assert!(count.contains("80000"), "{count}");

    for query in ["select sum(c10) from w", "select count(*) from w where c10 = 3", "select * from w limit 1"] {
        let error = bench.rows(query, &split).await.unwrap_err();
        let message = cause::<NotHeld>(&error).unwrap_or_else(|| panic!("{query}: {error:?}")).to_string();
        let names = ["the bytes ", "of `w/", "holds only the columns c03, c04, c30", &snapshot.record.id.0];
        assert!(names.iter().all(|name| message.contains(name)), "{message}");
    }
    let check = async |query: &str| check_staged(&bench.volume(), &job(query), &split).await;
    for (query, lacking) in [
        ("select sum(c10) from w", "the columns c10 of `w/1.parquet`"),
        ("select c03 from w where c11 = 3 and c09 = 4", "the columns c09, c11 of `w/1.parquet`"),
    ] {
        let Err(TaskError::NotHeld(error)) = check(query).await else { panic!("{query}") };
        assert!(error.to_string().starts_with(lacking), "{error}");
    }
    assert!(matches!(check("select nowhere from w").await, Err(TaskError::BadInput(_))));
    check("select name from names").await.unwrap();
    // Whoever knows no columns reads none of it.
    let read = crate::kinds::table::read(&bench.volume(), split.pieces.last().unwrap());
    assert!(matches!(read.err(), Some(TaskError::Read(ReadError::Partial { key })) if key == "w/2.parquet"));
}

#[tokio::test]
async fn the_columns_that_a_query_needs_are_told_from_the_source() {
    let file = wide(30, 10);
    let bench = Bench::new(&[("w/1.parquet", &file), NAMES, ("w/readme", b"")]);
    let source = async || Source::connect(&bench.url(), &SourceOptions::default()).await.unwrap();
    let needed = async |query: &str| needed_columns(&mut source().await, &sql(query)).await;
    let joined = "select name, sum(c30) from (select *, c03 as c30 from w) x join names on c04 = n group by name";
    assert_eq!(needed(joined).await, Some(columns(&["c03", "c04"])));
    assert_eq!(needed("select count(*) from w").await, Some(columns(&[])));
    assert_eq!(needed("select * from w").await, None);
    assert_eq!(needed("select nowhere from w").await, None);
    let without = SourceOptions { exclude: vec!["names.csv".to_owned()], ..Default::default() };
    let mut without = Source::connect(&bench.url(), &without).await.unwrap();
    assert_eq!(needed_columns(&mut without, &sql("select c01 from w")).await, None, "a table has no object");
}
