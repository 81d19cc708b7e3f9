//! What requests ask for of an object, and what uploads bring.

use std::ops::Range;

use bytes::Bytes;
use futures::TryStreamExt;
use s3s::{
    S3Result,
    dto::{Checksum, ChecksumMode, StreamingBlob},
    s3_error,
};

use super::object::{Algorithm, Stored, Sum};

/// What of an object was asked for.
pub(super) struct Wanted {
    pub(super) range: Range<usize>,
    pub(super) content_range: Option<String>,
    pub(super) sum: Option<Sum>,
}

/// The range or the part that was asked for; a part comes with the part's own checksum.
pub(super) fn wanted(stored: &Stored, range: Option<s3s::dto::Range>, part: Option<i32>) -> S3Result<Wanted> {
    let size = stored.bytes.len();
    let shown = |range: &Range<usize>| Some(format!("bytes {}-{}/{size}", range.start, range.end - 1));
    let bad_range = || s3_error!(InvalidRange, "no such range");
    match (range, part) {
        (Some(_), Some(_)) => Err(s3_error!(InvalidRequest, "a range and a part cannot be asked for at once")),
        (None, Some(1)) if stored.parts.is_empty() => {
            Ok(Wanted { range: 0..size, content_range: None, sum: stored.sum.clone() })
        }
        (None, Some(number)) => {
            let at = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
            let part = at.and_then(|at| stored.parts.get(at)).ok_or_else(|| s3_error!(InvalidPart, "no such part"))?;
            Ok(Wanted { range: part.range.clone(), content_range: shown(&part.range), sum: part.sum.clone() })
        }
        (Some(range), None) => {
            let range = range.check(size as u64).map_err(|_| bad_range())?;
            let range = range.start as usize..range.end as usize;
            Ok(Wanted { content_range: shown(&range), range, sum: None })
        }
        (None, None) => Ok(Wanted { range: 0..size, content_range: None, sum: stored.sum.clone() }),
    }
}

pub(super) fn parts_count(stored: &Stored, part: Option<i32>) -> Option<i32> {
    part.filter(|_| !stored.parts.is_empty()).and_then(|_| i32::try_from(stored.parts.len()).ok())
}

pub(super) fn is_asked_for(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED)
}

/// The checksum that came with an upload: in its headers, or behind its body.
pub(super) fn sent(fields: Checksum, trailers: Option<hyper::HeaderMap>) -> Option<(Algorithm, String)> {
    let behind = |algorithm: Algorithm| {
        let name = format!("x-amz-checksum-{}", algorithm.name().to_lowercase());
        trailers.as_ref()?.get(name)?.to_str().ok().map(str::to_owned)
    };
    let Checksum { checksum_crc32, checksum_crc32c, checksum_crc64nvme, checksum_sha1, checksum_sha256, .. } = fields;
    let before = [checksum_crc64nvme, checksum_crc32, checksum_crc32c, checksum_sha1, checksum_sha256];
    let found = Algorithm::ALL.into_iter().zip(before);
    found.into_iter().find_map(|(algorithm, value)| Some((algorithm, value.or_else(|| behind(algorithm))?)))
}

/// Reads a body.
pub(super) async fn received(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let mut bytes = Vec::new();
    if let Some(mut body) = body {
        while let Some(chunk) = body.try_next().await.map_err(|_| s3_error!(IncompleteBody, "the body broke off"))? {
            bytes.extend_from_slice(&chunk);
        }
    }
    Ok(bytes.into())
}

/// Compares a body with the checksum that was sent with it.
pub(super) fn checked(bytes: &[u8], sent: Option<&(Algorithm, String)>) -> S3Result<()> {
    match sent {
        Some((algorithm, value)) if algorithm.encoded(bytes) != *value => {
            Err(s3_error!(BadDigest, "the checksum differs"))
        }
        _ => Ok(()),
    }
}
