//! A directory as a source. Its files are read without trust: a change between listing and reading is noticed.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    ops::{ControlFlow, Range},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use super::{About, Listed, Page, SourceError};
use crate::volume::Volume;

/// Objects given at once.
const PAGE: usize = 1000;

/// The directory.
#[derive(Clone, Debug)]
pub struct Directory {
    dir: PathBuf,
}

impl Directory {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Every regular file below the directory and one of the prefixes, in the order of the keys, links followed to files
    /// but not to directories. What a volume holds is no source: it changes while it is staged.
    pub(super) fn list(&self, prefixes: &[String], page: &mut Page<'_>) -> Result<(), SourceError> {
        let mut found = Vec::new();
        for prefix in prefixes {
            let dir = self.dir.join(prefix);
            if !dir.is_dir() {
                return Err(SourceError::Absent { what: format!("the directory {}", dir.display()) });
            }
            if self.walk(&dir, &mut found, page)?.is_break() {
                return Ok(());
            }
        }
        let _ = page(found);
        Ok(())
    }

    fn walk(&self, dir: &Path, found: &mut Vec<Listed>, page: &mut Page<'_>) -> Result<ControlFlow<()>, SourceError> {
        for (mut name, is_dir) in sorted_entries(dir)? {
            if is_dir {
                name.pop();
            }
            let path = dir.join(OsString::from_vec(name));
            if is_dir {
                match Volume::open(&path) {
                    Ok(_) => tracing::warn!(volume = %path.display(), "is not part of the source"),
                    Err(_) => {
                        if self.walk(&path, found, page)?.is_break() {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                }
                continue;
            }
            let bad_name = || SourceError::Io {
                path: path.clone(),
                source: io::Error::new(io::ErrorKind::InvalidData, "its name is not UTF-8, and keys are"),
            };
            let key = path.strip_prefix(&self.dir).ok().and_then(Path::to_str).ok_or_else(bad_name)?;
            found.push(self.head(key)?);
            if found.len() == PAGE && page(std::mem::take(found)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn head(&self, key: &str) -> Result<Listed, SourceError> {
        let path = self.dir.join(key);
        let meta = fs::metadata(&path).map_err(|source| gone_or(key, &path, source))?;
        if !meta.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
            return Err(SourceError::Io { path, source });
        }
        Ok(Listed { key: key.to_owned(), size: meta.len(), etag: Some(etag(&meta)), version_id: None })
    }
}

/// The names in a directory and whether each is a directory itself, which then ends in a slash: so ordered, what lies
/// below them is in the order of the keys.
fn sorted_entries(dir: &Path) -> Result<Vec<(Vec<u8>, bool)>, SourceError> {
    let failed = |source| SourceError::Io { path: dir.to_owned(), source };
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_dir = entry.file_type().map_err(failed)?.is_dir();
        let mut name = entry.file_name().as_bytes().to_vec();
        if is_dir {
            name.push(b'/');
        }
        entries.push((name, is_dir));
    }
    entries.sort();
    Ok(entries)
}

fn gone_or(key: &str, path: &Path, source: io::Error) -> SourceError {
    match source.kind() {
        io::ErrorKind::NotFound => SourceError::Gone { key: key.to_owned() },
        _ => SourceError::Io { path: path.to_owned(), source },
    }
}

fn etag(meta: &fs::Metadata) -> String {
    format!("{:x}.{:09}-{:x}-{:x}", meta.mtime(), meta.mtime_nsec(), meta.len(), meta.ino())
}

/// Reads the directory's files, one at a time.
#[derive(Debug)]
pub struct FileReader {
    directory: Directory,
    reading: Option<Reading>,
}

#[derive(Debug)]
struct Reading {
    file: File,
    path: PathBuf,
    rest: Range<u64>,
    object: Listed,
}

impl FileReader {
    pub(super) fn new(directory: Directory) -> Self {
        Self { directory, reading: None }
    }

    pub(super) fn head(&self, key: &str) -> Result<Listed, SourceError> {
        self.directory.head(key)
    }

    pub(super) fn get(&mut self, object: &Listed, range: Option<&Range<u64>>) -> Result<About, SourceError> {
        let path = self.directory.dir.join(&object.key);
        let file = File::open(&path).map_err(|source| gone_or(&object.key, &path, source))?;
        let rest = range.cloned().unwrap_or(0..object.size);
        let reading = self.reading.insert(Reading { file, path, rest, object: object.clone() });
        reading.check_unchanged()?;
        Ok(About { etag: object.etag.clone(), ..About::default() })
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let Some(reading) = &mut self.reading else { return Ok(0) };
        let length = usize::try_from(reading.rest.end - reading.rest.start).unwrap_or(usize::MAX).min(buffer.len());
        match reading.file.read_exact_at(&mut buffer[..length], reading.rest.start) {
            Ok(()) => reading.rest.start += length as u64,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(SourceError::Changed { key: reading.object.key.clone() });
            }
            Err(source) => return Err(SourceError::Io { path: reading.path.clone(), source }),
        }
        if reading.rest.is_empty() {
            reading.check_unchanged()?;
        }
        Ok(length)
    }
}

impl Reading {
    fn check_unchanged(&self) -> Result<(), SourceError> {
        let meta = self.file.metadata().map_err(|source| SourceError::Io { path: self.path.clone(), source })?;
        match self.object.etag.as_deref() == Some(&etag(&meta)) {
            true => Ok(()),
            false => Err(SourceError::Changed { key: self.object.key.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_in_the_order_of_their_keys_and_a_change_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        for key in ["a-b", "a/c", "a.d", "a/b/c", "b"] {
            let path = dir.path().join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, key).unwrap();
        }
        let directory = Directory::new(dir.path());
        let mut keys = Vec::new();
        let mut page = |objects: Vec<Listed>| {
            keys.extend(objects);
            ControlFlow::Continue(())
        };
        directory.list(&[String::new()], &mut page).unwrap();
        assert!(keys.is_sorted_by(|a, b| a.key < b.key), "{keys:?}");
        assert_eq!(keys.len(), 5);

        let mut reader = FileReader::new(directory);
        let mut buffer = [0; 16];
        reader.get(&keys[0], Some(&(1..3))).unwrap();
        assert_eq!((reader.read(&mut buffer).unwrap(), &buffer[..2]), (2, &b"-b"[..]));
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
        fs::write(dir.path().join("a-b"), "longer than before").unwrap();
        assert!(matches!(reader.get(&keys[0], None), Err(SourceError::Changed { .. })));
    }
}
