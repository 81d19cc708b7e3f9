//! Objects that are named one by one: a file of keys, and a look at each of them.

use std::{
    fmt, fs, io,
    path::{Component, Path},
    sync::Arc,
};

use super::{Asked, Listed, Page, Readers, SourceError, retry};
use crate::{snapshot::hex, threads::on_threads};

/// HEADs at once: they wait for the server, and hardly work.
const THREADS: usize = 64;
/// Keys looked at before their objects are passed on. Connections live as long.
const BLOCK: usize = 8 << 10;
/// Keys that are named of those that are not there.
const NAMED: usize = 5;
/// S3's limit.
const LONGEST_KEY: usize = 1024;

/// Keys in order, none twice.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(Arc<[String]>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl Keys {
    /// Reads a file of keys below the source's prefix: one a line, as it is, to the newline. Empty lines are left out, and
    /// a key that stands there twice counts once.
    ///
    /// # Errors
    /// [`SourceError::BadKeys`] if the file cannot be read, or a line is no key.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        let bad = |why: String| SourceError::BadKeys { path: path.to_owned(), why };
        let text = fs::read(path).map_err(|error: io::Error| bad(error.to_string()))?;
        let mut keys = Vec::new();
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1_u64..).filter(|(line, _)| !line.is_empty()) {
            let key = str::from_utf8(line).map_err(|_| bad(format!("line {number} is not UTF-8, and keys are")))?;
            if key.len() > LONGEST_KEY {
                return Err(bad(format!("line {number} has {} bytes, and a key at most {LONGEST_KEY}", key.len())));
            }
            keys.push(key.to_owned());
        }
        if keys.is_empty() {
            return Err(bad("it names no key".to_owned()));
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(Self(keys.into()))
    }

    /// Equal keys have equal digests.
    pub fn digest(&self) -> String {
        use sha2::{Digest, Sha256};
        let mut digest = Sha256::new();
        self.0.iter().for_each(|key| digest.update(format!("{key}\n")));
        hex(&digest.finalize()[..16])
    }

    /// Gives `page` the objects of those keys that `takes` takes, in order.
    ///
    /// # Errors
    /// [`SourceError::Missing`] if some are not there: all are looked at before.
    pub(super) async fn look(
        &self,
        readers: &Readers,
        takes: impl Fn(&str) -> bool,
        page: &mut Page<'_>,
    ) -> Result<Asked, SourceError> {
        let keys: Vec<String> = self.0.iter().filter(|key| takes(key)).cloned().collect();
        let (mut missing, mut asked) = (Vec::new(), Asked::default());
        for block in keys.chunks(BLOCK) {
            let (block, readers) = (block.to_vec(), readers.clone());
            // The readers need the runtime, so that its threads are left alone.
            let looked = tokio::task::spawn_blocking(move || {
                on_threads(THREADS, &block, || readers.reader(), |reader, key| head(reader, key))
            });
            let mut found = Vec::new();
            for looked in looked.await.expect("no thread panics") {
                asked.heads += 1;
                match looked {
                    Ok(object) => found.push(object),
                    Err(SourceError::Gone { key }) => missing.push(key),
                    Err(error) => return Err(error),
                }
            }
            if page(found).is_break() {
                return Ok(asked);
            }
        }
        match missing.is_empty() {
            true => Ok(asked),
            false => {
                let (count, named) = (missing.len(), missing.iter().take(NAMED));
                let first = named.map(|key| format!("{key:?}")).collect::<Vec<_>>().join(", ");
                Err(SourceError::Missing { missing: count, of: keys.len(), first })
            }
        }
    }
}

fn head(reader: &mut super::Reader, key: &str) -> Result<Listed, SourceError> {
    // A directory has no objects but those below it.
    let is_below = Path::new(key).components().all(|part| matches!(part, Component::Normal(_)));
    if matches!(reader, super::Reader::File(_)) && !is_below {
        return Err(SourceError::Gone { key: key.to_owned() });
    }
    retry::blocking(|| Ok(reader.head(key)?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_key_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let read = |text: &[u8]| {
            fs::write(&path, text).unwrap();
            Keys::read(&path).map(|keys| keys.0.to_vec()).map_err(|error| error.to_string())
        };
        assert_eq!(read(b"b\na\n\n b \nb\nc\r\n\xc3\xa4+%41?&").unwrap(), [" b ", "a", "b", "c\r", "ä+%41?&"]);
        assert!(read(b"a\nb\xff\n").unwrap_err().contains("line 2"));
        assert!(read(&[b"a\n\n".to_vec(), vec![b'k'; 1025]].concat()).unwrap_err().contains("line 3"));
        assert!(read(b"\n\n").unwrap_err().contains("no key"));
        assert!(Keys::read(&dir.path().join("absent")).unwrap_err().to_string().contains("absent"));
        let digest = |text: &str| {
            fs::write(&path, text).unwrap();
            Keys::read(&path).unwrap().digest()
        };
        assert_eq!(digest("a\nb"), digest("b\na\na\n"));
        assert_ne!(digest("a\nb"), digest("ab"));
    }
}
