//! Where a damaged object stands, in its own snapshot and in the others of the dataset.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::{
    checksum::file_checksum,
    columns,
    snapshot::{self, Object, Snapshot, SnapshotError, SnapshotId, SnapshotRecord},
    threads::on_threads,
    verify::BadObject,
    volume::Volume,
};

/// Files that are read, and objects that are fetched, at once.
pub(super) const THREADS: usize = 16;

/// A damaged object, and where else the dataset has the same.
pub(super) struct Patient {
    pub bad: BadObject,
    pub object: Object,
    pub place: Place,
    /// The file of a snapshot that has it whole.
    pub whole: Option<(SnapshotId, PathBuf)>,
    /// Where it is damaged too.
    pub damaged: Vec<(SnapshotId, Place)>,
}

/// Where a snapshot has an object.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The snapshot's `data/`.
    pub data: PathBuf,
    /// Below it.
    pub path: String,
}

impl Place {
    pub(super) fn file(&self) -> PathBuf {
        self.data.join(&self.path)
    }
}

/// The objects that a verification of the snapshot found.
pub(super) fn patients(snapshot: &Snapshot, bad: &[BadObject]) -> Vec<Patient> {
    let objects = &snapshot.manifest.objects;
    let patient = |bad: &BadObject| {
        let at = objects.binary_search_by(|object| object.key.cmp(&bad.key)).ok()?;
        let object = objects[at].clone();
        let place = Place { data: snapshot.dir.join("data"), path: object.path.clone() };
        Some(Patient { bad: bad.clone(), object, place, whole: None, damaged: Vec::new() })
    };
    bad.iter().filter_map(patient).collect()
}

/// Looks for the same objects in the other snapshots, and reads those files.
pub(super) fn look_elsewhere(
    volume: &Volume,
    own: &SnapshotRecord,
    patients: &mut [Patient],
) -> Result<(), SnapshotError> {
    let by_key: HashMap<_, _> =
        patients.iter().enumerate().map(|(at, patient)| (patient.object.key.clone(), at)).collect();
    let mut twins = Vec::new();
    for record in snapshot::records(volume, &own.name)?.into_iter().filter(|record| record.id != own.id) {
        let dir = record.dir(volume)?;
        for object in snapshot::objects(&dir.join(snapshot::MANIFEST))? {
            let object = object?;
            let Some(at) = by_key.get(&object.key) else { continue };
            let wanted = &patients[*at].object;
            if (object.size, object.checksum, &object.held) == (wanted.size, wanted.checksum, &wanted.held) {
                volume.resolve(&object.path)?;
                twins.push((*at, record.id.clone(), Place { data: dir.join("data"), path: object.path }));
            }
        }
    }
    // The names of one file are read once.
    let known = Mutex::new(HashMap::new());
    let whole = on_threads(
        THREADS,
        &twins,
        || (),
        |(), (at, _, place)| {
            let Ok(meta) = fs::symlink_metadata(place.file()) else { return false };
            let inode = (meta.dev(), meta.ino());
            if let Some(whole) = known.lock().expect("no thread panics").get(&inode) {
                return *whole;
            }
            let whole = meta.is_file() && is_whole(&place.file(), &patients[*at].object);
            known.lock().expect("no thread panics").insert(inode, whole);
            whole
        },
    );
    for ((at, id, place), whole) in twins.into_iter().zip(whole) {
        match whole {
            true => patients[at].whole = Some((id, place.file())),
            false => patients[at].damaged.push((id, place)),
        }
    }
    Ok(())
}

fn is_whole(path: &Path, object: &Object) -> bool {
    match &object.held {
        None => file_checksum(path).is_ok_and(|found| found == (object.size, object.checksum)),
        Some(held) => columns::is_intact(path, object.size, held),
    }
}
