//! The objects in memory, and what S3 answers about them.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
};

use bytes::Bytes;
use forebay_datasets::checksum::{Crc64, Hasher};
use futures::{TryStreamExt, stream};
use md5::{Digest, Md5};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::{
    S3, S3Request, S3Response, S3Result,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumType, CompleteMultipartUploadInput,
        CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput,
        DeleteObjectOutput, ETag, EncodingType, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput,
        ListObjectsV2Input, ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput, ServerSideEncryption,
        StreamingBlob, UploadPartInput, UploadPartOutput,
    },
    s3_error,
};

use super::{Counts, Faults};

#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    state: Arc<Mutex<State>>,
    pub(super) counts: Arc<Counts>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) buckets: BTreeMap<String, BTreeMap<String, Stored>>,
    pub(super) faults: Faults,
    uploads: BTreeMap<String, BTreeMap<i32, Bytes>>,
    begun: u64,
}

impl State {
    pub(super) fn put(&mut self, bucket: &str, key: &str, stored: Stored) {
        self.buckets.entry(bucket.to_owned()).or_default().insert(key.to_owned(), stored);
    }

    fn upload(&mut self, id: &str) -> S3Result<&mut BTreeMap<i32, Bytes>> {
        self.uploads.get_mut(id).ok_or_else(|| s3_error!(NoSuchUpload, "no such upload"))
    }
}

#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) bytes: Bytes,
    etag: String,
    crc64: Crc64,
    /// Encrypted with KMS by one who sent no checksum.
    encrypted: bool,
}

impl Stored {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { etag: md5(&bytes), crc64: crc64(&bytes), bytes, encrypted: false }
    }

    pub(super) fn encrypted(bytes: Bytes) -> Self {
        Self { etag: md5(b"something else"), encrypted: true, ..Self::new(bytes) }
    }

    /// What was put together of parts has an ETag of its own kind.
    fn of_parts(parts: &BTreeMap<i32, Bytes>) -> Self {
        let bytes: Bytes = parts.values().flat_map(|part| part.iter().copied()).collect();
        let whole = Self::new(bytes);
        Self { etag: format!("{}-{}", whole.etag, parts.len()), ..whole }
    }

    fn checksum(&self) -> Option<String> {
        (!self.encrypted).then(|| encoded(self.crc64))
    }

    fn etag(&self) -> ETag {
        ETag::Strong(self.etag.clone())
    }

    fn encryption(&self) -> Option<ServerSideEncryption> {
        self.encrypted.then(|| ServerSideEncryption::from_static(ServerSideEncryption::AWS_KMS))
    }
}

fn md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn crc64(bytes: &[u8]) -> Crc64 {
    let mut hasher = Hasher::default();
    hasher.update(bytes);
    hasher.finish()
}

fn encoded(checksum: Crc64) -> String {
    aws_smithy_types::base64::encode(checksum.0.to_be_bytes())
}

/// Reads a body, and compares it with the checksum that was sent with it.
async fn received(body: Option<StreamingBlob>, checksum: Option<String>) -> S3Result<Bytes> {
    let mut bytes = Vec::new();
    if let Some(mut body) = body {
        while let Some(chunk) = body.try_next().await.map_err(|_| s3_error!(IncompleteBody, "the body broke off"))? {
            bytes.extend_from_slice(&chunk);
        }
    }
    match checksum {
        Some(checksum) if checksum != encoded(crc64(&bytes)) => Err(s3_error!(BadDigest, "the checksum differs")),
        _ => Ok(bytes.into()),
    }
}

impl Store {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // What is done under the lock are look-ups and inserts in maps, which do not panic.
        self.state.lock().expect("no holder panics")
    }

    fn find(&self, bucket: &str, key: &str) -> S3Result<Stored> {
        let state = self.lock();
        let bucket = state.buckets.get(bucket).ok_or_else(|| s3_error!(NoSuchBucket, "no such bucket"))?;
        bucket.get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey, "no such key"))
    }

    fn put(&self, bucket: &str, key: String, stored: Stored) -> S3Result<()> {
        let mut state = self.lock();
        let bucket = state.buckets.get_mut(bucket).ok_or_else(|| s3_error!(NoSuchBucket, "no such bucket"))?;
        bucket.insert(key, stored);
        Ok(())
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
        let url = input.encoding_type.as_ref().is_some_and(|encoding| encoding.as_str() == EncodingType::URL);
        let shown = |key: &String| match url {
            true => utf8_percent_encode(key, NON_ALPHANUMERIC).to_string(),
            false => key.clone(),
        };
        let contents = page.iter().map(|(key, stored)| Object {
            key: Some(shown(key)),
            size: i64::try_from(stored.bytes.len()).ok(),
            e_tag: (!state.faults.list_without_etags).then(|| stored.etag()),
            ..Object::default()
        });
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            key_count: i32::try_from(page.len()).ok(),
            is_truncated: Some(more),
            encoding_type: input.encoding_type,
            next_continuation_token: page.last().filter(|_| more).map(|(key, _)| (*key).clone()),
            contents: Some(contents.collect()),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let stored = self.find(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: i64::try_from(stored.bytes.len()).ok(),
            checksum_crc64nvme: stored.checksum(),
            checksum_type: stored.checksum().map(|_| ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            e_tag: Some(stored.etag()),
            server_side_encryption: stored.encryption(),
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
        if wanted.is_some_and(|wanted| wanted != stored.etag) && !faults.ignore_if_match {
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
        let checksum = stored.checksum().filter(|_| whole);
        let length = body.len();
        self.counts.bytes.fetch_add(length as u64, Ordering::Relaxed);
        let mut chunks = vec![Ok(body.clone())];
        if faults.cut_short.contains(&input.key) {
            chunks = vec![Ok(body.slice(..length / 2)), Err(io::Error::from(io::ErrorKind::ConnectionReset))];
        }
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(stream::iter(chunks))),
            content_length: i64::try_from(length).ok(),
            content_range,
            checksum_type: checksum.as_ref().map(|_| ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            checksum_crc64nvme: checksum,
            e_tag: Some(stored.etag()),
            server_side_encryption: stored.encryption(),
            ..GetObjectOutput::default()
        }))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let stored = Stored::new(received(input.body, input.checksum_crc64nvme).await?);
        let output = PutObjectOutput {
            e_tag: Some(stored.etag()),
            checksum_crc64nvme: stored.checksum(),
            ..PutObjectOutput::default()
        };
        self.put(&input.bucket, input.key, stored)?;
        Ok(S3Response::new(output))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let mut state = self.lock();
        let bucket = state.buckets.get_mut(&request.input.bucket);
        bucket.ok_or_else(|| s3_error!(NoSuchBucket, "no such bucket"))?.remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let mut state = self.lock();
        if !state.buckets.contains_key(&request.input.bucket) {
            return Err(s3_error!(NoSuchBucket, "no such bucket"));
        }
        state.begun += 1;
        let id = format!("upload-{}", state.begun);
        state.uploads.insert(id.clone(), BTreeMap::new());
        let output = CreateMultipartUploadOutput { upload_id: Some(id), ..CreateMultipartUploadOutput::default() };
        Ok(S3Response::new(output))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let nth = self.counts.parts.fetch_add(1, Ordering::Relaxed) + 1;
        let input = request.input;
        let bytes = received(input.body, input.checksum_crc64nvme).await?;
        let mut state = self.lock();
        if state.faults.busy_every.is_some_and(|every| nth.is_multiple_of(every)) {
            return Err(s3_error!(SlowDown, "please reduce your request rate"));
        }
        let output = UploadPartOutput {
            e_tag: Some(ETag::Strong(md5(&bytes))),
            checksum_crc64nvme: Some(encoded(crc64(&bytes))),
            ..UploadPartOutput::default()
        };
        state.upload(&input.upload_id)?.insert(input.part_number, bytes);
        Ok(S3Response::new(output))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let stored = {
            let mut state = self.lock();
            let parts = state.upload(&input.upload_id)?;
            let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
            let named = named.into_iter().map(|part| (part.part_number, part.e_tag));
            let held = parts.iter().map(|(number, bytes)| (Some(*number), Some(ETag::Strong(md5(bytes)))));
            if !named.eq(held) {
                return Err(s3_error!(InvalidPart, "the parts are others"));
            }
            let stored = Stored::of_parts(parts);
            if input.checksum_crc64nvme.is_some_and(|checksum| stored.checksum() != Some(checksum)) {
                return Err(s3_error!(BadDigest, "the checksum differs"));
            }
            state.uploads.remove(&input.upload_id);
            // The answer that is lost on its way.
            if state.faults.lose_completion {
                state.faults.lose_completion = false;
                state.put(&input.bucket, &input.key, stored);
                return Err(s3_error!(InternalError, "something went wrong"));
            }
            stored
        };
        let output = CompleteMultipartUploadOutput {
            e_tag: Some(stored.etag()),
            checksum_crc64nvme: stored.checksum(),
            ..CompleteMultipartUploadOutput::default()
        };
        self.put(&input.bucket, input.key, stored)?;
        Ok(S3Response::new(output))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.lock().uploads.remove(&request.input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
