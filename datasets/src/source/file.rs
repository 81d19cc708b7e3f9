//! A directory as a source. Its files are read without trust: a change between listing and reading is noticed.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{Listed, SourceError};
use crate::volume::Volume;

const CHUNK: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub(super) struct Directory {
    dir: PathBuf,
}

impl Directory {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Every regular file below the directory, links followed to files but not to directories. What a volume holds is
    /// no source: it changes while it is staged.
    pub(super) fn list(&self, takes: &dyn Fn(&str) -> bool) -> Result<Vec<Listed>, SourceError> {
        if !self.dir.is_dir() {
            return Err(SourceError::Absent { what: format!("the directory {}", self.dir.display()) });
        }
        let (mut found, mut pending) = (Vec::new(), vec![self.dir.clone()]);
        while let Some(dir) = pending.pop() {
            let failed = |source| SourceError::Io { path: dir.clone(), source };
            for entry in fs::read_dir(&dir).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = entry.path();
                if entry.file_type().map_err(failed)?.is_dir() {
                    match Volume::open(&path) {
                        Ok(_) => tracing::warn!(volume = %path.display(), "is not part of the source"),
                        Err(_) => pending.push(path),
                    }
                    continue;
                }
                let bad_name = || SourceError::Io {
                    path: path.clone(),
                    source: io::Error::new(io::ErrorKind::InvalidData, "its name is not UTF-8, and keys are"),
                };
                let key = path.strip_prefix(&self.dir).ok().and_then(Path::to_str).ok_or_else(bad_name)?;
                if takes(key) {
                    found.push(self.head(key)?);
                }
            }
        }
        Ok(found)
    }

    pub(super) fn head(&self, key: &str) -> Result<Listed, SourceError> {
        let path = self.dir.join(key);
        let meta = fs::metadata(&path).map_err(|source| gone_or(key, &path, source))?;
        if !meta.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
            return Err(SourceError::Io { path, source });
        }
        Ok(Listed { key: key.to_owned(), size: meta.len(), etag: Some(etag(&meta)), version_id: None })
    }

    pub(super) fn get(&self, object: &Listed, range: Option<Range<u64>>) -> Result<FileBody, SourceError> {
        let path = self.dir.join(&object.key);
        let file = File::open(&path).map_err(|source| gone_or(&object.key, &path, source))?;
        let range = range.unwrap_or(0..object.size);
        Ok(FileBody { file: Arc::new(file), path, range, object: object.clone() })
    }
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

/// The rest of a range of a file.
#[derive(Debug)]
pub struct FileBody {
    file: Arc<File>,
    path: PathBuf,
    range: Range<u64>,
    object: Listed,
}

impl FileBody {
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        if self.range.is_empty() {
            return self.check_unchanged().map(|()| None);
        }
        let length = CHUNK.min(self.range.end - self.range.start);
        let (file, start) = (Arc::clone(&self.file), self.range.start);
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; usize::try_from(length).expect("a chunk fits")];
            file.read_exact_at(&mut buffer, start).map(|()| buffer)
        });
        match read.await.expect("reading does not panic") {
            Ok(buffer) => {
                self.range.start += length;
                Ok(Some(buffer.into()))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(SourceError::Changed { key: self.object.key.clone() })
            }
            Err(source) => Err(SourceError::Io { path: self.path.clone(), source }),
        }
    }

    fn check_unchanged(&self) -> Result<(), SourceError> {
        let meta = self.file.metadata().map_err(|source| SourceError::Io { path: self.path.clone(), source })?;
        match self.object.etag.as_deref() == Some(&etag(&meta)) {
            true => Ok(()),
            false => Err(SourceError::Changed { key: self.object.key.clone() }),
        }
    }
}
