//! What runs have made and later runs may take over, kept as long as there is room for it.
//!
//! ```text
//! <volume>/reuse/<work>/<run>/results.json    the record: no record, no results
//! <volume>/reuse/<work>/<run>/…               whatever the run's coordinator keeps
//! ```
//!
//! A directory appears by one rename and goes by one. Files in it are second names of what is published elsewhere, or of
//! what an earlier run keeps, as far as the mount has hard links: [`Taken`] counts what no other name holds.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    gc::Rules,
    volume::{self, Removed, Volume, VolumeError},
};

const RECORD: &str = "results.json";
const VERSION: u32 = 1;
/// Results of the same work that are kept: what was not in the last run's input may come back once more.
const KEPT: usize = 2;

/// What is told of the results of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of this object.
    pub version: u32,
    /// The identity of the work.
    pub work: String,
    /// Of each part of it, by its name.
    pub parts: BTreeMap<String, String>,
    /// The run.
    pub run: String,
    /// The job's name.
    pub job: String,
    /// When the run ended, by its coordinator's clock.
    pub made: jiff::Timestamp,
    /// Tasks whose results these are.
    pub tasks: u64,
}

/// The results of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Results {
    /// Where they are.
    pub dir: PathBuf,
    /// What is told of them.
    pub record: Record,
}

fn dir(volume: &Volume) -> PathBuf {
    volume.root().join("reuse")
}

/// Whether any run has left results.
pub fn are_there(volume: &Volume) -> bool {
    fs::read_dir(dir(volume)).is_ok_and(|mut entries| entries.next().is_some())
}

/// All results, oldest first.
pub fn list(volume: &Volume) -> Result<Vec<Results>, VolumeError> {
    let mut found = Vec::new();
    for work in children(&dir(volume))? {
        found.extend(in_dir(&work)?);
    }
    sort(&mut found);
    Ok(found)
}

/// The results of one work, oldest first.
pub fn of_work(volume: &Volume, work: &str) -> Result<Vec<Results>, VolumeError> {
    let mut found = in_dir(&dir(volume).join(work))?;
    sort(&mut found);
    Ok(found)
}

fn sort(results: &mut [Results]) {
    results.sort_by(|a, b| (a.record.made, &a.record.run).cmp(&(b.record.made, &b.record.run)));
}

fn in_dir(work: &Path) -> Result<Vec<Results>, VolumeError> {
    let mut found = Vec::new();
    for dir in children(work)? {
        let path = dir.join(RECORD);
        let text = match fs::read(&path) {
            Ok(text) => text,
            // On its way here, or gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(VolumeError::io("read", &path, error)),
        };
        match serde_json::from_slice::<Record>(&text) {
            Ok(record) if record.version == VERSION => found.push(Results { dir, record }),
            // Of another version, or damaged: of no use, and nothing is lost without it.
            other => tracing::warn!(path = %path.display(), ?other, "not a record of results that this forebay knows"),
        }
    }
    Ok(found)
}

/// What stands in a directory and does not begin with a dot.
fn children(dir: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    Ok(volume::names(dir)?.into_iter().map(|name| dir.join(name)).collect())
}

/// Keeps what a run has made, which `fill` brings into a new directory, and removes what it supersedes.
pub fn keep(
    volume: &Volume,
    record: Record,
    fill: impl FnOnce(&Path) -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    let work = dir(volume).join(&record.work);
    volume::create_dirs(&work)?;
    let new = work.join(format!(".new-{}", volume::nonce()));
    volume::create_dir(&new)?;
    let target = work.join(&record.run);
    let record = Record { version: VERSION, ..record };
    let filled = fill(&new).and_then(|()| {
        let text = serde_json::to_vec_pretty(&record).expect("plain fields serialise");
        volume::write_new(&new.join(RECORD), &text)?;
        volume::publish_dir(&new, &target)
    });
    if filled.is_err() {
        let removed = volume.trash(&new);
        tracing::debug!(path = %new.display(), ?removed, "results are not kept");
    }
    filled?;
    let mut of_work = of_work(volume, &record.work)?;
    of_work.truncate(of_work.len().saturating_sub(KEPT));
    of_work.iter().try_for_each(|results| remove(volume, results).map(drop))
}

/// Removes results. What is read of them at the same time is not found any more.
pub fn remove(volume: &Volume, results: &Results) -> Result<Removed, VolumeError> {
    let removed = volume.trash(&results.dir).map_err(|error| VolumeError::io("remove", &results.dir, error))?;
    if let Some(work) = results.dir.parent() {
        // Not while there are others.
        let _ = fs::remove_dir(work);
    }
    Ok(removed)
}

/// Which results the rules of a collection let go, oldest first.
pub(crate) fn collectable(volume: &Volume, rules: &Rules) -> Result<Vec<Results>, VolumeError> {
    // Rules for some datasets say nothing of what was made of them.
    if rules.is_empty() || !rules.names.is_empty() {
        return Ok(Vec::new());
    }
    let (list, now) = (list(volume)?, volume::server_time(volume.root())?);
    let mut newer = HashMap::<&str, usize>::new();
    let mut goes = Vec::new();
    for results in list.iter().rev() {
        let newer = newer.entry(&results.record.work).or_default();
        *newer += 1;
        let age = || now?.duration_since(fs::metadata(results.dir.join(RECORD)).ok()?.modified().ok()?).ok();
        let old = rules.older_than.is_none_or(|older_than| age().is_some_and(|age| age > older_than));
        if *newer > rules.keep_last.unwrap_or(0) && old {
            goes.push(results.clone());
        }
    }
    goes.reverse();
    Ok(goes)
}

/// Removes the oldest results until all together take no more than so many bytes.
pub fn fit(volume: &Volume, most: u64) -> Result<Removed, VolumeError> {
    let (mut taken, mut removed) = (Taken::of(volume)?, Removed::default());
    for results in list(volume)? {
        if taken.bytes() <= most {
            break;
        }
        taken.remove(&results)?;
        removed = removed.and(remove(volume, &results)?);
    }
    Ok(removed)
}

/// Bytes of results that have no other name: those that come free with them.
#[derive(Debug, Default)]
pub struct Taken(HashMap<(u64, u64), Inode>);

#[derive(Debug)]
struct Inode {
    names: u64,
    counted: u64,
    bytes: u64,
}

impl Taken {
    /// Of all results of a volume.
    pub fn of(volume: &Volume) -> Result<Self, VolumeError> {
        let mut taken = Self::default();
        for results in list(volume)? {
            each_file(&results.dir, &mut |meta| {
                let inode = || Inode { names: meta.nlink(), counted: 0, bytes: meta.len() };
                taken.0.entry((meta.dev(), meta.ino())).or_insert_with(inode).counted += 1;
            })?;
        }
        Ok(taken)
    }

    /// As if these were not there any more.
    pub fn remove(&mut self, results: &Results) -> Result<(), VolumeError> {
        each_file(&results.dir, &mut |meta| {
            if let Some(inode) = self.0.get_mut(&(meta.dev(), meta.ino())) {
                inode.names = inode.names.saturating_sub(1);
                inode.counted = inode.counted.saturating_sub(1);
            }
        })
    }

    /// Bytes that come free if all that are left are removed.
    pub fn bytes(&self) -> u64 {
        self.0.values().filter(|inode| inode.counted > 0 && inode.counted >= inode.names).map(|inode| inode.bytes).sum()
    }
}

fn each_file(dir: &Path, each: &mut impl FnMut(&fs::Metadata)) -> Result<(), VolumeError> {
    let failed = |path: &Path, error| VolumeError::io("inspect", path, error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(dir, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| failed(dir, error))?;
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => each_file(&entry.path(), each)?,
            Ok(meta) => each(&meta),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&entry.path(), error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(work: &str, run: &str, second: i64) -> Record {
        Record {
            version: 0,
            work: work.into(),
            parts: BTreeMap::new(),
            run: run.into(),
            job: "j".into(),
            made: jiff::Timestamp::from_second(second).unwrap(),
            tasks: 1,
        }
    }

    fn keeps(volume: &Volume, record: Record, bytes: usize) {
        keep(volume, record, |dir| volume::write_new(&dir.join("f"), &vec![1; bytes])).unwrap();
    }

    fn runs(volume: &Volume) -> Vec<String> {
        list(volume).unwrap().into_iter().map(|results| results.record.run).collect()
    }

    #[test]
    fn of_each_work_the_last_two_are_kept_and_what_fails_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(root.path()).unwrap();
        assert!(!are_there(&volume) && list(&volume).unwrap().is_empty());
        for (work, run, second) in [("w", "a", 1), ("w", "c", 3), ("w", "b", 2), ("v", "d", 4)] {
            keeps(&volume, record(work, run, second), 1);
        }
        assert!(are_there(&volume));
        assert_eq!(runs(&volume), ["b", "c", "d"]);
        let of_w: Vec<_> = of_work(&volume, "w").unwrap().into_iter().map(|results| results.record.run).collect();
        assert_eq!(of_w, ["b", "c"]);
        let failed = VolumeError::AlreadyExists { path: root.path().to_owned() };
        keep(&volume, record("u", "e", 5), |_| Err(failed)).unwrap_err();
        assert_eq!(runs(&volume), ["b", "c", "d"]);
    }

    #[test]
    fn what_has_another_name_takes_nothing_and_the_oldest_go_first() {
        let root = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(root.path()).unwrap();
        keeps(&volume, record("w", "a", 1), 100);
        keeps(&volume, record("v", "b", 2), 50);
        assert_eq!(Taken::of(&volume).unwrap().bytes(), 150 + 2 * size_of_records(&volume));
        let file = list(&volume).unwrap()[0].dir.join("f");
        let published = root.path().join("published");
        fs::hard_link(&file, &published).unwrap();
        assert_eq!(Taken::of(&volume).unwrap().bytes(), 50 + 2 * size_of_records(&volume));
        fs::remove_file(&published).unwrap();
        fit(&volume, 150 + 2 * size_of_records(&volume)).unwrap();
        assert_eq!(runs(&volume), ["a", "b"]);
        fit(&volume, 149 + size_of_records(&volume)).unwrap();
        assert_eq!(runs(&volume), ["b"]);
        fit(&volume, 0).unwrap();
        assert!(runs(&volume).is_empty() && !are_there(&volume));
    }

    fn size_of_records(volume: &Volume) -> u64 {
        list(volume).unwrap()[0].dir.join(RECORD).metadata().unwrap().len()
    }
}
