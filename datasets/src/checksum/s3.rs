//! The checksums that S3 keeps of an object: of the whole object, or of its parts.
//!
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html>

use std::fmt;

use crc_fast::CrcAlgorithm;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// An algorithm of S3's; MD5 stands for an ETag that is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// CRC-64/NVME
    Crc64Nvme,
    /// CRC-32/ISCSI
    Crc32C,
    /// CRC-32/ISO-HDLC
    Crc32,
    /// SHA-256
    Sha256,
    /// SHA-1
    Sha1,
    /// MD5
    Md5,
}

impl Algorithm {
    /// Those that have a header of their own, the one first that is cheapest to compare for what it tells.
    pub(crate) const OF_HEADERS: [(Self, &str); 5] = [
        (Self::Crc64Nvme, "x-amz-checksum-crc64nvme"),
        (Self::Crc32C, "x-amz-checksum-crc32c"),
        (Self::Crc32, "x-amz-checksum-crc32"),
        (Self::Sha256, "x-amz-checksum-sha256"),
        (Self::Sha1, "x-amz-checksum-sha1"),
    ];

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Crc32C => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Sha256 | Self::Sha1 | Self::Md5 => None,
        }
    }

    /// Whether the checksum of a whole follows from those of its parts.
    pub fn combines(self) -> bool {
        self.crc().is_some()
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crc64Nvme => "CRC64NVME",
            Self::Crc32C => "CRC32C",
            Self::Crc32 => "CRC32",
            Self::Sha256 => "SHA256",
            Self::Sha1 => "SHA1",
            Self::Md5 => "MD5",
        })
    }
}

/// What S3 says of an object's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// By which algorithm.
    pub algorithm: Algorithm,
    /// The value, as bytes.
    pub value: Vec<u8>,
    /// None: of the whole object. Else of the checksums of so many parts, one after the other.
    pub parts: Option<u32>,
}

impl Expected {
    /// From a header's value: base64, and `-<parts>` behind it where it is composite.
    pub(crate) fn of_header(algorithm: Algorithm, text: &str, composite: bool) -> Option<Self> {
        let (value, parts) = match text.rsplit_once('-') {
            Some((value, parts)) => (value, Some(parts.parse().ok()?)),
            // S3 says composite and gives no number where the object has one part.
            None => (text, composite.then_some(1)),
        };
        Some(Self { algorithm, value: aws_smithy_types::base64::decode(value).ok()?, parts })
    }

    /// From an ETag of 32 hexadecimal digits.
    pub(crate) fn of_md5(etag: &str) -> Option<Self> {
        let pairs = etag.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
        Some(Self { algorithm: Algorithm::Md5, value: pairs.collect::<Option<_>>()?, parts: None })
    }
}

/// Computes a checksum over bytes as they pass, in order.
#[derive(Clone)]
pub enum Digest {
    /// One of the CRCs.
    Crc(Algorithm, crc_fast::Digest),
    /// SHA-256
    Sha256(Sha256),
    /// SHA-1
    Sha1(Sha1),
    /// MD5
    Md5(Md5),
}

impl Digest {
    /// Of no bytes.
    pub fn new(algorithm: Algorithm) -> Self {
        match (algorithm, algorithm.crc()) {
            (algorithm, Some(crc)) => Self::Crc(algorithm, crc_fast::Digest::new(crc)),
            (Algorithm::Sha256, _) => Self::Sha256(Sha256::new()),
            (Algorithm::Sha1, _) => Self::Sha1(Sha1::new()),
            _ => Self::Md5(Md5::new()),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc(_, digest) => digest.update(bytes),
            Self::Sha256(digest) => digest.update(bytes),
            Self::Sha1(digest) => digest.update(bytes),
            Self::Md5(digest) => digest.update(bytes),
        }
    }

    /// The value, as S3 writes it: big-endian bytes.
    pub fn finish(self) -> Vec<u8> {
        match self {
            Self::Crc(algorithm, digest) => crc_bytes(algorithm, digest.finalize()),
            Self::Sha256(digest) => digest.finalize().to_vec(),
            Self::Sha1(digest) => digest.finalize().to_vec(),
            Self::Md5(digest) => digest.finalize().to_vec(),
        }
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest")
    }
}

fn crc_bytes(algorithm: Algorithm, value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    bytes[if algorithm == Algorithm::Crc64Nvme { 0 } else { 4 }..].to_vec()
}

/// The CRC of bytes whose CRC is `first` followed by `length` bytes whose CRC is `second`.
///
/// # Panics
/// For an algorithm that does not [combine](Algorithm::combines).
pub(crate) fn followed_by(algorithm: Algorithm, first: &[u8], second: &[u8], length: u64) -> Vec<u8> {
    let crc = algorithm.crc().expect("callers ask whether it combines");
    let value = |bytes: &[u8]| bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    crc_bytes(algorithm, crc_fast::checksum_combine(crc, value(first), value(second), length))
}

/// The composite checksum of parts, from theirs.
pub(crate) fn composite<'a>(algorithm: Algorithm, parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut digest = Digest::new(algorithm);
    parts.into_iter().for_each(|part| digest.update(part));
    digest.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Algorithm; 6] =
        [Algorithm::Crc64Nvme, Algorithm::Crc32C, Algorithm::Crc32, Algorithm::Sha256, Algorithm::Sha1, Algorithm::Md5];

    fn of(algorithm: Algorithm, bytes: &[u8]) -> Vec<u8> {
        let mut digest = Digest::new(algorithm);
        digest.update(bytes);
        digest.finish()
    }

    #[test]
    fn the_check_values_of_the_catalogues_are_met() {
        // Of "123456789": https://reveng.sourceforge.io/crc-catalogue/ and the RFCs of the others.
        let known = [
            "ae8b14860a799888",
            "e3069283",
            "cbf43926",
            "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
            "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
            "25f9e794323b453885f5181f1b624d0b",
        ];
        for (algorithm, known) in ALL.into_iter().zip(known) {
            assert_eq!(crate::snapshot::hex(&of(algorithm, b"123456789")), known, "{algorithm}");
        }
    }

    #[test]
    fn the_crc_of_a_whole_follows_from_those_of_its_parts() {
        for algorithm in ALL.into_iter().filter(|algorithm| algorithm.combines()) {
            let (first, second) = (of(algorithm, b"1234"), of(algorithm, b"56789"));
            assert_eq!(followed_by(algorithm, &first, &second, 5), of(algorithm, b"123456789"), "{algorithm}");
        }
    }

    #[test]
    fn headers_tell_whole_from_composite() {
        let whole = Expected::of_header(Algorithm::Crc32, "y/Q5Jg==", false).unwrap();
        assert_eq!((whole.value, whole.parts), (vec![0xcb, 0xf4, 0x39, 0x26], None));
        assert_eq!(Expected::of_header(Algorithm::Crc32, "y/Q5Jg==-7", false).unwrap().parts, Some(7));
        assert_eq!(Expected::of_header(Algorithm::Crc32, "y/Q5Jg==", true).unwrap().parts, Some(1));
        assert_eq!(Expected::of_header(Algorithm::Crc32, "?", false), None);
        assert_eq!(
            Expected::of_md5("25f9e794323b453885f5181f1b624d0b").unwrap().value,
            of(Algorithm::Md5, b"123456789")
        );
    }
}
