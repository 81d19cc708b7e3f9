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
    columns::{self, Columns},
    keymap::{Census, Mapping},
    room,
    snapshot::{self, Object, SnapshotRecord},
    source::{Asked, Listed, Source},
    volume::{self, Volume, VolumeError},
};

/// What a stager leaves behind when it is killed is cleared away after this long, where nobody sees that it is dead.
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
    /// The newest snapshot that holds what is wanted of exactly this listing.
    pub(super) fn unchanged<'a>(
        &self,
        records: &'a [SnapshotRecord],
        url: &str,
        wanted: Option<&Columns>,
    ) -> Option<&'a SnapshotRecord> {
        let serves = |record: &&SnapshotRecord| record.source == url && record.serves(&self.digest, wanted);
        records.iter().rfind(serves).filter(|_| self.tells_changes)
    }

    /// Where stagers of the same columns of one listing of one source meet; of listings that do not tell changes, each has
    /// its own.
    pub(super) fn site_name(&self, url: &str, columns: Option<&Columns>) -> String {
        let mut digest = ListingDigest::default();
        let listing = columns.map_or_else(|| self.digest.clone(), |columns| columns.listing(&self.digest));
        digest.see(url, 0, Some(&listing));
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
    /// The columns of Parquet objects that are taken; none: all.
    pub columns: Option<&'a Columns>,
}

impl Site<'_> {
    /// Makes the plan, unless another stager has; it is the same for all.
    pub(super) fn plan(
        &self,
        listing: Listing,
        mapping: &Mapping,
        bases: &[SnapshotRecord],
        spool: &Spool,
    ) -> Result<Facts, StageError> {
        let path = self.dir.join(PLAN);
        self.clear_published()?;
        if path.exists() {
            return Ok(RowFile::open(&path)?.facts);
        }
        let draft = spool.dir().join(PLAN);
        let facts = self.write_plan(
            &draft,
            planned(&listing, mapping, bases, &self.dataset, |from, object| self.holds_enough(from, object))?,
        )?;
        room::check(self.volume, facts.fetch_bytes, facts.fetch_objects)?;
        room::make_room(self.volume, facts.fetch_bytes)?;
        volume::create_dirs(&self.dir.join(TREE).join(DATA))?;
        match volume::link_or_copy(&draft, &path) {
            Ok(_) => Ok(facts),
            Err(VolumeError::AlreadyExists { .. }) => Ok(RowFile::open(&path)?.facts),
            Err(error) => Err(error.into()),
        }
    }

    fn write_plan(
        &self,
        path: &Path,
        rows: impl Iterator<Item = Result<Row, StageError>>,
    ) -> Result<Facts, StageError> {
        let (mut writer, mut facts) = (RowWriter::create(path)?, Facts::default());
        for row in rows {
            let row = row?;
            facts.add(&row, self.columns);
            writer.push(row)?;
        }
        writer.finish(&facts)?;
        Ok(facts)
    }

    /// Whether an object that is held in part has all columns that are wanted of it.
    fn holds_enough(&self, from: &str, object: &Object) -> bool {
        let (Some(wanted), Ok(file)) = (self.columns, self.volume.resolve(from)) else { return false };
        columns::lacking(&file, object, wanted).is_ok_and(|lacking| lacking.is_empty())
    }

    /// Clears away what a stager has left that was killed after it had published, and before it cleared up.
    pub(super) fn clear_published(&self) -> Result<(), StageError> {
        let is_there = |name| volume::looking_again(&self.dir.join(name), |path| fs::metadata(path)).is_ok();
        if is_there(PLAN) && !is_there(TREE) {
            self.volume.trash(&self.dir).map_err(|error| VolumeError::io("remove", &self.dir, error))?;
        }
        Ok(())
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

/// The snapshots that unchanged objects are shared with: the latest if it is of this source, else the newest that is; and
/// if of that one only some columns are held, the newest that is whole.
pub(super) fn bases(dataset: &Path, records: &[SnapshotRecord], url: &str) -> Result<Vec<SnapshotRecord>, StageError> {
    let latest = snapshot::latest(dataset)?;
    let of_source = || records.iter().filter(|record| record.source == url);
    let first = of_source().find(|record| Some(&record.id) == latest.as_ref()).or_else(|| of_source().next_back());
    let whole = first.filter(|first| first.columns.is_some());
    let whole = whole.and_then(|_| of_source().rfind(|record| record.columns.is_none()));
    Ok(first.into_iter().chain(whole).cloned().collect())
}

/// The plan, row by row. `holds_enough` says of an object that is held in part, and of its path on the volume, whether it
/// has all columns that are wanted.
pub(super) fn planned<'a>(
    listing: &'a Listing,
    mapping: &'a Mapping,
    bases: &'a [SnapshotRecord],
    dataset: &Path,
    holds_enough: impl Fn(&str, &Object) -> bool + 'a,
) -> Result<impl Iterator<Item = Result<Row, StageError>> + 'a, StageError> {
    let mut present = Vec::new();
    for base in bases {
        let manifest = dataset.join("snapshots").join(&base.id.0).join(snapshot::MANIFEST);
        present.push(snapshot::objects(&manifest)?.map(|object| object.map_err(StageError::from)));
    }
    let place = move |base: usize, object: &Object| {
        let from = bases[base].volume_path(object);
        (object.held.is_none() || holds_enough(&from, object)).then_some(from)
    };
    Ok(plan::rows(listing.objects()?, present, mapping, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stagers_meet_who_stage_the_same_columns_of_the_same_listing() {
        let survey = |tells_changes| Survey {
            digest: "d".to_owned(),
            mapping: Mapping::default(),
            tells_changes,
            asked: Asked::default(),
        };
        let [few, more] = [&["a"][..], &["a", "b"]].map(|names| names.iter().copied().collect::<Columns>());
        let name = |url, columns| survey(true).site_name(url, columns);
        let names = [name("u", None), name("v", None), name("u", Some(&few)), name("u", Some(&more))];
        assert!((1..4).all(|at| !names[..at].contains(&names[at])), "{names:?}");
        assert_eq!(names[3], name("u", Some(&more)));
        assert_ne!(survey(false).site_name("u", None), survey(false).site_name("u", None));
    }
}
