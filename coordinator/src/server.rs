//! The coordinator's end of the link: a gRPC server that only this run's workers can talk to.
//!
//! Each epoch has its own certificate and its own token, written into `link.json` in a directory that only the run's
//! user can read. The certificate tells workers whom they talk to, the token tells the coordinator. What workers say
//! goes into the driver's inbox as [`Heard`]; nothing is decided here, except that a worker that is silent for too
//! long has left.

mod door;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use forebay_datasets::volume::{Holder, NewFile, VolumeError};
use forebay_jobs::{
    id::{AttemptId, Epoch, RunId, WorkerId},
    link::LinkServer,
    spec::JobSpec,
    task::AttemptReport,
    wire::{LinkFile, SERVER_NAME, ToWorker},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Status,
    transport::{Identity, Server as GrpcServer, ServerTlsConfig, server::TcpIncoming},
};

use self::door::Door;
pub use self::door::SILENCE;
use crate::ballista::Scheduler;

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
