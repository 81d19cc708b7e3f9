//! Signs GETs and HEADs: AWS Signature Version 4, with credentials as the SDK finds and renews them.
//!
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>. The keys' HMACs are those of
//! `aws-sigv4`; its general signer costs several times as much a request as the few headers here need.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_sdk_s3::config::{Credentials, ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::sign::v4;
use aws_smithy_async::time::TimeSource;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::{snapshot::hex, source::SourceError};

/// Credentials are renewed when they have so little time left.
const RENEW: Duration = Duration::from_secs(300);
/// SHA-256 of no bytes: the payload of a GET.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// What stays as it is in a path; `/` is kept apart from this.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const KEPT_IN_PATHS: &AsciiSet = &KEPT.remove(b'/');

/// A key or a path as a request has it.
pub(super) fn encode_path(path: &str) -> String {
    utf8_percent_encode(path, KEPT_IN_PATHS).to_string()
}

/// A value in a query.
pub(super) fn encode_value(value: &str) -> String {
    utf8_percent_encode(value, KEPT).to_string()
}

/// The time as S3 has it: the local clock may be wrong by more than S3 bears, and S3's answers say by how much.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerTime(Arc<AtomicI64>);

impl ServerTime {
    /// Learns from the `Date` of an answer that refused the time of a request.
    pub(super) fn learn(&self, date: Option<&str>) {
        let Some(Ok(date)) = date.map(jiff::fmt::rfc2822::parse) else { return };
        let ahead = date.timestamp().as_second() - Timestamp::now().as_second();
        if self.0.swap(ahead, Ordering::Relaxed) != ahead {
            tracing::warn!(seconds = ahead, "the server's clock differs from this host's; requests are signed by it");
        }
    }

    /// Whether the clock of an answer differs by more from what requests are signed with than S3 bears: 15 minutes,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html>, some of which may have passed.
    pub(super) fn differs(&self, date: Option<&str>) -> bool {
        let Some(Ok(date)) = date.map(jiff::fmt::rfc2822::parse) else { return false };
        let now = Timestamp::now().as_second() + self.ahead();
        date.timestamp().as_second().abs_diff(now) > 600
    }

    fn ahead(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TimeSource for ServerTime {
    fn now(&self) -> SystemTime {
        let ahead = self.ahead();
        let by = Duration::from_secs(ahead.unsigned_abs());
        let now = SystemTime::now();
        (if ahead < 0 { now.checked_sub(by) } else { now.checked_add(by) }).unwrap_or(now)
    }
}

/// What a request is signed with.
pub(super) struct Signer {
    provider: SharedCredentialsProvider,
    region: String,
    time: ServerTime,
    runtime: Handle,
    held: Mutex<Option<Held>>,
}

/// Credentials, and the key that is made of them for a day.
#[derive(Clone)]
struct Held {
    credentials: Credentials,
    day: String,
    key: Vec<u8>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("region", &self.region).finish_non_exhaustive()
    }
}

impl Signer {
    /// Signs for a region; `runtime` fetches credentials.
    pub(super) fn new(provider: SharedCredentialsProvider, region: String, time: ServerTime, runtime: Handle) -> Self {
        Self { provider, region, time, runtime, held: Mutex::new(None) }
    }

    /// Forgets the credentials: the server says that they have expired.
    pub(super) fn renew(&self) {
        *self.held.lock().expect("no holder panics") = None;
    }

    /// Appends the headers that sign a request: of its `x-amz-` headers, `signed` are the names and values, in the
    /// names' order. `host` comes first and `x-amz-checksum-mode` before `x-amz-content-sha256`.
    pub(super) fn sign(
        &self,
        request: &mut String,
        method: &str,
        (path, query): (&str, &str),
        host: &str,
        (checksum_mode, payer): (bool, bool),
    ) -> Result<(), SourceError> {
        let now = Timestamp::now().as_second() + self.time.ahead();
        let now = Timestamp::from_second(now).unwrap_or(Timestamp::UNIX_EPOCH);
        let stamp = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let held = self.held(&stamp[..8], now)?;
        let token = held.credentials.session_token();

        let mut canonical = format!("{method}\n{path}\n{query}\nhost:{host}\n");
        let mut names = "host".to_owned();
        let mut field = |name: &str, value: &str| {
            let _ = writeln!(canonical, "{name}:{value}");
            let _ = write!(names, ";{name}");
            let _ = write!(request, "{name}: {value}\r\n");
        };
        // In the order of their names, as the signature wants them.
        if checksum_mode {
            field("x-amz-checksum-mode", "ENABLED");
        }
        field("x-amz-content-sha256", EMPTY);
        field("x-amz-date", &stamp);
        if payer {
            field("x-amz-request-payer", "requester");
        }
        if let Some(token) = token {
            field("x-amz-security-token", token);
        }
        let _ = write!(canonical, "\n{names}\n{EMPTY}");

        let scope = format!("{}/{}/s3/aws4_request", held.day, self.region);
        let digest = hex(&Sha256::digest(canonical));
        let signature =
            v4::calculate_signature(&held.key, format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}").as_bytes());
        let _ = write!(
            request,
            "authorization: AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}\r\n",
            held.credentials.access_key_id(),
        );
        Ok(())
    }

    fn held(&self, day: &str, now: Timestamp) -> Result<Held, SourceError> {
        let mut held = self.held.lock().expect("no holder panics");
        let now = SystemTime::from(now);
        let lasts = |credentials: &Credentials| credentials.expiry().is_none_or(|expiry| expiry > now + RENEW);
        let credentials = match &*held {
            Some(held) if held.day == day && lasts(&held.credentials) => return Ok(held.clone()),
            Some(held) if lasts(&held.credentials) => held.credentials.clone(),
            _ => {
                let provided = self.runtime.block_on(self.provider.provide_credentials());
                provided.map_err(|error| SourceError::NoCredentials { why: super::errors::innermost(&error) })?
            }
        };
        let key = v4::generate_signing_key(credentials.secret_access_key(), now, &self.region, "s3");
        let made = Held { credentials, day: day.to_owned(), key: key.as_ref().to_vec() };
        *held = Some(made.clone());
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the general signer of `aws-sigv4` makes of the same request.
    fn reference(path: &str, query: &str, token: Option<&str>, fields: &[(&str, &str)], time: SystemTime) -> String {
        use aws_sigv4::http_request::{self, SignableBody, SignableRequest, SigningSettings};
        let identity = Credentials::new("AKID", "secret", token.map(str::to_owned), None, "test").into();
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = http_request::PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = http_request::UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = http_request::PayloadChecksumKind::XAmzSha256;
        let params = v4::SigningParams::builder().identity(&identity).region("eu-west-1").name("s3");
        let params = params.time(time).settings(settings).build().unwrap().into();
        let uri = format!("http://h:9{path}{}{query}", if query.is_empty() { "" } else { "?" });
        let request = SignableRequest::new("GET", uri, fields.iter().copied(), SignableBody::Bytes(b"")).unwrap();
        http_request::sign(request, &params).unwrap().into_parts().1
    }

    #[test]
    fn a_signature_is_the_one_of_the_general_signer() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (key, version, token, payer) in
            [("plain", "", None, false), ("a b+c/ü~(1)!*'", "versionId=a%2Fb", Some("to/ken=="), true)]
        {
            let credentials = Credentials::new("AKID", "secret", token.map(str::to_owned), None, "test");
            let provider = SharedCredentialsProvider::new(credentials);
            let signer = Signer::new(provider, "eu-west-1".to_owned(), ServerTime::default(), runtime.handle().clone());
            let path = format!("/bucket/{}", encode_path(key));
            let mut signed = String::new();
            signer.sign(&mut signed, "GET", (&path, version), "h:9", (true, payer)).unwrap();
            let field = |name: &str| signed.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap();
            let time: jiff::civil::DateTime = field("x-amz-date").trim_end_matches('Z').parse().unwrap();
            let time = SystemTime::from(time.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp());
            let mut fields = vec![("host", "h:9"), ("x-amz-checksum-mode", "ENABLED")];
            if payer {
                fields.push(("x-amz-request-payer", "requester"));
            }
            let reference = reference(&path, version, token, &fields, time);
            assert!(field("authorization").ends_with(&format!("Signature={reference}")), "{signed}");
        }
    }

    #[test]
    fn a_wrong_clock_is_corrected_by_the_servers() {
        let time = ServerTime::default();
        time.learn(Some("Mon, 01 Jan 2035 00:00:00 GMT"));
        let year = Timestamp::try_from(time.now()).unwrap().strftime("%Y").to_string();
        assert_eq!(year, "2035");
        assert!(!time.differs(Some("Mon, 01 Jan 2035 00:05:00 GMT")));
        assert!(time.differs(Some("Mon, 01 Jan 2035 01:00:00 GMT")) && !time.differs(None));
        time.learn(Some("no date"));
        assert_eq!(Timestamp::try_from(time.now()).unwrap().strftime("%Y").to_string(), "2035");
    }
}
