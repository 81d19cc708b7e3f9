//! An S3 server in the process, on loopback: real signatures, ranges, `If-Match`, ETags, paging and checksums, over
//! objects in memory; and on request the faults that real servers and networks were seen to have.

use std::{
    collections::{BTreeMap, HashSet},
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use forebay_datasets::checksum::{Crc64, Hasher};
use futures::stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use md5::{Digest, Md5};
use s3s::{
    S3, S3Request, S3Response, S3Result,
    auth::SimpleAuth,
    dto::{
        ChecksumType, ETag, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
        ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput, StreamingBlob,
    },
    s3_error,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// The access key that the server knows.
pub const ACCESS_KEY: &str = "forebay";
/// Its secret.
pub const SECRET_KEY: &str = "forebay-secret";

/// What goes wrong on purpose. All off by default.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Each so many-th GET is answered with 503 SlowDown.
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
}

/// How often the server was asked.
#[derive(Debug, Default)]
pub struct Counts {
    gets: AtomicU64,
    lists: AtomicU64,
}

impl Counts {
    /// GETs of objects, those that failed too.
    pub fn gets(&self) -> u64 {
        self.gets.load(Ordering::Relaxed)
    }

    /// Pages of listings.
    pub fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
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
        self.store
            .lock()
            .buckets
            .entry(bucket.to_owned())
            .or_default()
            .insert(key.to_owned(), Stored::new(bytes.into()));
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

#[derive(Clone, Debug, Default)]
struct Store {
    state: Arc<Mutex<State>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct State {
    buckets: BTreeMap<String, BTreeMap<String, Stored>>,
    faults: Faults,
}

#[derive(Clone, Debug)]
struct Stored {
    bytes: Bytes,
    md5: String,
    crc64: Crc64,
}

impl Stored {
    fn new(bytes: Bytes) -> Self {
        let md5 = Md5::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut hasher = Hasher::default();
        hasher.update(&bytes);
        Self { bytes, md5, crc64: hasher.finish() }
    }

    fn checksum(&self) -> String {
        aws_smithy_types::base64::encode(self.crc64.0.to_be_bytes())
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn find(&self, bucket: &str, key: &str) -> S3Result<Stored> {
        let state = self.lock();
        let bucket = state.buckets.get(bucket).ok_or_else(|| s3_error!(NoSuchBucket, "no such bucket"))?;
        bucket.get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey, "no such key"))
    }
}

#[async_trait::async_trait]
impl S3 for Store {
    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.counts.lists.fetch_add(1, Ordering::Relaxed);
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        let after = input.continuation_token.or(input.start_after).unwrap_or_default();
        let most = usize::try_from(input.max_keys.unwrap_or(1000)).unwrap_or(0).min(1000);
        let state = self.lock();
        let bucket = state.buckets.get(&input.bucket).ok_or_else(|| s3_error!(NoSuchBucket, "no such bucket"))?;
        let fitting = bucket.iter().filter(|(key, _)| key.starts_with(&prefix) && (after.is_empty() || **key > after));
        let mut page: Vec<_> = fitting.take(most + 1).collect();
        let more = page.len() > most;
        page.truncate(most);
        let contents = page.iter().map(|(key, stored)| Object {
            key: Some((*key).clone()),
            size: i64::try_from(stored.bytes.len()).ok(),
            e_tag: Some(ETag::Strong(stored.md5.clone())),
            ..Object::default()
        });
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            key_count: i32::try_from(page.len()).ok(),
            is_truncated: Some(more),
            next_continuation_token: page.last().filter(|_| more).map(|(key, _)| (*key).clone()),
            contents: Some(contents.collect()),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let stored = self.find(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: i64::try_from(stored.bytes.len()).ok(),
            checksum_crc64nvme: Some(stored.checksum()),
            checksum_type: Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            e_tag: Some(ETag::Strong(stored.md5)),
            ..HeadObjectOutput::default()
        }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let nth = self.counts.gets.fetch_add(1, Ordering::Relaxed) + 1;
        let input = request.input;
        let stored = self.find(&input.bucket, &input.key)?;
        let mut state = self.lock();
        if state.faults.busy_every.is_some_and(|every| nth.is_multiple_of(every)) {
            return Err(s3_error!(SlowDown, "please reduce your request rate"));
        }
        if let Some(other) = state.faults.replaced.remove(&input.key) {
            let bucket = state.buckets.entry(input.bucket.clone()).or_default();
            bucket.insert(input.key.clone(), Stored::new(other.into()));
        }
        let faults = state.faults.clone();
        drop(state);
        let wanted = input.if_match.as_ref().and_then(|condition| condition.as_etag()).map(ETag::value);
        if wanted.is_some_and(|wanted| wanted != stored.md5) && !faults.ignore_if_match {
            return Err(s3_error!(PreconditionFailed, "the object is another one"));
        }
        let size = stored.bytes.len() as u64;
        let range = input.range.filter(|_| !faults.ignore_range).map(|range| range.check(size)).transpose();
        let range = range.map_err(|_| s3_error!(InvalidRange, "no such range"))?;
        let content_range = range.as_ref().map(|range| format!("bytes {}-{}/{size}", range.start, range.end - 1));
        let whole = range.is_none();
        let range = range.unwrap_or(0..size);
        let mut body = stored.bytes.slice(range.start as usize..range.end as usize);
        if faults.flipped.contains(&input.key) && !body.is_empty() {
            let mut bytes = body.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            body = bytes.into();
        }
        let length = body.len();
        let mut chunks = vec![Ok(body.clone())];
        if faults.cut_short.contains(&input.key) {
            chunks = vec![Ok(body.slice(..length / 2)), Err(io::Error::from(io::ErrorKind::ConnectionReset))];
        }
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(stream::iter(chunks))),
            content_length: i64::try_from(length).ok(),
            content_range,
            checksum_crc64nvme: whole.then(|| stored.checksum()),
            checksum_type: whole.then(|| ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            e_tag: Some(ETag::Strong(stored.md5)),
            ..GetObjectOutput::default()
        }))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let mut bytes = Vec::new();
        if let Some(mut body) = input.body {
            use futures::TryStreamExt;
            while let Some(chunk) =
                body.try_next().await.map_err(|_| s3_error!(IncompleteBody, "the body broke off"))?
            {
                bytes.extend_from_slice(&chunk);
            }
        }
        let stored = Stored::new(bytes.into());
        let output = PutObjectOutput {
            e_tag: Some(ETag::Strong(stored.md5.clone())),
            checksum_crc64nvme: Some(stored.checksum()),
            ..PutObjectOutput::default()
        };
        let mut state = self.lock();
        let bucket = state.buckets.get_mut(&input.bucket).ok_or_else(|| s3_error!(NoSuchBucket, "no such bucket"))?;
        bucket.insert(input.key, stored);
        Ok(S3Response::new(output))
    }
}
