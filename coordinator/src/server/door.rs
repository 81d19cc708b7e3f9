//! Who comes in. Whatever carries a stream, it comes through here: the token was seen before.

use std::{
    collections::BTreeSet,
    hint::black_box,
    net::IpAddr,
    path::PathBuf,
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
use futures::{Stream, StreamExt, stream::BoxStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming, transport::server::TlsConnectInfo};

use super::{
    Heard, SILENCE, ServerConfig,
    canary::{Caller, Canary},
    strangers::{Strangers, Visitor},
};

/// Who opens a stream says hello within this time, and what it is asked next.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a worker says, in order.
pub(super) type Said = BoxStream<'static, Result<FromWorker, Status>>;

/// Lets workers in, and hears them.
#[derive(Clone)]
pub(super) struct Door(pub(super) Arc<Inside>);

pub(super) struct Inside {
    pub(super) config: ServerConfig,
    pub(super) epoch_dir: PathBuf,
    pub(super) authorization: String,
    pub(super) inbox: mpsc::Sender<Heard>,
    pub(super) streams: AtomicU64,
    pub(super) readers: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) strangers: Arc<Strangers>,
}

/// Who may come in.
struct Admitted {
    worker: WorkerId,
    slots: u32,
    holds: BTreeSet<AttemptId>,
    process: Holder,
    left: Option<u64>,
    root: String,
}

impl Door {
    /// Checks the first message of a stream.
    fn admit(&self, hello: Option<FromWorker>) -> Result<Admitted, Status> {
        let Some(FromWorker::Hello { run, worker, slots, process, holds, left, version, volume, root, natives }) =
            hello
        else {
            return Err(Status::invalid_argument("the first message is a hello"));
        };
        let (config, ours) = (&self.0.config, env!("CARGO_PKG_VERSION"));
        if run != config.run {
            return Err(Status::failed_precondition(format!("this is the coordinator of {}, not {run}", config.run)));
        }
        if version != ours {
            let message = format!("the worker is forebay {version}, its coordinator is {ours}");
            return Err(Status::failed_precondition(message));
        }
        if volume != config.volume.id() {
            let caller = Caller { worker: worker.as_str(), process: &process, volume: &volume, root: &root };
            return Err(self.refused(caller.has_another(&config.volume)));
        }
        if let Some(native) = config.job.native().filter(|native| !natives.contains(*native)) {
            let message = format!(
                "the job's map is `{native}`, and compiled into the worker is {}: start the program that has it",
                listed(&natives)
            );
            return Err(Status::failed_precondition(message));
        }
        if slots == 0 {
            return Err(Status::invalid_argument("a worker has at least one slot"));
        }
        Ok(Admitted { worker, slots, holds, process, left, root })
    }

    /// Of a mount that is wrong whoever started the run is told as well.
    fn refused(&self, why: String) -> Status {
        tracing::warn!("{why}");
        Status::failed_precondition(why)
    }

    /// A worker's stream: what it says, and what is said to it from the welcome on.
    pub(super) async fn open(
        &self,
        mut said: Said,
        peer: Option<IpAddr>,
    ) -> Result<UnboundedReceiverStream<Result<ToWorker, Status>>, Status> {
        let hello = next(&mut said, "no hello came").await?;
        let admitted = self.admit(hello)?;
        // Unbounded, but filled only with what the worker's slots and its prefetch hold.
        let (sender, receiver) = mpsc::unbounded_channel();
        let door = self.clone();
        self.0.readers.spawn(async move {
            let stop = door.0.stop.clone();
            tokio::select! {
                () = door.receive(admitted, said, peer, sender) => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(UnboundedReceiverStream::new(receiver))
    }

    async fn receive(
        &self,
        admitted: Admitted,
        mut said: Said,
        peer: Option<IpAddr>,
        sender: mpsc::UnboundedSender<Result<ToWorker, Status>>,
    ) {
        if let Err(refused) = self.look(&admitted, &mut said, &sender).await {
            let _ = sender.send(Err(refused));
            return;
        }
        let Admitted { worker, slots, holds, process, left, .. } = admitted;
        let (config, inbox) = (&self.0.config, &self.0.inbox);
        let welcome = ToWorker::Welcome { epoch: config.epoch, job: Box::new(config.job.clone()) };
        // A receiver that is gone is a worker that has left already, which is heard below.
        let _ = sender.send(Ok(welcome));
        let stream = self.0.streams.fetch_add(1, Ordering::Relaxed);
        let joined = Heard::Joined { worker: worker.clone(), stream, slots, holds, process, left, peer, sender };
        if inbox.send(joined).await.is_err() {
            return;
        }
        hear(&worker, stream, said, inbox).await;
        if let Some(scheduler) = &config.scheduler {
            scheduler.lost(&worker);
        }
        // Nobody to tell means that the driver has ended.
        let _ = inbox.send(Heard::Left { worker, stream }).await;
    }

    /// Lets a worker show that it sees what is written here.
    async fn look(
        &self,
        admitted: &Admitted,
        said: &mut Said,
        sender: &mpsc::UnboundedSender<Result<ToWorker, Status>>,
    ) -> Result<(), Status> {
        let (volume, epoch_dir) = (self.0.config.volume.clone(), self.0.epoch_dir.clone());
        let write = tokio::task::spawn_blocking(move || Canary::write(&volume, &epoch_dir));
        let written = write.await.map_err(|error| Status::internal(error.to_string()))?;
        let canary = written.map_err(|error| Status::unavailable(error.to_string()))?;
        let _ = sender.send(Ok(ToWorker::Look { canary: canary.place.clone() }));
        let seen = match next(said, "the worker does not say what it sees").await? {
            Some(FromWorker::Seen(seen)) => seen,
            _ => return Err(Status::invalid_argument("after the hello a worker says what it sees")),
        };
        if canary.is(seen.as_deref()) {
            return Ok(());
        }
        let Admitted { worker, process, root, .. } = admitted;
        let volume = self.0.config.volume.id();
        let caller = Caller { worker: worker.as_str(), process, volume, root };
        Err(self.refused(caller.has_a_copy(&self.0.config.volume, &canary)))
    }

    /// Someone wants the run to end, and is answered once that is durable.
    pub(super) async fn end_run(&self, request: CancelRequest) -> Result<CancelReply, Status> {
        if request.run != self.0.config.run {
            let message = format!("this is the coordinator of {}, not {}", self.0.config.run, request.run);
            return Err(Status::failed_precondition(message));
        }
        let (noted, taken) = oneshot::channel();
        let gone = || Status::unavailable("the coordinator is ending");
        self.0.inbox.send(Heard::Cancel { noted }).await.map_err(|_| gone())?;
        taken.await.map_err(|_| gone())?;
        Ok(CancelReply {})
    }
}

impl Link for Door {
    type ToWorker = UnboundedReceiverStream<Result<ToWorker, Status>>;

    fn authorize(&self, headers: &http::HeaderMap, connection: &http::Extensions) -> Result<(), Status> {
        let visitor = connection.get::<TlsConnectInfo<Visitor>>().map(TlsConnectInfo::get_ref);
        let shown = headers.get("authorization").map_or(&b""[..], |value| value.as_bytes());
        if !same(shown, self.0.authorization.as_bytes()) {
            let why = "the token that it showed is not this run's";
            self.0.strangers.turned_away(visitor.map(Visitor::peer), why);
            return Err(Status::unauthenticated("the token is not this run's"));
        }
        if let Some(visitor) = visitor {
            visitor.is_ours();
        }
        Ok(())
    }

    async fn work(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::ToWorker>, Status> {
        let visitor = request.extensions().get::<TlsConnectInfo<Visitor>>();
        let peer = visitor.map(|visitor| visitor.get_ref().peer());
        self.open(request.into_inner().boxed(), peer).await.map(Response::new)
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<CancelReply>, Status> {
        self.end_run(request.into_inner()).await.map(Response::new)
    }
}

/// The next message, which is to come soon.
async fn next(said: &mut Said, late: &'static str) -> Result<Option<FromWorker>, Status> {
    let next = tokio::time::timeout(PATIENCE, said.next()).await;
    next.map_err(|_| Status::deadline_exceeded(late))?.transpose()
}

/// Passes on what a worker says, until it says nothing more.
async fn hear(
    worker: &WorkerId,
    stream: u64,
    mut said: impl Stream<Item = Result<FromWorker, Status>> + Unpin,
    inbox: &mpsc::Sender<Heard>,
) {
    loop {
        let worker = worker.clone();
        let heard = match tokio::time::timeout(SILENCE, said.next()).await {
            Ok(Some(Ok(FromWorker::Started(attempts)))) => Heard::Started { worker, stream, attempts },
            Ok(Some(Ok(FromWorker::Reports(reports)))) => Heard::Reports { worker, stream, reports },
            Ok(Some(Ok(FromWorker::Draining))) => Heard::Draining { worker, stream },
            Ok(Some(Ok(FromWorker::Heartbeat))) => continue,
            Ok(Some(Ok(FromWorker::Hello { .. } | FromWorker::Seen(_)))) => {
                return tracing::warn!(%worker, "a second hello in one stream: the worker is dismissed");
            }
            Ok(None) => return,
            Ok(Some(Err(error))) => return tracing::debug!(%worker, %error, "the stream broke"),
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
