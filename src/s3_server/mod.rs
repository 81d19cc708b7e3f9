//! An S3 server in the process, on loopback: real signatures, ranges, parts, versions, `If-Match`, ETags, paging and
//! all of S3's checksums, over objects in memory; and on request the faults that real servers and networks were seen to
//! have.
//!
//! `service` is what S3 answers, over the buckets in `store`, with `listing` and `object` for what they are made of.
//! What goes wrong is drawn in `faults`, done to bodies in `delivery`, and to connections in `wire`.

mod asked;
mod delivery;
mod faults;
mod listing;
mod object;
mod service;
mod store;
mod watch;
mod wire;

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use s3s::{
    auth::SimpleAuth,
    config::{S3Config, StaticConfigProvider},
    service::S3ServiceBuilder,
};
use tokio::{net::TcpListener, sync::watch::Sender, task::JoinHandle};

use self::{faults::Tally, store::Store, watch::Gate};
pub use self::{
    faults::{Chance, Fault, Faults},
    object::{Algorithm, Stored, Upload},
    watch::Counts,
};

/// The access key that the server knows.
pub const ACCESS_KEY: &str = "forebay";
/// Its secret.
pub const SECRET_KEY: &str = "forebay-secret";

/// A running server; dropped, it ends.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    store: Store,
    gate: Sender<bool>,
    accepting: JoinHandle<()>,
}

impl S3Server {
    /// Starts on a free port of the loopback interface.
    ///
    /// # Errors
    /// Those of listening.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (gate, passed) = Gate::new();
        let store = Store::new(passed);
        let mut builder = S3ServiceBuilder::new(store.clone());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        builder.set_access(store.clone());
        // `wire` compares the clocks, by the time that a test says the server has.
        let mut config = S3Config::default();
        config.presigned_url_max_skew_time_secs = u32::MAX;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        let accepting = tokio::spawn(wire::accept(listener, builder.build(), store.clone()));
        Ok(Self { address, store, gate, accepting })
    }

    /// `http://127.0.0.1:<port>`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a bucket, if it is not there.
    pub fn make_bucket(&self, bucket: &str) {
        self.store.lock().buckets.entry(bucket.to_owned()).or_default();
    }

    /// From now on a bucket keeps what its objects were before.
    pub fn make_versioned(&self, bucket: &str) {
        self.store.lock().buckets.entry(bucket.to_owned()).or_default().versioned = true;
    }

    /// From now on anybody may read a bucket.
    pub fn make_public(&self, bucket: &str) {
        self.store.lock().buckets.entry(bucket.to_owned()).or_default().public = true;
    }

    /// From now on a bucket answers only to who signs for this region, and tells the others where it is.
    pub fn move_to(&self, bucket: &str, region: &str) {
        self.store.lock().buckets.entry(bucket.to_owned()).or_default().region = Some(region.to_owned());
    }

    /// Puts an object, making its bucket if need be.
    pub fn put(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) {
        self.upload(bucket, key, Upload::new(bytes));
    }

    /// Puts an object as S3 keeps those that it encrypts with KMS: the ETag looks like an MD5, and is none.
    pub fn put_encrypted(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) {
        self.upload(bucket, key, Upload::new(bytes).without_checksum().encrypted());
    }

    /// Puts an object in one of the ways in which objects come about; the answer is its version id.
    pub fn upload(&self, bucket: &str, key: &str, upload: Upload) -> Option<String> {
        self.store(bucket, key, upload.stored())
    }

    /// The same, of what was worked out before.
    pub fn store(&self, bucket: &str, key: &str, stored: Stored) -> Option<String> {
        self.store.lock().buckets.entry(bucket.to_owned()).or_default().put(key, stored)
    }

    /// Removes an object.
    pub fn remove(&self, bucket: &str, key: &str) {
        if let Some(bucket) = self.store.lock().buckets.get_mut(bucket) {
            bucket.remove(key);
        }
    }

    /// What an object holds.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Bytes> {
        Some(self.store.lock().buckets.get(bucket)?.find(key, None).ok()?.bytes.clone())
    }

    /// Replaces the faults, and forgets what came by chance before.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.store.lock();
        state.faults = faults;
        state.tally = Tally::default();
    }

    /// How often each of the faults that come by chance has come.
    pub fn happened(&self) -> BTreeMap<String, u64> {
        self.store.lock().tally.happened()
    }

    /// Stops in whatever it is doing: it accepts connections, and says nothing more.
    pub fn fall_silent(&self) {
        self.gate.send_replace(false);
    }

    /// Goes on where it stopped.
    pub fn speak_again(&self) {
        self.gate.send_replace(true);
    }

    /// How often it was asked so far.
    pub fn counts(&self) -> &Counts {
        &self.store.counts
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
