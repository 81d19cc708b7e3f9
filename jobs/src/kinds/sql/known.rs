//! What is known of a table once its files were opened, as a plan keeps it.
//!
//! Whoever plans a query by splits opens the files; a task that is planned so opens its own and no others, and still has
//! the columns of all of them.

use std::{fmt::Write, io::Cursor, sync::Arc};

use arrow::{
    datatypes::{Field, Schema, SchemaRef},
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::spec::table::TableFormat;

/// A table, as far as its files and their keys tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownTable {
    pub(super) format: TableFormat,
    /// All columns that are in the files, in their order.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub(super) files: SchemaRef,
    /// Columns that the keys tell.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub(super) partitions: SchemaRef,
}

impl KnownTable {
    pub(super) fn new(format: TableFormat, files: &SchemaRef, partitions: &[Arc<Field>]) -> Self {
        Self { format, files: Arc::clone(files), partitions: Arc::new(Schema::new(partitions.to_vec())) }
    }
}

/// The one scan of a query by splits: what its tasks are planned from.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Its table.
    pub table: KnownTable,
    /// Of the objects that the query's filters let through, in the order of the dataset.
    pub keys: Vec<String>,
    /// Whether they can be cut at any line.
    pub is_lines: bool,
}

impl Scan {
    /// Whether the objects can be cut between row groups.
    pub fn is_parquet(&self) -> bool {
        self.table.format == TableFormat::Parquet
    }
}

/// As Arrow IPC, which has a form for each type and keeps what is nested.
fn to_hex<S: Serializer>(schema: &SchemaRef, serializer: S) -> Result<S::Ok, S::Error> {
    let mut bytes = Vec::new();
    let written = StreamWriter::try_new(&mut bytes, schema).and_then(|mut stream| stream.finish());
    written.map_err(ser::Error::custom)?;
    let text = bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a text takes what is written");
        text
    });
    serializer.serialize_str(&text)
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SchemaRef, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digit = |digit: u8| char::from(digit).to_digit(16).map(|digit| digit as u8);
    let byte = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
    let bytes = bytes.ok_or_else(|| de::Error::custom("the columns are no hexadecimal text"))?;
    Ok(StreamReader::try_new(Cursor::new(bytes), None).map_err(de::Error::custom)?.schema())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, TimeUnit};

    use super::*;

    #[test]
    fn columns_survive_a_plan_and_what_is_damaged_is_an_error() {
        let field = |name: &str, data_type| Field::new(name, data_type, true);
        let nested = DataType::Struct(vec![Field::new("\"x\"", DataType::Decimal128(9, 2), false)].into());
        let files = Arc::new(Schema::new(vec![
            field("a", nested).with_metadata([("k".to_owned(), "v".to_owned())].into()),
            field("t", DataType::Timestamp(TimeUnit::Microsecond, Some("Europe/Bern".into()))),
            field("d", DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8))),
        ]));
        let known = KnownTable::new(TableFormat::Csv, &files, &[Arc::new(field("year", DataType::Int64))]);
        let text = serde_json::to_string(&known).unwrap();
        assert_eq!(serde_json::from_str::<KnownTable>(&text).unwrap(), known);
        for damaged in [text.replacen("\"files\":\"f", "\"files\":\"g", 1), text.replacen("ffffffff", "fffffff", 1)] {
            serde_json::from_str::<KnownTable>(&damaged).unwrap_err();
        }
    }
}
