//! Following a staging: what it will hold, and what of that is durable already.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    StageError,
    crew::Crew,
    ledger::{At, Ledger},
    rows::RowFile,
};
use crate::volume::VolumeError;

/// An object that is to be staged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its key below the source's prefix.
    pub key: String,
    /// Its path below the snapshot's `data/`.
    pub path: String,
    /// Bytes, as listed.
    pub size: u64,
}

/// A staging before its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staging {
    /// Digest of the listing. The snapshot's record bears the same, unless an object changed while it was staged.
    pub listing: String,
    /// Everything that is to be staged, ordered by key.
    pub objects: Vec<Expected>,
    /// The chunks in which objects become durable, as ranges of `objects`.
    pub chunks: Vec<Range<usize>>,
}

impl Staging {
    pub(super) fn read(mut plan: RowFile, listing: String) -> Result<Self, StageError> {
        let (mut objects, mut chunks) = (Vec::new(), Vec::new());
        for chunk in 0..plan.chunks() {
            let first = objects.len();
            objects.extend(plan.chunk(chunk)?.into_iter().map(|row| Expected {
                key: row.object.key,
                path: row.path,
                size: row.object.size,
            }));
            chunks.push(first..objects.len());
        }
        Ok(Self { listing, objects, chunks })
    }
}

/// Who begins with what is there before all is.
pub trait Follow: Send + Sync {
    /// The plan is made. Returns the chunks in the order in which they are wanted; those left out come last. With none,
    /// nothing more is told.
    ///
    /// It is called again, maybe with another listing, where another stager was faster.
    fn planned(&self, staging: Staging) -> Option<Vec<usize>>;

    /// These objects, by their place in [`Staging::objects`], are durable below `data`, which is there until the
    /// snapshot is published: who goes on reading needs a name of its own before this returns. An object that is not
    /// what was listed is not told.
    ///
    /// # Errors
    /// What ends the staging.
    fn durable(&self, data: &Path, objects: &[usize]) -> Result<(), VolumeError>;
}

/// Tells a follower what has become durable, done by whatever stager.
pub(super) struct Announcer {
    follower: Arc<dyn Follow>,
    data: PathBuf,
    chunks: Vec<Range<usize>>,
    told: BTreeSet<u32>,
}

impl Announcer {
    pub(super) fn new(follower: Arc<dyn Follow>, data: PathBuf, chunks: Vec<Range<usize>>) -> Self {
        Self { follower, data, chunks, told: BTreeSet::new() }
    }

    pub(super) fn tell(&mut self, crew: &Crew) -> Result<(), StageError> {
        crew.refresh()?;
        let news = {
            let ledger = crew.ledger();
            let new: Vec<_> = ledger.chunks_besides(&self.told).collect();
            let objects = new.iter().flat_map(|chunk| self.unchanged(*chunk, &ledger)).collect::<Vec<_>>();
            self.told.extend(new);
            objects
        };
        if !news.is_empty() {
            self.follower.durable(&self.data, &news)?;
        }
        Ok(())
    }

    fn unchanged(&self, chunk: u32, ledger: &Ledger) -> Vec<usize> {
        let Some(range) = self.chunks.get(chunk as usize) else { return Vec::new() };
        let as_listed =
            |(row, _): &(u32, usize)| ledger.object(At(chunk, *row)).is_none_or(|(_, news)| news.changed.is_none());
        (0..).zip(range.clone()).filter(as_listed).map(|(_, object)| object).collect()
    }
}

/// All chunks, the wanted ones first.
pub(super) fn order(wanted: &[usize], chunks: usize) -> Vec<u32> {
    let mut taken = vec![false; chunks];
    let all = wanted.iter().copied().chain(0..chunks);
    let once = all.filter(|chunk| taken.get_mut(*chunk).is_some_and(|taken| !std::mem::replace(taken, true)));
    once.map(|chunk| u32::try_from(chunk).expect("an Arrow file has fewer batches")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{
        stage::{StageRequest, stage_followed},
        volume::Volume,
    };

    /// Keeps what it is told of, by links of its own.
    struct Links {
        dir: tempfile::TempDir,
        staging: Mutex<Option<Staging>>,
        told: Mutex<Vec<usize>>,
    }

    impl Follow for Links {
        fn planned(&self, staging: Staging) -> Option<Vec<usize>> {
            let chunks = staging.chunks.len();
            *self.staging.lock().unwrap() = Some(staging);
            Some((0..chunks).rev().collect())
        }

        fn durable(&self, data: &Path, objects: &[usize]) -> Result<(), VolumeError> {
            let staging = self.staging.lock().unwrap();
            for object in objects {
                let path = &staging.as_ref().unwrap().objects[*object].path;
                std::fs::hard_link(data.join(path), self.dir.path().join(path)).unwrap();
            }
            self.told.lock().unwrap().extend(objects);
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_follower_is_told_of_each_object_once_before_the_snapshot_is_published() {
        let (source, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let keys: Vec<_> = (0..1000).map(|n| format!("{n:04}")).collect();
        keys.iter().for_each(|key| std::fs::write(source.path().join(key), key).unwrap());
        let volume = Volume::open_or_create(root.path()).unwrap();
        let url = format!("file://{}", source.path().display()).parse().unwrap();
        let request = StageRequest { name: "d".into(), url, options: Default::default(), columns: None, durable: true };
        let dir = tempfile::tempdir_in(root.path()).unwrap();
        let links = Arc::new(Links { dir, staging: Mutex::default(), told: Mutex::default() });
        let follower = Arc::clone(&links);
        let staged = stage_followed(&volume, &request, &|_| (), Some(follower)).await.unwrap();
        let mut told = links.told.lock().unwrap().clone();
        told.sort_unstable();
        assert_eq!(told, (0..1000).collect::<Vec<_>>());
        let staging = links.staging.lock().unwrap().take().unwrap();
        assert_eq!(staging.listing, staged.record.listing);
        assert!(staging.chunks.len() > 1);
        for key in keys {
            assert_eq!(std::fs::read_to_string(links.dir.path().join(&key)).unwrap(), key);
        }
    }

    #[test]
    fn every_chunk_is_staged_once_whatever_is_wanted() {
        assert_eq!(order(&[2, 2, 9, 0], 4), [2, 0, 1, 3]);
        assert_eq!(order(&[], 3), [0, 1, 2]);
    }
}
