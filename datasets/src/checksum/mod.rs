//! CRC64NVME, the checksum that S3 prefers and that every staged or published file carries; and the others of S3's.

mod s3;

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
    str::FromStr,
};

use crc_fast::{CrcAlgorithm, Digest};
use serde::{Deserialize, Serialize};

pub use self::s3::{Algorithm, Digest as S3Digest, Expected};
pub(crate) use self::s3::{composite, followed_by};

/// A CRC64NVME value; shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Crc64(pub u64);

impl Crc64 {
    /// The checksum of bytes with this one, followed by `length` bytes with the other.
    pub fn followed_by(self, next: Self, length: u64) -> Self {
        Self(crc_fast::checksum_combine(CrcAlgorithm::Crc64Nvme, self.0, next.0, length))
    }

    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes))
    }
}

impl fmt::Display for Crc64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Crc64> for String {
    fn from(crc: Crc64) -> Self {
        crc.to_string()
    }
}

impl FromStr for Crc64 {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Crc64)
    }
}

impl TryFrom<String> for Crc64 {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Computes a [`Crc64`] over bytes as they pass.
#[derive(Clone, Debug)]
pub struct Hasher(Digest);

impl Default for Hasher {
    fn default() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64Nvme))
    }
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far.
    pub fn finish(&self) -> Crc64 {
        Crc64(self.0.finalize())
    }
}

/// Size and checksum of a file, by large reads.
pub fn file_checksum(path: &Path) -> io::Result<(u64, Crc64)> {
    let mut file = File::open(path)?;
    // Most files of an attempt are small.
    let expected = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut buffer = vec![0; expected.clamp(4 << 10, 1 << 20)];
    let (mut hasher, mut size) = (Hasher::default(), 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((size, hasher.finish())),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_catalogue_is_met() {
        // CRC-64/NVME of "123456789", https://reveng.sourceforge.io/crc-catalogue/
        let mut hasher = Hasher::default();
        hasher.update(b"12345");
        hasher.update(b"6789");
        assert_eq!(hasher.finish().to_string(), "ae8b14860a799888");
        assert_eq!(Crc64::of(b"123").followed_by(Crc64::of(b"456789"), 6), hasher.finish());
        assert_eq!("ae8b14860a799888".parse(), Ok(hasher.finish()));
    }
}
