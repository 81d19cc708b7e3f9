//! What survives from one attempt of a task to the next.
//!
//! Each attempt has a checkpoint directory of its own, and begins with that of the attempt before, which it renames. So
//! an attempt that was given up and is still at work somewhere, behind a cut link or on a host that stood still, finds
//! the name gone, and writes nothing into what its successor reads. The members of a gang share one, by the number of the
//! gang's try.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use forebay_datasets::volume::{self, VolumeError};
use forebay_jobs::id::{AttemptId, Epoch};

use super::Spares;

/// So many names of earlier attempts are tried, the latest first: most attempts before one have left a directory.
const TRIED: usize = 256;

/// Whose a checkpoint directory is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    /// A task's, which takes over what the attempt before has left.
    Task,
    /// A task's beside whose attempt another one goes on, from which nothing is taken.
    TaskBeside,
    /// A gang's, whose members all have the same number and epoch.
    Gang,
}

impl Of {
    fn name(self, id: AttemptId) -> String {
        match self {
            Self::Task | Self::TaskBeside => id.to_string(),
            Self::Gang => format!("gang.{}.{}", id.number, id.epoch),
        }
    }
}

/// The directory of an attempt, below that of all; where there is nothing to take over, a task's is one of the spares.
pub(super) fn dir(all: &Path, id: AttemptId, of: Of, spares: &Spares) -> Result<PathBuf, VolumeError> {
    let own = all.join(of.name(id));
    let numbers = (1..id.number).rev().filter(|_| !matches!(of, Of::TaskBeside));
    let earlier = numbers
        .flat_map(|number| (1..=id.epoch.0).rev().map(move |epoch| AttemptId { number, epoch: Epoch(epoch), ..id }));
    for earlier in earlier.take(TRIED) {
        let theirs = all.join(of.name(earlier));
        // One that is empty is of an attempt that was begun beside another.
        match fs::read_dir(&theirs)
            .map(|mut entries| entries.next().is_some())
            .and_then(|holds| if holds { fs::rename(&theirs, &own).map(|()| true) } else { Ok(false) })
        {
            Ok(true) => return Ok(own),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Another member of the gang was quicker; what stands here a member that is at work still has made anew.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(own),
            Err(error) => return Err(VolumeError::io("take over", &theirs, error)),
        }
    }
    match of {
        Of::Gang => volume::create_dir(&own)?,
        Of::Task | Of::TaskBeside => spares.give(&own)?,
    }
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
        let dir = |number, epoch, of| dir(all.path(), attempt(number, epoch), of, &Spares::default()).unwrap();
        let first = dir(1, 1, Of::Task);
        fs::write(first.join("state"), "1").unwrap();
        // Numbers and epochs in between were of attempts that no program was started for.
        let fourth = dir(4, 3, Of::Task);
        assert_eq!(fs::read(fourth.join("state")).unwrap(), b"1");
        assert!(fs::write(first.join("state"), "late").is_err());
        // Beside one that goes on there is nothing to take, and nothing of it is lost.
        assert_eq!(fs::read_dir(dir(5, 3, Of::TaskBeside)).unwrap().count(), 0);
        let sixth = dir(6, 4, Of::Task);
        assert_eq!(fs::read(sixth.join("state")).unwrap(), b"1");
        assert!(!fourth.exists());
        let other = AttemptId { task: TaskId { phase: 1, index: 7 }, ..attempt(7, 4) };
        let other = super::dir(all.path(), other, Of::Task, &Spares::default()).unwrap();
        assert_eq!(fs::read_dir(other).unwrap().count(), 0);
    }

    #[test]
    fn the_members_of_a_gang_share_a_directory_whichever_of_them_comes_first() {
        let all = tempfile::tempdir().unwrap();
        let member = |index, number, epoch| AttemptId { task: TaskId { phase: 0, index }, ..attempt(number, epoch) };
        let dir =
            |index, number, epoch| dir(all.path(), member(index, number, epoch), Of::Gang, &Spares::default()).unwrap();
        assert_eq!(dir(0, 1, 1), dir(1, 1, 1));
        fs::write(dir(0, 1, 1).join("state"), "1").unwrap();
        // Side by side, as on many hosts.
        let second: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|index| scope.spawn(move || dir(index, 2, 2))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(second.iter().all(|dir| *dir == second[0]));
        assert_eq!(fs::read(second[0].join("state")).unwrap(), b"1");
        // A member of the first try that is at work still takes nothing back.
        assert_eq!(fs::read_dir(dir(3, 1, 1)).unwrap().count(), 0);
        fs::write(dir(3, 1, 1).join("state"), "late").unwrap();
        assert_eq!(fs::read(dir(4, 2, 2).join("state")).unwrap(), b"1");
        assert_eq!(fs::read(dir(3, 3, 2).join("state")).unwrap(), b"1");
    }
}
