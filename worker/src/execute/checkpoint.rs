//! What survives from one attempt of a task to the next.
//!
//! Each attempt has a checkpoint directory of its own, and begins with that of the attempt before, which it renames. So
//! an attempt that was given up and is still at work somewhere, behind a cut link or on a host that stood still, finds
//! the name gone, and writes nothing into what its successor reads.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use forebay_datasets::volume::VolumeError;
use forebay_jobs::id::{AttemptId, Epoch};

use super::Spares;

/// So many names of earlier attempts are tried, the latest first: most attempts before one have left a directory.
const TRIED: usize = 256;

/// The directory of an attempt, below that of all. One that is begun `beside` another takes nothing from that; where
/// there is nothing to take over, it is one of the spares.
pub(super) fn dir(all: &Path, id: AttemptId, beside: bool, spares: &Spares) -> Result<PathBuf, VolumeError> {
    let own = all.join(id.to_string());
    let numbers = (1..id.number).rev().filter(|_| !beside);
    let earlier = numbers
        .flat_map(|number| (1..=id.epoch.0).rev().map(move |epoch| AttemptId { number, epoch: Epoch(epoch), ..id }));
    for earlier in earlier.take(TRIED) {
        let theirs = all.join(earlier.to_string());
        // One that is empty is of an attempt that was begun beside another.
        match fs::read_dir(&theirs)
            .map(|mut entries| entries.next().is_some())
            .and_then(|holds| if holds { fs::rename(&theirs, &own).map(|()| true) } else { Ok(false) })
        {
            Ok(true) => return Ok(own),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(VolumeError::io("take over", &theirs, error)),
        }
    }
    spares.give(&own)?;
    Ok(own)
}

#[cfg(test)]
mod tests {
    use forebay_jobs::id::TaskId;

    use super::*;

    fn attempt(number: u32, epoch: u32) -> AttemptId {
        AttemptId { task: TaskId { phase: 0, index: 7 }, number, epoch: Epoch(epoch) }
    }

    #[test]
    fn an_attempt_goes_on_where_the_latest_before_it_was_and_that_one_writes_there_no_more() {
        let all = tempfile::tempdir().unwrap();
        let dir = |number, epoch, beside| dir(all.path(), attempt(number, epoch), beside, &Spares::default()).unwrap();
        let first = dir(1, 1, false);
        fs::write(first.join("state"), "1").unwrap();
        // Numbers and epochs in between were of attempts that no program was started for.
        let fourth = dir(4, 3, false);
        assert_eq!(fs::read(fourth.join("state")).unwrap(), b"1");
        assert!(fs::write(first.join("state"), "late").is_err());
        // Beside one that goes on there is nothing to take, and nothing of it is lost.
        assert_eq!(fs::read_dir(dir(5, 3, true)).unwrap().count(), 0);
        let sixth = dir(6, 4, false);
        assert_eq!(fs::read(sixth.join("state")).unwrap(), b"1");
        assert!(!fourth.exists());
        let other = AttemptId { task: TaskId { phase: 1, index: 7 }, ..attempt(7, 4) };
        let other = super::dir(all.path(), other, false, &Spares::default()).unwrap();
        assert_eq!(fs::read_dir(other).unwrap().count(), 0);
    }
}
