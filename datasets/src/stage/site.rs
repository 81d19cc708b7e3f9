//! `staging/<digest of the listing>/`: where the stagers of a listing meet, and what they do there.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    DATA, PLAN, StageError, StageProgress, TREE,
    crew::is_abandoned,
    listing::{Collector, Listing},
    plan::{self, ListingDigest},
    rows::{Facts, Row, RowFile, RowWriter},
    spool::Spool,
};
use crate::{
    keymap::{Census, Mapping},
    room,
    snapshot::{self, SnapshotRecord},
    source::{Asked, Listed, Source},
    volume::{self, Volume, VolumeError},
};

/// What a stager leaves behind when it is killed is cleared away after this long.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// What going through a listing tells.
pub(super) struct Survey {
    pub digest: String,
    pub mapping: Mapping,
    /// Whether another listing of the same digest is a listing of the same objects.
    pub tells_changes: bool,
    pub asked: Asked,
}

impl Survey {
    /// The newest snapshot of exactly this listing.
    pub(super) fn unchanged<'a>(&self, records: &'a [SnapshotRecord], url: &str) -> Option<&'a SnapshotRecord> {
        let same = |record: &&SnapshotRecord| (&*record.source, &record.listing) == (url, &self.digest);
        records.iter().rfind(same).filter(|_| self.tells_changes)
    }

    /// Where stagers of one listing of one source meet; of listings that do not tell changes, each has its own.
    pub(super) fn site_name(&self, url: &str) -> String {
        let mut digest = ListingDigest::default();
        digest.see(url, 0, Some(&self.digest));
        if !self.tells_changes {
            digest.see(&volume::nonce(), 0, None);
        }
        digest.finish()
    }
}

pub(super) async fn list(
    source: &mut Source,
    spool: &Spool,
    progress: &(dyn Fn(StageProgress) + Send + Sync),
) -> Result<(Listing, Survey), StageError> {
    let mut collector = Collector::new(&spool.dir().join("listing"));
    let mut failed = None;
    let mut page = |objects: Vec<Listed>| {
        let collected = objects.into_iter().try_for_each(|object| collector.push(object));
        progress(StageProgress::Listed { objects: collector.objects });
        match collected {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    };
    let listed = source.list(&mut page).await;
    if let Some(error) = failed {
        return Err(error);
    }
    let asked = listed?;
    let listing = collector.finish()?;
    let (mut digest, mut census, mut tells_changes) = (ListingDigest::default(), Census::default(), true);
    for object in listing.objects()? {
        let object = object?;
        digest.see(&object.key, object.size, object.etag.as_deref());
        census.see(&object.key);
        tells_changes &= object.etag.is_some();
    }
    let mut mapping = census.settle();
    if mapping.has_rivals() {
        for object in listing.objects()? {
            mapping.see_again(&object?.key);
        }
    }
    Ok((listing, Survey { digest: digest.finish(), mapping, tells_changes, asked }))
}

/// `staging/<digest>/`
pub(super) struct Site<'a> {
    pub volume: &'a Volume,
    pub dataset: PathBuf,
    pub dir: PathBuf,
}

impl Site<'_> {
    /// Makes the plan, unless another stager has; it is the same for all.
    pub(super) fn plan(
        &self,
        listing: Listing,
        mapping: &Mapping,
        base: Option<SnapshotRecord>,
        spool: &Spool,
    ) -> Result<Facts, StageError> {
        let path = self.dir.join(PLAN);
        if path.exists() && !self.dir.join(TREE).exists() {
            // Its stager was killed after it had published, and before it cleared up.
            self.volume.trash(&self.dir).map_err(|error| VolumeError::io("remove", &self.dir, error))?;
        }
        if path.exists() {
            return Ok(RowFile::open(&path)?.facts);
        }
        let draft = spool.dir().join(PLAN);
        let facts = write_plan(&draft, &listing, mapping, base.as_ref(), &self.dataset)?;
        room::check(self.volume, facts.fetch_bytes, facts.fetch_objects)?;
        volume::create_dirs(&self.dir.join(TREE).join(DATA))?;
        match volume::link_or_copy(&draft, &path) {
            Ok(_) => Ok(facts),
            Err(VolumeError::AlreadyExists { .. }) => Ok(RowFile::open(&path)?.facts),
            Err(error) => Err(error.into()),
        }
    }

    /// Clears away what stagers that were killed left long ago.
    pub(super) fn clear_leftovers(&self, spool: &Spool) {
        let (Some(all), Ok(Some(now))) = (spool.dir().parent(), volume::server_time(spool.dir())) else { return };
        for entry in fs::read_dir(all).into_iter().flatten().flatten() {
            let dir = entry.path();
            if dir != self.dir && dir != spool.dir() && is_abandoned(&dir, now, LEFTOVER_AGE) {
                let _ = self.volume.trash(&dir);
            }
        }
    }
}

/// The snapshot that unchanged objects are shared with: the latest if it is of this source, else the newest that is.
pub(super) fn base(
    dataset: &Path,
    records: &[SnapshotRecord],
    url: &str,
) -> Result<Option<SnapshotRecord>, StageError> {
    let latest = snapshot::latest(dataset)?;
    let of_source = || records.iter().filter(|record| record.source == url);
    let base = of_source().find(|record| Some(&record.id) == latest.as_ref()).or_else(|| of_source().next_back());
    Ok(base.cloned())
}

/// The plan, row by row.
pub(super) fn planned<'a>(
    listing: &'a Listing,
    mapping: &'a Mapping,
    base: Option<&'a SnapshotRecord>,
    dataset: &Path,
) -> Result<impl Iterator<Item = Result<Row, StageError>> + 'a, StageError> {
    let manifest = |base: &SnapshotRecord| dataset.join("snapshots").join(&base.id.0).join(snapshot::MANIFEST);
    let held = base.map(|base| snapshot::objects(&manifest(base))).transpose()?;
    let held = held.into_iter().flatten().map(|object| object.map_err(StageError::from));
    let place = move |object: &snapshot::Object| base.map_or_else(String::new, |base| base.volume_path(object));
    Ok(plan::rows(listing.objects()?, held, mapping, place))
}

fn write_plan(
    path: &Path,
    listing: &Listing,
    mapping: &Mapping,
    base: Option<&SnapshotRecord>,
    dataset: &Path,
) -> Result<Facts, StageError> {
    let (mut writer, mut facts) = (RowWriter::create(path)?, Facts::default());
    for row in planned(listing, mapping, base, dataset)? {
        let row = row?;
        facts.add(&row);
        writer.push(row)?;
    }
    writer.finish(&facts)?;
    Ok(facts)
}
