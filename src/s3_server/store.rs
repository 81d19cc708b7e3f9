//! The buckets and their objects.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use s3s::{S3Error, S3ErrorCode, S3Result, region::Region, s3_error};

use super::{
    faults::{Fault, Faults, Tally},
    object::{Algorithm, Stored},
    watch::{Counts, Gate},
};

#[derive(Clone, Debug)]
pub(super) struct Store {
    state: Arc<Mutex<State>>,
    pub(super) counts: Arc<Counts>,
    pub(super) gate: Gate,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) buckets: BTreeMap<String, Bucket>,
    pub(super) faults: Faults,
    pub(super) tally: Tally,
    gets: BTreeMap<String, u64>,
    uploads: BTreeMap<String, Multipart>,
    begun: u64,
}

#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub(super) objects: BTreeMap<String, Entry>,
    pub(super) versioned: bool,
    /// Anybody may read it.
    pub(super) public: bool,
    /// None: it answers wherever it is looked for.
    pub(super) region: Option<String>,
    versions: u64,
}

/// What stands under a key.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) current: Option<Stored>,
    /// Of a versioned bucket, the oldest first.
    pub(super) old: Vec<Stored>,
}

/// A multipart upload that was begun.
#[derive(Debug, Default)]
pub(super) struct Multipart {
    pub(super) parts: BTreeMap<i32, Bytes>,
    pub(super) algorithm: Option<Algorithm>,
    pub(super) composite: bool,
}

impl Bucket {
    pub(super) fn put(&mut self, key: &str, mut stored: Stored) -> Option<String> {
        self.versions += 1;
        stored.version = self.versioned.then(|| format!("v{:06}", self.versions));
        let version = stored.version.clone();
        let entry = self.objects.entry(key.to_owned()).or_default();
        let before = entry.current.replace(stored);
        entry.old.extend(before.filter(|_| self.versioned));
        version
    }

    pub(super) fn remove(&mut self, key: &str) {
        match self.objects.get_mut(key) {
            Some(entry) if self.versioned => entry.old.extend(entry.current.take()),
            _ => drop(self.objects.remove(key)),
        }
    }

    pub(super) fn find(&self, key: &str, version: Option<&str>) -> S3Result<&Stored> {
        let entry = self.objects.get(key).ok_or_else(|| s3_error!(NoSuchKey, "no such key"))?;
        match version {
            None => entry.current.as_ref().ok_or_else(|| s3_error!(NoSuchKey, "no such key")),
            Some(wanted) => {
                let mut all = entry.old.iter().chain(&entry.current);
                all.find(|stored| stored.version.as_deref() == Some(wanted))
                    .ok_or_else(|| s3_error!(NoSuchVersion, "no such version"))
            }
        }
    }
}

impl State {
    /// A bucket, as one who signs for `region` finds it.
    pub(super) fn bucket(&mut self, name: &str, region: Option<&Region>) -> S3Result<&mut Bucket> {
        let bucket = self.buckets.get_mut(name).ok_or_else(|| s3_error!(NoSuchBucket, "no such bucket"))?;
        match (&bucket.region, region) {
            (Some(home), Some(signed)) if signed.as_str() != home => {
                let mut error = S3Error::with_message(S3ErrorCode::PermanentRedirect, "the bucket is elsewhere");
                error.set_headers([("x-amz-bucket-region", home.as_str())].into_iter().filter_map(header).collect());
                Err(error)
            }
            _ => Ok(bucket),
        }
    }

    /// Counts a GET, and does to the key what was to happen by now.
    pub(super) fn count_get(&mut self, bucket: &str, key: &str) {
        let nth = self.gets.entry(key.to_owned()).or_default();
        *nth += 1;
        let due = self.faults.replaced_after.get(key).is_some_and(|(after, _)| *nth > *after);
        if due && let Some((_, bytes)) = self.faults.replaced_after.remove(key) {
            self.buckets.entry(bucket.to_owned()).or_default().put(key, super::Upload::new(bytes).stored());
        }
    }

    /// Replaces an object after an answer was made of what it is.
    pub(super) fn replace(&mut self, bucket: &str, key: &str, fault: Option<Fault>) {
        let other = match (self.faults.replaced.remove(key), fault) {
            (Some(bytes), _) => bytes,
            (None, Some(Fault::Replace)) => match self.buckets.get(bucket).map(|bucket| bucket.find(key, None)) {
                Some(Ok(stored)) => stored.bytes.iter().map(|byte| !byte).collect(),
                _ => return,
            },
            _ => return,
        };
        self.buckets.entry(bucket.to_owned()).or_default().put(key, super::Upload::new(other).stored());
    }

    pub(super) fn begin_upload(&mut self, upload: Multipart) -> String {
        self.begun += 1;
        let id = format!("upload-{}", self.begun);
        self.uploads.insert(id.clone(), upload);
        id
    }

    pub(super) fn upload(&mut self, id: &str) -> S3Result<&mut Multipart> {
        self.uploads.get_mut(id).ok_or_else(|| s3_error!(NoSuchUpload, "no such upload"))
    }

    pub(super) fn end_upload(&mut self, id: &str) {
        self.uploads.remove(id);
    }
}

pub(super) fn header((name, value): (&'static str, &str)) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::from_static(name), value.parse().ok()?))
}

impl Store {
    pub(super) fn new(gate: Gate) -> Self {
        Self { state: Arc::default(), counts: Arc::default(), gate }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // What is done under the lock are look-ups and inserts in maps, which do not panic.
        self.state.lock().expect("no holder panics")
    }
}
