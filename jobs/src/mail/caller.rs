//! The end of who writes to a coordinator: a worker, or one who wants the run to end.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use forebay_datasets::volume;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::LEASE;
use super::letters::{Backoff, Line, Mailbox, Outbox, Taken, read, status};
use crate::wire::{CancelRequest, FromWorker, ToWorker};

/// How often it is looked whether there still is a coordinator; it renews its lease every 3 s.
const LOOK: Duration = Duration::from_secs(2);
/// A coordinator that has not renewed its lease for so long is silent.
const SILENCE: Duration = Duration::from_secs(15);
/// A letter that others follow, and that does not come for so long, was lost.
const MISSING: Duration = Duration::from_secs(10);
/// Messages that are put into letters together.
const TOGETHER: usize = 256;

/// Carries a worker's messages to the coordinator of an epoch, and that one's to the worker, in order. The stream ends
/// with the coordinator's, or with an error: the coordinator is silent, or its epoch is over. When there are no more
/// messages to come, or the stream is dropped, the coordinator is told so.
pub fn correspond(
    epoch_dir: PathBuf,
    token: &str,
    mut messages: mpsc::Receiver<FromWorker>,
) -> UnboundedReceiverStream<Result<ToWorker, Status>> {
    // The coordinator sends no more than slots and prefetch hold.
    let (heard, stream) = mpsc::unbounded_channel();
    let token = token.to_owned();
    tokio::spawn(async move {
        if let Err(status) = carry(epoch_dir, &token, &mut messages, &heard).await {
            let _ = heard.send(Err(status));
        }
    });
    UnboundedReceiverStream::new(stream)
}

async fn carry(
    epoch_dir: PathBuf,
    token: &str,
    messages: &mut mpsc::Receiver<FromWorker>,
    heard: &mpsc::UnboundedSender<Result<ToWorker, Status>>,
) -> Result<(), Status> {
    let mut post = Post::open(epoch_dir, token).await?;
    let (mut batch, mut backoff, mut ended) = (Vec::new(), Backoff::default(), false);
    let mut list_at = Instant::now() + backoff.pause();
    let mut look_at = Instant::now() + LOOK;
    loop {
        tokio::select! {
            biased;
            () = heard.closed() => {
                if !ended {
                    let _ = post.write(vec![Line::<FromWorker>::End]).await;
                }
                return post.close().await;
            }
            count = messages.recv_many(&mut batch, TOGETHER), if !ended => {
                // A beat is answered by nobody.
                if batch.iter().any(|message| *message != FromWorker::Heartbeat) || count == 0 {
                    backoff.reset();
                    list_at = list_at.min(Instant::now() + backoff.pause());
                }
                ended = count == 0;
                let lines = batch.drain(..).map(Line::Said).chain(ended.then_some(Line::End));
                post.write(lines.collect()).await?;
            }
            // Nobody tells when a letter comes, nor when a coordinator is gone.
            () = tokio::time::sleep_until(list_at.min(look_at)) => {
                if look_at <= Instant::now() {
                    post.look().await?;
                    look_at = Instant::now() + LOOK;
                }
                let lines = post.take::<ToWorker>().await?;
                if !lines.is_empty() {
                    backoff.reset();
                }
                list_at = Instant::now() + backoff.pause();
                for line in lines {
                    match line {
                        Line::Said(message) => drop(heard.send(Ok(message))),
                        Line::Refused { code, message } => {
                            post.close().await?;
                            return Err(status(code, message));
                        }
                        Line::End => return post.close().await,
                        Line::Cancel(_) | Line::Noted => {}
                    }
                }
            }
        }
    }
}

/// Asks the coordinator of an epoch by letter to end its run, and waits for its answer.
///
/// # Errors
/// It refuses, or says nothing in time.
pub async fn ask_to_cancel(
    epoch_dir: PathBuf,
    token: &str,
    request: CancelRequest,
    patience: Duration,
) -> Result<(), Status> {
    let mut post = Post::open(epoch_dir, token).await?;
    post.write(vec![Line::<FromWorker>::Cancel(request)]).await?;
    let mut backoff = Backoff::default();
    let answer = async {
        loop {
            // Nobody tells when the answer comes.
            tokio::time::sleep(backoff.pause()).await;
            for line in post.take::<ToWorker>().await? {
                match line {
                    Line::Noted => return Ok(()),
                    Line::Refused { code, message } => return Err(status(code, message)),
                    Line::Said(_) | Line::Cancel(_) | Line::End => {}
                }
            }
        }
    };
    let answered = tokio::time::timeout(patience, answer).await;
    let _ = post.close().await;
    answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("the coordinator does not answer the letter")))
}

/// A mailbox of its own.
struct Post {
    epoch_dir: PathBuf,
    /// None while a letter is being written.
    outbox: Option<Outbox>,
    inbox: Mailbox,
    name: String,
    taken: u64,
    /// Since when a letter is missing that others follow.
    missing: Option<Instant>,
    /// The last renewal of the coordinator's lease, and when it was seen first.
    renewed: Option<(SystemTime, Instant)>,
}

impl Post {
    async fn open(epoch_dir: PathBuf, token: &str) -> Result<Self, Status> {
        let name = volume::nonce();
        let inbox = Mailbox::down(&epoch_dir, token, &name);
        let outbox = Some(Outbox::new(Mailbox::up(&epoch_dir, token), &name));
        let dir = inbox.dir().to_owned();
        blocking(move || volume::create_dir(&dir)).await?.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Self { epoch_dir, outbox, inbox, name, taken: 0, missing: None, renewed: None })
    }

    async fn write<T: Serialize + Send + 'static>(&mut self, lines: Vec<Line<T>>) -> Result<(), Status> {
        let mut outbox = self.outbox.take().ok_or_else(|| Status::internal("a letter was given up"))?;
        let written = blocking(move || outbox.say(lines).map(|()| outbox)).await?;
        self.outbox =
            Some(written.map_err(|error| Status::unavailable(format!("a letter cannot be written: {error}")))?);
        Ok(())
    }

    /// What the letters say that have come since, each in its turn.
    async fn take<T: DeserializeOwned + Send + 'static>(&mut self) -> Result<Vec<Line<T>>, Status> {
        let (inbox, name, mut taken) = (self.inbox.clone(), self.name.clone(), self.taken);
        let take = move || {
            let (listed, _) = inbox.list()?;
            let mut lines = Vec::new();
            for (mailbox, number) in &listed {
                if *mailbox != name || *number <= taken {
                    inbox.discard(&format!("{mailbox}.{number}"))?;
                    continue;
                }
                if *number != taken + 1 {
                    return Ok((lines, taken, true));
                }
                match inbox.take(mailbox, *number)? {
                    Taken::Text(text) => lines.extend(read(&text).map_err(io::Error::from)?),
                    // Who put it there may have put it in the place of a letter: then that is missed.
                    Taken::Strange => {
                        tracing::warn!("a letter that is not the coordinator's is in {}", inbox.dir().display());
                        continue;
                    }
                }
                taken += 1;
            }
            Ok((lines, taken, false))
        };
        let (lines, taken, is_missing) = blocking(take).await?.map_err(gone)?;
        self.taken = taken;
        self.missing = if is_missing { Some(self.missing.unwrap_or_else(Instant::now)) } else { None };
        match self.missing.filter(|since| since.elapsed() > MISSING) {
            Some(_) => Err(Status::data_loss("a letter of the coordinator's was lost")),
            None => Ok(lines),
        }
    }

    /// Looks whether there is a coordinator that keeps its lease.
    async fn look(&mut self) -> Result<(), Status> {
        let dir = self.epoch_dir.clone();
        let renewed = blocking(move || renewed(&dir)).await?.map_err(gone)?;
        let since = match self.renewed {
            Some((before, since)) if before == renewed => since,
            _ => Instant::now(),
        };
        self.renewed = Some((renewed, since));
        match since.elapsed() > SILENCE {
            true => Err(Status::unavailable(format!("the coordinator is silent for {} s", SILENCE.as_secs()))),
            false => Ok(()),
        }
    }

    /// Nothing more is read: what came after the end, and the mailbox, go.
    async fn close(&self) -> Result<(), Status> {
        let dir = self.inbox.dir().to_owned();
        // It may have gone with the epoch.
        blocking(move || drop(fs::remove_dir_all(dir))).await
    }
}

/// When the lease of an epoch was renewed last. Opening asks the file server, and not what is known from before.
fn renewed(epoch_dir: &Path) -> io::Result<SystemTime> {
    epoch_dir.parent().map_or(Ok(()), |epochs| fs::File::open(epochs).map(drop))?;
    fs::File::open(epoch_dir.join(LEASE))?.metadata()?.modified()
}

fn gone(error: io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::NotFound => Status::unavailable("the coordinator's epoch is over"),
        _ => Status::unavailable(format!("letters cannot be read: {error}")),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))
}
