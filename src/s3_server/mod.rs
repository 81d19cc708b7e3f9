//! An S3 server in the process, on loopback: real signatures, ranges, `If-Match`, ETags, paging and checksums, over
//! objects in memory; and on request the faults that real servers and networks were seen to have.

mod store;

use std::{
    collections::{BTreeMap, HashSet},
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::{
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::{net::TcpListener, task::JoinHandle};

use self::store::{Store, Stored};

/// The access key that the server knows.
pub const ACCESS_KEY: &str = "forebay";
/// Its secret.
pub const SECRET_KEY: &str = "forebay-secret";

/// What goes wrong on purpose. All off by default.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Each so many-th GET, and part of an upload, is answered with 503 SlowDown.
    pub busy_every: Option<u64>,
    /// The bodies of these keys end after half of their bytes, each time, or only the first time.
    pub cut_short: HashSet<String>,
    /// One byte of these keys' bodies is another one.
    pub flipped: HashSet<String>,
    /// These keys get the other content after their first GET.
    pub replaced: BTreeMap<String, Vec<u8>>,
    /// `If-Match` is ignored.
    pub ignore_if_match: bool,
    /// A range is answered with the whole object.
    pub ignore_range: bool,
    /// Listings have no ETags.
    pub list_without_etags: bool,
    /// The next multipart upload is put together, and answered with an error.
    pub lose_completion: bool,
}

/// How often the server was asked.
#[derive(Debug, Default)]
pub struct Counts {
    gets: AtomicU64,
    bytes: AtomicU64,
    lists: AtomicU64,
    parts: AtomicU64,
}

impl Counts {
    /// GETs of objects, those that failed too.
    pub fn gets(&self) -> u64 {
        self.gets.load(Ordering::Relaxed)
    }

    /// Bytes in the answers to them.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Pages of listings.
    pub fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    /// Parts of multipart uploads.
    pub fn parts(&self) -> u64 {
        self.parts.load(Ordering::Relaxed)
    }
}

/// A running server; dropped, it ends.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    store: Store,
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
        let store = Store::default();
        let mut builder = S3ServiceBuilder::new(store.clone());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let accepting = tokio::spawn(accept(listener, builder.build()));
        Ok(Self { address, store, accepting })
    }

    /// `http://127.0.0.1:<port>`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a bucket, if it is not there.
    pub fn make_bucket(&self, bucket: &str) {
        self.store.lock().buckets.entry(bucket.to_owned()).or_default();
    }

    /// Puts an object, making its bucket if need be.
    pub fn put(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) {
        self.store.lock().put(bucket, key, Stored::new(bytes.into()));
    }

    /// Puts an object as S3 keeps those that it encrypts with KMS: the ETag looks like an MD5, and is none.
    pub fn put_encrypted(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) {
        self.store.lock().put(bucket, key, Stored::encrypted(bytes.into()));
    }

    /// Removes an object.
    pub fn remove(&self, bucket: &str, key: &str) {
        if let Some(bucket) = self.store.lock().buckets.get_mut(bucket) {
            bucket.remove(key);
        }
    }

    /// What an object holds.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Bytes> {
        Some(self.store.lock().buckets.get(bucket)?.get(key)?.bytes.clone())
    }

    /// Replaces the faults.
    pub fn set_faults(&self, faults: Faults) {
        self.store.lock().faults = faults;
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

async fn accept(listener: TcpListener, service: S3Service) {
    // Connections end with the task that owns them.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let service = service.clone();
        connections.spawn(async move {
            let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let answer = hyper::service::service_fn(move |request| {
                let answered = hyper::service::Service::call(&service, request);
                async move {
                    // An error inside s3s is a dropped connection to the client, as a crash would be.
                    Ok::<_, Infallible>(answered.await.unwrap_or_default())
                }
            });
            let _ = http.serve_connection(TokioIo::new(socket), answer).await;
        });
        while connections.try_join_next().is_some() {}
    }
}
