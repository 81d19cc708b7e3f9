//! Garbage collection: removes snapshots and results by age, count and size, and what killed processes left.
//!
//! 1. [`plan`] says of each snapshot whether it is to go, and why not. `refs/latest`, a pin or a reader's lease keeps it
//!    whatever the rules say.
//! 2. [`collect`] removes what the plan says. Each snapshot's holds are looked at again, before it is moved out of its
//!    place and after, so that a reader that came in between keeps it ([`crate::hold`]).
//! 3. Then the trash is emptied and leftovers are cleared away, as far as that is possible now.
//!
//! Two collections at once, on whatever hosts, are harmless: each rename has one winner, and the other finds nothing.

mod leftovers;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use crate::{
    hold::{self, Hold, Removal},
    lease,
    results::{self, Results},
    room::Shares,
    snapshot::{self, SnapshotError, SnapshotId, SnapshotRecord},
    volume::{self, Removed, Volume, VolumeError},
};

/// Which snapshots may go. Without any rule none may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Only of these datasets; of all if there are none.
    pub names: BTreeSet<String>,
    /// Only those before the newest so many of their dataset.
    pub keep_last: Option<usize>,
    /// Only those committed longer ago than this.
    pub older_than: Option<Duration>,
    /// Only the oldest, until the snapshots of the datasets take no more bytes than this.
    pub max_size: Option<u64>,
}

impl Rules {
    /// Whether any snapshot may go at all.
    pub fn is_empty(&self) -> bool {
        self.keep_last.is_none() && self.older_than.is_none() && self.max_size.is_none()
    }
}

/// Why a snapshot is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is held, by all of these.
    Held(Vec<Hold>),
    /// It is one of the newest.
    Newest,
    /// It is too young.
    Young,
    /// The size is not passed, or no longer.
    Fits,
    /// There is no rule by which it would go.
    NoRule,
    /// It was removed by somebody else in the meantime.
    Gone,
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Held(holds) => f.write_str(&holds.iter().map(Hold::to_string).collect::<Vec<_>>().join(", ")),
            Self::Newest => f.write_str("one of the newest"),
            Self::Young => f.write_str("not old enough"),
            Self::Fits => f.write_str("fits the size"),
            Self::NoRule => f.write_str("no rule says that it goes"),
            Self::Gone => f.write_str("removed by somebody else"),
        }
    }
}

/// A snapshot, and what becomes of it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its commit record.
    pub record: SnapshotRecord,
    /// Why it stays; none if it goes.
    pub kept: Option<Kept>,
    /// Bytes that come free with it: in a plan by the manifests, after a collection those of files that had no other
    /// name.
    pub frees: u64,
}

/// What is to be removed, or was.
#[derive(Clone, Debug, Default)]
pub struct Collection {
    /// Every snapshot of the datasets, oldest first.
    pub snapshots: Vec<Candidate>,
    /// Results of runs that go, oldest first.
    pub results: Vec<Results>,
    /// What killed processes left.
    pub leftovers: Vec<std::path::PathBuf>,
    /// What the trash and the leftovers took.
    pub cleared: Removed,
}

impl Collection {
    /// Those that go.
    pub fn removed(&self) -> impl Iterator<Item = &Candidate> {
        self.snapshots.iter().filter(|candidate| candidate.kept.is_none())
    }

    /// Those that stay.
    pub fn kept(&self) -> impl Iterator<Item = (&Candidate, &Kept)> {
        self.snapshots.iter().filter_map(|candidate| Some((candidate, candidate.kept.as_ref()?)))
    }

    /// Bytes that come free with the snapshots that go.
    pub fn frees(&self) -> u64 {
        self.removed().map(|candidate| candidate.frees).sum()
    }
}

/// Says what would be removed, and changes nothing.
///
/// # Errors
/// [`SnapshotError::NoDataset`] if a dataset that is named is not there.
pub fn plan(volume: &Volume, rules: &Rules) -> Result<Collection, SnapshotError> {
    let mut datasets = BTreeMap::new();
    let mut snapshots = Vec::new();
    for name in names(volume, rules)? {
        let records = snapshot::records(volume, &name)?;
        if records.is_empty() && rules.names.contains(&name) {
            return Err(SnapshotError::NoDataset { name });
        }
        let holds = hold::holds(volume, &name)?;
        let ages = Ages::new(volume, &name)?;
        let mut shares = Shares::default();
        let newest = records.len().saturating_sub(rules.keep_last.unwrap_or(0));
        for (at, record) in records.into_iter().enumerate() {
            shares.add(volume, &name, &record.id)?;
            let held: Vec<_> = holds.iter().filter(|(id, _)| *id == record.id).map(|(_, hold)| hold.clone()).collect();
            let young = || -> Result<bool, SnapshotError> {
                let Some(older_than) = rules.older_than else { return Ok(false) };
                Ok(ages.of(&record.id)?.is_none_or(|age| age <= older_than))
            };
            let kept = match () {
                () if !held.is_empty() => Some(Kept::Held(held)),
                () if rules.is_empty() => Some(Kept::NoRule),
                () if rules.keep_last.is_some() && at >= newest => Some(Kept::Newest),
                () if young()? => Some(Kept::Young),
                () => None,
            };
            snapshots.push(Candidate { record, kept, frees: 0 });
        }
        datasets.insert(name, shares);
    }
    snapshots.sort_by(|a, b| (&a.record.created, &a.record.id).cmp(&(&b.record.created, &b.record.id)));
    let mut size: u64 = datasets.values().map(Shares::bytes).sum();
    let mut results = results::collectable(volume, rules)?;
    if let Some(max) = rules.max_size {
        let mut goes = 0;
        // They can be made again of what is there, and snapshots perhaps cannot.
        let mut taken = results::Taken::of(volume)?;
        while goes < results.len() && size.saturating_add(taken.bytes()) > max {
            taken.remove(&results[goes])?;
            goes += 1;
        }
        results.truncate(goes);
        size = size.saturating_add(taken.bytes());
    }
    for candidate in &mut snapshots {
        if candidate.kept.is_some() {
            continue;
        }
        if rules.max_size.is_some_and(|max| size <= max) {
            candidate.kept = Some(Kept::Fits);
            continue;
        }
        let record = &candidate.record;
        let Some(shares) = datasets.get_mut(&record.name) else { continue };
        candidate.frees = shares.remove(volume, &record.name, &record.id)?;
        size = size.saturating_sub(candidate.frees);
    }
    let leftovers = leftovers::find(volume)?;
    Ok(Collection { snapshots, results, leftovers, cleared: Removed::default() })
}

/// Removes what the rules say.
pub fn collect(volume: &Volume, rules: &Rules) -> Result<Collection, SnapshotError> {
    let mut collection = plan(volume, rules)?;
    for candidate in collection.snapshots.iter_mut().filter(|candidate| candidate.kept.is_none()) {
        let record = &candidate.record;
        match hold::remove(volume, &record.name, &record.id)? {
            Removal::Done(removed) => candidate.frees = removed.bytes,
            Removal::Held(holds) => candidate.kept = Some(Kept::Held(holds)),
            Removal::Gone => candidate.kept = Some(Kept::Gone),
        }
    }
    for results in &collection.results {
        collection.cleared = collection.cleared.and(results::remove(volume, results)?);
    }
    for name in names(volume, rules)? {
        let removed = hold::finish_removals(volume, &name)?;
        collection.cleared = collection.cleared.and(removed);
        for lease in lease::leases(volume, &name)?.into_iter().filter(|lease| !lease.is_live()) {
            lease.clear()?;
        }
    }
    for path in &collection.leftovers {
        let removed = volume.trash(path).map_err(|error| VolumeError::io("remove", path, error))?;
        collection.cleared = collection.cleared.and(removed);
    }
    collection.cleared = collection.cleared.and(volume.empty_trash(None));
    Ok(collection)
}

/// Bytes that come free if every snapshot goes that nobody holds.
pub fn reclaimable(volume: &Volume) -> Result<u64, SnapshotError> {
    Ok(plan(volume, &Rules { keep_last: Some(0), ..Rules::default() })?.frees())
}

fn names(volume: &Volume, rules: &Rules) -> Result<Vec<String>, SnapshotError> {
    match rules.names.is_empty() {
        true => Ok(volume::names(&volume.datasets_dir())?),
        false => Ok(rules.names.iter().cloned().collect()),
    }
}

/// How old a dataset's snapshots are, by the file server's clock.
struct Ages {
    snapshots: std::path::PathBuf,
    now: Option<std::time::SystemTime>,
}

impl Ages {
    fn new(volume: &Volume, name: &str) -> Result<Self, SnapshotError> {
        let snapshots = snapshot::dataset_dir(volume, name)?.join("snapshots");
        let now = volume::server_time(&snapshots)?;
        Ok(Self { snapshots, now })
    }

    /// None if it cannot be told, since the snapshot is not there any more.
    fn of(&self, id: &SnapshotId) -> Result<Option<Duration>, VolumeError> {
        let path = self.snapshots.join(&id.0).join("snapshot.json");
        match fs::metadata(&path).and_then(|meta| meta.modified()) {
            Ok(committed) => Ok(self.now.map(|now| now.duration_since(committed).unwrap_or_default())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(VolumeError::io("inspect", &path, error)),
        }
    }
}

#[cfg(test)]
mod tests;
