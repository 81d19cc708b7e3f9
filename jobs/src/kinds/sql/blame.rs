//! Which file is to blame: DataFusion's errors about bytes do not say whose they are.
//!
//! Only once a query has failed for its bytes are its files read again, one column of one row group at a time, until one
//! cannot be.

use std::{collections::BTreeMap, error::Error, fs::File, path::Path};

use arrow::{error::ArrowError, ipc::reader::FileReader};
use datafusion::error::DataFusionError;
use forebay_datasets::{columns::Columns, split::Part};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
};

use super::{bad::BadRecord, cause, held::NotHeld, needed, session::Session, table::TableFile};
use crate::{kinds::TaskError, spec::table::TableFormat};

/// What of a session's files cannot be read, if that is what an error is about.
pub(super) async fn of(error: &DataFusionError, session: &Session) -> Option<TaskError> {
    let is_known = cause::<BadRecord>(error).is_some() || cause::<NotHeld>(error).is_some();
    if is_known || !is_of_bytes(error.find_root()) {
        return None;
    }
    let plan = session.frame().await.ok()?.into_optimized_plan().ok()?;
    let needed: BTreeMap<String, Columns> = needed::of_plan(&plan).ok()?;
    let none = Columns::default();
    let found = session.files().find_map(|(table, file)| {
        let needed = needed.get(&table.name).unwrap_or(&none);
        let why = match table.format {
            TableFormat::Parquet => parquet(file, needed).err()?.to_string(),
            TableFormat::Arrow => arrow(&file.path).err()?.to_string(),
            TableFormat::Csv | TableFormat::Ndjson => return None,
        };
        Some(format!("`{}`: {why}; `forebay dataset verify` tells whether it is as it was staged", file.key))
    });
    found.map(TaskError::BadInput)
}

/// Whether an error can be one of reading: those of computing, such as a division by zero, are not.
pub(super) fn is_of_bytes(error: &DataFusionError) -> bool {
    use ArrowError::{ExternalError, IoError, IpcError, ParquetError};
    match error {
        DataFusionError::ParquetError(_) | DataFusionError::External(_) => true,
        DataFusionError::ArrowError(error, _) => {
            matches!(**error, ParquetError(_) | IpcError(_) | IoError(..) | ExternalError(_))
        }
        _ => false,
    }
}

/// A column of a row group that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the column `{column}`, row group {group}: {why}")]
struct BadColumn {
    column: String,
    group: usize,
    why: String,
}

/// Reads some columns of a Parquet file, or of a part of one.
fn parquet(file: &TableFile, needed: &Columns) -> Result<(), Box<dyn Error>> {
    let part = file.part;
    let file = File::open(&file.path)?;
    let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())?;
    let groups = match part {
        Part::RowGroups { first, count } => first as usize..(first + count) as usize,
        Part::Whole | Part::Bytes { .. } => 0..metadata.metadata().num_row_groups(),
    };
    for group in groups {
        for (at, field) in metadata.schema().fields().iter().enumerate().filter(|(_, f)| needed.contains(f.name())) {
            let mask = ProjectionMask::roots(metadata.parquet_schema(), [at]);
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file.try_clone()?, metadata.clone());
            let reader = builder.with_row_groups(vec![group]).with_projection(mask).build()?;
            let bad = |why: String| BadColumn { column: field.name().clone(), group, why };
            reader.into_iter().try_for_each(|batch| batch.map(drop).map_err(|error| bad(error.to_string())))?;
        }
    }
    Ok(())
}

fn arrow(path: &Path) -> Result<(), Box<dyn Error>> {
    Ok(FileReader::try_new(File::open(path)?, None)?.try_for_each(|batch| batch.map(drop))?)
}
