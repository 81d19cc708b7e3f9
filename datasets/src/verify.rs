//! Compares a snapshot with its manifest. S3 is not asked.

use std::{fs, io, path::Path, sync::Mutex};

use crate::{
    checksum::file_checksum,
    columns,
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
    /// Bytes read: those that are held of all objects if it was a full one, else none.
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

/// Verifies sizes, or with `full` every byte that is held, on several threads. `progress` is told how many bytes are held
/// of each object done.
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
                    progress(object.held_bytes());
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
    if let Some(held) = &object.held {
        return match columns::damaged(&path, held).map_err(|error| error.to_string())? {
            None => Ok(object.held_bytes()),
            Some((range, found)) => {
                let (start, end, checksum) = (range.offset, range.end(), range.checksum);
                Err(format!("the checksum of its bytes {start}..{end} is {found} in place of {checksum}"))
            }
        };
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
        checksum::Hasher,
        snapshot::{self, HeldRange},
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
        let request = StageRequest { name: "d".into(), url, options: Default::default(), columns: None, durable: true };
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

    #[tokio::test]
    async fn of_an_object_that_is_held_in_part_each_range_is_compared_and_no_hole() {
        let (source, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(source.path().join("x"), "0123456789").unwrap();
        let volume = Volume::open_or_create(root.path()).unwrap();
        let url = format!("file://{}", source.path().display()).parse().unwrap();
        let request = StageRequest { name: "d".into(), url, options: Default::default(), columns: None, durable: true };
        let staged = stage(&volume, &request, &|_| ()).await.unwrap();
        let mut snapshot = snapshot::load(&volume, staged.record).unwrap();
        let range = |offset: u64, text: &str| {
            let mut hasher = Hasher::default();
            hasher.update(text.as_bytes());
            HeldRange { offset, length: text.len() as u64, checksum: hasher.finish() }
        };
        snapshot.manifest.objects[0].held = Some(vec![range(1, "12"), range(7, "789")]);
        let path = snapshot.dir.join("data/x");
        let report = |full| {
            let compared = std::sync::atomic::AtomicU64::new(0);
            let report = verify(&volume, &snapshot, full, &|bytes| {
                compared.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
            });
            assert_eq!(compared.into_inner(), 5);
            report
        };
        for text in ["0123456789", ".12....789"] {
            fs::write(&path, text).unwrap();
            assert_eq!(report(true), VerifyReport { checked: 1, bytes: 5, bad: vec![] });
        }
        fs::write(&path, ".12.....89").unwrap();
        assert_eq!(report(false).bad, []);
        let bad = report(true).bad;
        assert!(bad[0].what.starts_with("the checksum of its bytes 7..10 is "), "{bad:?}");
        fs::write(&path, ".12....78").unwrap();
        assert_eq!(report(false).bad[0].what, "it has 9 bytes in place of 10");
    }
}
