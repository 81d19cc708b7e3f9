//! Thousands of small objects and a few large ones, worked out once for all tests.

use std::{collections::BTreeMap, path::Path, sync::LazyLock};

use forebay::s3_server::{Algorithm, S3Server, Stored, Upload};

use crate::support::{bytes, files};

pub const SMALL: u64 = 3000;

/// Held by tests that have the machine busy for seconds, else they only wait for each other.
pub static HEAVY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub struct Crowd {
    objects: Vec<(String, Stored)>,
    pub content: BTreeMap<String, Vec<u8>>,
}

/// Of every kind of upload something.
static CROWD: LazyLock<Crowd> = LazyLock::new(|| {
    let small = (0..SMALL).map(|n| {
        let upload = Upload::new(bytes(n, (n % 97 * 23) as usize));
        let upload = match n % 8 {
            0 => upload.checksum(Algorithm::Crc32c),
            1 => upload.checksum(Algorithm::Sha256),
            2 => upload.in_parts(400),
            3 => upload.in_parts(400).checksum(Algorithm::Crc32).composite(),
            4 => upload.without_checksum(),
            _ => upload,
        };
        (format!("small/{:02}/{n:04}.bin", n % 40), upload)
    });
    let large = |size: usize| Upload::new(bytes(size as u64, size << 20));
    let large = [
        ("large/plain.bin".to_owned(), large(17)),
        ("large/parts.bin".to_owned(), large(20).in_parts(8 << 20)),
        ("large/composite.bin".to_owned(), large(30).in_parts(8 << 20).checksum(Algorithm::Crc32c).composite()),
    ];
    let objects: Vec<_> = small.chain(large).map(|(key, upload)| (key, upload.stored())).collect();
    let content = objects.iter().map(|(key, stored)| (key.clone(), stored.bytes().to_vec())).collect();
    Crowd { objects, content }
});

/// Puts all of it into a bucket.
pub fn put(s3: &S3Server, bucket: &str) -> &'static Crowd {
    for (key, stored) in &CROWD.objects {
        s3.store(bucket, key, stored.clone());
    }
    &CROWD
}

/// Asserts that below a snapshot's `data/` each file holds what it should, or what `or` says that it may.
#[track_caller]
pub fn check(data: &Path, content: &BTreeMap<String, Vec<u8>>, or: impl Fn(&[u8], &[u8]) -> bool) {
    let found = files(data);
    let key = |path: &Path| path.strip_prefix(data).unwrap().to_str().unwrap().to_owned();
    let keys: Vec<_> = found.iter().map(|path| key(path)).collect();
    assert!(keys.iter().eq(content.keys()), "{} files for {} objects", keys.len(), content.len());
    for path in &found {
        let (held, should) = (std::fs::read(path).unwrap(), &content[&key(path)]);
        assert!(held == *should || or(&held, should), "{} is wrong", path.display());
    }
}
