//! The last step: what is staged becomes a snapshot, by one rename.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{
    DATA, PLAN, StageError, TREE,
    crew::Crew,
    lane::Counts,
    ledger::{At, Ledger},
    plan::ListingDigest,
    rows::{Row, RowFile},
    technique::Technique,
};
use crate::{
    columns::{self, Columns},
    snapshot::{self, Fetched, ManifestWriter, Object, SnapshotId, SnapshotRecord},
    volume::{self, Volume, VolumeError},
};

/// What a snapshot is to be.
pub(super) struct Commit {
    pub volume: Volume,
    pub dataset: PathBuf,
    pub name: String,
    pub source: String,
    /// The columns of Parquet objects that were wanted; none: all.
    pub columns: Option<Columns>,
    pub durable: bool,
    pub begun: Instant,
    pub counts: Arc<Counts>,
}

impl Commit {
    /// Publishes what the stagers have done in `site`. Another stager may do the same at the same time.
    pub(super) fn publish(&self, site: &Path, crew: &Crew) -> Result<SnapshotRecord, StageError> {
        let mut known = None;
        match self.try_publish(site, &crew.ledger(), &mut known) {
            Ok(record) => self.accept(record),
            // Its files are gone from under this one if another was first.
            Err(error) => match known.and_then(|id| self.published(&id)) {
                Some(record) => self.accept(record),
                None => Err(error),
            },
        }
    }

    fn accept(&self, record: SnapshotRecord) -> Result<SnapshotRecord, StageError> {
        snapshot::set_latest(&self.dataset, &record.id)?;
        Ok(record)
    }

    fn published(&self, id: &SnapshotId) -> Option<SnapshotRecord> {
        let records = snapshot::records(&self.volume, &self.name).ok()?;
        records.into_iter().find(|record| record.id == *id)
    }

    /// What this stager has fetched so far.
    fn fetched(&self) -> Option<Fetched> {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (objects, bytes) = (count(&self.counts.fetched_objects), count(&self.counts.fetched_bytes));
        (objects > 0).then(|| Fetched { objects, bytes, seconds: self.begun.elapsed().as_secs_f64() })
    }

    fn try_publish(
        &self,
        site: &Path,
        ledger: &Ledger,
        known: &mut Option<SnapshotId>,
    ) -> Result<SnapshotRecord, StageError> {
        let tree = site.join(TREE);
        let mut manifest = ManifestWriter::create(&tree.join(snapshot::MANIFEST))?;
        let mut listing = ListingDigest::default();
        let mut plan = RowFile::open(&site.join(PLAN))?;
        for chunk in 0..plan.chunks() {
            for (row, number) in plan.chunk(chunk)?.into_iter().zip(0..) {
                let at = At(u32::try_from(chunk).unwrap_or(u32::MAX), number);
                let object = object(row, at, ledger)?;
                listing.see(&object.key, object.size, object.etag.as_deref());
                manifest.push(object)?;
            }
        }
        let written = manifest.finish()?;
        let manifest = tree.join(snapshot::MANIFEST);
        if let Some(wanted) = &self.columns {
            let objects = snapshot::objects(&manifest)?.map(|object| object.map_err(StageError::from));
            let columns = columns::absent(&tree.join(DATA), objects, wanted)?;
            if !columns.is_empty() {
                return Err(StageError::NoColumns { columns });
            }
        }
        *known = Some(written.id.clone());
        let technique = Technique::of(&self.volume, self.durable)?;
        if technique.syncs_names() {
            volume::sync_tree(&tree)?;
        }
        technique.sync(&self.volume)?;
        let (whole, columns) = (listing.finish(), self.columns.as_ref().filter(|_| written.held_bytes.is_some()));
        let record = SnapshotRecord {
            version: if columns.is_some() { snapshot::FORMAT } else { snapshot::FORMAT_OF_WHOLES },
            id: written.id,
            name: self.name.clone(),
            source: self.source.clone(),
            listing: columns.map_or_else(|| whole.clone(), |columns| columns.listing(&whole)),
            objects: written.objects,
            bytes: written.bytes,
            created: jiff::Timestamp::now().to_string(),
            columns: columns.cloned(),
            held_bytes: written.held_bytes,
            fetched: self.fetched(),
        };
        let text = serde_json::to_vec_pretty(&record).expect("plain fields serialise");
        volume::replace(&tree.join("snapshot.json"), &text)?;
        let snapshots = self.dataset.join("snapshots");
        volume::create_dirs(&snapshots)?;
        match volume::publish_dir(&tree, &snapshots.join(&record.id.0)) {
            // The same content, committed by someone else or from another listing: theirs is as good.
            Ok(()) | Err(VolumeError::AlreadyExists { .. }) => Ok(record),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a row has become.
fn object(row: Row, at: At, ledger: &Ledger) -> Result<Object, StageError> {
    let Row { object, path, shared } = row;
    if let Some((checksum, news)) = ledger.object(at) {
        let (size, etag) = news.changed.unwrap_or((object.size, object.etag));
        return Ok(Object {
            key: object.key,
            path,
            size,
            etag,
            version_id: news.version_id,
            checksum,
            held: news.held,
        });
    }
    // Only unchanged objects are done without a record.
    let shared = shared.ok_or(StageError::Ended)?;
    let (size, etag, version_id) = (object.size, object.etag, shared.version_id);
    Ok(Object { key: object.key, path, size, etag, version_id, checksum: shared.checksum, held: shared.held })
}
