//! What S3 refuses, sorted into what a user, or a retry, can act on.

use std::{error::Error, time::Duration};

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::Bucket;
use crate::source::SourceError;

/// An answer that is an error.
pub(super) struct Refusal<'a> {
    pub status: u16,
    /// S3's code; empty where there is none, as with HEAD.
    pub code: &'a str,
    pub message: &'a str,
    /// Where the bucket is, if the server says so.
    pub region: Option<&'a str>,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<&'a str>,
}

impl Refusal<'_> {
    /// Of a request for a key, or for the bucket.
    pub(super) fn sort(&self, bucket: &str, prefix: &str, key: Option<&str>) -> SourceError {
        let what = key.unwrap_or(bucket).to_owned();
        let code = if self.code.is_empty() { self.status.to_string() } else { self.code.to_owned() };
        match (self.status, self.code, key) {
            (_, "NoSuchBucket", _) => SourceError::Absent { what: format!("the bucket `{bucket}`") },
            (404, "", None) => SourceError::Absent { what: format!("the bucket `{bucket}`") },
            (404, _, Some(key)) => SourceError::Gone { key: key.to_owned() },
            (412, ..) => SourceError::Changed { key: what },
            (_, "InvalidObjectState", _) => SourceError::Archived { key: what },
            (_, "RequestTimeTooSkewed" | "ExpiredToken", _) => self.busy(what, code),
            (301 | 307 | 400, ..) if self.region.is_some() => {
                SourceError::Elsewhere { bucket: bucket.to_owned(), region: self.region.unwrap_or_default().to_owned() }
            }
            (401 | 403, ..) => {
                SourceError::Denied { what: format!("s3://{bucket}/{prefix}{}", key.unwrap_or_default()), code }
            }
            (429 | 500.., ..) | (_, "SlowDown" | "RequestTimeout" | "Throttling", _) => self.busy(what, code),
            _ => SourceError::S3 {
                key: what,
                message: match self.message {
                    "" => format!("it answered {code}"),
                    message => format!("{code} {message}"),
                },
            },
        }
    }

    fn busy(&self, key: String, code: String) -> SourceError {
        let after = self.retry_after.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        SourceError::Busy { key, code, after }
    }
}

impl Bucket {
    /// Sorts an error of the SDK.
    pub(super) fn error<E>(&self, key: Option<&str>, error: SdkError<E, HttpResponse>) -> SourceError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let what = key.unwrap_or(&self.bucket).to_owned();
        match &error {
            SdkError::DispatchFailure(failure) => {
                let text = format!("{:?}", failure.as_connector_error());
                if text.contains("CredentialsNotLoaded") || text.contains("no providers in chain") {
                    return SourceError::NoCredentials { why: innermost(&error) };
                }
                match failure.is_io() || failure.is_timeout() {
                    true => SourceError::Unreachable { endpoint: self.endpoint.clone(), why: innermost(&error) },
                    false => SourceError::Broken { key: what, why: innermost(&error) },
                }
            }
            SdkError::TimeoutError(_) => SourceError::Broken { key: what, why: "no answer in time".to_owned() },
            SdkError::ResponseError(_) => SourceError::Broken { key: what, why: innermost(&error) },
            SdkError::ServiceError(service) => {
                let headers = service.raw().headers();
                let refusal = Refusal {
                    status: service.raw().status().as_u16(),
                    code: service.err().code().unwrap_or_default(),
                    message: service.err().message().unwrap_or_default(),
                    region: headers.get("x-amz-bucket-region"),
                    retry_after: headers.get("retry-after"),
                };
                if refusal.code == "RequestTimeTooSkewed" {
                    self.time.learn(headers.get("date"));
                }
                refusal.sort(&self.bucket, &self.prefix, key)
            }
            // The request could not even be made: credentials, mostly.
            _ if format!("{error:?}").contains("Credentials") => SourceError::NoCredentials { why: innermost(&error) },
            _ => SourceError::S3 { key: what, message: innermost(&error) },
        }
    }
}

/// What lies at the bottom of an error.
pub(super) fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
