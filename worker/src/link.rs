//! The worker's end of its stream to the coordinator.
//!
//! `link.json`, in a directory that only the run's user can read, says where the coordinator is, which certificate it
//! shows, and the token that it wants to see. That certificate alone is trusted.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use forebay_jobs::{
    id::{Epoch, RunId},
    link::LinkClient,
    spec::JobSpec,
    wire::{Cluster, FromWorker, LinkFile, SERVER_NAME, ToWorker},
};
use tokio::sync::mpsc;
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// The version of `link.json` that is understood.
const VERSION: u32 = 1;
const CONNECT: Duration = Duration::from_secs(10);
/// From the connection to the coordinator's welcome.
const WELCOME: Duration = Duration::from_secs(15);
/// A coordinator that is stopped, or whose host is gone, is noticed by pings that nobody answers.
const PING: Duration = Duration::from_secs(5);
const PONG: Duration = Duration::from_secs(10);
/// Messages that may wait for the connection.
const WAITING: usize = 64;

/// Why there is no link to the coordinator.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The run has no coordinator, or there is no such run.
    #[error("the run `{run}` has no coordinator: there is no link.json in {}", path.display())]
    None {
        /// The run.
        run: RunId,
        /// Where it would be.
        path: PathBuf,
    },
    /// What says where the coordinator is cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What says where the coordinator is cannot be understood.
    #[error("{} does not say where the coordinator is", path.display())]
    Malformed {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A later forebay wrote it.
    #[error("{} has version {found}, and this forebay knows only {VERSION}", path.display())]
    TooNew {
        /// Its path.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Its token is none.
    #[error("the token in {} is none", path.display())]
    BadToken {
        /// Its path.
        path: PathBuf,
    },
    /// The coordinator cannot be reached.
    #[error("cannot connect to the coordinator at {address}")]
    Connect {
        /// Where it should be.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The coordinator does not want this worker.
    #[error("the coordinator at {address} refuses this worker: {}", source.message())]
    Refused {
        /// Where it is.
        address: String,
        /// Why.
        #[source]
        source: Box<Status>,
    },
    /// The coordinator says nothing, or something else than welcome.
    #[error("the coordinator at {address} does not welcome this worker: {what}")]
    NoWelcome {
        /// Where it is.
        address: String,
        /// What it did.
        what: &'static str,
    },
}

/// A worker's stream, welcomed.
#[derive(Debug)]
pub(crate) struct Link {
    /// To the coordinator; closed once the stream has ended.
    pub(crate) outgoing: mpsc::Sender<FromWorker>,
    /// From the coordinator.
    pub(crate) incoming: Streaming<ToWorker>,
    /// Whose coordinator it is.
    pub(crate) epoch: Epoch,
    /// The run's job.
    pub(crate) job: JobSpec,
    /// Where the stages of the run's query are scheduled.
    pub(crate) cluster: Option<Cluster>,
}

/// Connects to the coordinator of the run's newest epoch and says hello.
pub(crate) async fn connect(run: &RunId, run_dir: &Path, hello: FromWorker) -> Result<Link, LinkError> {
    let (path, file) = newest(run, run_dir)?;
    let address = || file.address.clone();
    let client =
        LinkClient::new(channel(&file).await.map_err(|source| LinkError::Connect { address: address(), source })?);

    let (outgoing, waiting) = mpsc::channel(WAITING);
    // The coordinator answers the call once it has seen who calls.
    outgoing.try_send(hello).expect("an empty channel with room takes a message");
    let messages = futures::stream::unfold(waiting, async |mut waiting| Some((waiting.recv().await?, waiting)));
    let mut request = Request::new(messages);
    let token: Result<MetadataValue<Ascii>, _> = format!("Bearer {}", file.token).parse();
    request.metadata_mut().insert("authorization", token.map_err(|_| LinkError::BadToken { path })?);

    let refused = |source| LinkError::Refused { address: address(), source: Box::new(source) };
    let no_welcome = |what| LinkError::NoWelcome { address: address(), what };
    let welcome = async {
        let mut incoming = client.work(request).await.map_err(refused)?;
        match incoming.message().await.map_err(refused)? {
            Some(ToWorker::Welcome { epoch, job }) => Ok((incoming, epoch, *job)),
            Some(_) => Err(no_welcome("it began with another message")),
            None => Err(no_welcome("it closed the stream")),
        }
    };
    let in_time = tokio::time::timeout(WELCOME, welcome).await;
    let (incoming, epoch, job) = in_time.unwrap_or_else(|_| Err(no_welcome("it said nothing in time")))?;
    Ok(Link { outgoing, incoming, epoch, job, cluster: file.cluster.clone() })
}

async fn channel(file: &LinkFile) -> Result<Channel, tonic::transport::Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&file.certificate)).domain_name(SERVER_NAME);
    let endpoint = Endpoint::from_shared(file.address.clone())?.tls_config(tls)?;
    let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
    let endpoint = endpoint.http2_keep_alive_interval(PING).keep_alive_timeout(PONG).keep_alive_while_idle(true);
    endpoint.connect().await
}

/// The link file of the newest epoch. Sealed epochs have another name.
fn newest(run: &RunId, run_dir: &Path) -> Result<(PathBuf, LinkFile), LinkError> {
    let epochs = run_dir.join("epochs");
    let none = || LinkError::None { run: run.clone(), path: epochs.clone() };
    let unreadable = |path: &Path, source| LinkError::Read { path: path.to_owned(), source };
    let entries = match fs::read_dir(&epochs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none()),
        Err(source) => return Err(unreadable(&epochs, source)),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(|source| unreadable(&epochs, source))?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    let path = epochs.join(numbers.into_iter().max().ok_or_else(none)?.to_string()).join("link.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none()),
        Err(source) => return Err(unreadable(&path, source)),
    };
    let malformed = |source| LinkError::Malformed { path: path.clone(), source };
    // A later version may have other fields: its number is looked at first.
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(malformed)?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(found) if found > u64::from(VERSION) => {
            return Err(LinkError::TooNew { path, found: u32::try_from(found).unwrap_or(u32::MAX) });
        }
        _ => {}
    }
    let file = serde_json::from_value(value).map_err(malformed)?;
    Ok((path, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, epoch: &str, text: &str) {
        let dir = dir.join("epochs").join(epoch);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("link.json"), text).unwrap();
    }

    fn text(epoch: u32, version: u32) -> String {
        format!(r#"{{"version":{version},"epoch":{epoch},"address":"https://h:1","certificate":"","token":"t"}}"#)
    }

    #[test]
    fn the_newest_epoch_that_is_not_sealed_is_the_coordinators() {
        let dir = tempfile::tempdir().unwrap();
        let run: RunId = "r".parse().unwrap();
        let newest = || newest(&run, dir.path());
        assert!(matches!(newest(), Err(LinkError::None { .. })));
        for (name, epoch) in [("9", 9), ("10", 10), ("11.sealed", 11), (".claim-x", 12)] {
            write(dir.path(), name, &text(epoch, 1));
        }
        assert_eq!(newest().unwrap().1.epoch, Epoch(10));
        fs::create_dir(dir.path().join("epochs/12")).unwrap();
        assert!(matches!(newest(), Err(LinkError::None { .. })));
        write(dir.path(), "12", "{");
        assert!(matches!(newest(), Err(LinkError::Malformed { .. })));
        write(dir.path(), "12", r#"{"version":2}"#);
        assert!(matches!(newest(), Err(LinkError::TooNew { found: 2, .. })));
    }
}
