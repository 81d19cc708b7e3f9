//! The coordinator's end of the link, which only this run's workers can use.
//!
//! Each epoch has its own certificate and its own token, written into `link.json` in a directory that only the run's
//! user can read. The certificate tells workers whom they talk to, the token tells the coordinator. Streams come by
//! connections of gRPC or by letters on the volume, and all of them through one `Door`. What workers say goes into the
//! driver's inbox as [`Heard`]; nothing is decided here, except that a worker that is silent for too long has left.

mod address;
mod canary;
mod door;
mod mail;
mod strangers;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use forebay_datasets::volume::{Holder, NewFile, Volume, VolumeError};
use forebay_jobs::{
    id::{AttemptId, Epoch, RunId, WorkerId},
    link::LinkServer,
    mail::LINK,
    spec::{JobSpec, LinkKind},
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
    transport::{Identity, Server as GrpcServer, ServerTlsConfig},
};

pub use self::address::{Advertised, everywhere};
pub(crate) use self::{address::reached_at, mail::clear};
use self::{
    door::{Door, Inside},
    mail::Office,
    strangers::Strangers,
};
use crate::ballista::Scheduler;

/// A worker that says nothing for so long has left; it beats every 2 s.
pub const SILENCE: Duration = Duration::from_secs(15);

/// Why the coordinator cannot be reached by its workers.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No certificate.
    #[error("cannot make a certificate for the run")]
    Certificate(#[source] rcgen::Error),
    /// No port.
    #[error("cannot listen on {address}{}", address::remedy(address, source))]
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
    /// `link.json`, or what lies beside it, cannot be written.
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
    /// Where it listens; port 0 is any free one.
    pub listen: SocketAddr,
    /// Where workers reach it, in the order in which they try; none: where it listens.
    pub advertise: Vec<Advertised>,
    /// The run whose workers may join.
    pub run: RunId,
    /// This coordinator's epoch.
    pub epoch: Epoch,
    /// What workers are welcomed with.
    pub job: JobSpec,
    /// The volume, which workers must have too.
    pub volume: Volume,
    /// Who schedules the stages of the run's query, where all workers may execute it.
    pub(crate) scheduler: Option<Arc<Scheduler>>,
}

/// The running server. Dropped, it serves nobody any more.
#[derive(Debug)]
pub struct Server {
    link: LinkFile,
    epoch_dir: PathBuf,
    volume: Volume,
    readers: TaskTracker,
    stop: CancellationToken,
    /// None where nobody can connect.
    serving: Option<Serving>,
    /// None where no letters are read.
    office: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens, and reads letters, as the job says, and puts what it hears into the inbox.
    pub async fn start(
        config: ServerConfig,
        epoch_dir: &Path,
        inbox: mpsc::Sender<Heard>,
    ) -> Result<Self, ServerError> {
        let takes_mail = config.job.takes_mail();
        mail::prepare(epoch_dir, takes_mail)?;
        let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).map_err(ServerError::Certificate)?;
        let certificate = made.cert.pem();
        let identity = Identity::from_pem(&certificate, made.signing_key.serialize_pem());
        let token: [u8; 32] = rand::random();
        let token: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
        let (readers, stop, strangers) = (TaskTracker::new(), CancellationToken::new(), Arc::default());
        let (listen, advertise, epoch) = (config.listen, config.advertise.clone(), config.epoch);
        let (volume, link) = (config.volume.clone(), config.job.workers.link);
        let cluster = config.scheduler.as_ref().map(|scheduler| scheduler.cluster().clone());
        let door = Door(Arc::new(Inside {
            authorization: format!("Bearer {token}"),
            config,
            epoch_dir: epoch_dir.to_owned(),
            inbox,
            streams: AtomicU64::new(0),
            readers: readers.clone(),
            stop: stop.clone(),
            strangers: Arc::clone(&strangers),
        }));
        let (addresses, serving) = match link {
            LinkKind::Files => (Vec::new(), None),
            LinkKind::Tcp | LinkKind::Auto => {
                let (bound, serving) = serve(listen, identity, door.clone(), &strangers).await?;
                (address::addresses(bound, &advertise), Some(serving))
            }
        };
        let office = takes_mail.then(|| tokio::spawn(Office::new(door, &token).serve()));
        let version = LinkFile::VERSION;
        let link = LinkFile { version, epoch, addresses, mail: takes_mail, certificate, token, cluster };
        Ok(Self { link, epoch_dir: epoch_dir.to_owned(), volume, readers, stop, serving, office })
    }

    /// How it is reached.
    pub fn link(&self) -> &LinkFile {
        &self.link
    }

    /// Writes `link.json` into the epoch's directory, for the run's user alone.
    pub fn announce(&self) -> Result<(), ServerError> {
        let path = self.epoch_dir.join(LinkFile::NAME);
        let unable = |error| VolumeError::io("write", &path, error);
        let text = serde_json::to_vec_pretty(&self.link).map_err(io::Error::from).map_err(unable)?;
        let mut file = NewFile::create(&path)?;
        file.file().set_permissions(fs::Permissions::from_mode(0o600)).map_err(unable)?;
        file.write_all(&text).map_err(unable)?;
        // It is of no use after a crash.
        file.finish_in_tree()?;
        Ok(())
    }

    /// Waits until the server ends, which it does only by failing.
    pub async fn failed(&mut self) -> ServerError {
        let serving = async {
            match &mut self.serving {
                Some(serving) => match serving.await {
                    Ok(Err(error)) => error.into(),
                    Ok(Ok(())) | Err(_) => ServerError::Ended,
                },
                None => std::future::pending().await,
            }
        };
        let office = async {
            match &mut self.office {
                Some(office) => drop(office.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = serving => error,
            () = office => {
                self.office = None;
                ServerError::Ended
            }
        }
    }

    /// Hears nobody any more. What was said to workers by letter is left to them for a moment.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.readers.close();
        self.readers.wait().await;
        if let Some(office) = self.office.take() {
            let _ = office.await;
        }
        let (volume, link) = (self.volume.clone(), self.epoch_dir.join(LINK));
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || volume.trash(&link)).await {
            tracing::debug!(%error, "what came and went with the link is left");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

type Serving = JoinHandle<Result<(), tonic::transport::Error>>;

/// Serves those who connect.
async fn serve(
    address: SocketAddr,
    identity: Identity,
    door: Door,
    strangers: &Arc<Strangers>,
) -> Result<(SocketAddr, Serving), ServerError> {
    let unable = |source| ServerError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(unable)?;
    let bound = listener.local_addr().map_err(unable)?;
    let router = GrpcServer::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))?
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        // A worker has one stream, and who cancels has one call.
        .max_concurrent_streams(8)
        .add_service(LinkServer::new(door));
    Ok((bound, tokio::spawn(router.serve_with_incoming(strangers.incoming(listener)))))
}
