//! `[sql] tables` and `options`.

use std::collections::BTreeMap;

use toml::{Spanned, Value};

use super::{
    SpecError,
    dataset::globs,
    raw::{RawGlobs, RawTable, RawTableKeys},
};
use crate::{
    kinds::sql,
    spec::table::{CsvSpec, TableFormat, TableSpec},
};

/// Far below what an expression of them may take.
const MOST_NULL: usize = 16 << 10;

pub(super) fn tables(raw: BTreeMap<String, Spanned<RawTable>>) -> Result<BTreeMap<String, TableSpec>, SpecError> {
    let mut tables: BTreeMap<String, TableSpec> = BTreeMap::new();
    for (name, raw) in raw {
        let place = Spanned::new(raw.span(), ());
        if name.is_empty() {
            return Err(SpecError::at(&place, "a table has no name"));
        }
        if let Some(other) = tables.keys().find(|other| other.eq_ignore_ascii_case(&name)) {
            return Err(SpecError::at(&place, format!("the tables `{other}` and `{name}` differ in case alone")));
        }
        let table = match raw.into_inner() {
            RawTable::Glob(glob) => {
                globs(&[Spanned::new(place.span(), glob.clone())])?;
                TableSpec::of_glob(glob)
            }
            RawTable::Keys(keys) => table(*keys)?,
        };
        // The name of what a glob matches tells its format, where it ends in one.
        let format = table.format.or_else(|| table.include.first().and_then(|glob| TableFormat::of(glob)));
        if let Some((key, format)) = format.and_then(|format| Some((table.without_effect(format)?, format))) {
            let error = SpecError::at(&place, format!("`{key}` has no effect on a table of {}", format.name()));
            return Err(error.help(format!("remove `{key}`, or say the table's format")));
        }
        tables.insert(name, table);
    }
    Ok(tables)
}

fn table(raw: RawTableKeys) -> Result<TableSpec, SpecError> {
    let include = match raw.include.get_ref() {
        RawGlobs::One(glob) => vec![Spanned::new(raw.include.span(), glob.clone())],
        RawGlobs::Several(names) if names.is_empty() => {
            return Err(SpecError::at(&raw.include, "a table has at least one glob"));
        }
        RawGlobs::Several(names) => names.clone(),
    };
    let header = raw.header.unwrap_or(true);
    if let (true, Some(column)) = (header, raw.columns.first()) {
        let error = SpecError::at(column, "the header names the columns");
        return Err(error.help("remove columns, or write header = false"));
    }
    let mut columns = Vec::new();
    for column in raw.columns {
        if columns.contains(column.get_ref()) {
            return Err(SpecError::at(&column, format!("the column `{}` is named twice", column.get_ref())));
        }
        columns.push(column.into_inner());
    }
    for (column, sql_type) in &raw.schema {
        sql::type_of(sql_type.get_ref()).map_err(|why| {
            SpecError::at(sql_type, format!("`{}`, of the column `{column}`, is no type: {why}", sql_type.get_ref()))
                .help("write an SQL type, such as BIGINT, DOUBLE, VARCHAR, DATE, TIMESTAMP or DECIMAL(10, 2)")
        })?;
    }
    let bytes: usize = raw.null.iter().map(|text| text.get_ref().len()).sum();
    if let (true, Some(last)) = (bytes > MOST_NULL, raw.null.last()) {
        let error = SpecError::at(last, format!("null takes {MOST_NULL} bytes in all, and these are {bytes}"));
        return Err(error.help("write the few texts that stand for no value"));
    }
    let byte = |text: &Option<Spanned<String>>| text.as_ref().map(byte).transpose();
    let default = CsvSpec::default();
    let csv = CsvSpec {
        header,
        columns,
        delimiter: byte(&raw.delimiter)?.unwrap_or(default.delimiter),
        quote: byte(&raw.quote)?.unwrap_or(default.quote),
        escape: byte(&raw.escape)?,
        comment: byte(&raw.comment)?,
        null: raw.null.into_iter().map(Spanned::into_inner).collect(),
        newlines: raw.newlines.unwrap_or(default.newlines),
    };
    if let (true, Some(place)) = (csv.delimiter == csv.quote, raw.delimiter.as_ref().or(raw.quote.as_ref())) {
        return Err(SpecError::at(place, "delimiter and quote are the same"));
    }
    Ok(TableSpec {
        include: globs(&include)?,
        exclude: globs(&raw.exclude)?,
        format: raw.format.as_ref().map(format).transpose()?,
        csv,
        schema: raw.schema.into_iter().map(|(name, text)| (name, text.into_inner())).collect(),
        partitions: raw.partitions.unwrap_or(true),
    })
}

fn format(text: &Spanned<String>) -> Result<TableFormat, SpecError> {
    match text.get_ref().as_str() {
        "parquet" => Ok(TableFormat::Parquet),
        "csv" => Ok(TableFormat::Csv),
        "ndjson" => Ok(TableFormat::Ndjson),
        "arrow" => Ok(TableFormat::Arrow),
        other => {
            Err(SpecError::at(text, format!("`{other}` is no format of a table"))
                .help("use parquet, csv, ndjson or arrow"))
        }
    }
}

/// CSV is cut at single bytes.
fn byte(text: &Spanned<String>) -> Result<u8, SpecError> {
    match text.get_ref().as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'\n' | b'\r' | 0) => Ok(*byte),
        _ => Err(SpecError::at(text, format!("`{}` is not one ASCII character", text.get_ref().escape_debug()))
            .help("write one, such as \";\" or \"\\t\"")),
    }
}

/// DataFusion's options, each known to it, and none that would have no effect.
pub(super) fn options(raw: BTreeMap<String, Spanned<Value>>) -> Result<BTreeMap<String, String>, SpecError> {
    let mut options = BTreeMap::new();
    for (name, value) in raw {
        let place = Spanned::new(value.span(), ());
        for (name, value) in flat(name, value.into_inner()) {
            let wrong = |(message, help): (String, String)| SpecError::at(&place, message).help(help);
            let text = match value {
                Value::String(text) => text,
                Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => value.to_string(),
                _ => {
                    let help = "write a text, a number, true or false".to_owned();
                    return Err(wrong((format!("the option `{name}` has no single value"), help)));
                }
            };
            sql::check_option(&name, &text).map_err(wrong)?;
            options.insert(name, text);
        }
    }
    Ok(options)
}

/// `a.b = 1` without quotes is a table of tables in TOML.
fn flat(name: String, value: Value) -> Vec<(String, Value)> {
    match value {
        Value::Table(table) => {
            table.into_iter().flat_map(|(inner, value)| flat(format!("{name}.{inner}"), value)).collect()
        }
        value => vec![(name, value)],
    }
}
