//! S3: through the AWS SDK for credentials, regions, endpoints, listing and uploads; through connections of its own for
//! the many GETs, in `http`.
//!
//! Every step has a time-out. Retrying is the caller's, who knows what else is in flight.

mod errors;
mod get;
mod http;
mod list;
mod sign;
mod upload;

use std::{
    error::Error,
    sync::{Arc, Mutex},
};

use aws_config::SdkConfig;
use aws_sdk_s3::{
    Client,
    config::{ConfigBag, Intercept, Region, ResponseChecksumValidation, RuntimeComponents, SharedCredentialsProvider},
    types::RequestPayer,
};
use aws_smithy_async::time::SharedTimeSource;
use aws_smithy_runtime_api::client::interceptors::{context::BeforeTransmitInterceptorContextRef, dyn_dispatch_hint};
use tokio::runtime::Handle;

pub use self::get::S3Reader;
use self::{
    errors::innermost,
    get::Gets,
    http::{Endpoint, Limits},
    sign::{ServerTime, Signer},
};
use super::{S3Options, SourceError};
use crate::aws::{self, Authorities, CONNECT, READ};

/// A bucket and a prefix in it.
#[derive(Clone, Debug)]
pub struct Bucket {
    client: Client,
    bucket: String,
    prefix: String,
    endpoint: String,
    payer: Option<RequestPayer>,
    options: S3Options,
    time: ServerTime,
    authorities: Authorities,
    credentials: Option<SharedCredentialsProvider>,
}

impl Bucket {
    /// Finds credentials, region and endpoint. Sends nothing to S3 yet.
    ///
    /// # Errors
    /// [`SourceError::BadCertificates`] for a file of certificates that cannot be used.
    pub async fn connect(bucket: &str, prefix: &str, options: &S3Options) -> Result<Self, SourceError> {
        let authorities = Authorities::of_environment()?;
        let time = ServerTime::default();
        let mut loader = aws::loader(&authorities).time_source(SharedTimeSource::new(time.clone()));
        if options.anonymous {
            loader = loader.no_credentials();
        }
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        let shared = loader.load().await;
        let endpoint = options.endpoint.clone().or_else(|| endpoint_of_environment(&shared));
        let mut config = aws_sdk_s3::config::Builder::from(&shared);
        config.set_force_path_style(Some(options.path_style.unwrap_or(endpoint.is_some())));
        // A checksum that comes with a range is not that of the range.
        config = config.response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if shared.region().is_none() {
            // Bucket names are global; where the bucket is elsewhere, S3 says where.
            config = config.region(Region::new("us-east-1"));
        }
        if let Some(endpoint) = &endpoint {
            config = config.endpoint_url(endpoint);
        }
        Ok(Self {
            client: Client::from_conf(config.build()),
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: endpoint.unwrap_or_else(|| "Amazon S3".to_owned()),
            payer: options.requester_pays.then_some(RequestPayer::Requester),
            options: options.clone(),
            time,
            authorities,
            credentials: shared.credentials_provider(),
        })
    }

    /// The same bucket, looked for in the region that S3 has named.
    pub(super) async fn in_region(&self, region: String) -> Result<Self, SourceError> {
        tracing::info!(bucket = self.bucket, region, "the bucket is in another region");
        Self::connect(&self.bucket, &self.prefix, &S3Options { region: Some(region), ..self.options.clone() }).await
    }

    /// What readers are made of: the SDK is asked once what a GET of this bucket looks like, and how it is signed.
    pub(super) async fn readers(&self) -> Result<S3Readers, SourceError> {
        let seen = Arc::new(Mutex::new(None));
        let ask = self.client.get_object().bucket(&self.bucket).key(PROBE).customize();
        let refused = ask.interceptor(Looker(Arc::clone(&seen))).send().await;
        let seen = seen.lock().expect("no holder panics").take();
        let Some(Seen { uri, authorization }) = seen else {
            // It ends before anything is sent, in one way or another.
            let error = refused.err().map(|error| self.error(None, error));
            return Err(error.unwrap_or_else(|| self.unusual("the SDK made no request of a GET")));
        };
        let uri: ::http::Uri = uri.parse().map_err(|_| self.unusual("its address is no URI"))?;
        let base =
            uri.path().strip_suffix(PROBE).ok_or_else(|| self.unusual("its keys are not the end of its paths"))?;
        let signer = match authorization.as_deref() {
            None => None,
            Some(authorization) => {
                let region = sigv4_region(authorization).ok_or_else(|| {
                    self.unusual("it wants another signature than AWS4-HMAC-SHA256 for the service s3")
                })?;
                let provider = self
                    .credentials
                    .clone()
                    .ok_or_else(|| SourceError::NoCredentials { why: "none are set up".to_owned() })?;
                Some(Signer::new(provider, region.to_owned(), self.time.clone(), Handle::current()))
            }
        };
        let limits = Limits { connect: CONNECT, read: READ };
        let endpoint = Endpoint::new(&uri, &self.authorities.for_lanes()?, limits)
            .map_err(|error| SourceError::Unreachable { endpoint: self.endpoint.clone(), why: innermost(&error) })?;
        Ok(S3Readers(Arc::new(Gets {
            endpoint: Arc::new(endpoint),
            base: base.to_owned(),
            signer,
            bucket: self.clone(),
            runtime: Handle::current(),
        })))
    }

    fn unusual(&self, what: &str) -> SourceError {
        SourceError::S3 { key: self.bucket.clone(), message: format!("this kind of bucket cannot be read: {what}") }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

fn endpoint_of_environment(shared: &SdkConfig) -> Option<String> {
    let set = |name| std::env::var(name).ok().filter(|url| !url.is_empty());
    set("AWS_ENDPOINT_URL_S3").or_else(|| shared.endpoint_url().map(str::to_owned))
}

/// Makes a reader for each lane.
#[derive(Clone, Debug)]
pub struct S3Readers(Arc<Gets>);

impl S3Readers {
    pub(super) fn reader(&self) -> S3Reader {
        S3Reader::new(Arc::clone(&self.0))
    }
}

/// A key that is asked for, and never sent.
const PROBE: &str = "forebay-probe";

struct Seen {
    uri: String,
    authorization: Option<String>,
}

/// Looks at a request that the SDK has made ready, and keeps it from being sent.
struct Looker(Arc<Mutex<Option<Seen>>>);

impl std::fmt::Debug for Looker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Looker")
    }
}

#[dyn_dispatch_hint]
impl Intercept for Looker {
    fn name(&self) -> &'static str {
        "Looker"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let request = context.request();
        let authorization = request.headers().get("authorization").map(str::to_owned);
        *self.0.lock().expect("no holder panics") = Some(Seen { uri: request.uri().to_owned(), authorization });
        Err("looked at, and not to be sent".into())
    }
}

/// The region in a signature's scope, if it is one of version 4 for S3: `AWS4-HMAC-SHA256
/// Credential=<id>/<day>/<region>/s3/aws4_request, …`
fn sigv4_region(authorization: &str) -> Option<&str> {
    let credential = authorization.strip_prefix("AWS4-HMAC-SHA256 Credential=")?.split(',').next()?;
    let mut scope = credential.rsplit('/');
    match (scope.next(), scope.next(), scope.next()) {
        (Some("aws4_request"), Some("s3"), region) => region,
        _ => None,
    }
}

fn unquoted(etag: &str) -> String {
    etag.trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signatures_that_the_lanes_can_make_are_taken() {
        let of =
            |scope: &str| format!("AWS4-HMAC-SHA256 Credential=AKID/20260101/{scope}/aws4_request, SignedHeaders=host");
        assert_eq!(sigv4_region(&of("eu-west-1/s3")), Some("eu-west-1"));
        assert_eq!(sigv4_region(&of("eu-west-1/s3express")), None);
        assert_eq!(sigv4_region("AWS4-ECDSA-P256-SHA256 Credential=AKID/20260101/s3/aws4_request"), None);
    }
}
