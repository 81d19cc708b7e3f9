//! What a staging would do, told before a byte moves. The source is listed, and compared with what the volume holds;
//! nothing is made on the volume, not even the volume.
//!
//! What a staging that was interrupted has left, and would be gone on with, is not looked at: the figures are those of a
//! staging from the beginning.

use std::path::Path;

use super::{
    StageError, StageProgress, StageRequest, large,
    rows::Facts,
    site::{self, Survey},
    spool::Spool,
};
use crate::{
    keymap::Reason,
    room::{self, RoomError, Space},
    snapshot::{self, Fetched, SnapshotId, SnapshotRecord},
    source::{Source, SourceUrl},
    volume::{Volume, VolumeError},
};

/// Dollars a request: S3 Standard in us-east-1, <https://aws.amazon.com/s3/pricing/>, November 2026.
const GET_PRICE: f64 = 0.0004 / 1000.0;
const LIST_PRICE: f64 = 0.005 / 1000.0;
/// A staging of less than both says more of its beginning and end than of its speed.
const TELLING_OBJECTS: u64 = 1000;
const TELLING_BYTES: u64 = 64 << 20;
/// What is assumed where no staging was measured.
const ASSUMED: Fetched = Fetched { objects: 500, bytes: 100 << 20, seconds: 1.0 };

/// What a staging would do.
#[derive(Debug)]
pub struct Preview {
    /// The snapshot that is there already, if the source is unchanged.
    pub unchanged: Option<SnapshotId>,
    /// Objects of the dataset.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that would be fetched; the others would be shared with a snapshot that is there.
    pub fetch_objects: u64,
    /// Their bytes.
    pub fetch_bytes: u64,
    /// What would be asked of S3; none of a directory.
    pub requests: Option<Requests>,
    /// How long it would take.
    pub time: Estimate,
    /// What it would take of the volume.
    pub room: Room,
    /// Keys that would not keep their own names.
    pub renamed: u64,
    /// The first of them.
    pub renames: Vec<Rename>,
}

/// Requests, if none has to be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests {
    /// One for each object or part.
    pub gets: u64,
    /// Of large objects, and of keys that were named.
    pub heads: u64,
    /// Pages of listings.
    pub lists: u64,
}

impl Requests {
    /// In dollars, at the list prices of S3 Standard in us-east-1. Transfer within the region is free.
    pub fn cost(&self) -> f64 {
        (self.gets + self.heads) as f64 * GET_PRICE + self.lists as f64 * LIST_PRICE
    }
}

/// How long a staging would take.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Seconds: the longer of what the objects and what their bytes would take.
    pub seconds: f64,
    /// The speed that is reckoned with.
    pub speed: Fetched,
    /// When an earlier staging of the dataset was so fast, RFC 3339; none: nothing was measured, and it is assumed.
    pub measured: Option<String>,
}

/// What a staging would take of the volume.
#[derive(Debug)]
pub struct Room {
    /// Bytes, each file's last block counted by half.
    pub needed: u64,
    /// Bytes that are free.
    pub free: u64,
    /// Why it would not fit.
    pub fits: Result<(), RoomError>,
}

/// A key that would not keep its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    /// The key.
    pub key: String,
    /// Its path below `data/`.
    pub path: String,
    /// Why.
    pub why: Reason,
}

/// Tells what staging would do with the volume that is at `root`, or would be made there; `renames` is how many keys are
/// shown that do not keep their names.
pub async fn preview(
    root: &Path,
    request: &StageRequest,
    renames: usize,
    progress: &(dyn Fn(StageProgress) + Send + Sync),
) -> Result<Preview, StageError> {
    let volume = match Volume::open(root) {
        Err(VolumeError::Missing { .. }) => None,
        opened => Some(opened?),
    };
    let mut source = Source::connect(&request.url, &request.options).await?;
    let spool = Spool::on_host()?;
    let (listing, survey) = site::list(&mut source, &spool, progress).await?;
    let url = request.url.to_string();
    let records = match &volume {
        Some(volume) => snapshot::records(volume, &request.name)?,
        // The name is looked at all the same.
        None if snapshot::is_name(&request.name) => Vec::new(),
        None => return Err(snapshot::SnapshotError::BadName { name: request.name.clone() }.into()),
    };
    let dataset = root.join("datasets").join(&request.name);
    let bases = site::bases(&dataset, &records, &url)?;
    let unchanged = survey.unchanged(&records, &url, None).map(|record| record.id.clone());
    let Survey { mapping, asked, .. } = &survey;

    let (mut facts, mut gets, mut heads) = (Facts::default(), 0, asked.heads);
    let (mut renamed, mut shown) = (0, Vec::new());
    for row in site::planned(&listing, mapping, &bases, &dataset, |_, _| false)? {
        let row = row?;
        facts.add(&row, None);
        if let Some(why) = mapping.reason(&row.object.key) {
            renamed += 1;
            if shown.len() < renames {
                shown.push(Rename { key: row.object.key.clone(), path: row.path.clone(), why });
            }
        }
        if row.shared.is_none() && unchanged.is_none() {
            gets += large::requests(row.object.size);
            heads += u64::from(row.object.size > large::FROM);
        }
    }
    if unchanged.is_some() {
        (facts.fetch_objects, facts.fetch_bytes) = (0, 0);
    }
    let of_s3 = matches!(request.url, SourceUrl::S3 { .. });
    Ok(Preview {
        unchanged,
        objects: facts.objects,
        bytes: facts.bytes,
        fetch_objects: facts.fetch_objects,
        fetch_bytes: facts.fetch_bytes,
        requests: of_s3.then_some(Requests { gets, heads, lists: asked.lists }),
        time: estimate(&records, &facts),
        room: room(volume.as_ref(), root, &facts)?,
        renamed,
        renames: shown,
    })
}

/// By the newest staging of the dataset that fetched enough to tell.
fn estimate(records: &[SnapshotRecord], facts: &Facts) -> Estimate {
    let tells = |fetched: &Fetched| fetched.objects >= TELLING_OBJECTS || fetched.bytes >= TELLING_BYTES;
    let measured = records.iter().rev().find_map(|record| {
        let fetched = record.fetched.filter(tells)?;
        Some((fetched, record.created.clone()))
    });
    let (speed, measured) = match measured {
        Some((speed, when)) => (speed, Some(when)),
        None => (ASSUMED, None),
    };
    let times = |wanted: u64, done: u64| wanted as f64 / done.max(1) as f64;
    let share = times(facts.fetch_objects, speed.objects).max(times(facts.fetch_bytes, speed.bytes));
    Estimate { seconds: share * speed.seconds, speed, measured }
}

fn room(volume: Option<&Volume>, root: &Path, facts: &Facts) -> Result<Room, StageError> {
    let (bytes, files) = (facts.fetch_bytes, facts.fetch_objects);
    let (space, fits) = match volume {
        Some(volume) => (Space::of(volume)?, room::check(volume, bytes, files)),
        None => {
            let absolute = std::path::absolute(root).map_err(|error| VolumeError::io("resolve", root, error))?;
            let above = absolute.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
            let space = Space::at(above)?;
            (space, space.fits(bytes, files))
        }
    };
    Ok(Room { needed: space.taken_by(bytes, files), free: space.free_bytes, fits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(created: &str, fetched: Option<Fetched>) -> SnapshotRecord {
        SnapshotRecord {
            version: 1,
            id: SnapshotId(created.to_owned()),
            name: "d".to_owned(),
            source: "s3://d/".to_owned(),
            listing: String::new(),
            objects: 1,
            bytes: 1,
            created: created.to_owned(),
            fetched,
            columns: None,
            held_bytes: None,
        }
    }

    #[test]
    fn the_time_is_that_of_the_newest_staging_that_tells() {
        let facts = Facts { fetch_objects: 10, fetch_bytes: 400 << 20, ..Facts::default() };
        let fetched = |bytes, seconds| Some(Fetched { objects: 20, bytes, seconds });
        let few = record("3", fetched(5, 9.0));
        let records = [record("1", fetched(100 << 20, 1.0)), record("2", fetched(200 << 20, 3.0)), few.clone()];
        let measured = estimate(&records, &facts);
        assert_eq!(
            (measured.seconds, measured.measured.as_deref()),
            (6.0, Some("2")),
            "twice the bytes, half the objects"
        );
        let assumed = estimate(&[few], &facts);
        assert_eq!((assumed.seconds, assumed.measured), (4.0, None));
        let small = Facts { fetch_objects: 1000, ..Facts::default() };
        assert_eq!(estimate(&[], &small).seconds, 2.0);
        assert_eq!(estimate(&records, &Facts::default()).seconds, 0.0);
    }

    #[test]
    fn the_cost_is_that_of_the_price_list() {
        let requests = Requests { gets: 900_000, heads: 100_000, lists: 1000 };
        assert!((requests.cost() - 0.405).abs() < 1e-9, "{}", requests.cost());
    }
}
