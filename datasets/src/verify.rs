//! Compares a snapshot with its manifest. S3 is not asked.

use std::{fs, sync::Mutex};

use crate::{
    checksum::file_checksum,
    snapshot::{Object, Snapshot},
    volume::Volume,
};

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Objects looked at.
    pub checked: u64,
    /// Bytes read: those of all objects if it was a full one, else none.
    pub bytes: u64,
    /// What is wrong, ordered by key.
    pub bad: Vec<BadObject>,
}

/// An object that is not what the manifest says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BadObject {
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
}

/// Verifies sizes, or with `full` every byte, on as many threads as the host has cores.
pub fn verify(
    volume: &Volume,
    snapshot: &Snapshot,
    full: bool,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> VerifyReport {
    let report = Mutex::new(VerifyReport::default());
    let next = Mutex::new(snapshot.manifest.objects.iter());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some(object) = next.lock().expect("no thread panics").next() else { return };
                    let checked = check(volume, snapshot, object, full);
                    progress(object.size);
                    let mut report = report.lock().expect("no thread panics");
                    report.checked += 1;
                    report.bytes += if full { object.size } else { 0 };
                    report.bad.extend(checked.err().map(|what| BadObject { key: object.key.clone(), what }));
                }
            });
        }
    });
    let mut report = report.into_inner().expect("no thread panics");
    report.bad.sort();
    report
}

fn check(volume: &Volume, snapshot: &Snapshot, object: &Object, full: bool) -> Result<(), String> {
    let path = snapshot.data_path(volume, object).map_err(|error| error.to_string())?;
    let size = fs::metadata(&path).map_err(|error| error.to_string())?.len();
    if size != object.size {
        return Err(format!("it has {size} bytes in place of {}", object.size));
    }
    if full {
        let (_, checksum) = file_checksum(&path).map_err(|error| error.to_string())?;
        if checksum != object.checksum {
            return Err(format!("its checksum is {checksum} in place of {}", object.checksum));
        }
    }
    Ok(())
}
