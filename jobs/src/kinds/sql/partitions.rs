//! Hive-style partitions: `name=value` segments of keys that are columns, read and written.
//!
//! A value is percent-decoded when it is read, and what a directory's name cannot hold is percent-encoded when it is
//! written, as Hive does it. A column's type is told by all of its values: whole numbers, dates, or else text.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field};
use datafusion::scalar::ScalarValue;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// What stands for no value.
pub(crate) const NULL: &str = "__HIVE_DEFAULT_PARTITION__";
/// What no segment may hold: Hive's list.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'\'')
    .add(b'*')
    .add(b'/')
    .add(b':')
    .add(b'=')
    .add(b'?')
    .add(b'\\')
    .add(b'{')
    .add(b'[')
    .add(b']')
    .add(b'^');

/// The columns that the keys of a table tell.
#[derive(Debug, Default)]
pub(super) struct Partitions {
    /// In the order in which they stand in the keys.
    pub(super) fields: Vec<Field>,
    /// Of each key, in the order of the keys.
    pub(super) values: Vec<Vec<ScalarValue>>,
}

/// The segments of a key that name a column and a value.
pub(super) fn segments(key: &str) -> Vec<(String, Option<String>)> {
    let dirs = key.rsplit_once('/').map_or("", |(dirs, _)| dirs);
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map_or_else(|_| text.to_owned(), Into::into);
    let named = dirs.split('/').filter_map(|segment| segment.split_once('=')).filter(|(name, _)| !name.is_empty());
    named.map(|(name, value)| (decoded(name), (value != NULL).then(|| decoded(value)))).collect()
}

impl Partitions {
    /// Reads the columns off a table's keys; `types` are those that the job gives.
    ///
    /// # Errors
    /// What does not fit together, for people.
    pub(super) fn of(keys: &[&str], types: &BTreeMap<String, DataType>) -> Result<Self, String> {
        let values: Vec<_> = keys.iter().map(|key| segments(key)).collect();
        let names = |values: &[(String, Option<String>)]| values.iter().map(|(name, _)| name.clone()).collect();
        let first: Vec<String> = values.first().map(|values| names(values)).unwrap_or_default();
        if let Some(at) = values.iter().position(|values| names(values) != first) {
            return Err(format!(
                "`{}` and `{}` have not the same partitions: narrow its globs, or write `partitions = false`",
                keys[0], keys[at]
            ));
        }
        if let Some(twice) = first.iter().enumerate().find_map(|(at, name)| first[..at].contains(name).then_some(name))
        {
            return Err(format!("`{}` has the partition `{twice}` twice: write `partitions = false`", keys[0]));
        }
        let told = |at: usize| type_of(values.iter().filter_map(|values| values[at].1.as_deref()));
        let fields: Vec<_> = first
            .iter()
            .enumerate()
            .map(|(at, name)| Field::new(name, types.get(name).cloned().unwrap_or_else(|| told(at)), true))
            .collect();
        let value = |key: &str, field: &Field, text: Option<String>| match text {
            None => ScalarValue::try_from(field.data_type()).map_err(|error| error.to_string()),
            Some(text) => ScalarValue::try_from_string(text.clone(), field.data_type())
                .map_err(|_| format!("`{key}`: `{}={text}` is no {}", field.name(), field.data_type())),
        };
        let row = |(key, row): (&&str, Vec<(String, Option<String>)>)| {
            row.into_iter().zip(&fields).map(|((_, text), field)| value(key, field, text)).collect::<Result<_, _>>()
        };
        let values = keys.iter().zip(values).map(row).collect::<Result<_, String>>()?;
        Ok(Self { fields, values })
    }
}

/// The type of which all of the values are.
fn type_of<'a>(values: impl Iterator<Item = &'a str> + Clone) -> DataType {
    let is_date =
        |text: &str| text.len() == 10 && ScalarValue::try_from_string(text.to_owned(), &DataType::Date32).is_ok();
    let is_number = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        digits.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<i64>().is_ok()
    };
    let mut some = values.clone().peekable();
    match some.peek() {
        None => DataType::Utf8,
        Some(_) if values.clone().all(is_number) => DataType::Int64,
        Some(_) if values.clone().all(is_date) => DataType::Date32,
        Some(_) => DataType::Utf8,
    }
}

/// The directory of a value.
///
/// # Errors
/// The name would be longer than file systems take.
pub(crate) fn directory(column: &str, value: Option<&str>) -> Result<String, String> {
    // Hive decodes byte by byte, so that what is not ASCII has to stay as it is.
    let encoded = |text: &str| -> String {
        let one = |c: char| match c.is_ascii() {
            true => utf8_percent_encode(c.encode_utf8(&mut [0; 4]), ESCAPED).to_string(),
            false => c.to_string(),
        };
        text.chars().map(one).collect()
    };
    let value = match value {
        None => NULL.to_owned(),
        // The text that stands for no value is a value as well.
        Some(NULL) => NULL.replacen('_', "%5F", 1),
        Some(text) => encoded(text),
    };
    let name = format!("{}={value}", encoded(column));
    match name.len() {
        ..=255 => Ok(name),
        length => {
            let start: String = name.chars().take(60).collect();
            Err(format!("`{start}…` is no name of a directory: it has {length} bytes, and 255 fit"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(keys: &[&str]) -> Result<Partitions, String> {
        Partitions::of(keys, &BTreeMap::new())
    }

    #[test]
    fn columns_have_one_type_that_all_of_their_values_are_of() {
        let keys = ["t/year=2013/day=2013-01-02/c=1/a.csv", "t/year=07/day=2014-01-02/c=x/b=1.csv"];
        let partitions = of(&keys).unwrap();
        let types: Vec<_> = partitions.fields.iter().map(|field| (field.name().as_str(), field.data_type())).collect();
        assert_eq!(types, [("year", &DataType::Int64), ("day", &DataType::Date32), ("c", &DataType::Utf8)]);
        assert_eq!(partitions.values[1][0], ScalarValue::Int64(Some(7)));
        assert_eq!(partitions.values[0][2], ScalarValue::Utf8(Some("1".to_owned())));
        let given = BTreeMap::from([("year".to_owned(), DataType::Utf8)]);
        let partitions = Partitions::of(&keys, &given).unwrap();
        assert_eq!(partitions.values[1][0], ScalarValue::Utf8(Some("07".to_owned())));
        assert!(of(&["a/x.csv", "b/y.csv"]).unwrap().fields.is_empty());
        assert!(of(&["a=1/x.csv", "y.csv"]).unwrap_err().contains("`y.csv`"));
        assert!(of(&["a=1/a=2/x.csv"]).unwrap_err().contains("twice"));
        let given = BTreeMap::from([("a".to_owned(), DataType::Int64)]);
        assert_eq!(Partitions::of(&["a=x/k"], &given).unwrap_err(), "`a=x/k`: `a=x` is no Int64");
    }

    #[test]
    fn any_value_comes_back_from_its_directory() {
        for text in ["", "a b", "a/b", "..", ".", "50%", "%41", "a=b", "é🦀", "\u{1}\n", NULL, "\"'#?*[]{}^\\:"] {
            let name = directory("c/1", Some(text)).unwrap();
            assert!(!name.contains('/') && !name.contains('\n'), "{name}");
            assert_eq!(segments(&format!("{name}/x")), [("c/1".to_owned(), Some(text.to_owned()))], "{name}");
        }
        assert_eq!(segments(&format!("{}/x", directory("c", None).unwrap())), [("c".to_owned(), None)]);
        assert!(directory("c", Some(&"x".repeat(300))).unwrap_err().contains("302 bytes"));
    }
}
