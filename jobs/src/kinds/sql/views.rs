//! Texts as views of what was read: faster in one process, and not for what is written. Another process would be given all
//! along that they are views of, and not all who read Parquet and Arrow files know them.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    compute::cast,
    datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef},
    error::ArrowError,
};
use datafusion::prelude::SessionConfig;

/// Sets whether texts are views.
pub(super) fn set(mut config: SessionConfig, views: bool) -> SessionConfig {
    let options = config.options_mut();
    options.execution.parquet.schema_force_view_types = views;
    options.sql_parser.map_string_types_to_utf8view = views;
    config
}

/// The same columns without views.
pub(super) fn plain(schema: &Schema) -> Schema {
    let fields: Fields = schema.fields().iter().map(plain_field).collect();
    Schema::new_with_metadata(fields, schema.metadata().clone())
}

/// The type of the same values, be they views or not.
pub(super) fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::List(item) => DataType::List(plain_field(item)),
        DataType::LargeList(item) => DataType::LargeList(plain_field(item)),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(plain_field(item), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain_field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(plain_field(entries), *sorted),
        other => other.clone(),
    }
}

fn plain_field(field: &FieldRef) -> FieldRef {
    Arc::new(field.as_ref().clone().with_data_type(plain_type(field.data_type())))
}

/// The same rows with `columns`, which are plain.
pub(super) fn without(rows: &RecordBatch, columns: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let pairs = rows.columns().iter().zip(columns.fields());
    let values = pairs.map(|(values, field)| cast(values, field.data_type())).collect::<Result<_, _>>()?;
    RecordBatch::try_new(Arc::clone(columns), values)
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Array, ListBuilder, StringViewBuilder, StructArray},
        datatypes::Field,
    };

    use super::*;

    #[test]
    fn what_is_written_has_no_views_however_deep_they_are() {
        let mut lists = ListBuilder::new(StringViewBuilder::new());
        for texts in [vec![Some("short"), None], vec![Some("longer than twelve bytes")]] {
            lists.append_value(texts);
        }
        let lists = Arc::new(lists.finish());
        let field = Arc::new(Field::new("l", lists.data_type().clone(), true));
        let nested = Arc::new(StructArray::from(vec![(field, Arc::clone(&lists) as _)]));
        let rows = RecordBatch::try_from_iter([("l", lists as Arc<dyn Array>), ("s", nested)]).unwrap();
        let columns = Arc::new(plain(&rows.schema()));
        assert!(!columns.to_string().contains("View") && rows.schema().to_string().contains("Utf8View"), "{columns}");
        let written = without(&rows, &columns).unwrap();
        let shown = |rows: RecordBatch| arrow::util::pretty::pretty_format_batches(&[rows]).unwrap().to_string();
        assert_eq!((written.schema(), shown(written)), (columns, shown(rows)));
    }
}
