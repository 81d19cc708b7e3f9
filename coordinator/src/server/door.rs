//! Whom the link lets in, and what is heard of them.

use std::{
    collections::BTreeSet,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_datasets::volume::Holder;
use forebay_jobs::{
    id::{AttemptId, WorkerId},
    kinds::mapreduce::native::listed,
    link::Link,
    wire::{CancelReply, CancelRequest, FromWorker, ToWorker},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::{Heard, ServerConfig};

/// A worker that says nothing for so long has left; it beats every 2 s.
pub const SILENCE: Duration = Duration::from_secs(15);
/// Who opens a stream says hello within this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets workers in, and hears them.
pub(super) struct Door {
    pub(super) config: Arc<ServerConfig>,
    pub(super) authorization: String,
    pub(super) inbox: mpsc::Sender<Heard>,
    pub(super) streams: AtomicU64,
    pub(super) readers: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Door {
    fn authorize<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let shown = request.metadata().get("authorization").map_or(&b""[..], |value| value.as_bytes());
        match same(shown, self.authorization.as_bytes()) {
            true => Ok(()),
            false => Err(Status::unauthenticated("the token is not this run's")),
        }
    }

    /// Checks the first message of a stream.
    fn admit(&self, hello: Option<FromWorker>) -> Result<Admitted, Status> {
        let Some(FromWorker::Hello { run, worker, slots, process, holds, left, version, volume, natives }) = hello
        else {
            return Err(Status::invalid_argument("the first message is a hello"));
        };
        let ours = env!("CARGO_PKG_VERSION");
        if run != self.config.run {
            return Err(Status::failed_precondition(format!(
                "this is the coordinator of {}, not {run}",
                self.config.run
            )));
        }
        if version != ours {
            let message = format!("the worker is forebay {version}, its coordinator is {ours}");
            return Err(Status::failed_precondition(message));
        }
        if volume != self.config.volume {
            let message = format!("the worker's volume is {volume}, its coordinator's is {}", self.config.volume);
            return Err(Status::failed_precondition(message));
        }
        if let Some(native) = self.config.job.native().filter(|native| !natives.contains(*native)) {
            let message = format!(
                "the job's map is `{native}`, and compiled into the worker is {}: start the program that has it",
                listed(&natives)
            );
            return Err(Status::failed_precondition(message));
        }
        if slots == 0 {
            return Err(Status::invalid_argument("a worker has at least one slot"));
        }
        Ok(Admitted { worker, slots, holds, process, left })
    }
}

/// Who may come in.
struct Admitted {
    worker: WorkerId,
    slots: u32,
    holds: BTreeSet<AttemptId>,
    process: Holder,
    left: Option<u64>,
}

impl Link for Door {
    type ToWorker = UnboundedReceiverStream<Result<ToWorker, Status>>;

    async fn work(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::ToWorker>, Status> {
        self.authorize(&request)?;
        let peer = request.remote_addr().map(|peer| peer.ip());
        let mut said = request.into_inner();
        let first = tokio::time::timeout(PATIENCE, said.message());
        let hello = first.await.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Admitted { worker, slots, holds, process, left } = self.admit(hello)?;
        let stream = self.streams.fetch_add(1, Ordering::Relaxed);
        // Unbounded, but filled only with what the worker's slots and its prefetch hold.
        let (sender, receiver) = mpsc::unbounded_channel();
        let welcome = ToWorker::Welcome { epoch: self.config.epoch, job: Box::new(self.config.job.clone()) };
        let gone = |_| Status::unavailable("the coordinator is ending");
        sender.send(Ok(welcome)).map_err(|_| Status::internal("the stream ended before it began"))?;
        let joined = Heard::Joined { worker: worker.clone(), stream, slots, holds, process, left, peer, sender };
        self.inbox.send(joined).await.map_err(gone)?;
        let (inbox, stop, scheduler) = (self.inbox.clone(), self.stop.clone(), self.config.scheduler.clone());
        self.readers.spawn(async move {
            tokio::select! {
                () = hear(&worker, stream, said, &inbox) => {}
                () = stop.cancelled() => return,
            }
            if let Some(scheduler) = scheduler {
                scheduler.lost(&worker);
            }
            // Nobody to tell means that the driver has ended.
            let _ = inbox.send(Heard::Left { worker, stream }).await;
        });
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<CancelReply>, Status> {
        self.authorize(&request)?;
        let run = request.into_inner().run;
        if run != self.config.run {
            return Err(Status::failed_precondition(format!(
                "this is the coordinator of {}, not {run}",
                self.config.run
            )));
        }
        let (noted, taken) = oneshot::channel();
        let gone = || Status::unavailable("the coordinator is ending");
        self.inbox.send(Heard::Cancel { noted }).await.map_err(|_| gone())?;
        taken.await.map_err(|_| gone())?;
        Ok(Response::new(CancelReply {}))
    }
}

/// Passes on what a worker says, until it says nothing more.
async fn hear(worker: &WorkerId, stream: u64, mut said: Streaming<FromWorker>, inbox: &mpsc::Sender<Heard>) {
    loop {
        let worker = worker.clone();
        let heard = match tokio::time::timeout(SILENCE, said.message()).await {
            Ok(Ok(Some(FromWorker::Started(attempts)))) => Heard::Started { worker, stream, attempts },
            Ok(Ok(Some(FromWorker::Reports(reports)))) => Heard::Reports { worker, stream, reports },
            Ok(Ok(Some(FromWorker::Draining))) => Heard::Draining { worker, stream },
            Ok(Ok(Some(FromWorker::Heartbeat))) => continue,
            Ok(Ok(Some(FromWorker::Hello { .. }))) => {
                return tracing::warn!(%worker, "a second hello in one stream: the worker is dismissed");
            }
            Ok(Ok(None)) => return,
            Ok(Err(error)) => return tracing::debug!(%worker, %error, "the stream broke"),
            Err(_) => return tracing::warn!(%worker, "silent for {} s: taken for lost", SILENCE.as_secs()),
        };
        if inbox.send(heard).await.is_err() {
            return;
        }
    }
}

/// Compares in a time that says nothing about where the texts differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && black_box(a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::same;

    #[test]
    fn texts_are_compared_whole() {
        assert!(same(b"abc", b"abc") && !same(b"abc", b"abd") && !same(b"abc", b"ab") && !same(b"", b"x"));
    }
}
