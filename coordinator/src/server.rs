//! The coordinator's end of the link: a gRPC server that only this run's workers can talk to.
//!
//! Each epoch has its own certificate and its own token, written into `link.json` in a directory that only the run's
//! user can read. The certificate tells workers whom they talk to, the token tells the coordinator. What workers say
//! goes into the driver's inbox as [`Heard`]; nothing is decided here, except that a worker that is silent for too
//! long has left.

use std::{
    collections::BTreeSet,
    fs,
    hint::black_box,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::ballista::Scheduler;
use forebay_datasets::volume::{Holder, NewFile, VolumeError};
use forebay_jobs::{
    id::{AttemptId, Epoch, RunId, WorkerId},
    kinds::mapreduce::native::listed,
    link::{Link, LinkServer},
    spec::JobSpec,
    task::AttemptReport,
    wire::{CancelReply, CancelRequest, FromWorker, LinkFile, SERVER_NAME, ToWorker},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Identity, Server as GrpcServer, ServerTlsConfig, server::TcpIncoming},
};

/// A worker that says nothing for so long has left; it beats every 2 s.
pub const SILENCE: Duration = Duration::from_secs(15);
/// Who opens a stream says hello within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// The name of the file that says how the coordinator is reached.
pub const LINK: &str = "link.json";

/// Why the coordinator cannot be reached by its workers.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No certificate.
    #[error("cannot make a certificate for the run")]
    Certificate(#[source] rcgen::Error),
    /// No port.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The transport cannot be set up, or broke.
    #[error("the link to the workers broke")]
    Transport(#[from] tonic::transport::Error),
    /// `link.json` cannot be written.
    #[error("cannot write how the coordinator is reached")]
    LinkFile(#[from] VolumeError),
    /// The server's task ended.
    #[error("the link to the workers ended by itself")]
    Ended,
}

/// What workers, and those who cancel, say. A stream has a number of its own, so that what a replaced stream still
/// says can be told from what its successor says.
#[derive(Debug)]
pub enum Heard {
    /// A worker said hello, and was welcomed.
    Joined {
        /// Who.
        worker: WorkerId,
        /// Its stream.
        stream: u64,
        /// Attempts that it executes at once.
        slots: u32,
        /// What it holds already.
        holds: BTreeSet<AttemptId>,
        /// Its process.
        process: Holder,
        /// Milliseconds until it has to end.
        left: Option<u64>,
        /// Where its stream comes from.
        peer: Option<IpAddr>,
        /// What is put in here goes to it. Dropped, it ends the stream.
        sender: mpsc::UnboundedSender<Result<ToWorker, Status>>,
    },
    /// Attempts entered slots.
    Started {
        /// Who.
        worker: WorkerId,
        /// Its stream.
        stream: u64,
        /// Which.
        attempts: Vec<AttemptId>,
    },
    /// It takes nothing more.
    Draining {
        /// Who.
        worker: WorkerId,
        /// Its stream.
        stream: u64,
    },
    /// Attempts ended.
    Reports {
        /// Who.
        worker: WorkerId,
        /// Its stream.
        stream: u64,
        /// Which, and how.
        reports: Vec<AttemptReport>,
    },
    /// The stream ended, or was silent for too long.
    Left {
        /// Who.
        worker: WorkerId,
        /// Its stream.
        stream: u64,
    },
    /// Someone wants the run to end.
    Cancel {
        /// Told when that is durable.
        noted: oneshot::Sender<()>,
    },
}

/// What the server needs to know.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens; the port is any free one.
    pub listen: IpAddr,
    /// The run whose workers may join.
    pub run: RunId,
    /// This coordinator's epoch.
    pub epoch: Epoch,
    /// What workers are welcomed with.
    pub job: JobSpec,
    /// The volume's id, which workers must have found too.
    pub volume: String,
    /// Who schedules the stages of the run's query, where all workers may execute it.
    pub(crate) scheduler: Option<Arc<Scheduler>>,
}

/// The running server. Dropped, it serves nobody any more.
#[derive(Debug)]
pub struct Server {
    link: LinkFile,
    readers: TaskTracker,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    /// Listens, and puts what it hears into the inbox.
    pub async fn start(config: ServerConfig, inbox: mpsc::Sender<Heard>) -> Result<Self, ServerError> {
        let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).map_err(ServerError::Certificate)?;
        let certificate = made.cert.pem();
        let identity = Identity::from_pem(&certificate, made.signing_key.serialize_pem());
        let address = SocketAddr::new(config.listen, 0);
        let unable = |source| ServerError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(unable)?;
        let bound = listener.local_addr().map_err(unable)?;
        let token: [u8; 32] = rand::random();
        let link = LinkFile {
            version: 1,
            epoch: config.epoch,
            address: format!("https://{}", reached_at(bound)),
            certificate,
            cluster: config.scheduler.as_ref().map(|scheduler| scheduler.cluster().clone()),
            token: token.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let (readers, stop) = (TaskTracker::new(), CancellationToken::new());
        let door = Door {
            authorization: format!("Bearer {}", link.token),
            config: Arc::new(config),
            inbox,
            streams: AtomicU64::new(0),
            readers: readers.clone(),
            stop: stop.clone(),
        };
        let router = GrpcServer::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))?
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_service(LinkServer::new(door));
        // Two small messages after each other would wait for the peer's delayed acknowledgement, 40 ms, otherwise.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = tokio::spawn(router.serve_with_incoming(incoming));
        Ok(Self { link, readers, stop, serving })
    }

    /// How it is reached.
    pub fn link(&self) -> &LinkFile {
        &self.link
    }

    /// Writes `link.json` into the epoch's directory, for the run's user alone.
    pub fn announce(&self, epoch_dir: &Path) -> Result<(), ServerError> {
        let path = epoch_dir.join(LINK);
        let unable = |error| VolumeError::io("write", &path, error);
        let text = serde_json::to_vec_pretty(&self.link).map_err(io::Error::from).map_err(unable)?;
        let mut file = NewFile::create(&path)?;
        file.file().set_permissions(fs::Permissions::from_mode(0o600)).map_err(unable)?;
        file.write_all(&text).map_err(unable)?;
        file.finish()?;
        Ok(())
    }

    /// Waits until the server ends, which it does only by failing.
    pub async fn failed(&mut self) -> ServerError {
        match (&mut self.serving).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => ServerError::Ended,
        }
    }

    /// Hears nobody any more.
    pub async fn stop(self) {
        self.stop.cancel();
        self.readers.close();
        self.readers.wait().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.serving.abort();
    }
}

/// Where others reach what listens at an address: by the host's name if it listens everywhere.
pub(crate) fn reached_at(bound: SocketAddr) -> String {
    if !bound.ip().is_unspecified() {
        return bound.to_string();
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{name}:{}", bound.port())
}

/// Lets workers in, and hears them.
struct Door {
    config: Arc<ServerConfig>,
    authorization: String,
    inbox: mpsc::Sender<Heard>,
    streams: AtomicU64,
    readers: TaskTracker,
    stop: CancellationToken,
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
    use std::net::Ipv4Addr;

    use futures::{StreamExt, stream};
    use tonic::Code;

    use super::*;
    use crate::driver::reach;

    struct Fixture {
        server: Server,
        inbox: mpsc::Receiver<Heard>,
        run: RunId,
    }

    impl Fixture {
        async fn new() -> Self {
            Self::of("[command]\nargv = ['true']").await
        }

        async fn of(work: &str) -> Self {
            let text = format!("name = 'n'\n[dataset]\nsource = 'file:///x'\n{work}\n");
            let job = forebay_jobs::spec::parse::job_file(&text, Path::new("/"), &[]).unwrap();
            let (sender, inbox) = mpsc::channel(8);
            let run: RunId = "r".parse().unwrap();
            let volume = "v".to_owned();
            let listen = Ipv4Addr::LOCALHOST.into();
            let config = ServerConfig { listen, run: run.clone(), epoch: Epoch(3), job, volume, scheduler: None };
            Self { server: Server::start(config, sender).await.unwrap(), inbox, run }
        }

        fn hello(&self) -> FromWorker {
            FromWorker::Hello {
                run: self.run.clone(),
                worker: "w".parse().unwrap(),
                slots: 2,
                process: Holder::this_process(),
                holds: BTreeSet::new(),
                left: None,
                version: env!("CARGO_PKG_VERSION").into(),
                volume: "v".into(),
                natives: BTreeSet::new(),
            }
        }

        async fn work(&self, link: &LinkFile, messages: Vec<FromWorker>) -> Result<Streaming<ToWorker>, Status> {
            self.work_until(link, messages, stream::pending()).await
        }

        /// The stream ends when the other one does.
        async fn work_until(
            &self,
            link: &LinkFile,
            messages: Vec<FromWorker>,
            end: impl futures::Stream<Item = FromWorker> + Send + 'static,
        ) -> Result<Streaming<ToWorker>, Status> {
            let client = reach(link).await.unwrap();
            client.client().work(client.request(stream::iter(messages).chain(end))).await
        }
    }

    #[tokio::test]
    async fn a_worker_is_welcomed_heard_and_missed() {
        let mut fixture = Fixture::new().await;
        let link = fixture.server.link().clone();
        let (last_word, end) = mpsc::unbounded_channel();
        let messages = vec![fixture.hello(), FromWorker::Started(vec![])];
        let mut said = fixture.work_until(&link, messages, UnboundedReceiverStream::new(end)).await.unwrap();
        let welcome = said.message().await.unwrap().unwrap();
        assert!(matches!(welcome, ToWorker::Welcome { epoch: Epoch(3), .. }));
        let Some(Heard::Joined { worker, stream, slots: 2, sender, .. }) = fixture.inbox.recv().await else { panic!() };
        assert!(matches!(fixture.inbox.recv().await, Some(Heard::Started { .. })));
        sender.send(Ok(ToWorker::Shutdown)).unwrap();
        assert_eq!(said.message().await.unwrap(), Some(ToWorker::Shutdown));
        drop(last_word);
        let Some(Heard::Left { worker: left, stream: ended }) = fixture.inbox.recv().await else { panic!() };
        assert_eq!((left, ended), (worker, stream));
        fixture.server.stop().await;
    }

    #[tokio::test]
    async fn a_wrong_token_a_strange_run_and_another_volume_are_refused() {
        let fixture = Fixture::new().await;
        let link = fixture.server.link().clone();
        let wrong = LinkFile { token: link.token.replace(|_: char| true, "0"), ..link.clone() };
        let refused = fixture.work(&wrong, vec![fixture.hello()]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        for change in ["run", "volume", "version"] {
            let mut hello = fixture.hello();
            if let FromWorker::Hello { run, volume, version, .. } = &mut hello {
                match change {
                    "run" => *run = "other".parse().unwrap(),
                    "volume" => *volume = "other".into(),
                    _ => *version = "0.0.0".into(),
                }
            }
            let refused = fixture.work(&link, vec![hello]).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{change}");
        }
        let refused = fixture.work(&link, vec![FromWorker::Heartbeat]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }

    #[tokio::test]
    async fn a_worker_without_what_the_job_calls_for_is_refused() {
        let fixture = Fixture::of("[mapreduce]\nmap = { native = 'sessions' }").await;
        let link = fixture.server.link().clone();
        let refused = fixture.work(&link, vec![fixture.hello()]).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("map is `sessions`, and compiled into the worker is none"), "{refused}");
        let mut hello = fixture.hello();
        if let FromWorker::Hello { natives, .. } = &mut hello {
            *natives = ["other", "sessions"].map(str::to_owned).into();
        }
        fixture.work(&link, vec![hello]).await.unwrap();
    }

    #[tokio::test]
    async fn another_certificate_is_not_trusted() {
        let (fixture, other) = (Fixture::new().await, Fixture::new().await);
        let certificate = other.server.link().certificate.clone();
        let link = LinkFile { certificate, ..fixture.server.link().clone() };
        assert!(reach(&link).await.is_err());
    }

    #[tokio::test]
    async fn a_cancel_is_answered_once_it_is_noted() {
        let mut fixture = Fixture::new().await;
        let client = reach(fixture.server.link()).await.unwrap();
        let call = client.client().cancel(client.request(CancelRequest { run: fixture.run.clone() }));
        let note = async {
            let Some(Heard::Cancel { noted }) = fixture.inbox.recv().await else { panic!() };
            noted.send(()).unwrap();
        };
        let (answered, ()) = tokio::join!(call, note);
        answered.unwrap();
    }

    #[tokio::test]
    async fn the_link_file_is_the_users_alone() {
        let (fixture, dir) = (Fixture::new().await, tempfile::tempdir().unwrap());
        fixture.server.announce(dir.path()).unwrap();
        let path = dir.path().join(LINK);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read: LinkFile = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(&read, fixture.server.link());
    }

    #[test]
    fn texts_are_compared_whole() {
        assert!(same(b"abc", b"abc") && !same(b"abc", b"abd") && !same(b"abc", b"ab") && !same(b"", b"x"));
    }
}
