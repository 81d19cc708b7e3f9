//! S3 through the AWS SDK: credentials, region and endpoint as it finds them.
//!
//! The SDK has no read time-out of its own and would hang on a silent server; every step here has one. Retrying is
//! the caller's, who knows what else is in flight.

mod upload;

use std::{borrow::Cow, error::Error, ops::Range, time::Duration};

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig},
    error::{ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
    types::{ChecksumMode, ChecksumType, EncodingType, RequestPayer, ServerSideEncryption},
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::{Checksums, Listed, S3Options, SourceError};
use crate::checksum::Crc64;

const CONNECT: Duration = Duration::from_secs(5);
const READ: Duration = Duration::from_secs(30);
const ATTEMPT: Duration = Duration::from_secs(60);

/// A bucket and a prefix in it.
#[derive(Clone, Debug)]
pub struct Bucket {
    client: Client,
    bucket: String,
    prefix: String,
    endpoint: String,
    payer: Option<RequestPayer>,
}

impl Bucket {
    /// Finds credentials, region and endpoint. Sends nothing to S3 yet.
    pub async fn connect(bucket: &str, prefix: &str, options: &S3Options) -> Self {
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let timeouts =
            TimeoutConfig::builder().connect_timeout(CONNECT).read_timeout(READ).operation_attempt_timeout(ATTEMPT);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts.build());
        if options.anonymous {
            loader = loader.no_credentials();
        }
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        let shared = loader.load().await;
        let of_environment = || {
            let set = |name| std::env::var(name).ok().filter(|url| !url.is_empty());
            set("AWS_ENDPOINT_URL_S3").or_else(|| shared.endpoint_url().map(str::to_owned))
        };
        let endpoint = options.endpoint.clone().or_else(of_environment);
        let mut config = aws_sdk_s3::config::Builder::from(&shared);
        config.set_force_path_style(Some(options.path_style.unwrap_or(endpoint.is_some())));
        if shared.region().is_none() {
            // Bucket names are global; a bucket elsewhere is an error that names its region.
            config = config.region(Region::new("us-east-1"));
        }
        if let Some(endpoint) = &endpoint {
            config = config.endpoint_url(endpoint);
        }
        Self {
            client: Client::from_conf(config.build()),
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: endpoint.unwrap_or_else(|| "Amazon S3".to_owned()),
            payer: options.requester_pays.then_some(RequestPayer::Requester),
        }
    }

    pub(super) async fn list(
        &self,
        takes: &(dyn Fn(&str) -> bool + Sync),
        seen: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Vec<Listed>, SourceError> {
        let (mut found, mut token) = (Vec::new(), None);
        loop {
            let ask = async || {
                let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(&self.prefix);
                let request = request.set_request_payer(self.payer.clone()).set_continuation_token(token.clone());
                // XML has no way to write some characters that keys may have.
                let request = request.encoding_type(EncodingType::Url);
                request.send().await.map_err(|error| self.error(None, error))
            };
            let page = crate::stage::retry::transient(ask).await?;
            for object in page.contents() {
                let Some(key) = object.key().map(|key| decoded(key, page.encoding_type())) else { continue };
                let Some(key) = key.strip_prefix(&self.prefix) else { continue };
                // The prefix itself, as consoles make it to show a folder, is no object below the prefix.
                if key.is_empty() || !takes(key) {
                    continue;
                }
                found.push(Listed {
                    key: key.to_owned(),
                    size: object.size().unwrap_or(0).try_into().unwrap_or(0),
                    etag: object.e_tag().map(unquoted),
                    version_id: None,
                });
            }
            seen(found.len() as u64);
            token = match (page.is_truncated(), page.next_continuation_token()) {
                (Some(true), Some(next)) => Some(next.to_owned()),
                (Some(true), None) => {
                    let message = "a listing is said to go on, and not where".to_owned();
                    return Err(SourceError::S3 { key: self.bucket.clone(), message });
                }
                _ => return Ok(found),
            };
        }
    }

    pub(super) async fn head(&self, key: &str) -> Result<(Listed, Checksums), SourceError> {
        let request = self.client.head_object().bucket(&self.bucket).key(self.full(key));
        let request = request.checksum_mode(ChecksumMode::Enabled).set_request_payer(self.payer.clone());
        let head = request.send().await.map_err(|error| self.error(Some(key), error))?;
        let whole = head.checksum_type().is_none_or(|kind| *kind == ChecksumType::FullObject);
        let etag = head.e_tag().map(unquoted);
        let opaque = is_opaque(head.server_side_encryption(), head.sse_customer_algorithm());
        let checksums = Checksums {
            crc64nvme: head.checksum_crc64_nvme().filter(|_| whole).and_then(decode_crc64),
            md5: etag.clone().filter(|etag| !opaque && is_md5(etag)),
        };
        let size = head.content_length().unwrap_or(0).try_into().unwrap_or(0);
        Ok((Listed { key: key.to_owned(), size, etag, version_id: None }, checksums))
    }

    pub(super) async fn get(&self, object: &Listed, range: Option<Range<u64>>) -> Result<S3Body, SourceError> {
        let key = &object.key;
        let mut request = self.client.get_object().bucket(&self.bucket).key(self.full(key));
        request = request.set_request_payer(self.payer.clone()).set_version_id(object.version_id.clone());
        if let Some(etag) = &object.etag {
            request = request.if_match(format!("\"{etag}\""));
        }
        if let Some(range) = &range {
            request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        } else {
            // The SDK checks whatever full-object checksum comes with the answer as the body passes.
            request = request.checksum_mode(ChecksumMode::Enabled);
        }
        let answer = request.send().await.map_err(|error| self.error(Some(key), error))?;
        // Servers were seen that ignore If-Match, and others that answer a range with the whole object.
        if object.etag.is_some() && answer.e_tag().map(unquoted) != object.etag {
            return Err(SourceError::Changed { key: key.clone() });
        }
        let expected = match &range {
            None => object.size,
            Some(range) => {
                let exact = format!("bytes {}-{}/{}", range.start, range.end - 1, object.size);
                let whole = range.start == 0 && range.end == object.size;
                if answer.content_range() != Some(&exact) && !(whole && answer.content_range().is_none()) {
                    return Err(SourceError::WrongRange { key: key.clone() });
                }
                range.end - range.start
            }
        };
        let received = answer.content_length().unwrap_or(-1);
        match u64::try_from(received) {
            Ok(length) if length != expected => {
                Err(SourceError::WrongLength { key: key.clone(), expected, received: length })
            }
            _ => {
                let opaque = is_opaque(answer.server_side_encryption(), answer.sse_customer_algorithm());
                let md5 = answer.e_tag().map(unquoted).filter(|etag| !opaque && is_md5(etag));
                Ok(S3Body { key: key.clone(), md5, stream: answer.body })
            }
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Sorts an error of the SDK into what a user, or a retry, can act on.
    fn error<E>(&self, key: Option<&str>, error: SdkError<E, HttpResponse>) -> SourceError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let what = key.unwrap_or(&self.bucket).to_owned();
        let innermost = |error: &dyn Error| {
            let mut error = error;
            while let Some(source) = error.source() {
                error = source;
            }
            error.to_string()
        };
        match &error {
            SdkError::DispatchFailure(failure) => {
                let text = format!("{:?}", failure.as_connector_error());
                if text.contains("CredentialsNotLoaded") || text.contains("no providers in chain") {
                    return SourceError::NoCredentials;
                }
                match failure.is_io() || failure.is_timeout() {
                    true => SourceError::Unreachable { endpoint: self.endpoint.clone(), why: innermost(&error) },
                    false => SourceError::Broken { key: what, why: innermost(&error) },
                }
            }
            SdkError::TimeoutError(_) => SourceError::Broken { key: what, why: "no answer in time".to_owned() },
            SdkError::ResponseError(_) => SourceError::Broken { key: what, why: innermost(&error) },
            SdkError::ServiceError(service) => {
                let status = service.raw().status().as_u16();
                let code = service.err().code().unwrap_or_default();
                let region = service.raw().headers().get("x-amz-bucket-region");
                let message = || format!("{code} {}", service.err().message().unwrap_or("without a message"));
                match (status, code, key) {
                    (_, "NoSuchBucket", _) => SourceError::Absent { what: format!("the bucket `{}`", self.bucket) },
                    (404, "", None) => SourceError::Absent { what: format!("the bucket `{}`", self.bucket) },
                    (404, _, Some(key)) => SourceError::Gone { key: key.to_owned() },
                    (412, ..) => SourceError::Changed { key: what },
                    (401 | 403, ..) => {
                        let code = if code.is_empty() { status.to_string() } else { code.to_owned() };
                        SourceError::Denied {
                            what: format!("s3://{}/{}", self.bucket, key.unwrap_or(&self.prefix)),
                            code,
                        }
                    }
                    (429 | 500.., ..) | (_, "SlowDown" | "RequestTimeout" | "Throttling", _) => {
                        let code = if code.is_empty() { status.to_string() } else { code.to_owned() };
                        SourceError::Busy { key: what, code }
                    }
                    (301 | 307 | 400, ..) if region.is_some() => SourceError::S3 {
                        key: what,
                        message: format!(
                            "the bucket is in region {}: set AWS_REGION to it",
                            region.unwrap_or_default()
                        ),
                    },
                    _ => SourceError::S3 { key: what, message: message() },
                }
            }
            // The request could not even be made: credentials, mostly.
            _ if format!("{error:?}").contains("Credentials") => SourceError::NoCredentials,
            _ => SourceError::S3 { key: what, message: innermost(&error) },
        }
    }
}

/// A key as a listing has it; servers were seen that do not encode though they are asked to.
fn decoded<'a>(key: &'a str, encoding: Option<&EncodingType>) -> Cow<'a, str> {
    match encoding {
        Some(EncodingType::Url) => {
            let spaced = key.replace('+', " ");
            Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
        }
        _ => Cow::Borrowed(key),
    }
}

/// Whether the ETag says nothing of the bytes: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html>
fn is_opaque(encryption: Option<&ServerSideEncryption>, customer: Option<&str>) -> bool {
    customer.is_some() || encryption.is_some_and(|encryption| *encryption != ServerSideEncryption::Aes256)
}

/// Whether an ETag has the form of the MD5 that it is for an object put in one piece. Another server's opaque tag of
/// the same form is no reason to fail, so that only lower-case digits count.
fn is_md5(etag: &str) -> bool {
    etag.len() == 32 && etag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn unquoted(etag: &str) -> String {
    etag.trim_matches('"').to_owned()
}

/// S3 sends checksums as base64 of their big-endian bytes.
fn decode_crc64(text: &str) -> Option<Crc64> {
    let bytes = aws_smithy_types::base64::decode(text).ok()?;
    Some(Crc64(u64::from_be_bytes(bytes.try_into().ok()?)))
}

/// The body of an answer.
#[derive(Debug)]
pub struct S3Body {
    key: String,
    /// Of the whole object.
    pub(super) md5: Option<String>,
    stream: ByteStream,
}

impl S3Body {
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let broken = |why: String| SourceError::Broken { key: self.key.clone(), why };
        match tokio::time::timeout(READ, self.stream.next()).await {
            Err(_) => Err(broken(format!("nothing came for {} s", READ.as_secs()))),
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
            Ok(Some(Err(error))) => {
                let mut cause: &dyn Error = &error;
                while let Some(source) = cause.source() {
                    cause = source;
                }
                let why = cause.to_string();
                match why.contains("checksum") {
                    true => Err(SourceError::Corrupt { key: self.key.clone(), algorithm: "checksum" }),
                    false => Err(broken(why)),
                }
            }
        }
    }
}
