//! Brings one object onto the volume: ranged GETs, every byte checked, the file synced before it gets its name.

use std::{
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt, stream};
use md5::{Digest as _, Md5};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{StageError, StageProgress, retry};
use crate::{
    checksum::{Crc64, Hasher},
    snapshot::{Object, hex},
    source::{Listed, Source, SourceError},
    volume::{NewFile, VolumeError},
};

/// An object over this size is fetched in parts of this size.
const PART: u64 = 8 << 20;
/// Requests in flight; on small objects time goes by waiting for the server.
const REQUESTS: usize = 64;
/// Bytes in flight, however many and large the objects are.
const BUDGET: u64 = 256 << 20;
/// How often an object that keeps changing is fetched anew.
const CHANGES: u32 = 3;

/// What all fetches of one staging share.
pub(super) struct Fetcher<'a> {
    source: &'a Source,
    progress: &'a (dyn Fn(StageProgress) + Send + Sync),
    requests: Semaphore,
    /// In KiB.
    budget: Semaphore,
}

impl<'a> Fetcher<'a> {
    pub(super) fn new(source: &'a Source, progress: &'a (dyn Fn(StageProgress) + Send + Sync)) -> Self {
        let budget = Semaphore::new((BUDGET >> 10) as usize);
        Self { source, progress, requests: Semaphore::new(REQUESTS), budget }
    }

    /// Fetches an object to `target`. What changed under way is fetched anew, as it is then.
    pub(super) async fn fetch(&self, listed: &Listed, path: String, target: PathBuf) -> Result<Object, StageError> {
        let mut listed = listed.clone();
        let mut changes = 0;
        if listed.etag.is_none() && listed.size > PART {
            // Without one nothing would tell old parts from new ones.
            listed = retry::transient(async || self.source.head(&listed.key).await).await?;
        }
        loop {
            let fetched = match listed.size {
                0..=PART => self.fetch_whole(&listed, &target).await,
                _ => self.fetch_parts(&listed, &target).await,
            };
            match fetched {
                Ok(checksum) => {
                    (self.progress)(StageProgress::Fetched { objects: 1, bytes: 0 });
                    let Listed { key, size, etag, version_id } = listed;
                    return Ok(Object { key, path, size, etag, version_id, checksum, held: None });
                }
                Err(StageError::Source(SourceError::Changed { .. })) if changes < CHANGES => {
                    changes += 1;
                    tracing::warn!(key = listed.key, "changed while it was fetched; fetching it anew");
                    listed = retry::transient(async || self.source.head(&listed.key).await).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn fetch_whole(&self, listed: &Listed, target: &Path) -> Result<Crc64, StageError> {
        let _room = self.room(listed.size).await;
        let bytes = retry::transient(async || {
            let _turn = self.requests.acquire().await.expect("never closed");
            self.source.read(listed, None).await
        })
        .await?;
        (self.progress)(StageProgress::Fetched { objects: 0, bytes: listed.size });
        let target = target.to_owned();
        blocking(move || {
            let mut file = NewFile::create(&target)?;
            file.write_all(&bytes).map_err(|error| VolumeError::io("write", &target, error))?;
            Ok(file.finish()?.1)
        })
        .await
    }

    async fn fetch_parts(&self, listed: &Listed, target: &Path) -> Result<Crc64, StageError> {
        let file = Arc::new(NewFile::create(target)?);
        let offsets = (0..listed.size).step_by(PART as usize);
        let parts: Vec<_> = stream::iter(offsets)
            .map(|offset| self.fetch_part(listed, offset, &file))
            .buffered(REQUESTS)
            .try_collect()
            .await?;
        let checksum = parts.into_iter().reduce(Hasher::followed_by).unwrap_or_default().finish();
        // A part's answer carries no checksum of the object; the object's own head does, or its ETag is an MD5.
        let expected = retry::transient(async || self.source.checksums(listed).await).await?;
        match (expected.crc64nvme, expected.md5) {
            (Some(expected), _) if expected != checksum => {
                return Err(SourceError::Corrupt { key: listed.key.clone(), algorithm: "CRC64NVME" }.into());
            }
            (None, Some(md5)) => self.check_md5(listed, md5, &file).await?,
            (Some(_), _) | (None, None) => {}
        }
        let file = Arc::into_inner(file).expect("every part has been written");
        blocking(move || file.finish().map(drop).map_err(StageError::from)).await?;
        Ok(checksum)
    }

    async fn fetch_part(&self, listed: &Listed, offset: u64, file: &Arc<NewFile>) -> Result<Hasher, StageError> {
        let length = PART.min(listed.size - offset);
        let _room = self.room(length).await;
        let bytes = retry::transient(async || {
            let _turn = self.requests.acquire().await.expect("never closed");
            self.source.read(listed, Some(offset..offset + length)).await
        })
        .await?;
        (self.progress)(StageProgress::Fetched { objects: 0, bytes: length });
        let file = Arc::clone(file);
        blocking(move || {
            file.file().write_all_at(&bytes, offset).map_err(|error| VolumeError::io("write", file.target(), error))?;
            let mut hasher = Hasher::default();
            hasher.update(&bytes);
            Ok(hasher)
        })
        .await
    }

    async fn check_md5(&self, listed: &Listed, expected: String, file: &Arc<NewFile>) -> Result<(), StageError> {
        let (key, file) = (listed.key.clone(), Arc::clone(file));
        blocking(move || {
            let (mut md5, mut buffer, mut offset) = (Md5::new(), vec![0; 1 << 20], 0);
            loop {
                match file.file().read_at(&mut buffer, offset) {
                    Ok(0) => break,
                    Ok(n) => {
                        md5.update(&buffer[..n]);
                        offset += n as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(VolumeError::io("read", file.target(), error).into()),
                }
            }
            match hex(&md5.finalize()) == expected {
                true => Ok(()),
                false => Err(SourceError::Corrupt { key, algorithm: "MD5" }.into()),
            }
        })
        .await
    }

    async fn room(&self, bytes: u64) -> SemaphorePermit<'_> {
        let kib = u32::try_from(bytes.div_ceil(1024)).expect("a part is small");
        self.budget.acquire_many(kib).await.expect("never closed")
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StageError> + Send + 'static,
) -> Result<T, StageError> {
    tokio::task::spawn_blocking(work).await.expect("writing does not panic")
}
