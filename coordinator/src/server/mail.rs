//! Streams by letter: reads what workers write into the epoch's directory, and lets them in by the same door as those who
//! connect.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use forebay_datasets::volume::{self, Holder, Volume, VolumeError};
use forebay_jobs::{
    mail::{Backoff, DOWN, LINK, Line, Mailbox, Outbox, Taken, UP, read},
    wire::{CancelRequest, FromWorker, ToWorker},
};
use futures::{StreamExt, stream};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::door::Door;

/// How often it is looked whether the processes of workers are there that write letters.
const LOOK: Duration = Duration::from_secs(1);
/// Letters of one worker that wait for the driver; more stay where they are.
const WAITING: usize = 4;
/// Messages that are put into letters together.
const TOGETHER: usize = 256;
/// How long the last letters may wait to be taken before the end.
const FAREWELL: Duration = Duration::from_secs(3);

type Lines = Vec<Line<FromWorker>>;

/// Makes the directories of an epoch's letters, which only its user can enter.
pub(super) fn prepare(epoch_dir: &Path, mailboxes: bool) -> Result<(), VolumeError> {
    let link = epoch_dir.join(LINK);
    let dirs = [link.clone(), link.join(UP), link.join(DOWN)];
    for dir in dirs.iter().take(if mailboxes { 3 } else { 1 }) {
        volume::create_dir(dir)?;
    }
    Ok(())
}

/// Reads all letters to the coordinator.
pub(super) struct Office {
    door: Door,
    epoch_dir: PathBuf,
    token: String,
    /// Writers of answers.
    writers: TaskTracker,
    /// Something was said that will be answered.
    said: Arc<Notify>,
}

/// What is done away from the runtime's threads.
struct Desk {
    up: Mailbox,
    down: PathBuf,
    open: BTreeMap<String, Open>,
    /// Mailboxes of which nothing more is read.
    closed: BTreeSet<String>,
    looked: Instant,
}

/// A mailbox whose letters are read.
struct Open {
    taken: u64,
    lines: mpsc::Sender<Lines>,
    /// Who writes.
    process: Option<Holder>,
    is_gone: bool,
}

/// What a look at the letters came to.
#[derive(Default)]
struct News {
    /// Mailboxes whose first letter came.
    opened: Vec<(String, First)>,
    any: bool,
    strange: Vec<String>,
}

enum First {
    Stream(mpsc::Receiver<Lines>),
    Cancel(CancelRequest),
}

impl Office {
    pub(super) fn new(door: Door, token: &str) -> Self {
        let epoch_dir = door.0.epoch_dir.clone();
        Self { door, epoch_dir, token: token.to_owned(), writers: TaskTracker::new(), said: Arc::default() }
    }

    /// Reads letters until the server is stopped, and then waits until its own are taken.
    pub(super) async fn serve(self) {
        let stop = self.door.0.stop.clone();
        let up = Mailbox::up(&self.epoch_dir, &self.token);
        let down = self.epoch_dir.join(LINK).join(DOWN);
        let mut desk =
            Desk { up, down: down.clone(), open: BTreeMap::new(), closed: BTreeSet::new(), looked: Instant::now() };
        let mut backoff = Backoff::default();
        loop {
            let looked = tokio::task::spawn_blocking(move || {
                let news = desk.look();
                (desk, news)
            });
            let Ok((back, news)) = looked.await else { return };
            desk = back;
            match news {
                Ok(news) => {
                    if news.any {
                        backoff.reset();
                    }
                    for name in &news.strange {
                        let why = format!("the letter {name} is nobody's who has the run's token");
                        self.door.0.strangers.turned_away(None, &why);
                    }
                    news.opened.into_iter().for_each(|(name, first)| self.begin(name, first));
                }
                // Then the lease is lost, which ends all; or the volume does not answer, which ends that.
                Err(error) => tracing::debug!(%error, "letters cannot be read"),
            }
            tokio::select! {
                // Nobody tells when a letter comes.
                () = tokio::time::sleep(backoff.pause()) => {}
                () = self.said.notified() => backoff.reset(),
                () = stop.cancelled() => break,
            }
        }
        drop(desk);
        self.writers.close();
        let writers = self.writers.clone();
        let taken = async {
            writers.wait().await;
            let mut backoff = Backoff::default();
            while boxes(&down).any(|mailbox| boxes(&mailbox).next().is_some()) {
                // Nobody tells when a letter was taken.
                tokio::time::sleep(backoff.pause()).await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, taken).await;
    }

    fn begin(&self, name: String, first: First) {
        let door = self.door.clone();
        let outbox = Outbox::new(Mailbox::down(&self.epoch_dir, &self.token, &name), &name);
        let said = Arc::clone(&self.said);
        self.writers.spawn(async move {
            let written = match first {
                First::Stream(lines) => {
                    let messages =
                        ReceiverStream::new(lines).flat_map(stream::iter).filter_map(async |line| match line {
                            Line::Said(message) => Some(Ok(message)),
                            _ => None,
                        });
                    answer(door.open(messages.boxed(), None).await, outbox, &said).await
                }
                First::Cancel(request) => {
                    let line = match door.end_run(request).await {
                        Ok(_) => Line::Noted,
                        Err(refused) => Line::refused(&refused),
                    };
                    write(outbox, vec![line]).await.map(drop)
                }
            };
            if let Err(error) = written {
                tracing::debug!(%error, "a letter to a worker cannot be written");
            }
        });
    }
}

/// Writes what is said to a worker, up to the end.
async fn answer(
    opened: Result<impl futures::Stream<Item = Result<ToWorker, Status>> + Unpin, Status>,
    mut outbox: Outbox,
    said: &Notify,
) -> Result<(), VolumeError> {
    let answers = match opened {
        Ok(answers) => answers,
        Err(refused) => return write(outbox, vec![Line::refused(&refused)]).await.map(drop),
    };
    let mut answers = answers.ready_chunks(TOGETHER);
    while let Some(batch) = answers.next().await {
        let mut is_last = false;
        let lines = batch.into_iter().map(|message| match message {
            Ok(message) => {
                // Whoever is told that reads no more.
                is_last |= message == ToWorker::Shutdown;
                Line::Said(message)
            }
            Err(status) => {
                is_last = true;
                Line::refused(&status)
            }
        });
        outbox = write(outbox, lines.collect()).await?;
        said.notify_one();
        if is_last {
            return Ok(());
        }
    }
    write(outbox, vec![Line::End]).await.map(drop)
}

async fn write(mut outbox: Outbox, lines: Vec<Line<ToWorker>>) -> Result<Outbox, VolumeError> {
    let dir = PathBuf::new();
    let write = move || outbox.say(lines).map(|()| outbox);
    let failed = |error: tokio::task::JoinError| VolumeError::io("write", &dir, io::Error::other(error));
    tokio::task::spawn_blocking(write).await.map_err(failed)?
}

impl Desk {
    /// Takes what has come. Blocks.
    fn look(&mut self) -> io::Result<News> {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            for open in self.open.values_mut() {
                // Before the letters are listed: what it wrote before it ended is read.
                open.is_gone = open.process.as_ref().is_some_and(Holder::is_gone);
            }
        }
        let mut news = News::default();
        let (listed, strange) = self.up.list()?;
        for name in strange {
            let _ = self.up.discard(&name);
            news.strange.push(name);
        }
        let writing: BTreeSet<_> = listed.iter().map(|(mailbox, _)| mailbox.clone()).collect();
        for (mailbox, number) in listed {
            if let Err(error) = self.take(mailbox, number, &mut news) {
                // The next one of its mailbox waits for it, and no other.
                tracing::debug!(%error, "a letter cannot be read");
            }
        }
        let gone = |(name, open): &(&String, &Open)| open.is_gone && !writing.contains(*name);
        let gone: Vec<_> = self.open.iter().filter(gone).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            // Nobody reads what is in there.
            let _ = fs::remove_dir_all(self.down.join(name));
        }
        let refused = self.open.iter().filter(|(_, open)| open.lines.is_closed()).map(|(name, _)| name.clone());
        let over: Vec<_> = refused.chain(gone).collect();
        over.into_iter().for_each(|name| self.close(name));
        Ok(news)
    }

    /// Reads nothing more of a mailbox, which ends its stream.
    fn close(&mut self, name: String) {
        self.open.remove(&name);
        self.closed.insert(name);
    }

    /// Takes a letter if it is its turn, and removes what will never have one.
    fn take(&mut self, mailbox: String, number: u64, news: &mut News) -> io::Result<()> {
        let name = format!("{mailbox}.{number}");
        let taken = self.open.get(&mailbox).map_or(0, |open| open.taken);
        if self.closed.contains(&mailbox) || number <= taken {
            return self.up.discard(&name);
        }
        if number > taken + 1 {
            // The one before is on its way, or was lost, and then its worker's silence is noticed.
            return match self.open.contains_key(&mailbox) {
                true => Ok(()),
                false => self.turn_away(name, news),
            };
        }
        let permit = match self.open.get(&mailbox).map(|open| open.lines.clone().try_reserve_owned()) {
            Some(Ok(permit)) => Some(permit),
            // The driver does not come after, or has ended the stream.
            Some(Err(_)) => return Ok(()),
            None => None,
        };
        let Taken::Text(text) = self.up.take(&mailbox, number)? else {
            news.strange.push(name);
            return Ok(());
        };
        news.any = true;
        let Ok(lines) = read::<FromWorker>(&text) else {
            tracing::warn!("the letter {name} is of no version that this forebay knows");
            self.close(mailbox);
            return Ok(());
        };
        let is_last = lines.last().is_some_and(|line| matches!(line, Line::End));
        match permit {
            Some(permit) => {
                drop(permit.send(lines));
                if let Some(open) = self.open.get_mut(&mailbox) {
                    open.taken = number;
                }
            }
            None => self.begin(&mailbox, lines, news),
        }
        if is_last {
            self.close(mailbox);
        }
        Ok(())
    }

    fn begin(&mut self, mailbox: &str, lines: Lines, news: &mut News) {
        let Entry::Vacant(place) = self.open.entry(mailbox.to_owned()) else { return };
        let process = match lines.first() {
            Some(Line::Cancel(request)) => {
                news.opened.push((mailbox.to_owned(), First::Cancel(request.clone())));
                self.closed.insert(mailbox.to_owned());
                return;
            }
            Some(Line::Said(FromWorker::Hello { process, .. })) => Some(process.clone()),
            _ => None,
        };
        let (sender, receiver) = mpsc::channel(WAITING);
        sender.try_send(lines).expect("an empty channel with room takes lines");
        place.insert(Open { taken: 1, lines: sender, process, is_gone: false });
        news.opened.push((mailbox.to_owned(), First::Stream(receiver)));
    }

    fn turn_away(&self, name: String, news: &mut News) -> io::Result<()> {
        self.up.discard(&name)?;
        news.strange.push(name);
        Ok(())
    }
}

fn boxes(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Removes the letters, and what else came and went with the link, of every epoch of a run that has ended.
pub(crate) fn clear(volume: &Volume, run_dir: &Path) {
    let epochs = fs::read_dir(run_dir.join("epochs")).into_iter().flatten().flatten();
    for link in epochs.map(|epoch| epoch.path().join(LINK)).filter(|link| link.exists()) {
        if let Err(error) = volume.trash(&link) {
            tracing::warn!(%error, "{} could not be removed", link.display());
        }
    }
}
