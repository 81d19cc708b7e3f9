//! Compares a snapshot with its manifest. S3 is not asked.

use std::{fs, io, path::Path, sync::Mutex};

use crate::{
    checksum::file_checksum,
    snapshot::{Object, Snapshot},
    volume::Volume,
};

/// On a network file system the time goes by in waiting for the server, not on this host's cores.
const THREADS: usize = 16;

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

/// Verifies sizes, or with `full` every byte, on several threads. `progress` is told the size of each object done.
pub fn verify(
    volume: &Volume,
    snapshot: &Snapshot,
    full: bool,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> VerifyReport {
    let report = Mutex::new(VerifyReport::default());
    let next = Mutex::new(snapshot.manifest.objects.iter());
    let threads = std::thread::available_parallelism().map_or(THREADS, |cores| cores.get().max(THREADS));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(snapshot.manifest.objects.len()) {
            scope.spawn(|| {
                loop {
                    let Some(object) = next.lock().expect("no thread panics").next() else { return };
                    let checked = check(volume, snapshot, object, full);
                    progress(object.size);
                    let mut report = report.lock().expect("no thread panics");
                    report.checked += 1;
                    match checked {
                        Ok(bytes) => report.bytes += bytes,
                        Err(what) => report.bad.push(BadObject { key: object.key.clone(), what }),
                    }
                }
            });
        }
    });
    let mut report = report.into_inner().expect("no thread panics");
    report.bad.sort();
    report
}

/// The bytes that were read, or what is wrong.
fn check(volume: &Volume, snapshot: &Snapshot, object: &Object, full: bool) -> Result<u64, String> {
    let path = snapshot.data_path(volume, object).map_err(|error| error.to_string())?;
    let size = size(&path)?;
    if size != object.size {
        return Err(format!("it has {size} bytes in place of {}", object.size));
    }
    if !full {
        return Ok(0);
    }
    let (read, checksum) = file_checksum(&path).map_err(|error| error.to_string())?;
    match checksum == object.checksum {
        true => Ok(read),
        false => Err(format!("its checksum is {checksum} in place of {}", object.checksum)),
    }
}

fn size(path: &Path) -> Result<u64, String> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => Ok(meta.len()),
        Ok(_) => Err("it is no regular file".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("it is missing".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        snapshot,
        stage::{StageRequest, stage},
    };

    #[tokio::test]
    async fn every_kind_of_damage_is_found_and_only_that() {
        let (source, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for key in ["missing", "shorter", "other", "whole"] {
            fs::write(source.path().join(key), "12345").unwrap();
        }
        let volume = Volume::open_or_create(root.path()).unwrap();
        let url = format!("file://{}", source.path().display()).parse().unwrap();
        let request = StageRequest { name: "d".into(), url, options: Default::default(), durable: true };
        let staged = stage(&volume, &request, &|_| ()).await.unwrap();
        let snapshot = snapshot::load(&volume, staged.record).unwrap();
        let whole = verify(&volume, &snapshot, true, &|_| ());
        assert_eq!(whole, VerifyReport { checked: 4, bytes: 20, bad: vec![] });

        let data = snapshot.dir.join("data");
        fs::remove_file(data.join("missing")).unwrap();
        fs::write(data.join("shorter"), "1").unwrap();
        fs::write(data.join("other"), "54321").unwrap();
        let bad = |full| {
            let bad = verify(&volume, &snapshot, full, &|_| ()).bad;
            bad.into_iter().map(|bad| format!("{}: {}", bad.key, bad.what)).collect::<Vec<_>>()
        };
        assert_eq!(bad(false), ["missing: it is missing", "shorter: it has 1 bytes in place of 5"]);
        let full = bad(true);
        assert_eq!(full.len(), 3);
        assert!(full[1].starts_with("other: its checksum is "), "{full:?}");
    }
}
