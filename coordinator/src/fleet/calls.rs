//! What the coordinators of a run have asked its engine for, as files: `fleet.ndjson` in each epoch's directory.
//!
//! A call is durable before the engine hears of it. So whoever comes after a coordinator that was killed between call and
//! answer knows that there may be members, and under which token.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use forebay_jobs::id::MemberId;
use serde::{Deserialize, Serialize};

use super::engine::{Call, Token};

/// The name of the file.
const CALLS: &str = "fleet.ndjson";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Called { token: Token, count: u32 },
    Answered { token: Token, members: Vec<MemberId> },
}

/// One epoch's file, which it alone writes.
#[derive(Debug)]
pub(super) struct Calls {
    path: PathBuf,
}

/// What earlier coordinators have left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Earlier {
    /// Calls to which no answer was written down: who asked may have been killed.
    pub(super) open: BTreeMap<Token, u32>,
    /// What the others have started.
    pub(super) members: BTreeMap<MemberId, Token>,
}

impl Calls {
    /// The file of an epoch.
    pub(super) fn of(epoch_dir: &Path) -> Self {
        Self { path: epoch_dir.join(CALLS) }
    }

    /// Notes that the engine is about to be asked. Once this returns, nothing takes the note away.
    pub(super) fn called(&self, call: &Call) -> io::Result<()> {
        let is_new = !self.path.exists();
        self.append(&Line::Called { token: call.token.clone(), count: call.count })?.sync_data()?;
        match self.path.parent() {
            Some(dir) if is_new => File::open(dir)?.sync_all(),
            _ => Ok(()),
        }
    }

    /// Notes what came of it. Lost, it is found out again.
    pub(super) fn answered(&self, token: &Token, members: &[MemberId]) -> io::Result<()> {
        self.append(&Line::Answered { token: token.clone(), members: members.to_vec() }).map(drop)
    }

    fn append(&self, line: &Line) -> io::Result<File> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        // After a line that was torn, too, this one is whole.
        file.write_all(format!("\n{}\n", serde_json::to_string(line)?).as_bytes())?;
        Ok(file)
    }
}

/// Reads what all epochs below a directory have left.
pub(super) fn earlier(epochs: &Path) -> io::Result<Earlier> {
    let (mut called, mut answered) = (BTreeMap::new(), BTreeMap::new());
    for entry in fs::read_dir(epochs)? {
        let text = match fs::read_to_string(entry?.path().join(CALLS)) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(error) => return Err(error),
        };
        for line in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            match line {
                Line::Called { token, count } => drop(called.insert(token, count)),
                Line::Answered { token, members } => drop(answered.insert(token, members)),
            }
        }
    }
    called.retain(|token, _| !answered.contains_key(token));
    let members =
        answered.into_iter().flat_map(|(token, members)| members.into_iter().map(move |m| (m, token.clone())));
    Ok(Earlier { open: called, members: members.collect() })
}

#[cfg(test)]
mod tests {
    use forebay_jobs::id::Epoch;

    use super::*;
    use crate::fleet::engine::Tag;

    #[test]
    fn calls_without_an_answer_are_open_whatever_epoch_they_are_of_and_a_torn_line_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let tag = Tag::of("v", &"r".parse().unwrap());
        let call = |epoch| Call { token: tag.fresh(Epoch(epoch)), count: epoch + 2, again: false };
        let (first, second, third) = (call(1), call(1), call(2));
        for name in ["1.sealed", "2"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(earlier(dir.path()).unwrap(), Earlier::default());
        let calls = Calls::of(&dir.path().join("1.sealed"));
        calls.called(&first).unwrap();
        calls.called(&second).unwrap();
        let mut file = OpenOptions::new().append(true).open(&calls.path).unwrap();
        file.write_all(b"{\"answered\":{\"tok").unwrap();
        let calls = Calls::of(&dir.path().join("2"));
        calls.called(&third).unwrap();
        let member: MemberId = "m-1".parse().unwrap();
        calls.answered(&first.token, std::slice::from_ref(&member)).unwrap();
        let found = earlier(dir.path()).unwrap();
        assert_eq!(found.open, [(second.token, 3), (third.token, 4)].into());
        assert_eq!(found.members, [(member, first.token)].into());
    }
}
