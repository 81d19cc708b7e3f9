//! Writes a table like that of New York's taxi rides, as Parquet, for `benches/crunch`: `taxi_data DIR ROWS FILES`.
//!
//! A row is a ride: when, from where, how far, for how much. Distances are exponential, zones and hours are skewed as those
//! of a city are, amounts follow from the distance. Files are by time, one after the other, as a city publishes a month
//! each. The same arguments always give the same table.

use std::{env, error::Error, fs::File, io, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};

/// Rows that are made, and written, at a time.
const BATCH: u64 = 100_000;
/// 2022-01-01, in microseconds since 1970.
const BEGIN: i64 = 1_640_995_200_000_000;
/// The table's rides begin within three years.
const SPAN: i64 = 3 * 365 * 24 * 3600 * 1_000_000;
const ZONES: f64 = 265.0;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [dir, rows, files] = &*arguments else {
        return Err(io::Error::other("usage: taxi_data DIR ROWS FILES").into());
    };
    let (rows, files): (u64, u64) = (rows.parse()?, files.parse()?);
    let schema = schema();
    let mut rng = fastrand::Rng::with_seed(7);
    for file in 0..files {
        let path = Path::new(dir).join(format!("rides-{file:02}.parquet"));
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut writer = ArrowWriter::try_new(File::create(path)?, schema.clone(), Some(properties))?;
        let (first, end) = (rows * file / files, rows * (file + 1) / files);
        for first in (first..end).step_by(BATCH as usize) {
            writer.write(&rides(&schema, first..end.min(first + BATCH), rows, &mut rng)?)?;
        }
        writer.close()?;
    }
    Ok(())
}

fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    let columns = [
        ("cab_type", DataType::Utf8),
        ("picked_up", time.clone()),
        ("dropped_off", time),
        ("passengers", DataType::Int32),
        ("distance", DataType::Float64),
        ("from_zone", DataType::Int32),
        ("to_zone", DataType::Int32),
        ("fare", DataType::Float64),
        ("tip", DataType::Float64),
        ("total", DataType::Float64),
    ];
    Arc::new(Schema::new(columns.map(|(name, kind)| Field::new(name, kind, false)).to_vec()))
}

fn rides(
    schema: &SchemaRef,
    numbers: std::ops::Range<u64>,
    of: u64,
    rng: &mut fastrand::Rng,
) -> Result<RecordBatch, Box<dyn Error>> {
    let count = (numbers.end - numbers.start) as usize;
    let (mut cabs, mut begins, mut ends) =
        (Vec::with_capacity(count), Vec::with_capacity(count), Vec::with_capacity(count));
    let (mut passengers, mut from, mut to) =
        (Vec::with_capacity(count), Vec::with_capacity(count), Vec::with_capacity(count));
    let (mut distances, mut fares) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let (mut tips, mut totals) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for number in numbers {
        cabs.push(if rng.f64() < 0.9 { "yellow" } else { "green" });
        let begin = BEGIN + (number as f64 / of as f64 * SPAN as f64) as i64;
        let distance = cents(-2.9 * (1.0 - rng.f64()).ln());
        let minutes = 3.0 + distance * (2.0 + 3.0 * rng.f64());
        begins.push(begin);
        ends.push(begin + (minutes * 60e6) as i64);
        // One passenger most often, six rarely.
        passengers.push(1 + (rng.f64().powi(3) * 6.0) as i32);
        distances.push(distance);
        from.push(1 + (rng.f64().powi(2) * ZONES) as i32);
        to.push(1 + (rng.f64().powi(2) * ZONES) as i32);
        let fare = cents(3.0 + 2.5 * distance + 0.5 * minutes);
        let tip = if rng.f64() < 0.6 { cents(fare * 0.2) } else { 0.0 };
        fares.push(fare);
        tips.push(tip);
        totals.push(cents(fare + tip + 2.5));
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(cabs)),
        Arc::new(TimestampMicrosecondArray::from(begins)),
        Arc::new(TimestampMicrosecondArray::from(ends)),
        Arc::new(Int32Array::from(passengers)),
        Arc::new(Float64Array::from(distances)),
        Arc::new(Int32Array::from(from)),
        Arc::new(Int32Array::from(to)),
        Arc::new(Float64Array::from(fares)),
        Arc::new(Float64Array::from(tips)),
        Arc::new(Float64Array::from(totals)),
    ];
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

/// Of a whole number of hundredths.
fn cents(amount: f64) -> f64 {
    (amount * 100.0).round() / 100.0
}
