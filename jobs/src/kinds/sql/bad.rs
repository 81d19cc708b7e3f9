//! Records that cannot be read: where they are, why, and what becomes of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use datafusion::error::DataFusionError;

use crate::spec::OnBadRecord;

/// Who has more bad records than this has named the wrong format.
const MOST: usize = 1_000_000;

/// A record that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`, line {line}: {why}")]
pub(super) struct BadRecord {
    pub(super) key: String,
    pub(super) line: u64,
    pub(super) why: String,
}

/// What a query does with bad records, and those that it has met.
#[derive(Debug)]
pub(super) struct BadRecords {
    on: OnBadRecord,
    met: Mutex<BTreeMap<Place, BTreeMap<u64, String>>>,
}

/// A text file, by its key.
type Place = (String, PathBuf);

impl BadRecords {
    pub(super) fn new(on: OnBadRecord) -> Self {
        Self { on, met: Mutex::default() }
    }

    /// Notes the record that begins at this byte. A query that reads a file twice has met it once.
    ///
    /// # Errors
    /// [`BadRecord`], unless it is skipped.
    pub(super) fn note(&self, key: &str, path: &Path, offset: u64, why: String) -> Result<(), DataFusionError> {
        let failed = |why| -> Result<(), DataFusionError> {
            let line = lines_of(path, [offset])?[0];
            Err(DataFusionError::External(Box::new(BadRecord { key: key.to_owned(), line, why })))
        };
        if self.on == OnBadRecord::Fail {
            return failed(why);
        }
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let count: usize = met.values().map(BTreeMap::len).sum();
        if count >= MOST {
            return failed(format!("{why}; and {MOST} records were skipped before: is it the table's format?"));
        }
        met.entry((key.to_owned(), path.to_owned())).or_default().insert(offset, why);
        Ok(())
    }

    /// Those that were skipped, by key and line.
    pub(super) fn skipped(&self) -> io::Result<Vec<BadRecord>> {
        let met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let mut skipped = Vec::new();
        for ((key, path), records) in met.iter() {
            let lines = lines_of(path, records.keys().copied().collect::<BTreeSet<_>>())?;
            let record = |(line, why): (u64, &String)| BadRecord { key: key.clone(), line, why: why.clone() };
            skipped.extend(lines.into_iter().zip(records.values()).map(record));
        }
        Ok(skipped)
    }
}

/// The lines, from 1, in which bytes lie, given in order.
fn lines_of(path: &Path, offsets: impl IntoIterator<Item = u64>) -> io::Result<Vec<u64>> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let (mut at, mut line, mut lines, mut buffer) = (0, 1, Vec::new(), vec![0; 1 << 16]);
    for offset in offsets {
        while at < offset {
            let most = buffer.len().min(usize::try_from(offset - at).unwrap_or(usize::MAX));
            match file.read(&mut buffer[..most])? {
                0 => break,
                read => {
                    line += memchr::memchr_iter(b'\n', &buffer[..read]).count() as u64;
                    at += read as u64;
                }
            }
        }
        lines.push(line);
    }
    Ok(lines)
}
