//! What S3 answers.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use s3s::{
    S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    access::{S3Access, S3AccessContext},
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, Checksum, ChecksumType, CompleteMultipartUploadInput,
        CompleteMultipartUploadOutput, CreateBucketInput, CreateBucketOutput, CreateMultipartUploadInput,
        CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, ETag, GetObjectAttributesInput,
        GetObjectAttributesOutput, GetObjectAttributesParts, GetObjectInput, GetObjectOutput, HeadBucketInput,
        HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, ObjectPart,
        PutObjectInput, PutObjectOutput, UploadPartInput, UploadPartOutput,
    },
    path::S3Path,
    s3_error,
};

use super::{
    asked::{checked, is_asked_for, parts_count, received, sent, wanted},
    delivery::{self, Line},
    faults::Fault,
    listing,
    object::{self, Algorithm, Stored, Sum, shown},
    store::{Multipart, Store, header},
    watch::Asked,
};

/// Whoever signs may do everything; who does not may read public buckets.
#[async_trait::async_trait]
impl S3Access for Store {
    async fn check(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        let (S3Path::Bucket { bucket } | S3Path::Object { bucket, .. }) = request.s3_path() else { return Ok(()) };
        let reads = ["GetObject", "GetObjectAttributes", "HeadObject", "HeadBucket", "ListObjectsV2"];
        let public = self.lock().buckets.get(&**bucket).is_some_and(|bucket| bucket.public);
        match request.credentials().is_some() || (public && reads.contains(&request.s3_op().name())) {
            true => Ok(()),
            false => Err(s3_error!(AccessDenied, "a signature is required")),
        }
    }
}

impl Store {
    /// Draws what goes wrong with this request, and lets go wrong what has no need of its answer.
    async fn trouble(&self, what: String, pages: bool) -> S3Result<Option<Fault>> {
        let (fault, silence) = {
            let mut state = self.lock();
            let chance = state.faults.chance.clone();
            (state.tally.draw(&chance, what), chance.silence)
        };
        let with_header = |mut error: S3Error, name_value| {
            error.set_headers([name_value].into_iter().filter_map(header).collect());
            error
        };
        let slow_down = || s3_error!(SlowDown, "please reduce your request rate");
        match fault {
            Some(Fault::Busy) => Err(slow_down()),
            Some(Fault::BusyRetryAfter) => Err(with_header(slow_down(), ("retry-after", "1"))),
            Some(Fault::Error) => Err(s3_error!(InternalError, "we encountered an internal error, please try again")),
            Some(Fault::Skewed) => Err(super::wire::skewed(24 * 3600)),
            Some(Fault::Hang) => {
                // The fault itself.
                tokio::time::sleep(silence).await;
                Ok(None)
            }
            fault => Ok(fault.filter(|fault| fault.is_of_a_page() == pages)),
        }
    }
}

/// The five fields that inputs have one by one.
macro_rules! sent_with {
    ($request:expr) => {
        Checksum {
            checksum_crc32: $request.input.checksum_crc32.take(),
            checksum_crc32c: $request.input.checksum_crc32c.take(),
            checksum_crc64nvme: $request.input.checksum_crc64nvme.take(),
            checksum_sha1: $request.input.checksum_sha1.take(),
            checksum_sha256: $request.input.checksum_sha256.take(),
            checksum_type: None,
        }
    };
}

#[async_trait::async_trait]
impl S3 for Store {
    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        self.lock().buckets.entry(request.input.bucket).or_default();
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        let bucket_region = self.lock().bucket(&request.input.bucket, request.region.as_ref())?.region.clone();
        Ok(S3Response::new(HeadBucketOutput { bucket_region, ..HeadBucketOutput::default() }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let _listing = self.counts.list();
        let input = request.input;
        let latency = self.lock().faults.list_latency;
        if latency > Duration::ZERO {
            // The fault itself.
            tokio::time::sleep(latency).await;
        }
        let place = [&input.prefix, &input.delimiter, &input.start_after, &input.continuation_token];
        let fault = self.trouble(format!("list {place:?}"), true).await?;
        let mut state = self.lock();
        let faults = state.faults.clone();
        if faults.refuse_delimiters && input.delimiter.is_some() {
            return Err(s3_error!(InvalidArgument));
        }
        let bucket = state.bucket(&input.bucket, request.region.as_ref())?;
        Ok(S3Response::new(listing::page(&bucket.objects, input, &faults, fault)))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.counts.heads.fetch_add(1, Ordering::Relaxed);
        let input = request.input;
        self.trouble(format!("head {}", input.key), false).await?;
        let stored = {
            let mut state = self.lock();
            let bucket = state.bucket(&input.bucket, request.region.as_ref())?;
            bucket.find(&input.key, input.version_id.as_deref())?.clone()
        };
        let wanted = wanted(&stored, input.range, input.part_number)?;
        let sum = shown(wanted.sum.as_ref().filter(|_| is_asked_for(input.checksum_mode.as_ref())));
        Ok(S3Response::new(HeadObjectOutput {
            content_length: i64::try_from(wanted.range.len()).ok(),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            checksum_type: sum.checksum_type,
            e_tag: Some(stored.etag()),
            parts_count: parts_count(&stored, input.part_number),
            server_side_encryption: stored.encryption(),
            version_id: stored.version,
            ..HeadObjectOutput::default()
        }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let nth = self.counts.gets.fetch_add(1, Ordering::Relaxed) + 1;
        let line = request.extensions.get::<Line>().cloned().unwrap_or_default();
        let input = request.input;
        let what = match input.range {
            Some(s3s::dto::Range::Int { first, last }) => {
                format!("{} {first}-{}", input.key, last.map(|last| last.to_string()).unwrap_or_default())
            }
            Some(s3s::dto::Range::Suffix { length }) => format!("{} -{length}", input.key),
            None => input.key.clone(),
        };
        let asked = Asked::new(&self.counts, what.clone());
        let latency = self.lock().faults.latency;
        if latency > Duration::ZERO {
            // The fault itself.
            tokio::time::sleep(latency).await;
        }
        let fault = self.trouble(format!("get {what}"), false).await?;
        let mut state = self.lock();
        state.count_get(&input.bucket, &input.key);
        let faults = state.faults.clone();
        if faults.busy_every.is_some_and(|every| nth.is_multiple_of(every)) {
            return Err(s3_error!(SlowDown, "please reduce your request rate"));
        }
        if faults.failing.contains(&input.key) {
            return Err(s3_error!(InternalError, "we encountered an internal error, please try again"));
        }
        let bucket = state.bucket(&input.bucket, request.region.as_ref())?;
        let stored = bucket.find(&input.key, input.version_id.as_deref())?.clone();
        let condition = input.if_match.as_ref().and_then(|condition| condition.as_etag()).map(ETag::value);
        if condition.is_some_and(|wanted| wanted != stored.etag) && !faults.ignore_if_match {
            return Err(s3_error!(PreconditionFailed, "the object is another one"));
        }
        state.replace(&input.bucket, &input.key, fault);
        drop(state);
        let wanted = wanted(&stored, input.range.filter(|_| !faults.ignore_range), input.part_number)?;
        let mut body = stored.bytes.slice(wanted.range);
        if faults.flipped.contains(&input.key) || fault == Some(Fault::Flip) {
            body = object::flipped(&body, body.len() / 2);
        }
        let fault = fault.or(faults.cut_short.contains(&input.key).then_some(Fault::Cut));
        let sum = wanted.sum.as_ref().or(stored.sum.as_ref().filter(|_| faults.checksum_with_ranges));
        let sum = shown(sum.filter(|_| is_asked_for(input.checksum_mode.as_ref())));
        Ok(S3Response::new(GetObjectOutput {
            content_length: i64::try_from(body.len()).ok(),
            body: Some(delivery::body(body, &faults, fault, line, self.gate.clone(), asked)),
            content_range: wanted.content_range,
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            checksum_type: sum.checksum_type,
            e_tag: Some(stored.etag()),
            parts_count: parts_count(&stored, input.part_number),
            server_side_encryption: stored.encryption(),
            version_id: stored.version,
            ..GetObjectOutput::default()
        }))
    }

    async fn get_object_attributes(
        &self,
        request: S3Request<GetObjectAttributesInput>,
    ) -> S3Result<S3Response<GetObjectAttributesOutput>> {
        self.counts.attributes.fetch_add(1, Ordering::Relaxed);
        let input = request.input;
        self.trouble(format!("attributes {} {:?}", input.key, input.part_number_marker), false).await?;
        let mut state = self.lock();
        let bucket = state.bucket(&input.bucket, request.region.as_ref())?;
        let stored = bucket.find(&input.key, input.version_id.as_deref())?;
        let asked = |name: &str| input.object_attributes.iter().any(|attribute| attribute.as_str() == name);
        let object_parts = (asked("ObjectParts") && !stored.parts.is_empty()).then(|| {
            // Parts without checksums of their own are counted, and not listed.
            let listed = stored.parts.iter().zip(1..).filter(|(part, _)| part.sum.is_some());
            let marker = input.part_number_marker.unwrap_or(0);
            let most = input.max_parts.unwrap_or(1000).clamp(1, 1000);
            let mut parts: Vec<_> = listed.filter(|(_, number)| *number > marker).collect();
            let more = parts.len() > most as usize;
            parts.truncate(most as usize);
            let parts = parts.into_iter().map(|(part, number)| {
                let sum = shown(part.sum.as_ref());
                ObjectPart {
                    checksum_crc32: sum.checksum_crc32,
                    checksum_crc32c: sum.checksum_crc32c,
                    checksum_crc64nvme: sum.checksum_crc64nvme,
                    checksum_sha1: sum.checksum_sha1,
                    checksum_sha256: sum.checksum_sha256,
                    part_number: Some(number),
                    size: i64::try_from(part.range.len()).ok(),
                }
            });
            let parts: Vec<_> = parts.collect();
            GetObjectAttributesParts {
                is_truncated: Some(more),
                max_parts: Some(most),
                next_part_number_marker: parts.last().filter(|_| more).and_then(|part| part.part_number),
                part_number_marker: Some(marker),
                total_parts_count: i32::try_from(stored.parts.len()).ok(),
                parts: (!parts.is_empty()).then_some(parts),
            }
        });
        Ok(S3Response::new(GetObjectAttributesOutput {
            // Here, as in S3, a composite checksum has no count of parts behind it.
            checksum: stored.sum.clone().filter(|_| asked("Checksum")).map(|sum| {
                let value = sum.value.split('-').next().unwrap_or_default().to_owned();
                shown(Some(&Sum { value, ..sum }))
            }),
            e_tag: Some(stored.etag()).filter(|_| asked("ETag")),
            object_size: stored.size().filter(|_| asked("ObjectSize")),
            object_parts,
            version_id: stored.version.clone(),
            ..GetObjectAttributesOutput::default()
        }))
    }

    async fn put_object(&self, mut request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let fields = sent_with!(request);
        let bytes = received(request.input.body.take()).await?;
        let sent = sent(fields, request.trailing_headers.as_ref().and_then(s3s::TrailingHeaders::take));
        checked(&bytes, sent.as_ref())?;
        let stored = Stored::whole(bytes, Some(sent.map_or(Algorithm::Crc64Nvme, |(algorithm, _)| algorithm)));
        let sum = shown(stored.sum.as_ref());
        let e_tag = Some(stored.etag());
        let mut state = self.lock();
        let version_id = state.bucket(&request.input.bucket, request.region.as_ref())?.put(&request.input.key, stored);
        Ok(S3Response::new(PutObjectOutput {
            e_tag,
            version_id,
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            checksum_type: sum.checksum_type,
            ..PutObjectOutput::default()
        }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let mut state = self.lock();
        state.bucket(&request.input.bucket, request.region.as_ref())?.remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let mut state = self.lock();
        let input = request.input;
        state.bucket(&input.bucket, request.region.as_ref())?;
        let named = input.checksum_algorithm.as_ref().map(|algorithm| Algorithm::named(algorithm.as_str()));
        let algorithm = named.unwrap_or(Some(Algorithm::Crc64Nvme));
        // Without a word CRC64NVME is of the whole, and every other of the parts.
        let composite = match input.checksum_type.as_ref().map(ChecksumType::as_str) {
            Some(kind) => kind == ChecksumType::COMPOSITE,
            None => algorithm != Some(Algorithm::Crc64Nvme),
        };
        let id = state.begin_upload(Multipart { algorithm, composite, ..Multipart::default() });
        let output = CreateMultipartUploadOutput { upload_id: Some(id), ..CreateMultipartUploadOutput::default() };
        Ok(S3Response::new(output))
    }

    async fn upload_part(&self, mut request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let nth = self.counts.parts.fetch_add(1, Ordering::Relaxed) + 1;
        let fields = sent_with!(request);
        let bytes = received(request.input.body.take()).await?;
        checked(&bytes, sent(fields, request.trailing_headers.and_then(|trailers| trailers.take())).as_ref())?;
        let mut state = self.lock();
        if state.faults.busy_every.is_some_and(|every| nth.is_multiple_of(every)) {
            return Err(s3_error!(SlowDown, "please reduce your request rate"));
        }
        let upload = state.upload(&request.input.upload_id)?;
        let part = Stored::whole(bytes, upload.algorithm);
        let sum = shown(part.sum.as_ref());
        let output = UploadPartOutput {
            e_tag: Some(part.etag()),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            ..UploadPartOutput::default()
        };
        upload.parts.insert(request.input.part_number, part.bytes);
        Ok(S3Response::new(output))
    }

    async fn complete_multipart_upload(
        &self,
        mut request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let sent = sent(sent_with!(request), None);
        let input = request.input;
        let mut state = self.lock();
        let upload = state.upload(&input.upload_id)?;
        let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let named = named.into_iter().map(|part| (part.part_number, part.e_tag));
        let etag = |bytes: &Bytes| ETag::Strong(object::md5(bytes));
        if !named.eq(upload.parts.iter().map(|(number, bytes)| (Some(*number), Some(etag(bytes))))) {
            return Err(s3_error!(InvalidPart, "the parts are others"));
        }
        let parts: Vec<_> = upload.parts.values().cloned().collect();
        let stored = Stored::of_parts(&parts, upload.algorithm, upload.composite);
        if sent.is_some_and(|(_, value)| stored.sum.as_ref().is_some_and(|sum| sum.value != value)) {
            return Err(s3_error!(BadDigest, "the checksum differs"));
        }
        state.end_upload(&input.upload_id);
        let sum = shown(stored.sum.as_ref());
        let e_tag = Some(stored.etag());
        let lost = std::mem::take(&mut state.faults.lose_completion);
        let version_id = state.bucket(&input.bucket, request.region.as_ref())?.put(&input.key, stored);
        if lost {
            return Err(S3Error::with_message(S3ErrorCode::InternalError, "something went wrong"));
        }
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            e_tag,
            version_id,
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            checksum_type: sum.checksum_type,
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.lock().end_upload(&request.input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
