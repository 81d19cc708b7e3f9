//! The stagers of one staging, on whatever hosts, and how they share its work.
//!
//! Who lists a source and finds no snapshot of that listing works in `staging/<digest of the listing>/`, and so all who
//! find the same meet there. A stager claims a chunk of the plan by creating `claims/<chunk>.<generation>`, which has
//! exactly one winner; no lock is needed, and none is trusted. It records what it has done in its own log, and shows
//! that it is alive by giving its `alive.json` the file server's present as its time of change every few seconds.
//!
//! Who has nothing left to claim waits for the others. A stager that has ended, whose process is seen to be gone, or
//! whose time has not changed for [`SILENCE`] by the observer's own watch, or by the file server's before there was an
//! observer, has its chunks taken over, by the claim of
//! the next generation. One that was only stopped, and wakes up, does no harm: what it writes into are files that were
//! replaced by rename, and where a name is taken it gives way.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use super::{
    StageError,
    ledger::{Ledger, Record},
};
use crate::volume::{self, Holder, VolumeError};

/// How often a stager says that it is alive.
const BEAT: Duration = Duration::from_secs(3);
/// Who was silent for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(15);

const ALIVE: &str = "alive.json";
const LOG: &str = "log.ndjson";

/// What came of claiming a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// It is this stager's.
    Mine {
        /// What became of the one who had it before.
        before: Before,
    },
    /// Another one that is alive has it.
    Held,
    /// All of it is done.
    Done,
}

/// Who had a chunk before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nobody.
    Nobody,
    /// One that is surely gone: what it has begun can be gone on with.
    Gone,
    /// One that is silent, and may wake up: what it has begun is its own.
    Silent,
}

/// This stager among the others.
pub(super) struct Crew {
    dir: PathBuf,
    me: String,
    log: Mutex<File>,
    ledger: Mutex<Ledger>,
    peers: Mutex<BTreeMap<String, Peer>>,
    beat: Arc<(Mutex<bool>, Condvar)>,
    beating: Option<JoinHandle<()>>,
}

struct Peer {
    holder: Option<Holder>,
    log: File,
    /// Up to which its log was read.
    read: u64,
    /// Its last sign of life, and since when there was no other.
    beat: Option<(SystemTime, Instant)>,
    gone: bool,
}

impl Crew {
    /// Joins the stagers at work in a directory, and reads what they have done.
    pub(super) fn join(dir: &Path) -> Result<Self, StageError> {
        for part in ["claims", "stagers"] {
            volume::create_dirs(&dir.join(part))?;
        }
        let me = volume::nonce();
        let stagers = dir.join("stagers");
        let (new, own) = (stagers.join(format!(".new-{me}")), stagers.join(&me));
        volume::create_dir(&new)?;
        let holder = serde_json::to_vec(&Holder::this_process()).expect("plain fields serialise");
        fs::write(new.join(ALIVE), holder).map_err(|error| VolumeError::io("write", &new, error))?;
        fs::write(new.join(LOG), "").map_err(|error| VolumeError::io("write", &new, error))?;
        fs::rename(&new, &own).map_err(|error| VolumeError::io("name", &own, error))?;
        let log = OpenOptions::new().append(true).open(own.join(LOG));
        let log = log.map_err(|error| VolumeError::io("open", &own, error))?;
        let beat = Arc::new((Mutex::new(false), Condvar::new()));
        let beating = {
            let (beat, alive) = (Arc::clone(&beat), own.join(ALIVE));
            std::thread::spawn(move || keep_beating(&beat, &alive))
        };
        let crew = Self {
            dir: dir.to_owned(),
            me,
            log: Mutex::new(log),
            ledger: Mutex::default(),
            peers: Mutex::default(),
            beat,
            beating: Some(beating),
        };
        crew.refresh()?;
        Ok(crew)
    }

    /// A directory that only this stager uses, and that goes with the staging.
    pub(super) fn own_dir(&self) -> PathBuf {
        self.dir.join("stagers").join(&self.me)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no holder panics")
    }

    /// Writes down what is done.
    pub(super) fn record(&self, record: Record) -> Result<(), StageError> {
        let mut line = serde_json::to_vec(&record).expect("plain fields serialise");
        line.push(b'\n');
        let written = self.log.lock().expect("no holder panics").write_all(&line);
        written.map_err(|error| VolumeError::io("write", &self.own_dir(), error))?;
        self.ledger().add(record);
        Ok(())
    }

    /// Makes what is written down outlive a crash of the host.
    pub(super) fn sync_log(&self) -> Result<(), StageError> {
        let log = self.log.lock().expect("no holder panics");
        Ok(log.sync_data().map_err(|error| VolumeError::io("sync", &self.own_dir(), error))?)
    }

    /// Reads what others have written down since.
    pub(super) fn refresh(&self) -> Result<(), StageError> {
        let stagers = self.dir.join("stagers");
        let mut peers = self.peers.lock().expect("no holder panics");
        for name in volume::names(&stagers)? {
            if name == self.me || peers.contains_key(&name) {
                continue;
            }
            let dir = stagers.join(&name);
            let log = File::open(dir.join(LOG)).map_err(|error| VolumeError::io("open", &dir, error))?;
            let holder = fs::read(dir.join(ALIVE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            peers.insert(name, Peer { holder, log, read: 0, beat: None, gone: false });
        }
        for (name, peer) in &mut *peers {
            // Liveness comes first: who is seen dead has written all that it will.
            peer.look(&stagers.join(name));
            let mut ledger = self.ledger();
            for record in peer.news().map_err(|error| VolumeError::io("read", &stagers.join(name), error))? {
                ledger.add(record);
            }
        }
        Ok(())
    }

    /// Tries to make a chunk this stager's.
    pub(super) fn claim(&self, chunk: u32) -> Result<Claim, StageError> {
        let mut before = Before::Nobody;
        for generation in 0.. {
            if self.ledger().has_chunk(chunk) {
                return Ok(Claim::Done);
            }
            let path = self.dir.join("claims").join(format!("{chunk}.{generation}"));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    file.write_all(self.me.as_bytes()).map_err(|error| VolumeError::io("write", &path, error))?;
                    return Ok(Claim::Mine { before });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(VolumeError::io("create", &path, error).into()),
            }
            let owner = fs::read_to_string(&path).map_err(|error| VolumeError::io("read", &path, error))?;
            match self.fate(&owner) {
                None => return Ok(Claim::Held),
                Some(fate) => {
                    before = fate;
                    // What it has done since anybody read its log is not to be done again.
                    self.refresh()?;
                }
            }
        }
        unreachable!("generations do not run out")
    }

    /// What became of an owner; none of one that is, or may well be, alive.
    fn fate(&self, owner: &str) -> Option<Before> {
        let mut peers = self.peers.lock().expect("no holder panics");
        // An owner that is not known yet has just come, and an empty claim is just being written.
        let peer = peers.get_mut(owner)?;
        peer.look(&self.dir.join("stagers").join(owner));
        match peer.gone {
            true => Some(Before::Gone),
            false => peer.is_silent().then_some(Before::Silent),
        }
    }

    /// Whether anybody else seems to be at work.
    pub(super) fn has_live_peers(&self) -> bool {
        self.peers.lock().expect("no holder panics").values().any(|peer| !peer.gone && !peer.is_silent())
    }
}

/// Whether nobody has worked in a stagers' directory for so long, by the file server's clock.
pub(crate) fn is_abandoned(dir: &Path, now: SystemTime, age: Duration) -> bool {
    let is_old = |path: &Path| {
        let changed = fs::symlink_metadata(path).and_then(|meta| meta.modified());
        // In doubt, nothing is old.
        changed.is_ok_and(|changed| now.duration_since(changed).is_ok_and(|passed| passed > age))
    };
    let stagers = volume::names(&dir.join("stagers")).unwrap_or_default();
    let signs = stagers.iter().map(|stager| dir.join("stagers").join(stager).join(ALIVE));
    is_old(dir) && signs.filter(|sign| sign.exists()).all(|sign| is_old(&sign))
}

impl Drop for Crew {
    fn drop(&mut self) {
        *self.beat.0.lock().expect("no holder panics") = true;
        self.beat.1.notify_all();
        if let Some(beating) = self.beating.take() {
            let _ = beating.join();
        }
        // Who is not there any more is seen to have ended.
        let _ = fs::remove_file(self.own_dir().join(ALIVE));
    }
}

impl Peer {
    fn look(&mut self, dir: &Path) {
        if self.gone {
            return;
        }
        // By an open file, since a time by name may be seconds old on NFS.
        let changed = File::open(dir.join(ALIVE)).and_then(|file| file.metadata()).and_then(|meta| meta.modified());
        match changed {
            Ok(changed) if self.beat.is_none() => {
                // One that was silent before anybody looked has been so by the file server's clock.
                let now = volume::server_time(dir).ok().flatten();
                let silent = now.and_then(|now| now.duration_since(changed).ok()).unwrap_or_default();
                let since = Instant::now();
                self.beat = Some((changed, since.checked_sub(silent).unwrap_or(since)));
            }
            Ok(changed) if self.beat.is_some_and(|(seen, _)| seen != changed) => {
                self.beat = Some((changed, Instant::now()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.gone = true,
            Err(_) => {}
        }
        self.gone |= self.holder.as_ref().is_some_and(Holder::is_gone);
    }

    fn is_silent(&self) -> bool {
        self.beat.is_some_and(|(_, since)| since.elapsed() >= SILENCE)
    }

    /// The whole lines that are new in its log.
    fn news(&mut self) -> io::Result<Vec<Record>> {
        let mut text = Vec::new();
        self.log.seek(SeekFrom::Start(self.read))?;
        self.log.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.read += whole as u64;
        // What is no record is a line that a crash of the host has torn.
        let lines = text[..whole].split(|byte| *byte == b'\n');
        Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}

fn keep_beating((stop, woken): &(Mutex<bool>, Condvar), alive: &Path) {
    let mut stopped = stop.lock().expect("no holder panics");
    while !*stopped {
        (stopped, _) = woken.wait_timeout(stopped, BEAT).expect("no holder panics");
        match volume::touch(alive) {
            Err(error) if !*stopped => tracing::warn!(%error, "cannot show that this stager is alive"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{checksum::Crc64, stage::ledger::At};

    fn chunk(chunk: u32) -> Record {
        Record::Chunk { chunk }
    }

    #[test]
    fn a_chunk_has_one_owner_until_that_one_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let first = Crew::join(dir.path()).unwrap();
        let second = Crew::join(dir.path()).unwrap();
        assert_eq!(first.claim(0).unwrap(), Claim::Mine { before: Before::Nobody });
        assert_eq!(second.claim(0).unwrap(), Claim::Held);
        assert_eq!(second.claim(1).unwrap(), Claim::Mine { before: Before::Nobody });
        let object = Record::Object { at: At(0, 3), crc64: Crc64(5), news: Default::default() };
        first.record(object).unwrap();
        assert_eq!(first.claim(2).unwrap(), Claim::Mine { before: Before::Nobody });
        first.record(chunk(2)).unwrap();
        drop(first);
        // Its last words are heard before its work is done again.
        assert_eq!(second.claim(0).unwrap(), Claim::Mine { before: Before::Gone });
        assert_eq!(second.ledger().object(At(0, 3)).unwrap().0, Crc64(5));
        assert_eq!(second.claim(2).unwrap(), Claim::Done);
        assert!(!second.has_live_peers());
    }

    #[test]
    fn one_that_has_been_silent_for_long_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let old = Crew::join(dir.path()).unwrap();
        assert_eq!(old.claim(0).unwrap(), Claim::Mine { before: Before::Nobody });
        let alive = dir.path().join("stagers").join(&old.me).join(ALIVE);
        let long_ago = SystemTime::now() - 2 * SILENCE;
        File::open(&alive).unwrap().set_modified(long_ago).unwrap();
        let new = Crew::join(dir.path()).unwrap();
        assert_eq!(new.claim(0).unwrap(), Claim::Mine { before: Before::Silent });
        assert!(!new.has_live_peers());
    }

    #[test]
    fn what_is_done_is_not_claimed_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = Crew::join(dir.path()).unwrap();
        first.claim(0).unwrap();
        first.record(chunk(0)).unwrap();
        let second = Crew::join(dir.path()).unwrap();
        assert_eq!(second.claim(0).unwrap(), Claim::Done);
    }

    #[test]
    fn of_two_that_take_over_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let dead = Crew::join(dir.path()).unwrap();
        (0..20).for_each(|chunk| assert!(matches!(dead.claim(chunk), Ok(Claim::Mine { .. }))));
        drop(dead);
        let crews = [(); 4].map(|()| Crew::join(dir.path()).unwrap());
        let won: usize = std::thread::scope(|scope| {
            let take = |crew: &Crew| (0..20).filter(|c| matches!(crew.claim(*c), Ok(Claim::Mine { .. }))).count();
            let taking: Vec<_> = crews.iter().map(|crew| scope.spawn(move || take(crew))).collect();
            taking.into_iter().map(|taking| taking.join().unwrap()).sum()
        });
        assert_eq!(won, 20);
    }

    #[test]
    fn a_torn_line_is_passed_over_and_a_late_one_is_read_later() {
        let dir = tempfile::tempdir().unwrap();
        let first = Crew::join(dir.path()).unwrap();
        let second = Crew::join(dir.path()).unwrap();
        let log = dir.path().join("stagers").join(&first.me).join(LOG);
        let whole = serde_json::to_string(&chunk(1)).unwrap();
        let write =
            |text: &str| OpenOptions::new().append(true).open(&log).unwrap().write_all(text.as_bytes()).unwrap();
        write(&format!("\0\0{{\n{whole}\n{}", &whole[..4]));
        second.refresh().unwrap();
        assert_eq!(second.ledger().chunks(), 1);
        write(&format!("{}\n", chunk_rest()));
        second.refresh().unwrap();
        assert_eq!(second.ledger().chunks(), 2);

        fn chunk_rest() -> String {
            serde_json::to_string(&Record::Chunk { chunk: 2 }).unwrap()[4..].to_owned()
        }
    }
}
