//! The tables of a query: which objects each is made of, and how they are read.

use std::collections::BTreeMap;

use forebay_datasets::{
    format::Format,
    source::{SourceError, globs},
};
use serde::{Deserialize, Serialize};

/// A table of `[sql] tables`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct TableSpec {
    /// Globs over keys.
    pub include: Vec<String>,
    /// Globs over keys that are not taken.
    pub exclude: Vec<String>,
    /// What the objects are; none: as their names tell.
    pub format: Option<TableFormat>,
    /// How CSV is written.
    pub csv: CsvSpec,
    /// SQL types of columns, in place of those that the objects tell.
    pub schema: BTreeMap<String, String>,
    /// Whether `name=value` segments of keys are columns.
    pub partitions: bool,
}

impl TableSpec {
    /// The objects that a glob matches, read as their names tell.
    pub fn of_glob(glob: impl Into<String>) -> Self {
        Self { include: vec![glob.into()], partitions: true, ..Self::default() }
    }

    /// Tells whether a key is one of the table's.
    ///
    /// # Errors
    /// None for globs that were looked at before.
    pub fn matcher(&self) -> Result<impl Fn(&str) -> bool + use<>, SourceError> {
        let (include, exclude) = (globs(&self.include)?, globs(&self.exclude)?);
        Ok(move |key: &str| !key.ends_with('/') && include.is_match(key) && !exclude.is_match(key))
    }

    /// What an object of the table is, if it can be read as a table.
    pub fn format_of(&self, key: &str) -> Option<TableFormat> {
        self.format.or_else(|| TableFormat::of(key))
    }

    /// The name of a key of the job file that objects of this format do not take.
    pub fn without_effect(&self, format: TableFormat) -> Option<&'static str> {
        let csv = self.csv.differs().filter(|_| format != TableFormat::Csv);
        csv.or_else(|| (format == TableFormat::Arrow && !self.schema.is_empty()).then_some("schema"))
    }
}

/// As a resolved job may hold it: a glob alone is how it once was.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Glob(String),
    Table {
        include: Vec<String>,
        exclude: Vec<String>,
        format: Option<TableFormat>,
        csv: CsvSpec,
        schema: BTreeMap<String, String>,
        partitions: bool,
    },
}

impl From<Written> for TableSpec {
    fn from(written: Written) -> Self {
        match written {
            Written::Glob(glob) => Self::of_glob(glob),
            Written::Table { include, exclude, format, csv, schema, partitions } => {
                Self { include, exclude, format, csv, schema, partitions }
            }
        }
    }
}

/// A format that a query reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableFormat {
    /// Parquet.
    Parquet,
    /// CSV, as [`CsvSpec`] says.
    Csv,
    /// A JSON object a line.
    Ndjson,
    /// Arrow IPC, as a file or as a stream.
    Arrow,
}

impl TableFormat {
    /// By the key's extension.
    pub fn of(key: &str) -> Option<Self> {
        match Format::of(key) {
            Format::Parquet => Some(Self::Parquet),
            Format::Csv => Some(Self::Csv),
            Format::Ndjson => Some(Self::Ndjson),
            Format::Text | Format::Opaque => {
                let (_, extension) = key.rsplit_once('.')?;
                let is = |name: &&str| extension.eq_ignore_ascii_case(name);
                ["arrow", "feather", "ipc"].iter().any(is).then_some(Self::Arrow)
            }
        }
    }

    /// As the job file names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Ndjson => "ndjson",
            Self::Arrow => "arrow",
        }
    }
}

/// How CSV is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsvSpec {
    /// Whether the first record names the columns.
    pub header: bool,
    /// Names of the columns, where no header tells them.
    pub columns: Vec<String>,
    /// Between fields.
    pub delimiter: u8,
    /// Around fields that hold delimiters, quotes or newlines.
    pub quote: u8,
    /// Before a quote that is meant as it is; none: a quote is doubled.
    pub escape: Option<u8>,
    /// A line that begins with it is none.
    pub comment: Option<u8>,
    /// What stands for no value; none: an empty field.
    pub null: Vec<String>,
    /// Whether quoted fields may hold newlines: if not, a file is read by several threads.
    pub newlines: bool,
}

impl Default for CsvSpec {
    fn default() -> Self {
        Self {
            header: true,
            columns: Vec::new(),
            delimiter: b',',
            quote: b'"',
            escape: None,
            comment: None,
            null: Vec::new(),
            newlines: true,
        }
    }
}

impl CsvSpec {
    /// The first key that is not as it is by default.
    fn differs(&self) -> Option<&'static str> {
        let default = Self::default();
        let keys = [
            (self.header != default.header, "header"),
            (self.columns != default.columns, "columns"),
            (self.delimiter != default.delimiter, "delimiter"),
            (self.quote != default.quote, "quote"),
            (self.escape != default.escape, "escape"),
            (self.comment != default.comment, "comment"),
            (self.null != default.null, "null"),
            (self.newlines != default.newlines, "newlines"),
        ];
        keys.into_iter().find_map(|(differs, name)| differs.then_some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_resolved_as_a_glob_is_understood() {
        let old: TableSpec = serde_json::from_str("\"a/*.csv\"").unwrap();
        assert_eq!(old, TableSpec::of_glob("a/*.csv"));
        let csv = CsvSpec { delimiter: b';', ..CsvSpec::default() };
        let table = TableSpec { csv, exclude: vec!["a/x.csv".to_owned()], ..old };
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<TableSpec>(&text).unwrap(), table);
        let matches = table.matcher().unwrap();
        assert!(matches("a/y.csv") && !matches("a/x.csv") && !matches("b/y.csv") && !matches("a/y.csv/"));
        assert_eq!(table.without_effect(TableFormat::Parquet), Some("delimiter"));
        assert_eq!(table.without_effect(TableFormat::Csv), None);
    }

    #[test]
    fn what_is_no_table_has_no_format() {
        let of = |key| TableFormat::of(key).map(TableFormat::name);
        assert_eq!(
            [of("a.parquet"), of("b.CSV"), of("c.jsonl"), of("d.feather")].map(Option::unwrap),
            ["parquet", "csv", "ndjson", "arrow"]
        );
        assert_eq!((of("e.csv.gz"), of("f"), of("g.txt")), (None, None, None));
    }
}
