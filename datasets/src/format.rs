//! What an object's name says of its content, and where it can be cut.

use std::{fs::File, path::Path};

use parquet::file::reader::{FileReader, SerializedFileReader};

/// What an object holds, by its key's extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.parquet`, `.pq`
    Parquet,
    /// `.csv`: a quoted field may hold newlines, so that it is cut between files only.
    Csv,
    /// `.ndjson`, `.jsonl`
    Ndjson,
    /// Lines: all other names.
    Text,
    /// Compressed, or known to hold no lines.
    Opaque,
}

const OPAQUE: &[&str] = &[
    "7z", "arrow", "avi", "avro", "bin", "bz2", "feather", "gif", "gz", "h5", "ico", "jpeg", "jpg", "lz4", "mkv",
    "mov", "mp3", "mp4", "npy", "npz", "onnx", "orc", "pdf", "png", "pt", "rar", "so", "tar", "tgz", "wasm", "wav",
    "webm", "webp", "woff", "woff2", "xz", "zip", "zst",
];

impl Format {
    /// By the key's last extension, whatever its case.
    pub fn of(key: &str) -> Self {
        let extension = Path::new(key).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match &*extension.to_ascii_lowercase() {
            "parquet" | "pq" => Self::Parquet,
            "csv" => Self::Csv,
            "ndjson" | "jsonl" => Self::Ndjson,
            extension if OPAQUE.contains(&extension) => Self::Opaque,
            _ => Self::Text,
        }
    }

    /// Whether every newline ends a record.
    pub fn is_lines(self) -> bool {
        matches!(self, Self::Text | Self::Ndjson)
    }
}

/// Compressed bytes of each row group of a Parquet file, from its footer.
pub fn row_groups(path: &Path) -> Result<Vec<u64>, parquet::errors::ParquetError> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let size = |group: &parquet::file::metadata::RowGroupMetaData| u64::try_from(group.compressed_size()).unwrap_or(0);
    Ok(reader.metadata().row_groups().iter().map(size).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_formats() {
        for (key, format) in [
            ("a/b.PARQUET", Format::Parquet),
            ("x.csv", Format::Csv),
            ("x.jsonl", Format::Ndjson),
            ("README", Format::Text),
            ("x.csv.gz", Format::Opaque),
        ] {
            assert_eq!(Format::of(key), format, "{key}");
        }
    }
}
