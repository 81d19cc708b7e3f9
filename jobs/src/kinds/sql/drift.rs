//! One schema for the files of a table, whose own may differ.
//!
//! Files are put together by the names of their columns. Types that differ become one that holds both; where there is
//! none, the message names both files and the column.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::{DataType, Field, Fields, Schema};
use datafusion::logical_expr_common::type_coercion::binary::{binary_numeric_coercion, string_coercion};

use super::views::plain_type;

/// Puts the columns of several files together. `types` are those that the job gives; of text, whose types are guessed
/// by its first rows, anything can be read as text in the end.
///
/// # Errors
/// What does not fit together, for people.
pub(super) fn merged<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a Schema)>,
    types: &BTreeMap<String, DataType>,
    is_text: bool,
) -> Result<Schema, String> {
    let (mut columns, mut count): (Vec<(Field, &str, usize)>, usize) = (Vec::new(), 0);
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, schema) in files {
        count += 1;
        let mut own = BTreeSet::new();
        for field in schema.fields() {
            if !own.insert(field.name()) {
                return Err(format!("`{key}` has two columns that are named `{}`", field.name()));
            }
            let Some(at) = places.get(field.name().as_str()).copied() else {
                places.insert(field.name(), columns.len());
                columns.push((field.as_ref().clone(), key, 1));
                continue;
            };
            let (column, first, times) = &mut columns[at];
            *times += 1;
            let both = match types.contains_key(column.name()) {
                true => Some(column.data_type().clone()),
                false => joined(column.data_type(), field.data_type(), is_text),
            };
            let Some(both) = both else {
                return Err(format!(
                    "the column `{}` is {} in `{first}` and {} in `{key}`: give its type in `schema`",
                    column.name(),
                    plain_type(column.data_type()),
                    plain_type(field.data_type())
                ));
            };
            *column = column.clone().with_data_type(both).with_nullable(column.is_nullable() || field.is_nullable());
        }
    }
    if let Some(unknown) = types.keys().find(|name| count > 0 && !places.contains_key(name.as_str())) {
        let known: Vec<_> = columns.iter().map(|(column, ..)| column.name().as_str()).collect();
        return Err(format!("`schema` names the column `{unknown}`, and there are {}", known.join(", ")));
    }
    let field = |(column, _, times): (Field, &str, usize)| {
        let given = types.get(column.name()).cloned();
        // What one file lacks is no value there, and so is what cannot be cast.
        let nullable = column.is_nullable() || times < count || given.is_some();
        let data_type = given.unwrap_or_else(|| column.data_type().clone());
        column.with_data_type(data_type).with_nullable(nullable)
    };
    Ok(Schema::new(columns.into_iter().map(field).collect::<Fields>()))
}

/// A type that holds the values of both.
pub(super) fn joined(one: &DataType, other: &DataType, is_text: bool) -> Option<DataType> {
    use DataType::{Date32, Dictionary, LargeUtf8, List, Null, Struct, Timestamp, Utf8, Utf8View};
    if one == other {
        return Some(one.clone());
    }
    let textual = |data_type: &DataType| matches!(data_type, Utf8 | LargeUtf8 | Utf8View);
    match (one, other) {
        (Null, kept) | (kept, Null) => return Some(kept.clone()),
        (Dictionary(_, value), plain) | (plain, Dictionary(_, value)) => {
            return joined(value, plain, is_text);
        }
        (List(one), List(other)) => {
            let item = joined(one.data_type(), other.data_type(), is_text)?;
            return Some(List(one.as_ref().clone().with_data_type(item).with_nullable(true).into()));
        }
        (Struct(one), Struct(other)) => {
            let mut fields: Vec<Field> = one.iter().map(|field| field.as_ref().clone()).collect();
            for field in other {
                match fields.iter_mut().find(|known| known.name() == field.name()) {
                    Some(known) => {
                        let both = joined(known.data_type(), field.data_type(), is_text)?;
                        *known = known.clone().with_data_type(both).with_nullable(true);
                    }
                    None => fields.push(field.as_ref().clone().with_nullable(true)),
                }
            }
            return Some(Struct(fields.into()));
        }
        (Date32, Timestamp(..)) => return Some(other.clone()),
        (Timestamp(..), Date32) => return Some(one.clone()),
        (Timestamp(first, zone), Timestamp(second, other)) if zone == other => {
            return Some(Timestamp(*first.max(second), zone.clone()));
        }
        _ => {}
    }
    let numeric = || binary_numeric_coercion(one, other);
    let text = || string_coercion(one, other).filter(|_| textual(one) && textual(other));
    let nested = |data_type: &DataType| data_type.is_nested();
    let as_text = || (is_text && !nested(one) && !nested(other)).then_some(Utf8);
    numeric().or_else(text).or_else(as_text)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::*;

    fn schema(columns: &[(&str, DataType)]) -> Schema {
        Schema::new(columns.iter().map(|(name, kind)| Field::new(*name, kind.clone(), false)).collect::<Vec<_>>())
    }

    #[test]
    fn types_that_differ_become_one_that_holds_both_or_both_files_are_named() {
        let old = schema(&[("id", DataType::Int32), ("t", DataType::Timestamp(TimeUnit::Second, None))]);
        let fine = DataType::Timestamp(TimeUnit::Microsecond, None);
        let new = schema(&[("t", fine.clone()), ("id", DataType::Int64), ("x", DataType::Utf8)]);
        let both = merged([("a", &old), ("b", &new)], &BTreeMap::new(), false).unwrap();
        let types: Vec<_> = both.fields().iter().map(|field| (field.data_type(), field.is_nullable())).collect();
        assert_eq!(types, [(&DataType::Int64, false), (&fine, false), (&DataType::Utf8, true)]);

        let other = schema(&[("id", DataType::Utf8)]);
        let error = merged([("a", &old), ("b", &new), ("c", &other)], &BTreeMap::new(), false).unwrap_err();
        assert_eq!(error, "the column `id` is Int64 in `a` and Utf8 in `c`: give its type in `schema`");
        let as_text = merged([("a", &old), ("c", &other)], &BTreeMap::new(), true).unwrap();
        assert_eq!(as_text.field(0).data_type(), &DataType::Utf8);
        let given = BTreeMap::from([("id".to_owned(), DataType::Float64)]);
        let given = merged([("a", &old), ("c", &other)], &given, false).unwrap();
        assert_eq!((given.field(0).data_type(), given.field(0).is_nullable()), (&DataType::Float64, true));
        let twice = schema(&[("id", DataType::Int32), ("id", DataType::Utf8)]);
        assert!(merged([("a", &twice)], &BTreeMap::new(), true).unwrap_err().contains("two columns"));
        let unknown = BTreeMap::from([("ID".to_owned(), DataType::Float64)]);
        assert!(merged([("a", &old)], &unknown, false).unwrap_err().contains("`ID`"));
    }

    #[test]
    fn what_is_nested_is_joined_inside() {
        let of = |fields: &[(&str, DataType)]| {
            DataType::Struct(fields.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)).collect())
        };
        let one = of(&[("a", DataType::Int64), ("b", DataType::Null)]);
        let other = of(&[("b", DataType::Utf8), ("a", DataType::Float64), ("c", DataType::Boolean)]);
        let both = of(&[("a", DataType::Float64), ("b", DataType::Utf8), ("c", DataType::Boolean)]);
        assert_eq!(joined(&one, &other, true), Some(both));
        assert_eq!(joined(&one, &DataType::Int64, true), None);
        assert_eq!(joined(&DataType::Date32, &DataType::Boolean, false), None);
    }
}
