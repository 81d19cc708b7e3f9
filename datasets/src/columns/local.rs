//! What a staged object holds, by its own footer.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path};

use super::{Columns, ColumnsError, Footer};
use crate::{format::Format, snapshot::Object};

/// The wanted columns that a staged object has in its source, and that its file does not hold; none of an object that
/// is held whole.
pub fn lacking(file: &Path, object: &Object, wanted: &Columns) -> Result<Columns, ColumnsError<io::Error>> {
    if object.held.is_none() {
        return Ok(Columns::default());
    }
    let footer = footer(file, object)?;
    let mut lacking = Vec::new();
    for column in wanted.iter() {
        let ranges = footer.columns_at(&Columns::from_iter([column]))?;
        if !ranges.iter().all(|range| object.holds(range)) {
            lacking.push(column);
        }
    }
    Ok(lacking.into_iter().collect())
}

/// The wanted columns that none of the staged Parquet objects below `data` has: they do not exist. Of no Parquet
/// object at all nothing is wanted. Stops at the first objects that have them all.
pub fn absent(data: &Path, objects: &[Object], wanted: &Columns) -> Result<Columns, ColumnsError<io::Error>> {
    let mut missing = wanted.clone();
    let mut any = false;
    for object in objects.iter().filter(|object| object.held.is_some() || Format::of(&object.key) == Format::Parquet) {
        if missing.is_empty() {
            break;
        }
        let found = match footer(&data.join(&object.path), object) {
            Ok(footer) => footer.columns(),
            // It was staged whole, and is no Parquet file for all its name.
            Err(ColumnsError::Footer(_)) if object.held.is_none() => continue,
            Err(error) => return Err(error),
        };
        any = true;
        missing.0.retain(|column| !found.contains(column));
    }
    Ok(if any { missing } else { Columns::default() })
}

fn footer(path: &Path, object: &Object) -> Result<Footer, ColumnsError<io::Error>> {
    let file = File::open(path).map_err(ColumnsError::Read)?;
    let mut read = |range: Range<u64>| {
        if !object.holds(&range) {
            return Err(io::Error::other(format!("the bytes {}..{} are not staged", range.start, range.end)));
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    };
    // Not more than it takes: what lies before the footer need not be held.
    Footer::read(object.size, 0, &mut read)
}
