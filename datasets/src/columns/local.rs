//! What a staged object holds, by its own footer.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
};

use super::{Columns, ColumnsError, Footer};
use crate::{
    checksum::{Crc64, Hasher},
    format::Format,
    snapshot::{HeldRange, Object},
    volume::VolumeError,
};

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
pub(crate) fn absent<E: From<VolumeError>>(
    data: &Path,
    objects: impl Iterator<Item = Result<Object, E>>,
    wanted: &Columns,
) -> Result<Columns, E> {
    let mut missing = wanted.clone();
    let mut any = false;
    for object in objects {
        let object = object?;
        if missing.is_empty() {
            break;
        }
        if object.held.is_none() && Format::of(&object.key) != Format::Parquet {
            continue;
        }
        let path = data.join(&object.path);
        let found = match footer(&path, &object) {
            Ok(footer) => footer.columns(),
            // It was staged whole, and is no Parquet file for all its name.
            Err(ColumnsError::Footer(_)) if object.held.is_none() => continue,
            Err(ColumnsError::Read(error)) => return Err(VolumeError::io("read", &path, error).into()),
            Err(ColumnsError::Footer(error)) => {
                let error = io::Error::new(io::ErrorKind::InvalidData, error);
                return Err(VolumeError::io("read", &path, error).into());
            }
        };
        any = true;
        missing.0.retain(|column| !found.contains(column));
    }
    Ok(if any { missing } else { Columns::default() })
}

/// The first of the ranges that a file is to hold and whose bytes are others than those that were staged, with their
/// checksum. What lies between ranges is nothing.
pub(crate) fn damaged(path: &Path, held: &[HeldRange]) -> io::Result<Option<(HeldRange, Crc64)>> {
    let file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    for range in held {
        let (mut hasher, mut offset) = (Hasher::default(), range.offset);
        while offset < range.end() {
            let room = usize::try_from(range.end() - offset).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact_at(&mut buffer[..room], offset)?;
            hasher.update(&buffer[..room]);
            offset += room as u64;
        }
        if hasher.finish() != range.checksum {
            return Ok(Some((*range, hasher.finish())));
        }
    }
    Ok(None)
}

/// Whether a file has its object's size, and holds these ranges as they were staged.
pub(crate) fn is_intact(path: &Path, size: u64, held: &[HeldRange]) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.len() == size) && damaged(path, held).is_ok_and(|found| found.is_none())
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
