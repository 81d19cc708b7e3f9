//! What an object holds before it is staged: its columns, by one or two ranges of its end. All of this blocks.

use std::ops::Range;

use super::{ColumnsError, Footer, Found, TAIL};
use crate::source::{About, Listed, Reader, SourceError, retry};

/// The end of a Parquet object, as much of it as was read to find its footer, and no less than the footer takes.
#[derive(Clone, Debug)]
pub struct End {
    /// What the answer said of the object.
    pub about: About,
    /// The first of its bytes.
    pub from: u64,
    /// Up to the object's last.
    pub bytes: Vec<u8>,
    /// What they end in.
    pub footer: Footer,
    /// How much was received to find it.
    pub received: u64,
}

impl End {
    /// Reads the end of an object, by one request or two.
    pub fn read(reader: &mut Reader, object: &Listed) -> Result<Self, ColumnsError<SourceError>> {
        let (mut from, mut received) = (object.size.saturating_sub(TAIL), 0);
        loop {
            let (about, bytes) = range(reader, object, &(from..object.size)).map_err(ColumnsError::Read)?;
            received += bytes.len() as u64;
            match Footer::find(object.size, &bytes)? {
                Found::Footer(footer) => return Ok(Self { about, from, bytes, footer: *footer, received }),
                Found::From(start) => from = start,
            }
        }
    }
}

/// The footer of a Parquet object of a source. Repeats what may succeed a little later.
pub fn footer(reader: &mut Reader, object: &Listed) -> Result<Footer, ColumnsError<SourceError>> {
    let read = retry::blocking(|| match End::read(reader, object) {
        Err(ColumnsError::Read(error)) => Err(error),
        // What cannot be a footer does not become one.
        read => Ok(read),
    });
    Ok(read.map_err(ColumnsError::Read)??.footer)
}

/// The first lines of a text object, of at most so many bytes. Repeats what may succeed a little later.
pub fn first_lines(reader: &mut Reader, object: &Listed, most: u64) -> Result<Vec<u8>, SourceError> {
    if object.size == 0 {
        return Ok(Vec::new());
    }
    let first = 0..object.size.min(most);
    let mut text = retry::blocking(|| Ok(range(reader, object, &first)?.1))?;
    if first.end < object.size {
        text.truncate(memchr::memrchr(b'\n', &text).map_or(0, |newline| newline + 1));
    }
    Ok(text)
}

fn range(reader: &mut Reader, object: &Listed, range: &Range<u64>) -> Result<(About, Vec<u8>), SourceError> {
    let about = reader.get(object, Some(range))?;
    let expected = range.end - range.start;
    let mut bytes = vec![0; usize::try_from(expected).unwrap_or(usize::MAX)];
    match reader.read(&mut bytes)? as u64 {
        received if received == expected => Ok((about, bytes)),
        received => Err(SourceError::WrongLength { key: object.key.clone(), expected, received }),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, ops::ControlFlow, path::Path};

    use super::*;
    use crate::{
        columns::{Columns, Held},
        source::Source,
    };

    #[tokio::test]
    async fn columns_and_first_lines_are_read_from_the_source() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/nycflights13").canonicalize().unwrap();
        let url = format!("file://{}", dir.display()).parse().unwrap();
        let mut source = Source::connect(&url, &Default::default()).await.unwrap();
        let mut listing = Vec::new();
        let mut page = |objects: Vec<Listed>| {
            listing.extend(objects);
            ControlFlow::Continue(())
        };
        source.list(&mut page).await.unwrap();
        let reader = &mut source.readers().await.unwrap().reader();
        let find = |key: &str| listing.iter().find(|object| object.key == key).unwrap();
        let flights = find("flights/2013-01.parquet");
        let columns = footer(reader, flights).unwrap().columns();
        assert!(columns.iter().count() == 19 && columns.contains("tailnum"), "{columns}");
        let csv = find("airlines.csv");
        let whole = fs::read(dir.join("airlines.csv")).unwrap();
        assert_eq!(first_lines(reader, csv, csv.size).unwrap(), whole);
        let some = first_lines(reader, csv, 50).unwrap();
        assert!(whole.starts_with(&some) && some.ends_with(b"\n") && some.len() <= 50, "{some:?}");
        assert!(matches!(footer(reader, csv), Err(ColumnsError::Footer(_))));
        let end = End::read(reader, flights).unwrap();
        assert_eq!(end.from + end.bytes.len() as u64, flights.size);
        let held = end.footer.held(&Columns::from_iter(["nowhere"])).unwrap();
        let Held::Ranges(ranges) = held else { panic!("{held:?}") };
        assert!(ranges.last().is_some_and(|last| last.end == flights.size), "{ranges:?}");
    }
}
