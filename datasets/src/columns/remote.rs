//! What an object holds before it is staged: its columns, by one or two ranges of it.

use super::{Columns, ColumnsError, Footer, Found, Held, SMALL, TAIL};
use crate::{
    source::{Listed, Source, SourceError},
    stage::retry,
};

/// What of a Parquet object of a source is to be fetched for the wanted columns: [`ranges`](super::ranges) of what the
/// source answers.
pub async fn held(source: &Source, object: &Listed, wanted: &Columns) -> Result<Held, ColumnsError<SourceError>> {
    match object.size {
        0..=SMALL => Ok(Held::Whole),
        _ => Ok(footer(source, object).await?.held(wanted)?),
    }
}

/// The footer of a Parquet object of a source.
pub async fn footer(source: &Source, object: &Listed) -> Result<Footer, ColumnsError<SourceError>> {
    let mut from = object.size.saturating_sub(TAIL);
    loop {
        let range = from..object.size;
        let tail = retry::transient(async || source.read(object, Some(range.clone())).await).await;
        match Footer::find(object.size, &tail.map_err(ColumnsError::Read)?)? {
            Found::Footer(footer) => return Ok(*footer),
            Found::From(start) => from = start,
        }
    }
}

/// The first lines of a text object, of at most so many bytes.
pub async fn first_lines(source: &Source, object: &Listed, most: u64) -> Result<Vec<u8>, SourceError> {
    let range = (object.size > most).then_some(0..most);
    let mut text = retry::transient(async || source.read(object, range.clone()).await).await?;
    if range.is_some() {
        text.truncate(memchr::memrchr(b'\n', &text).map_or(0, |newline| newline + 1));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[tokio::test]
    async fn columns_and_first_lines_are_read_from_the_source() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/nycflights13").canonicalize().unwrap();
        let url = format!("file://{}", dir.display()).parse().unwrap();
        let source = Source::connect(&url, &Default::default()).await.unwrap();
        let listing = source.list(&|_| ()).await.unwrap();
        let find = |key: &str| listing.iter().find(|object| object.key == key).unwrap();
        let columns = footer(&source, find("flights/2013-01.parquet")).await.unwrap().columns();
        assert!(columns.iter().count() == 19 && columns.contains("tailnum"), "{columns}");
        let csv = find("airlines.csv");
        let whole = fs::read(dir.join("airlines.csv")).unwrap();
        assert_eq!(first_lines(&source, csv, csv.size).await.unwrap(), whole);
        let some = first_lines(&source, csv, 50).await.unwrap();
        assert!(whole.starts_with(&some) && some.ends_with(b"\n") && some.len() <= 50, "{some:?}");
        assert!(matches!(footer(&source, csv).await, Err(ColumnsError::Footer(_))));
        let flights = find("flights/2013-01.parquet");
        let held = held(&source, flights, &["nowhere"].into_iter().collect()).await.unwrap();
        let Held::Ranges(ranges) = held else { panic!("{held:?}") };
        assert!(ranges.last().is_some_and(|last| last.end == flights.size), "{ranges:?}");
        assert_eq!(super::held(&source, csv, &Columns::default()).await.unwrap(), Held::Whole, "it is not looked at");
    }
}
