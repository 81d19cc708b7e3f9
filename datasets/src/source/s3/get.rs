//! GETs and HEADs of objects, by a lane's own connection, every answer checked against what was asked.

use std::{fmt::Write as _, ops::Range, sync::Arc};

use aws_sdk_s3::types::ObjectAttributes;
use tokio::runtime::Handle;

use super::{
    Bucket,
    errors::{Refusal, innermost},
    http::{Connection, Endpoint, Head, NoAnswer},
    sign::{Signer, encode_path, encode_value},
};
use crate::{
    checksum::{Algorithm, Expected},
    source::{About, Listed, SourceError},
};

/// What the connections of all lanes share.
#[derive(Debug)]
pub(super) struct Gets {
    pub endpoint: Arc<Endpoint>,
    /// What every target begins with: the bucket's path, up to and with the slash before the key.
    pub base: String,
    pub signer: Option<Signer>,
    /// For what needs XML, and for its words about errors.
    pub bucket: Bucket,
    pub runtime: Handle,
}

/// One lane's connection to the bucket. Its methods block.
#[derive(Debug)]
pub struct S3Reader {
    gets: Arc<Gets>,
    connection: Connection,
    request: String,
    key: String,
}

/// What a request asks for beside a key.
#[derive(Clone, Copy, Default)]
struct Ask<'a> {
    etag: Option<&'a str>,
    version: Option<&'a str>,
    part: Option<u32>,
}

impl S3Reader {
    pub(super) fn new(gets: Arc<Gets>) -> Self {
        let connection = Connection::new(Arc::clone(&gets.endpoint));
        Self { gets, connection, request: String::with_capacity(1024), key: String::new() }
    }

    /// Begins to read an object, or a range of it that is not empty.
    pub(in crate::source) fn get(&mut self, object: &Listed, range: Option<&Range<u64>>) -> Result<About, SourceError> {
        let key = &object.key;
        let ask = Ask { etag: object.etag.as_deref(), version: object.version_id.as_deref(), part: None };
        let head = self.ask("GET", key, ask, range)?;
        let about = about(&head, range.is_none());
        // Servers were seen that ignore If-Match, and others that answer a range with the whole object.
        if object.etag.is_some() && about.etag != object.etag {
            return Err(SourceError::Changed { key: key.clone() });
        }
        let expected = match range {
            None => object.size,
            Some(range) => {
                let exact = format!("bytes {}-{}/{}", range.start, range.end - 1, object.size);
                let whole = range.start == 0 && range.end == object.size;
                let told = head.get("content-range");
                if told != Some(&exact) && !(whole && told.is_none()) {
                    return Err(SourceError::WrongRange { key: key.clone() });
                }
                range.end - range.start
            }
        };
        match head.length() {
            Some(received) if received != expected => {
                Err(SourceError::WrongLength { key: key.clone(), expected, received })
            }
            _ => Ok(about),
        }
    }

    /// Fills the buffer from the answer, or as much of it as there is.
    pub(in crate::source) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let broken = |error| SourceError::Broken { key: self.key.clone(), why: innermost(&error) };
        self.connection.read(buffer).map_err(broken)
    }

    /// An object as it is now, and what S3 knows of its bytes.
    pub(in crate::source) fn head(&mut self, key: &str) -> Result<(Listed, Option<Expected>), SourceError> {
        let head = self.ask("HEAD", key, Ask::default(), None)?;
        let About { etag, version_id, expected } = about(&head, true);
        let size = head.length().ok_or_else(|| SourceError::S3 {
            key: key.to_owned(),
            message: "the answer to HEAD has no length".to_owned(),
        })?;
        Ok((Listed { key: key.to_owned(), size, etag, version_id }, expected))
    }

    /// The sizes of the parts that an object was uploaded in, in order.
    ///
    /// GetObjectAttributes tells them all at once, where it is there and allowed; HEAD of each part needs no more than
    /// leave to read.
    pub(in crate::source) fn parts(&mut self, object: &Listed, count: u32) -> Result<Vec<u64>, SourceError> {
        let sizes = match self.attributes(object)? {
            Some(sizes) => sizes,
            None => (1..=count).map(|part| self.part_size(object, part)).collect::<Result<_, _>>()?,
        };
        match sizes.len() == count as usize && sizes.iter().sum::<u64>() == object.size {
            true => Ok(sizes),
            false => Err(SourceError::S3 {
                key: object.key.clone(),
                message: "it was uploaded in parts, and the server does not tell their sizes".to_owned(),
            }),
        }
    }

    fn part_size(&mut self, object: &Listed, part: u32) -> Result<u64, SourceError> {
        let ask = Ask { etag: object.etag.as_deref(), version: object.version_id.as_deref(), part: Some(part) };
        match self.ask("HEAD", &object.key, ask, None) {
            Ok(head) => Ok(head.length().unwrap_or(0)),
            // It has no such part any more.
            Err(SourceError::S3 { key, .. }) => Err(SourceError::Changed { key }),
            Err(error) => Err(error),
        }
    }

    /// None where the server does not tell, or not this user.
    fn attributes(&self, object: &Listed) -> Result<Option<Vec<u64>>, SourceError> {
        let bucket = &self.gets.bucket;
        let (mut sizes, mut marker) = (Vec::new(), None);
        loop {
            let request = bucket.client.get_object_attributes().bucket(&bucket.bucket).key(bucket.full(&object.key));
            let request = request.set_version_id(object.version_id.clone()).set_part_number_marker(marker.clone());
            let request = request.object_attributes(ObjectAttributes::ObjectParts);
            let request = request.set_request_payer(bucket.payer.clone());
            let answer = match self.gets.runtime.block_on(request.send()) {
                Ok(answer) => answer,
                Err(error) => {
                    let error = bucket.error(Some(&object.key), error);
                    return if error.is_transient() { Err(error) } else { Ok(None) };
                }
            };
            let Some(parts) = answer.object_parts() else { return Ok(None) };
            let size = |size: Option<i64>| size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
            sizes.extend(parts.parts().iter().map(|part| size(part.size())));
            match parts.is_truncated() {
                Some(true) if !parts.parts().is_empty() => marker = parts.next_part_number_marker().map(str::to_owned),
                // Only uploads with additional checksums have their parts listed.
                _ => return Ok((!sizes.is_empty()).then_some(sizes)),
            }
        }
    }

    fn ask(&mut self, method: &str, key: &str, ask: Ask<'_>, range: Option<&Range<u64>>) -> Result<Head, SourceError> {
        key.clone_into(&mut self.key);
        self.write_request(method, key, ask, range)?;
        let gets = &self.gets;
        let head = self.connection.ask(self.request.as_bytes(), method != "HEAD").map_err(|error| match error {
            NoAnswer::Unreachable(error) => {
                SourceError::Unreachable { endpoint: gets.bucket.endpoint.clone(), why: innermost(&error) }
            }
            NoAnswer::Broken(error) => SourceError::Broken { key: key.to_owned(), why: innermost(&error) },
        })?;
        match head.status {
            200 | 206 => Ok(head),
            status => {
                let body = self.connection.text().unwrap_or_default();
                let mut refusal = Refusal {
                    status,
                    code: element(&body, "Code").unwrap_or_default(),
                    message: element(&body, "Message").unwrap_or_default(),
                    region: head.get("x-amz-bucket-region"),
                    retry_after: head.get("retry-after"),
                };
                // The answer to a HEAD has no room for a code.
                let signed = gets.signer.is_some();
                if signed && status == 403 && refusal.code.is_empty() && gets.bucket.time.differs(head.get("date")) {
                    refusal.code = "RequestTimeTooSkewed";
                }
                match refusal.code {
                    "RequestTimeTooSkewed" => gets.bucket.time.learn(head.get("date")),
                    "ExpiredToken" => gets.signer.iter().for_each(Signer::renew),
                    _ => {}
                }
                Err(refusal.sort(&gets.bucket.bucket, &gets.bucket.prefix, Some(key)))
            }
        }
    }

    fn write_request(
        &mut self,
        method: &str,
        key: &str,
        ask: Ask<'_>,
        range: Option<&Range<u64>>,
    ) -> Result<(), SourceError> {
        let Self { gets, request, .. } = self;
        let path = format!("{}{}", gets.base, encode_path(&gets.bucket.full(key)));
        // In the order of their names, as the signature wants them.
        let part = ask.part.map(|part| format!("partNumber={part}"));
        let version = ask.version.map(|version| format!("versionId={}", encode_value(version)));
        let query = part.into_iter().chain(version).collect::<Vec<_>>().join("&");
        let separator = if query.is_empty() { "" } else { "?" };
        request.clear();
        let prefix = gets.endpoint.target_prefix();
        let _ = write!(request, "{method} {prefix}{path}{separator}{query} HTTP/1.1\r\n");
        let _ = write!(request, "host: {}\r\n", gets.endpoint.authority);
        request.push_str(&gets.endpoint.proxy_fields());
        if let Some(etag) = ask.etag {
            let _ = write!(request, "if-match: \"{etag}\"\r\n");
        }
        if let Some(range) = range {
            let _ = write!(request, "range: bytes={}-{}\r\n", range.start, range.end - 1);
        }
        let checks = range.is_none();
        match &gets.signer {
            Some(signer) => {
                signer.sign(
                    request,
                    method,
                    (&path, &query),
                    &gets.endpoint.authority,
                    (checks, gets.bucket.payer.is_some()),
                )?;
            }
            None if checks => request.push_str("x-amz-checksum-mode: ENABLED\r\n"),
            None => {}
        }
        request.push_str("\r\n");
        Ok(())
    }
}

/// What an answer's head says of the object; of its checksum only if the answer is the `whole` of it.
fn about(head: &Head, whole: bool) -> About {
    let etag = head.get("etag").map(super::unquoted);
    let composite = head.get("x-amz-checksum-type").is_some_and(|kind| kind.eq_ignore_ascii_case("COMPOSITE"));
    let of_header = |(algorithm, name): (Algorithm, &str)| {
        head.get(name).and_then(|value| Expected::of_header(algorithm, value, composite))
    };
    // https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html: under other encryption the ETag is no MD5.
    let opaque = head.get("x-amz-server-side-encryption-customer-algorithm").is_some()
        || head.get("x-amz-server-side-encryption").is_some_and(|kind| kind != "AES256");
    let of_etag = || etag.as_deref().filter(|etag| !opaque && is_md5(etag)).and_then(Expected::of_md5);
    let expected = whole.then(|| Algorithm::OF_HEADERS.into_iter().find_map(of_header).or_else(of_etag)).flatten();
    About { etag, version_id: head.get("x-amz-version-id").filter(|id| *id != "null").map(str::to_owned), expected }
}

/// Whether an ETag has the form of the MD5 that it is for an object put in one piece. Another server's opaque tag of
/// the same form is no reason to fail, so that only lower-case digits count.
fn is_md5(etag: &str) -> bool {
    etag.len() == 32 && etag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The text of an element in the small XML of an error.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}
