//! CRC64NVME, the checksum that S3 prefers and that every staged or published file carries.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A CRC64NVME value; shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Crc64(pub u64);

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
