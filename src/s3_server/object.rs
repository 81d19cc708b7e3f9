//! An object as S3 keeps it: what an upload makes of its bytes.

use std::ops::Range;

use bytes::Bytes;
use md5::{Digest, Md5};
use s3s::{
    crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256},
    dto::{Checksum, ChecksumType, ETag, ServerSideEncryption},
};

/// A checksum that S3 can keep of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Of whole objects only.
    Crc64Nvme,
    /// Of whole objects, or of parts.
    Crc32,
    /// Of whole objects, or of parts.
    Crc32c,
    /// Of objects put in one piece, or of parts.
    Sha1,
    /// Of objects put in one piece, or of parts.
    Sha256,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Crc64Nvme, Self::Crc32, Self::Crc32c, Self::Sha1, Self::Sha256];

    /// As S3 writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc64Nvme => "CRC64NVME",
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Crc64Nvme => Crc64Nvme::checksum(bytes).to_vec(),
            Self::Crc32 => Crc32::checksum(bytes).to_vec(),
            Self::Crc32c => Crc32c::checksum(bytes).to_vec(),
            Self::Sha1 => Sha1::checksum(bytes).to_vec(),
            Self::Sha256 => Sha256::checksum(bytes).to_vec(),
        }
    }

    /// As S3 sends it.
    pub(super) fn encoded(self, bytes: &[u8]) -> String {
        aws_smithy_types::base64::encode(self.digest(bytes))
    }
}

/// An object as somebody uploaded it: in one piece with a CRC64NVME, unless it says otherwise.
#[derive(Clone, Debug)]
pub struct Upload {
    bytes: Bytes,
    algorithm: Option<Algorithm>,
    composite: bool,
    parts: Vec<usize>,
    encrypted: bool,
    damaged: Option<usize>,
}

impl Upload {
    /// In one piece, with a CRC64NVME.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let algorithm = Some(Algorithm::Crc64Nvme);
        Self { bytes: bytes.into(), algorithm, composite: false, parts: Vec::new(), encrypted: false, damaged: None }
    }

    /// With this checksum.
    pub fn checksum(self, algorithm: Algorithm) -> Self {
        Self { algorithm: Some(algorithm), ..self }
    }

    /// Without a checksum.
    pub fn without_checksum(self) -> Self {
        Self { algorithm: None, ..self }
    }

    /// In parts of so many bytes.
    pub fn in_parts(self, size: usize) -> Self {
        let parts = self.bytes.chunks(size).map(<[u8]>::len).collect();
        Self { parts, ..self }
    }

    /// The checksum is one of the parts' checksums.
    pub fn composite(self) -> Self {
        Self { composite: true, ..self }
    }

    /// With KMS: the ETag looks like an MD5, and is none.
    pub fn encrypted(self) -> Self {
        Self { encrypted: true, ..self }
    }

    /// One bit of the stored byte at this offset is not what was uploaded.
    pub fn damaged_at(self, offset: usize) -> Self {
        Self { damaged: Some(offset), ..self }
    }

    /// What S3 makes of it: worked out once, it may be stored often.
    pub fn stored(self) -> Stored {
        let (mut parts, mut rest) = (Vec::new(), self.bytes.clone());
        for size in &self.parts {
            parts.push(rest.split_to(*size));
        }
        let mut stored = match parts.is_empty() {
            true => Stored::whole(self.bytes, self.algorithm),
            false => Stored::of_parts(&parts, self.algorithm, self.composite),
        };
        if self.encrypted {
            stored.encrypted = true;
            stored.etag = md5(format!("sealed {}", stored.etag).as_bytes());
        }
        if let Some(offset) = self.damaged {
            stored.bytes = flipped(&stored.bytes, offset);
        }
        stored
    }
}

pub(super) fn flipped(bytes: &Bytes, offset: usize) -> Bytes {
    let mut bytes = bytes.to_vec();
    if let Some(byte) = bytes.get_mut(offset) {
        *byte ^= 1;
    }
    bytes.into()
}

/// A checksum that came with an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) algorithm: Algorithm,
    /// As S3 sends it.
    pub(super) value: String,
    pub(super) composite: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) range: Range<usize>,
    /// Kept where the whole's checksum is made of the parts'.
    pub(super) sum: Option<Sum>,
}

/// An object with its ETag and checksums.
#[derive(Clone, Debug)]
pub struct Stored {
    pub(super) bytes: Bytes,
    pub(super) etag: String,
    pub(super) sum: Option<Sum>,
    /// None if it was put in one piece.
    pub(super) parts: Vec<Part>,
    pub(super) version: Option<String>,
    encrypted: bool,
}

impl Stored {
    pub(super) fn whole(bytes: Bytes, algorithm: Option<Algorithm>) -> Self {
        let sum = algorithm.map(|algorithm| Sum { algorithm, value: algorithm.encoded(&bytes), composite: false });
        Self { etag: md5(&bytes), bytes, sum, parts: Vec::new(), version: None, encrypted: false }
    }

    /// What was put together of parts has an ETag of its own kind.
    pub(super) fn of_parts(parts: &[Bytes], algorithm: Option<Algorithm>, composite: bool) -> Self {
        let bytes: Bytes = match parts {
            [only] => only.clone(),
            parts => parts.concat().into(),
        };
        let digests: Vec<u8> = parts.iter().flat_map(Md5::digest).collect();
        let etag = format!("{}-{}", md5(&digests), parts.len());
        let part_sum =
            |algorithm: Algorithm, part: &Bytes| Sum { algorithm, value: algorithm.encoded(part), composite: false };
        let mut begin = 0;
        let kept = parts.iter().map(|part| {
            let range = begin..begin + part.len();
            begin = range.end;
            Part { range, sum: algorithm.filter(|_| composite).map(|algorithm| part_sum(algorithm, part)) }
        });
        let kept = kept.collect();
        let sum = algorithm.map(|algorithm| match composite {
            false => part_sum(algorithm, &bytes),
            true => {
                let digests: Vec<u8> = parts.iter().flat_map(|part| algorithm.digest(part)).collect();
                let value = format!("{}-{}", algorithm.encoded(&digests), parts.len());
                Sum { algorithm, value, composite: true }
            }
        });
        Self { bytes, etag, sum, parts: kept, version: None, encrypted: false }
    }

    /// What it holds.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(super) fn etag(&self) -> ETag {
        ETag::Strong(self.etag.clone())
    }

    pub(super) fn encryption(&self) -> Option<ServerSideEncryption> {
        self.encrypted.then(|| ServerSideEncryption::from_static(ServerSideEncryption::AWS_KMS))
    }

    pub(super) fn size(&self) -> Option<i64> {
        i64::try_from(self.bytes.len()).ok()
    }
}

/// A checksum in S3's five fields.
pub(super) fn shown(sum: Option<&Sum>) -> Checksum {
    let value = |wanted| sum.filter(|sum| sum.algorithm == wanted).map(|sum| sum.value.clone());
    let kind = |sum: &Sum| match sum.composite {
        true => ChecksumType::from_static(ChecksumType::COMPOSITE),
        false => ChecksumType::from_static(ChecksumType::FULL_OBJECT),
    };
    Checksum {
        checksum_crc32: value(Algorithm::Crc32),
        checksum_crc32c: value(Algorithm::Crc32c),
        checksum_crc64nvme: value(Algorithm::Crc64Nvme),
        checksum_sha1: value(Algorithm::Sha1),
        checksum_sha256: value(Algorithm::Sha256),
        checksum_type: sum.map(kind),
    }
}

pub(super) fn md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by other programs, for `123456789` in one piece and in three.
    #[test]
    fn checksums_are_those_of_s3() {
        let upload = |algorithm| Upload::new("123456789").checksum(algorithm);
        let value = |upload: Upload| upload.stored().sum.unwrap().value;
        let whole = Algorithm::ALL.map(|algorithm| value(upload(algorithm)));
        let sha256 = "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=";
        assert_eq!(whole, ["rosUhgp5mIg=", "y/Q5Jg==", "4waSgw==", "98O8HYCOBHMq32eZZczDTKeuNEE=", sha256]);
        let parts = upload(Algorithm::Crc32).in_parts(3).composite().stored();
        assert_eq!(parts.etag, "a8dd1c5498a84913e3d6e7b59d4b4f8f-3");
        assert_eq!(parts.sum.unwrap().value, "BECcDQ==-3");
        assert_eq!(parts.parts[1].range, 3..6);
        let sha256 = "DXduU8OsAkHkQnkyXwW2tfKgCSg3VM7xizQXKsRzmqw=-3";
        assert_eq!(value(upload(Algorithm::Sha256).in_parts(3).composite()), sha256);
        assert_eq!(value(upload(Algorithm::Crc32c).in_parts(3)), "4waSgw==");
    }

    #[test]
    fn damage_leaves_the_checksum_as_it_was() {
        let (whole, damaged) = (Upload::new("abc").stored(), Upload::new("abc").damaged_at(1).stored());
        assert_eq!((&damaged.sum, &damaged.etag), (&whole.sum, &whole.etag));
        assert_eq!(damaged.bytes, Bytes::from("acc"));
    }
}
