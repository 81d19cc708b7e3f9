//! The journal: what makes a run's events durable.
//!
//! One file an epoch, and one writer a file. It begins with a magic, which holds the format's version, and goes on
//! with frames: length (u32), CRC64NVME (u64), both little-endian, and that many bytes of JSON. The first frame is the
//! [`Header`]; each other one holds the events of one group commit, so that a crash keeps all of a group or none.
//!
//! A file cut at any byte gives the events of its whole frames. A frame that is there and wrong, with more behind it,
//! is no crash but damage, and an error.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use forebay_datasets::{checksum::Hasher, volume};
use forebay_jobs::id::Epoch;
use serde::{Deserialize, Serialize};

use crate::run::Event;

const MAGIC: &[u8; 8] = b"FBYJRNL1";
const FRAME_HEAD: usize = 12;
/// No group commit is larger; a length beyond it is damage.
const LARGEST_FRAME: u32 = 1 << 30;

/// Why a journal could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system failed.
    #[error("cannot {action} the journal {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The journal.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not a journal, or of a version that this forebay does not know.
    #[error("{} is no journal of a version that this forebay knows", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
    },
    /// Whole frames that no run can have led to.
    #[error("the journals of {} tell what cannot have happened: {why}", run.display())]
    Impossible {
        /// The run's directory.
        run: PathBuf,
        /// What.
        why: String,
    },
    /// Damaged before its end.
    #[error("the journal {} is damaged at byte {offset}", path.display())]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Where the bad frame begins.
        offset: u64,
    },
}

/// The first frame: what of the epochs before counts.
///
/// A coordinator that was taken over may wake up and append. What it appends lies beyond the length that its successor
/// saw, and counts for nobody, ever.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// This journal's epoch.
    pub epoch: Epoch,
    /// The journals before, oldest first, with the bytes of each that count.
    pub before: Vec<(Epoch, u64)>,
}

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

/// A journal that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Its header; none if not even that is whole.
    pub header: Option<Header>,
    /// Its events.
    pub events: Vec<Event>,
    /// Bytes of its whole frames.
    pub length: u64,
    /// Bytes behind them: what a crash cut off.
    pub torn: u64,
}

impl Journal {
    /// Begins a journal that is not there yet.
    pub fn create(path: &Path, header: &Header) -> Result<Self, JournalError> {
        let failed = |source| JournalError::Io { action: "create", path: path.to_owned(), source };
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
        let mut journal = Self { path: path.to_owned(), file };
        journal.write(&begin(header))?;
        path.parent().map_or(Ok(()), volume::sync_dir).map_err(|error| failed(io::Error::other(error)))?;
        Ok(journal)
    }

    /// Makes events durable: one write and one fdatasync for all of them.
    pub fn append(&mut self, events: &[Event]) -> Result<(), JournalError> {
        if events.is_empty() {
            return Ok(());
        }
        self.write(&group(events))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        written.map_err(|source| JournalError::Io { action: "append to", path: self.path.clone(), source })
    }
}

fn frame(bytes: &mut Vec<u8>, content: &impl Serialize) {
    let content = serde_json::to_vec(content).expect("events and headers serialise");
    let length = u32::try_from(content.len()).expect("a group commit is smaller than 4 GiB");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(&content).to_le_bytes());
    bytes.extend_from_slice(&content);
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = Hasher::default();
    hasher.update(bytes);
    hasher.finish().0
}

/// Reads a journal, or as many of its bytes as count.
pub fn read(path: &Path, counts: Option<u64>) -> Result<Replay, JournalError> {
    let mut bytes =
        std::fs::read(path).map_err(|source| JournalError::Io { action: "read", path: path.to_owned(), source })?;
    bytes.truncate(counts.and_then(|counts| usize::try_from(counts).ok()).unwrap_or(usize::MAX));
    parse(&bytes).map_err(|wrong| match wrong {
        Wrong::Magic => JournalError::Magic { path: path.to_owned() },
        Wrong::At(offset) => JournalError::Damaged { path: path.to_owned(), offset: offset as u64 },
    })
}

/// What of a journal cannot be read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wrong {
    Magic,
    /// The frame that begins at this byte.
    At(usize),
}

/// Understands a journal's bytes.
pub(crate) fn parse(bytes: &[u8]) -> Result<Replay, Wrong> {
    let mut replay = Replay { header: None, events: Vec::new(), length: 0, torn: bytes.len() as u64 };
    if bytes.len() < MAGIC.len() && MAGIC.starts_with(bytes) {
        return Ok(replay);
    }
    let mut rest = bytes.strip_prefix(MAGIC).ok_or(Wrong::Magic)?;
    let wrong = |rest: &[u8]| Wrong::At(bytes.len() - rest.len());
    while let Some((head, body)) = rest.split_at_checked(FRAME_HEAD) {
        let (length, crc) = head.split_at(4);
        let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
        let crc = u64::from_le_bytes(crc.try_into().expect("eight bytes"));
        if length > LARGEST_FRAME {
            return Err(wrong(rest));
        }
        // A file system may grow a file before it writes to it; no frame is empty.
        if length == 0 {
            break;
        }
        let Some((content, after)) = body.split_at_checked(length as usize) else { break };
        if checksum(content) != crc {
            // The last frame's blocks may reach the disk in any order; nothing behind them can have.
            if after.is_empty() {
                break;
            }
            return Err(wrong(rest));
        }
        match &replay.header {
            None => replay.header = Some(serde_json::from_slice(content).map_err(|_| wrong(rest))?),
            Some(_) => {
                let events: Vec<Event> = serde_json::from_slice(content).map_err(|_| wrong(rest))?;
                replay.events.extend(events);
            }
        }
        rest = after;
        replay.length = (bytes.len() - rest.len()) as u64;
    }
    replay.torn = bytes.len() as u64 - replay.length;
    Ok(replay)
}

/// A journal's first bytes.
pub(crate) fn begin(header: &Header) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    frame(&mut bytes, header);
    bytes
}

/// The bytes of a group of events.
pub(crate) fn group(events: &[Event]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame(&mut bytes, &events);
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use forebay_datasets::{
        checksum::Crc64,
        split::{Part, Piece, Split},
        volume::Holder,
    };
    use forebay_jobs::{
        id::{AttemptId, TaskId},
        task::{Failure, OutputFile},
    };

    use super::*;
    use crate::run::{EndState, Event, Finished, Millis, Reused};

    fn opened(at: u64) -> Event {
        Event::Opened { epoch: Epoch(1), at: Millis(at) }
    }

    /// A journal of two groups of two events, and where each of its frames ends.
    fn written(dir: &Path) -> (PathBuf, Header, Vec<u64>) {
        let path = dir.join("journal.log");
        let header = Header { epoch: Epoch(2), before: vec![(Epoch(1), 77)] };
        let mut journal = Journal::create(&path, &header).unwrap();
        let mut ends = vec![std::fs::metadata(&path).unwrap().len()];
        for group in 0..2 {
            journal.append(&[opened(2 * group), opened(2 * group + 1)]).unwrap();
            ends.push(std::fs::metadata(&path).unwrap().len());
        }
        (path, header, ends)
    }

    #[test]
    fn a_journal_cut_at_any_byte_gives_its_whole_groups() {
        let dir = tempfile::tempdir().unwrap();
        let (path, header, ends) = written(dir.path());
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let replay = read(&path, None).unwrap();
            let groups = ends.iter().filter(|end| **end <= cut as u64).count();
            assert_eq!(replay.header, (groups > 0).then(|| header.clone()), "cut at {cut}");
            assert_eq!(replay.events, (0..2 * groups.saturating_sub(1) as u64).map(opened).collect::<Vec<_>>());
            assert_eq!(replay.length + replay.torn, cut as u64);
        }
    }

    /// One event of each kind, as this version writes them.
    fn every_kind() -> Vec<Event> {
        let (worker, at) = ("local-1-1".parse::<forebay_jobs::id::WorkerId>().unwrap(), Millis(1_796_000_000_000));
        let attempt = |index, number| AttemptId { task: TaskId { phase: 0, index }, number, epoch: Epoch(1) };
        let process = Holder {
            host: "h".into(),
            pid: 17,
            pid_started: Some(4711),
            pid_namespace: Some("pid:[1]".into()),
            boot: Some("b".into()),
        };
        let output = OutputFile {
            path: "runs/r/attempts/0-0.1.1/x".into(),
            publish_as: Some("task-00000/x".into()),
            partition: Some(3),
            size: u64::MAX,
            checksum: Crc64(u64::MAX),
            rows: Some(9),
        };
        let metrics = BTreeMap::from([("loss".to_owned(), 0.25)]);
        let failure = Failure::ExitCode { code: 1, stderr: "\u{1b}why".into() };
        vec![
            Event::Opened { epoch: Epoch(1), at },
            Event::Planned { snapshot: None, phases: vec![3, 1], at },
            Event::InputsStaged { tasks: vec![0, 2] },
            Event::Staged { snapshot: "5nap".into(), at },
            Event::WorkerJoined {
                worker: worker.clone(),
                slots: 2,
                process: Some(process),
                until: Some(Millis(7)),
                at,
            },
            Event::WorkerJoined { worker: worker.clone(), slots: 2, process: None, until: None, at },
            Event::WorkerDrains { worker: worker.clone() },
            Event::WorkerAbsent { worker: worker.clone(), at },
            Event::Assigned { worker: worker.clone(), attempts: vec![attempt(0, 1), attempt(1, 1)], at },
            Event::Started { attempts: vec![attempt(0, 1)], at },
            Event::Committed { attempt: attempt(0, 1), outputs: vec![output], metrics, micros: 17, rest: vec![], at },
            Event::Committed {
                attempt: attempt(2, 1),
                outputs: vec![],
                metrics: BTreeMap::new(),
                micros: 0,
                rest: vec![],
                at,
            },
            Event::AttemptFailed { attempt: attempt(1, 1), failure, retry_at: Some(Millis(5)), at },
            Event::AttemptFailed {
                attempt: attempt(1, 2),
                failure: Failure::OutOfMemory { limit: 5 },
                retry_at: None,
                at,
            },
            Event::AttemptReturned { attempt: attempt(1, 3), retry_at: Millis(6), lost: true },
            Event::WorkerLeft { worker },
            Event::CancelRequested { at },
            Event::Aborted { error: "no".into(), at },
            Event::Published { files: 1, bytes: 2, rows: Some(3), at },
            Event::Exported { at },
            Event::Ended { state: EndState::Failed, at },
        ]
    }

    /// Add a file when a version writes something new; never change one.
    #[test]
    fn a_journal_of_an_earlier_version_is_read_as_it_was_written() {
        let header = Header { epoch: Epoch(2), before: vec![(Epoch(1), 77)] };
        for (kept, events) in [
            (&include_bytes!("../testdata/journal-0.1.log")[..], every_kind()),
            (&include_bytes!("../testdata/journal-0.1-gang.log")[..], of_a_gang()),
            (&include_bytes!("../testdata/journal-0.1-rest.log")[..], of_a_rest()),
            (&include_bytes!("../testdata/journal-0.1-reuse.log")[..], of_reuse()),
        ] {
            let replay = parse(kept).unwrap();
            assert_eq!(replay.header.as_ref(), Some(&header));
            assert_eq!((&replay.events, replay.torn), (&events, 0));
            // What is written today is what was kept, or a file is missing.
            assert_eq!([begin(&header), group(&events)].concat(), kept);
        }
    }

    fn of_a_rest() -> Vec<Event> {
        let attempt = AttemptId { task: TaskId { phase: 0, index: 1 }, number: 1, epoch: Epoch(2) };
        let part = Part::Bytes { offset: 4, length: 5 };
        let piece = Piece { key: "a".into(), path: "datasets/d/a".into(), size: 9, partial: false, part };
        let (rest, at) = (vec![Split { pieces: vec![piece] }], Millis(8));
        let (outputs, metrics) = (vec![], BTreeMap::new());
        vec![Event::Yields { attempt, at }, Event::Committed { attempt, outputs, metrics, micros: 7, rest, at }]
    }

    fn of_reuse() -> Vec<Event> {
        let attempt = AttemptId { task: TaskId { phase: 1, index: 4 }, number: 1, epoch: Epoch(2) };
        let file = OutputFile {
            path: "runs/r/attempts/reused.1.2/4-0".into(),
            publish_as: Some("part-00004.csv".into()),
            partition: None,
            size: 5,
            checksum: Crc64(6),
            rows: Some(7),
        };
        let (from, at) = ("earlier".parse::<forebay_jobs::id::RunId>().unwrap(), Millis(8));
        let work = serde_json::json!({ "whole": "00ff", "parts": { "the work": "01" } });
        let work = Some(serde_json::from_value(work).unwrap());
        vec![
            Event::Reused { tasks: vec![Reused { attempt, outputs: vec![file], from: from.clone() }], at },
            Event::Sought { phase: 1, work, among: vec![from], at },
            Event::Sought { phase: 1, work: None, among: vec![], at },
        ]
    }

    fn of_a_gang() -> Vec<Event> {
        let attempt = AttemptId { task: TaskId { phase: 0, index: 1 }, number: 2, epoch: Epoch(2) };
        let file = OutputFile {
            path: "runs/r/attempts/0-1.2.2/model".into(),
            publish_as: Some("task-00001/model".into()),
            partition: None,
            size: 5,
            checksum: Crc64(6),
            rows: None,
        };
        let (outputs, metrics) = (vec![file], BTreeMap::from([("loss".to_owned(), 0.5)]));
        let finished = Finished { attempt, outputs, metrics, micros: 7 };
        vec![Event::Finished { finished, at: Millis(8) }, Event::GangBroke, Event::GangReady]
    }

    #[test]
    fn what_a_successor_did_not_see_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _, ends) = written(dir.path());
        assert_eq!(read(&path, Some(ends[1])).unwrap().events.len(), 2);
    }

    #[test]
    fn a_flipped_bit_is_damage_or_a_torn_end_and_never_another_event() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _, ends) = written(dir.path());
        let bytes = std::fs::read(&path).unwrap();
        let whole = read(&path, None).unwrap();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            std::fs::write(&path, &flipped).unwrap();
            match read(&path, None) {
                Err(_) => {}
                Ok(replay) => {
                    assert!(whole.events.starts_with(&replay.events), "flipped at {at}");
                    assert!(replay.torn > 0, "flipped at {at}");
                    assert!(at as u64 >= ends[1] || replay.events.is_empty(), "flipped at {at}");
                }
            }
        }
    }

    #[test]
    fn a_journal_has_one_writer() {
        let dir = tempfile::tempdir().unwrap();
        let (path, header, _) = written(dir.path());
        assert!(matches!(Journal::create(&path, &header), Err(JournalError::Io { .. })));
    }

    #[test]
    fn another_file_is_no_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "FBYJRNL2 of the future").unwrap();
        assert!(matches!(read(&path, None), Err(JournalError::Magic { .. })));
    }
}
