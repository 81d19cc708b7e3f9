//! A run's machine with the journal behind it: what it decides is durable before anybody acts on it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use forebay_datasets::volume::VolumeError;
use forebay_jobs::id::Epoch;
use tokio::time::Instant;

use super::{CoordinateError, result::Figures};
use crate::{
    journal::{self, Header, Journal, JournalError, Replay},
    run::{Event, Input, Millis, Run, RunConfig, Wanted},
    rundir::RunDir,
};

const JOURNAL: &str = "journal.log";

/// The events of a run that count.
#[derive(Debug)]
pub(super) struct Replayed {
    /// In order.
    pub(super) events: Vec<Event>,
    /// How many bytes of each epoch's journal they are.
    pub(super) before: Vec<(Epoch, u64)>,
}

/// Reads every journal of the run below an epoch, or all of them.
pub(super) fn replay(run: &RunDir, below: Option<Epoch>) -> Result<Replayed, CoordinateError> {
    let dirs: BTreeMap<_, _> = epochs(run, below)?.into_iter().collect();
    let read = |epoch, limit| {
        let dir = &dirs[&epoch];
        if below.is_some() {
            settle(dir)?;
        }
        Ok(read(dir, limit)?)
    };
    compose(dirs.keys().rev().copied(), read, |why| impossible(run, why))
}

/// Puts the events of several journals together, of which the newest is read first.
///
/// The newest one that has a header says how much of each older one counts; of itself all whole frames do.
pub(super) fn compose<E>(
    newest_first: impl Iterator<Item = Epoch>,
    mut read: impl FnMut(Epoch, Option<u64>) -> Result<Option<Replay>, E>,
    impossible: impl Fn(String) -> E,
) -> Result<Replayed, E> {
    let mut counted: Vec<(Epoch, u64)> = Vec::new();
    let mut groups: Vec<Vec<Event>> = Vec::new();
    let mut headed = false;
    for epoch in newest_first {
        let limit = counted.iter().find(|(counted, _)| *counted == epoch).map(|(_, length)| *length);
        if headed && limit.is_none() {
            // A later epoch began without having seen a journal here.
            continue;
        }
        let Some(read) = read(epoch, limit)? else {
            if let Some(bytes) = limit {
                return Err(impossible(format!("epoch {epoch} had {bytes} bytes, and has none")));
            }
            continue;
        };
        if let Some(bytes) = limit.filter(|bytes| read.length < *bytes) {
            return Err(impossible(format!("epoch {epoch} had {bytes} bytes, and has {}", read.length)));
        }
        if let (Some(header), false) = (read.header, headed) {
            counted = header.before;
            counted.push((epoch, read.length));
            headed = true;
        }
        groups.push(read.events);
    }
    Ok(Replayed { events: groups.into_iter().rev().flatten().collect(), before: counted })
}

fn impossible(run: &RunDir, why: String) -> CoordinateError {
    JournalError::Impossible { run: run.path().to_owned(), why }.into()
}

/// Makes durable what a coordinator may have written and died before it synced: what counts from now on must stay.
fn settle(dir: &Path) -> Result<(), JournalError> {
    let path = dir.join(JOURNAL);
    match fs::File::open(&path).and_then(|file| file.sync_all()) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(JournalError::Io { action: "sync", path, source })
        }
        _ => Ok(()),
    }
}

/// Reads the journal of an epoch; none if it ended before it began to write.
fn read(dir: &Path, limit: Option<u64>) -> Result<Option<Replay>, JournalError> {
    // It may have been sealed since the directory was listed.
    for dir in [dir, &dir.with_extension("sealed")] {
        match journal::read(&dir.join(JOURNAL), limit) {
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            read => return read.map(Some),
        }
    }
    Ok(None)
}

/// The directories of a run's epochs, sealed or not.
fn epochs(run: &RunDir, below: Option<Epoch>) -> Result<Vec<(Epoch, PathBuf)>, CoordinateError> {
    let dir = run.path().join("epochs");
    let list = |error| VolumeError::io("list", &dir, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(list)? {
        let entry = entry.map_err(list)?;
        let name = entry.file_name();
        let number =
            name.to_str().map(|name| name.strip_suffix(".sealed").unwrap_or(name)).and_then(|n| n.parse().ok());
        if let Some(epoch) = number.map(Epoch).filter(|epoch| below.is_none_or(|below| *epoch < below)) {
            found.push((epoch, entry.path()));
        }
    }
    Ok(found)
}

/// The machine, and where its events go.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) machine: Run,
    pub(super) figures: Figures,
    /// None only while an append is under way; then, and after one that failed, nothing more can be decided.
    journal: Option<Journal>,
    pending: Vec<Event>,
    clock: Clock,
    /// When the machine last decided anything.
    taken: Millis,
}

impl Session {
    /// Takes the run up where its journals end, and begins this epoch's own.
    pub(super) fn open(run: &RunDir, epoch: Epoch, epoch_dir: &Path) -> Result<Self, CoordinateError> {
        let replayed = replay(run, Some(epoch))?;
        let (machine, figures) = fold(run, &replayed.events)?;
        let header = Header { epoch, before: replayed.before };
        let journal = Journal::create(&epoch_dir.join(JOURNAL), &header)?;
        let clock = Clock::after(figures.latest);
        Ok(Self { machine, figures, journal: Some(journal), pending: Vec::new(), clock, taken: Millis(0) })
    }

    /// Lets the machine decide what an input means. Nothing of it may be acted upon before [`commit`](Self::commit).
    pub(super) fn take(&mut self, input: &Input) {
        self.take_all(std::slice::from_ref(input));
    }

    /// The same of inputs that came together.
    pub(super) fn take_all(&mut self, inputs: &[Input]) {
        self.taken = self.clock.now();
        let events = self.machine.handle_all(inputs, self.taken);
        events.iter().for_each(|event| self.figures.note(event));
        self.pending.extend(events);
    }

    /// Makes all that was decided durable, in one step, and gives it.
    pub(super) async fn commit(&mut self) -> Result<Vec<Event>, CoordinateError> {
        if self.pending.is_empty() {
            return Ok(Vec::new());
        }
        let events = std::mem::take(&mut self.pending);
        let mut journal = self.journal.take().ok_or(CoordinateError::Deposed)?;
        let append = move || journal.append(&events).map(|()| (journal, events));
        let (journal, events) = tokio::task::spawn_blocking(append).await??;
        self.journal = Some(journal);
        Ok(events)
    }

    /// What the machine wants. It wakes for what has become due since it last decided, be it in the past by now.
    pub(super) fn wanted(&self) -> Wanted {
        self.machine.wanted(self.taken)
    }

    pub(super) fn now(&self) -> Millis {
        self.clock.now()
    }
}

/// The state and the figures that events lead to.
pub(super) fn fold(run: &RunDir, events: &[Event]) -> Result<(Run, Figures), JournalError> {
    let mut figures = Figures::default();
    events.iter().for_each(|event| figures.note(event));
    let machine = Run::replay(RunConfig::from(run.job()), events);
    let machine = machine.map_err(|why| JournalError::Impossible { run: run.path().to_owned(), why })?;
    Ok((machine, figures))
}

/// Runs evenly whatever happens to the host's clock, and never begins before what an earlier coordinator's clock said.
#[derive(Debug)]
struct Clock {
    base: Millis,
    since: Instant,
}

impl Clock {
    fn after(latest: Millis) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        Self { base: now.max(latest), since: Instant::now() }
    }

    fn now(&self) -> Millis {
        let elapsed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        Millis(self.base.0.saturating_add(elapsed))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::fixture;

    struct Fixture {
        _dir: tempfile::TempDir,
        run: RunDir,
    }

    impl Fixture {
        fn new() -> Self {
            let (dir, _, run) = fixture::run();
            Self { _dir: dir, run }
        }

        fn epoch(&self, number: u32) -> PathBuf {
            let dir = self.run.path().join("epochs").join(number.to_string());
            fs::create_dir(&dir).unwrap();
            dir
        }

        fn seal(&self, dir: &Path) -> PathBuf {
            let sealed = dir.with_extension("sealed");
            fs::rename(dir, &sealed).unwrap();
            sealed
        }
    }

    #[tokio::test]
    async fn a_run_is_taken_up_where_its_journals_end() {
        let fixture = Fixture::new();
        let first = fixture.epoch(1);
        let mut session = Session::open(&fixture.run, Epoch(1), &first).unwrap();
        session.take(&Input::Opened { epoch: Epoch(1) });
        session.take(&Input::Planned { snapshot: Some("s".into()), phases: vec![2] });
        assert!(!session.commit().await.unwrap().is_empty() && session.commit().await.unwrap().is_empty());
        let sealed = fixture.seal(&first);
        let second = Session::open(&fixture.run, Epoch(2), &fixture.epoch(2)).unwrap();
        assert_eq!((second.figures.tasks().total, &second.machine), (2, &session.machine));
        // What the first one appends now counts for nobody.
        session.take(&Input::Cancel);
        session.commit().await.unwrap();
        assert!(session.machine.ended().is_some());
        for below in [None, Some(Epoch(3))] {
            let replayed = replay(&fixture.run, below).unwrap();
            assert_eq!(replayed.events.len(), 2);
        }
        // Torn within its header, an epoch has seen nothing, and takes nothing from the others.
        let third = fixture.epoch(3);
        fs::File::create(third.join(JOURNAL)).unwrap().write_all(b"FBY").unwrap();
        let fourth = Session::open(&fixture.run, Epoch(4), &fixture.epoch(4)).unwrap();
        assert_eq!(fourth.figures.tasks().total, 2);
        drop(sealed);
    }

    #[test]
    fn time_never_goes_back_behind_an_earlier_coordinators() {
        let far = Millis(u64::MAX / 2);
        assert!(Clock::after(far).now() >= far);
    }
}
