use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray},
    compute::concat_batches,
    datatypes::{Field, Int64Type},
};
use bytes::{Buf, Bytes};
use parquet::{
    arrow::{
        ArrowWriter, ProjectionMask,
        arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    },
    errors::{ParquetError, Result as ParquetResult},
    file::{
        metadata::PageIndexPolicy,
        properties::{BloomFilterPosition, WriterProperties},
        reader::{ChunkReader, Length},
    },
};
use proptest::prelude::*;

use super::*;
use crate::{
    checksum::{Crc64, Hasher},
    snapshot::{HeldRange, Object},
    volume::VolumeError,
};

/// A file of which nothing can be read but what is held.
struct Strict {
    bytes: Bytes,
    held: Object,
}

impl Length for Strict {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl ChunkReader for Strict {
    type T = bytes::buf::Reader<Bytes>;

    /// Of how many bytes the reader takes from here nothing is said.
    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        let held = self.held.held.as_ref().unwrap().iter().find(|held| held.offset <= start && start < held.end());
        let held = held.ok_or_else(|| ParquetError::General(format!("{start} is not held")))?;
        Ok(self.bytes.slice(start as usize..held.end() as usize).reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let range = start..start + length as u64;
        match self.held.holds(&range) {
            true => Ok(self.bytes.slice(range.start as usize..range.end as usize)),
            false => Err(ParquetError::General(format!("{range:?} is not held"))),
        }
    }
}

fn columns(names: &[&str]) -> Columns {
    names.iter().copied().collect()
}

fn from(bytes: &[u8]) -> impl FnMut(Range<u64>) -> Result<Vec<u8>, io::Error> {
    |range| Ok(bytes[range.start as usize..range.end as usize].to_vec())
}

fn footer(bytes: &[u8]) -> Footer {
    Footer::read(bytes.len() as u64, TAIL, &mut from(bytes)).unwrap()
}

fn ranges(
    size: u64,
    wanted: &Columns,
    read: &mut dyn FnMut(Range<u64>) -> Result<Vec<u8>, io::Error>,
) -> Result<Held, ColumnsError<io::Error>> {
    Ok(Footer::read(size, TAIL, read)?.held(wanted)?)
}

/// The object as the engine stages it: what is not held is not what it was.
fn staged(bytes: &[u8], held: &[Range<u64>]) -> Strict {
    let mut poisoned = vec![0xee; bytes.len()];
    let mut ranges = Vec::new();
    for range in held {
        let part = &bytes[range.start as usize..range.end as usize];
        poisoned[range.start as usize..range.end as usize].copy_from_slice(part);
        let mut hasher = Hasher::default();
        hasher.update(part);
        let (offset, length) = (range.start, range.end - range.start);
        ranges.push(HeldRange { offset, length, checksum: hasher.finish() });
    }
    let (key, path) = ("x.parquet".to_owned(), "x.parquet".to_owned());
    let (size, checksum) = (bytes.len() as u64, Crc64(0));
    let held = Object { key, path, size, etag: None, version_id: None, checksum, held: Some(ranges) };
    Strict { bytes: poisoned.into(), held }
}

/// The rows of some columns, with the page indexes read as well, and the Bloom filters looked at.
fn rows(file: impl ChunkReader + 'static, names: &[&str]) -> ParquetResult<RecordBatch> {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)?;
    let roots = (0..).zip(builder.schema().fields()).filter(|(_, field)| names.contains(&field.name().as_str()));
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots.map(|(at, _)| at));
    let schema = builder.parquet_schema().clone();
    for group in 0..builder.metadata().num_row_groups() {
        for leaf in (0..schema.num_columns()).filter(|leaf| mask.leaf_included(*leaf)) {
            builder.get_row_group_column_bloom_filter(group, leaf)?;
        }
    }
    let batches = builder.with_projection(mask).build()?.collect::<Result<Vec<_>, _>>()?;
    Ok(concat_batches(&batches[0].schema(), &batches)?)
}

fn flights() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/nycflights13/flights");
    let files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 12);
    files
}

#[test]
fn three_columns_of_the_flights_of_2013_are_read_from_a_part_of_each_file() {
    let names = ["arr_delay", "carrier", "dep_delay"];
    let (mut part, mut whole) = (0, 0);
    for path in flights() {
        let bytes = fs::read(path).unwrap();
        let Held::Ranges(held) = footer(&bytes).held_with(&columns(&names), 0).unwrap() else { panic!() };
        let staged = staged(&bytes, &held);
        whole += bytes.len() as u64;
        part += staged.held.held_bytes();
        let given = rows(staged, &names).unwrap();
        assert_eq!(given, rows(Bytes::from(bytes.clone()), &names).unwrap());
        assert_eq!(given.num_columns(), 3);
        let error = rows(self::staged(&bytes, &held), &["carrier", "tailnum"]).unwrap_err();
        assert!(error.to_string().contains("is not held"), "{error}");
    }
    assert!(part * 100 < whole * 20, "{part} of {whole} bytes");
}

/// Several row groups of a text, a number, a struct and a list, with Bloom filters at a place of choice.
fn nested(filters: BloomFilterPosition) -> Vec<u8> {
    let rows = 3000;
    let text: ArrayRef =
        Arc::new(StringArray::from_iter_values((0..rows).map(|n| format!("text {}", n * 7919 % rows))));
    let number: ArrayRef = Arc::new(Int64Array::from_iter_values((0..rows).map(|n| n * 104_729 % 99_991)));
    let float: ArrayRef = Arc::new(Float64Array::from_iter_values((0..rows).map(|n| (n as f64).sin())));
    let fields = [("n", &number), ("f", &float)]
        .map(|(name, array)| (Arc::new(Field::new(name, array.data_type().clone(), false)), Arc::clone(array)));
    let both: ArrayRef = Arc::new(StructArray::from(fields.to_vec()));
    let lists = (0..rows).map(|n| Some(vec![Some(n), Some(n * 31 % 997)]));
    let list: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists));
    let arrays = [("text", text), ("number", number), ("both", both), ("list", list), ("float", float)];
    let batch = RecordBatch::try_from_iter(arrays).unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(1000))
        .set_data_page_row_count_limit(100)
        .set_write_batch_size(100)
        .set_bloom_filter_enabled(true)
        .set_bloom_filter_position(filters)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn nested_columns_page_indexes_and_bloom_filters_are_held() {
    for filters in [BloomFilterPosition::End, BloomFilterPosition::AfterRowGroup] {
        let bytes = nested(filters);
        for names in [&["both"][..], &["list", "text"], &["float"]] {
            let held = footer(&bytes).held_with(&columns(names), 0).unwrap();
            let Held::Ranges(held) = held else { panic!("{names:?}: {held:?}") };
            assert_eq!(rows(staged(&bytes, &held), names).unwrap(), rows(Bytes::from(bytes.clone()), names).unwrap());
            assert!(rows(staged(&bytes, &held), &["number"]).is_err());
        }
    }
}

#[test]
fn where_nothing_is_wanted_the_footer_is_held_and_what_does_not_exist_is_no_error() {
    let bytes = nested(BloomFilterPosition::End);
    for wanted in [columns(&[]), columns(&["nowhere"])] {
        let Held::Ranges(held) = footer(&bytes).held_with(&wanted, 0).unwrap() else { panic!() };
        let [held] = &held[..] else { panic!("{held:?}") };
        assert!(held.end == bytes.len() as u64 && held.start * 2 > held.end, "{held:?}");
    }
    assert_eq!(footer(&bytes).columns(), columns(&["both", "float", "list", "number", "text"]));
    assert_eq!(footer(&bytes).schema().unwrap().field(2).data_type().to_string().split('(').next(), Some("Struct"));
}

/// Columns of noise, so that nothing makes them smaller.
fn wide(count: usize, rows: i64) -> Vec<u8> {
    let noise = |n: i64| {
        Int64Array::from_iter_values(
            (0..rows).map(|row| (row ^ n << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64)),
        )
    };
    let arrays = (0..count).map(|n| (format!("c{n:02}"), Arc::new(noise(n as i64)) as ArrayRef));
    let batch = RecordBatch::try_from_iter(arrays).unwrap();
    let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn three_columns_of_forty_are_few_ranges_after_one_read() {
    let bytes = wide(40, 40_000);
    let mut reads = Vec::new();
    let mut read = |range: Range<u64>| {
        reads.push(range.clone());
        from(&bytes)(range)
    };
    let wanted = columns(&["c03", "c04", "c30"]);
    let Held::Ranges(held) = ranges(bytes.len() as u64, &wanted, &mut read).unwrap() else { panic!() };
    assert_eq!((reads.len(), &reads[0]), (1, &(bytes.len() as u64 - TAIL..bytes.len() as u64)));
    assert_eq!(held.len(), 3, "neighbours are one range: {held:?}");
    let strict = staged(&bytes, &held);
    assert!(strict.held.held_bytes() * 12 < bytes.len() as u64, "{held:?} of {}", bytes.len());
    let names = ["c03", "c04", "c30"];
    assert_eq!(rows(strict, &names).unwrap(), rows(Bytes::from(bytes), &names).unwrap());
}

#[test]
fn what_is_small_or_wanted_for_the_most_part_is_fetched_whole() {
    let listed = |key: &str, size, etag: Option<&str>| {
        let object = Listed { key: key.to_owned(), size, etag: etag.map(str::to_owned), version_id: None };
        taken_of(Some(&columns(&["a"])), &object).is_some()
    };
    assert!(listed("x.parquet", SMALL + 1, Some("1")));
    assert!(!listed("x.parquet", SMALL, Some("1")), "it is small");
    assert!(!listed("x.parquet", SMALL + 1, None), "its ranges could be of several versions");
    assert!(!listed("x.csv", SMALL + 1, Some("1")));
    let bytes = wide(10, 40_000);
    let of = |count: usize| (0..count).map(|n| format!("c{n:02}")).collect::<Columns>();
    let held = |count| ranges(bytes.len() as u64, &of(count), &mut from(&bytes)).unwrap();
    assert!(matches!(held(5), Held::Ranges(_)));
    assert_eq!(held(9), Held::Whole);
}

#[test]
fn a_footer_longer_than_the_first_read_takes_a_second() {
    let bytes = wide(700, 100);
    let mut reads = 0;
    let mut read = |range: Range<u64>| {
        reads += 1;
        from(&bytes)(range)
    };
    let held = ranges(bytes.len() as u64, &columns(&["c00"]), &mut read).unwrap();
    let Held::Ranges(held) = held else { panic!("{held:?}") };
    assert_eq!(reads, 2);
    assert_eq!(rows(staged(&bytes, &held), &["c00"]).unwrap().num_rows(), 100);
}

#[test]
fn what_is_no_parquet_file_has_its_own_word() {
    let whole = wide(10, 40_000);
    let size = whole.len();
    let error = |bytes: &[u8]| ranges(bytes.len() as u64, &columns(&["c00"]), &mut from(bytes)).unwrap_err();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    for (bytes, expected) in [
        (vec![b'x'; size], "it is no Parquet file, by its last bytes"),
        (whole[..size - 1].to_vec(), "it is no Parquet file, by its last bytes"),
        (with(size - 4, b"PARE"), "its footer is encrypted, so that its columns cannot be found: stage it whole"),
        (with(size - 300, &[0xff; 200]), "its footer is broken"),
    ] {
        assert_eq!(error(&bytes).to_string(), expected);
    }
    let long = error(&with(size - 8, &u32::MAX.to_le_bytes())).to_string();
    assert!(long.contains("it places itself at byte -4294967295"), "{long}");
    // The end of a file that was cut in its middle: its chunks would lie behind it.
    let torn = error(&whole[size / 2..]).to_string();
    assert!(torn.contains("it places a part of the column `c00` at byte"), "{torn}");
    let refused = ranges(1 << 30, &columns(&["a"]), &mut |_| Err(io::Error::other("no route")));
    assert!(matches!(refused, Err(ColumnsError::Read(error)) if error.to_string() == "no route"));
}

#[test]
fn what_a_staged_object_lacks_and_what_does_not_exist_is_told_by_its_own_footer() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = wide(20, 1000);
    let Held::Ranges(held) = footer(&bytes).held_with(&columns(&["c03", "c04"]), 0).unwrap() else { panic!() };
    let strict = staged(&bytes, &held);
    fs::write(dir.path().join("x.parquet"), &strict.bytes).unwrap();
    let (path, object) = (dir.path().join("x.parquet"), strict.held);
    let lacking = |names: &[&str]| lacking(&path, &object, &columns(names)).unwrap();
    assert_eq!(lacking(&["c03"]), columns(&[]));
    assert_eq!(
        lacking(&["c02", "c03", "c19", "nowhere"]),
        columns(&["c02", "c19"]),
        "one that is nowhere lacks nothing"
    );
    let whole = Object { held: None, ..object.clone() };
    assert_eq!(super::lacking(&path, &whole, &columns(&["c02"])).unwrap(), columns(&[]));

    fs::write(dir.path().join("y.parquet"), nested(BloomFilterPosition::End)).unwrap();
    fs::write(dir.path().join("z.parquet"), "no Parquet").unwrap();
    let other = |path: &str| {
        let size = fs::metadata(dir.path().join(path)).unwrap().len();
        Object { key: path.into(), path: path.into(), size, held: None, ..object.clone() }
    };
    let objects = [object.clone(), other("y.parquet"), other("z.parquet")];
    let absent = |objects: &[Object], names: &[&str]| {
        let objects = objects.iter().cloned().map(Ok::<_, VolumeError>);
        absent(dir.path(), objects, &columns(names)).unwrap()
    };
    assert_eq!(absent(&objects, &["c00", "text", "c99"]), columns(&["c99"]));
    assert_eq!(absent(&objects[..1], &["c00", "text"]), columns(&["text"]));
    let csv = Object { key: "a.csv".into(), ..whole };
    assert_eq!(absent(&[csv, other("z.parquet")], &["c00"]), columns(&[]), "there is no Parquet object");
    // A hole where the footer should be is no footer.
    let hollow = Object { held: Some(vec![]), ..object.clone() };
    assert!(matches!(super::lacking(&path, &hollow, &columns(&["c03"])), Err(ColumnsError::Read(_))));
}

#[test]
fn digests_of_listings_tell_selections_apart() {
    let digests =
        [columns(&["a"]), columns(&["a", "b"]), columns(&["ab"]), columns(&[])].map(|columns| columns.listing("l"));
    let distinct: std::collections::BTreeSet<_> = digests.iter().collect();
    assert_eq!((distinct.len(), digests.contains(&"l".to_owned())), (4, false));
    assert_eq!(columns(&["b", "a"]).listing("l"), digests[1]);
}

proptest! {
    #[test]
    fn coalesced_ranges_hold_all_and_lie_apart(
        ranges in prop::collection::vec((0u64..300, 0u64..40).prop_map(|(start, length)| start..start + length), 0..12),
        gap in 0u64..20,
    ) {
        let joined = coalesced(ranges.clone(), gap);
        prop_assert!(joined.windows(2).all(|pair| pair[0].end + gap < pair[1].start));
        let within = |byte: u64, ranges: &[Range<u64>]| ranges.iter().any(|range| range.contains(&byte));
        for byte in 0..340 {
            prop_assert!(!within(byte, &ranges) || within(byte, &joined));
            // Nothing is held that is not within a gap of two that are wanted.
            let near = |side: Range<u64>| side.clone().any(|byte| within(byte, &ranges));
            prop_assert!(!within(byte, &joined) || within(byte, &ranges)
                || (near(byte.saturating_sub(gap)..byte) && near(byte..byte + gap + 1)));
        }
    }
}

#[test]
fn a_reader_of_strict_files_is_strict() {
    // Were it not, the tests above would show nothing.
    let strict = staged(b"0123456789", std::slice::from_ref(&(2..5)));
    assert_eq!(strict.get_bytes(2, 3).unwrap(), "234");
    assert!(strict.get_bytes(4, 2).is_err() && strict.get_bytes(0, 1).is_err() && strict.get_read(5).is_err());
    let mut all = String::new();
    strict.get_read(3).unwrap().read_to_string(&mut all).unwrap();
    assert_eq!(all, "34");
}
