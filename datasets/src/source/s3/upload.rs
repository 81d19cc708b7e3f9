//! Uploads: a published output on its way to `[output] to`.

use std::{path::Path, time::Duration};

use aws_sdk_s3::{
    config::{Builder, timeout::TimeoutConfig},
    primitives::{ByteStream, Length},
    types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::{Bucket, CONNECT};
use crate::{
    checksum::Crc64,
    source::{SourceError, retry},
};

/// A file over this size goes up in parts of this size, or of more if S3's 10,000 parts would not do.
const PART: u64 = 16 << 20;
const MOST_PARTS: u64 = 10_000;
/// Parts of one file under way at once.
const AT_ONCE: usize = 4;
/// A part may take so long, which is 28 KiB/s; S3 may take minutes to put a large object together.
const PATIENCE: Duration = Duration::from_secs(600);

impl Bucket {
    /// Uploads a file, which S3 compares with its checksum. Doing it again is harmless.
    pub async fn put_file(&self, key: &str, path: &Path, size: u64, checksum: Crc64) -> Result<(), SourceError> {
        if size > PART {
            return self.put_parts(key, path, size, checksum).await;
        }
        let bytes = tokio::fs::read(path).await;
        let bytes = bytes.map_err(|source| SourceError::Io { path: path.to_owned(), source })?;
        self.put_bytes(key, bytes.into(), Some(checksum)).await
    }

    /// Uploads a small object.
    pub async fn put_bytes(&self, key: &str, bytes: Bytes, checksum: Option<Crc64>) -> Result<(), SourceError> {
        let put = async || {
            let request = self.client.put_object().bucket(&self.bucket).key(self.full(key)).body(bytes.clone().into());
            let request = match checksum {
                Some(checksum) => request.checksum_crc64_nvme(encode_crc64(checksum)),
                None => request.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme),
            };
            let request = request.set_request_payer(self.payer.clone()).customize().config_override(patient());
            request.send().await.map(drop).map_err(|error| self.error(Some(key), error))
        };
        retry::transient(put).await
    }

    /// Removes an object; that there is none is no error.
    pub async fn delete(&self, key: &str) -> Result<(), SourceError> {
        let delete = async || {
            let request = self.client.delete_object().bucket(&self.bucket).key(self.full(key));
            let request = request.set_request_payer(self.payer.clone());
            request.send().await.map(drop).map_err(|error| self.error(Some(key), error))
        };
        retry::transient(delete).await
    }

    async fn put_parts(&self, key: &str, path: &Path, size: u64, checksum: Crc64) -> Result<(), SourceError> {
        let create = async || {
            let request = self.client.create_multipart_upload().bucket(&self.bucket).key(self.full(key));
            let request = request.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme);
            let request = request.checksum_type(ChecksumType::FullObject).set_request_payer(self.payer.clone());
            request.send().await.map_err(|error| self.error(Some(key), error))
        };
        let created = retry::transient(create).await?;
        let upload = created.upload_id().unwrap_or_default();
        let sent = match self.send_parts(key, upload, path, size).await {
            Ok(parts) => self.complete(key, upload, parts, checksum).await,
            Err(error) => Err(error),
        };
        if sent.is_err() {
            // Best effort: an upload that was begun is paid for until it is aborted.
            let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(self.full(key));
            let _ = abort.upload_id(upload).set_request_payer(self.payer.clone()).send().await;
        }
        sent
    }

    async fn send_parts(
        &self,
        key: &str,
        upload: &str,
        path: &Path,
        size: u64,
    ) -> Result<Vec<CompletedPart>, SourceError> {
        let part = PART.max(size.div_ceil(MOST_PARTS));
        let send = |(number, offset): (i32, u64)| async move {
            let length = part.min(size - offset);
            let send = async || {
                let body =
                    ByteStream::read_from().path(path).offset(offset).length(Length::Exact(length)).build().await;
                let body = body.map_err(|error| SourceError::Broken { key: key.to_owned(), why: error.to_string() })?;
                let request = self.client.upload_part().bucket(&self.bucket).key(self.full(key)).upload_id(upload);
                let request = request.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).part_number(number).body(body);
                let request = request.set_request_payer(self.payer.clone()).customize().config_override(patient());
                request.send().await.map_err(|error| self.error(Some(key), error))
            };
            let sent = retry::transient(send).await?;
            let done = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag().map(str::to_owned));
            Ok(done.set_checksum_crc64_nvme(sent.checksum_crc64_nvme().map(str::to_owned)).build())
        };
        let offsets =
            (0..size).step_by(usize::try_from(part).expect("the ten-thousandth part of a file fits into an address"));
        stream::iter((1..).zip(offsets)).map(send).buffered(AT_ONCE).try_collect().await
    }

    async fn complete(
        &self,
        key: &str,
        upload: &str,
        parts: Vec<CompletedPart>,
        checksum: Crc64,
    ) -> Result<(), SourceError> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = async || {
            let request = self.client.complete_multipart_upload().bucket(&self.bucket).key(self.full(key));
            let request = request.upload_id(upload).multipart_upload(parts.clone());
            let request = request.checksum_type(ChecksumType::FullObject).checksum_crc64_nvme(encode_crc64(checksum));
            let request = request.set_request_payer(self.payer.clone()).customize().config_override(patient());
            request.send().await.map(drop).map_err(|error| self.error(Some(key), error))
        };
        match retry::transient(complete).await {
            // The upload is gone if an earlier answer was lost; what it became is there then.
            Err(error) => {
                let head = self.client.head_object().bucket(&self.bucket).key(self.full(key));
                let head = head.checksum_mode(ChecksumMode::Enabled).set_request_payer(self.payer.clone());
                let found = head.send().await.ok().and_then(|head| head.checksum_crc64_nvme().map(str::to_owned));
                if found == Some(encode_crc64(checksum)) { Ok(()) } else { Err(error) }
            }
            Ok(()) => Ok(()),
        }
    }
}

fn patient() -> Builder {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT).read_timeout(PATIENCE);
    Builder::new().timeout_config(timeouts.operation_attempt_timeout(PATIENCE).build())
}

/// S3 takes checksums as base64 of their big-endian bytes.
fn encode_crc64(checksum: Crc64) -> String {
    aws_smithy_types::base64::encode(checksum.0.to_be_bytes())
}
