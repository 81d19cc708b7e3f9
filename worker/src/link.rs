//! The worker's end of its stream to the coordinator.
//!
//! `link.json`, in a directory that only the run's user can read, says where the coordinator is, which certificate it
//! shows, and the token that it wants to see. That certificate alone is trusted. Where no address of the coordinator's
//! can be connected to, and it says that it reads letters, the same messages go by [`mail`].

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use forebay_datasets::volume::{Volume, looking_again};
use forebay_jobs::{
    id::{Epoch, RunId},
    link::{LinkClient, Unreachable},
    mail,
    spec::JobSpec,
    wire::{Cluster, FromWorker, LinkFile, ToWorker},
};
use futures::{StreamExt, TryFutureExt, stream::BoxStream};
use tokio::sync::mpsc;
use tonic::{Code, Status};

/// From the hello to the coordinator's welcome.
const WELCOME: Duration = Duration::from_secs(20);
/// Messages that may wait for the connection.
const WAITING: usize = 64;
/// How long a file that the coordinator has written may take to be seen here.
const SEEN: Duration = Duration::from_secs(3);
/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(200);

/// Why there is no link to the coordinator.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no such run on this volume.
    #[error("there is no run `{run}` on volume {volume}, which is what this host has at {}", root.display())]
    NoRun {
        /// The run.
        run: RunId,
        /// The volume's id.
        volume: String,
        /// Where it is.
        root: PathBuf,
    },
    /// The run has no coordinator.
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
    #[error("{} has version {found}, and this forebay knows only {}", path.display(), LinkFile::VERSION)]
    TooNew {
        /// Its path.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The coordinator cannot be reached.
    #[error("cannot connect to the run's coordinator: {0}")]
    Unreachable(#[source] Unreachable),
    /// The coordinator does not want this worker.
    #[error("the coordinator {at} refuses this worker: {}", source.message())]
    Refused {
        /// Where it is.
        at: String,
        /// Why.
        #[source]
        source: Box<Status>,
    },
    /// The coordinator says nothing, or something else than welcome.
    #[error("the coordinator {at} does not welcome this worker: {what}")]
    NoWelcome {
        /// Where it is.
        at: String,
        /// What it did.
        what: &'static str,
    },
}

impl LinkError {
    /// Whether there may be no coordinator: another one, once it is there, may well want this worker.
    pub(crate) fn is_of_nobody(&self) -> bool {
        match self {
            Self::None { .. } | Self::Unreachable(_) | Self::NoWelcome { .. } => true,
            Self::Refused { source, .. } => {
                matches!(source.code(), Code::Unavailable | Code::DeadlineExceeded | Code::DataLoss | Code::Unknown)
            }
            _ => false,
        }
    }
}

/// A worker's stream, welcomed. What carries it makes no difference.
pub(crate) struct Link {
    /// To the coordinator; closed once the stream has ended.
    pub(crate) outgoing: mpsc::Sender<FromWorker>,
    /// From the coordinator.
    pub(crate) incoming: BoxStream<'static, Result<ToWorker, Status>>,
    /// Whose coordinator it is.
    pub(crate) epoch: Epoch,
    /// The run's job.
    pub(crate) job: JobSpec,
    /// Where the stages of the run's query are scheduled.
    pub(crate) cluster: Option<Cluster>,
}

/// Reaches the coordinator of the run's newest epoch and says hello.
pub(crate) async fn connect(run: &RunId, volume: &Volume, hello: FromWorker) -> Result<Link, LinkError> {
    let (path, file) = newest(run, volume)?;
    let (outgoing, waiting) = mpsc::channel(WAITING);
    outgoing.try_send(hello).expect("an empty channel with room takes a message");
    let (at, mut incoming) = carried(&file, &path, waiting).await?;

    let refused = |source| LinkError::Refused { at: at.clone(), source: Box::new(source) };
    let no_welcome = |what| LinkError::NoWelcome { at: at.clone(), what };
    let welcome = async {
        loop {
            match incoming.next().await.transpose().map_err(refused)? {
                Some(ToWorker::Welcome { epoch, job }) => return Ok((epoch, *job)),
                Some(ToWorker::Look { canary }) => {
                    let seen = FromWorker::Seen(look(volume, canary).await);
                    outgoing.send(seen).await.map_err(|_| no_welcome("it closed the stream"))?;
                }
                Some(_) => return Err(no_welcome("it began with another message")),
                None => return Err(no_welcome("it closed the stream")),
            }
        }
    };
    let in_time = tokio::time::timeout(WELCOME, welcome).await;
    let (epoch, job) = in_time.unwrap_or_else(|_| Err(no_welcome("it said nothing in time")))?;
    Ok(Link { outgoing, incoming, epoch, job, cluster: file.cluster.clone() })
}

/// Who carries the messages, and what the coordinator says to them.
async fn carried(
    file: &LinkFile,
    path: &Path,
    messages: mpsc::Receiver<FromWorker>,
) -> Result<(String, BoxStream<'static, Result<ToWorker, Status>>), LinkError> {
    let unreachable = match LinkClient::connect(file).await {
        Ok(client) => {
            let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
            let at = format!("at {}", client.address());
            // The coordinator answers the call once it has seen who calls.
            let call = async move { client.work(messages).await };
            return Ok((at, call.try_flatten_stream().boxed()));
        }
        Err(unreachable) => unreachable,
    };
    let Some(dir) = path.parent().filter(|_| file.mail) else { return Err(LinkError::Unreachable(unreachable)) };
    if !file.addresses.is_empty() {
        tracing::warn!("cannot connect to the coordinator ({unreachable}): letters on the volume are slower, and do");
    }
    let answers = mail::correspond(dir.to_owned(), &file.token, messages);
    Ok(("by letter".to_owned(), answers.boxed()))
}

/// What is in a file that the coordinator has just written; none if it is not seen here.
async fn look(volume: &Volume, canary: String) -> Option<String> {
    let path = volume.resolve(&canary).ok()?;
    let until = Instant::now() + SEEN;
    loop {
        let path = path.clone();
        let read = tokio::task::spawn_blocking(move || looking_again(&path, |path| fs::read_to_string(path))).await;
        match read.ok()? {
            Ok(text) if !text.is_empty() => return Some(text),
            _ if Instant::now() > until => return None,
            // No file server tells of a new name.
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The link file of the newest epoch. Sealed epochs have another name.
fn newest(run: &RunId, volume: &Volume) -> Result<(PathBuf, LinkFile), LinkError> {
    let dir = volume.run_dir(run.as_str());
    let epochs = dir.join("epochs");
    let none = || LinkError::None { run: run.clone(), path: epochs.clone() };
    let unreadable = |path: &Path, source| LinkError::Read { path: path.to_owned(), source };
    let entries = match looking_again(&epochs, |epochs| fs::read_dir(epochs)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => {
            let (volume, root) = (volume.id().to_owned(), volume.root().to_owned());
            return Err(LinkError::NoRun { run: run.clone(), volume, root });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none()),
        Err(source) => return Err(unreadable(&epochs, source)),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(|source| unreadable(&epochs, source))?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    let path = epochs.join(numbers.into_iter().max().ok_or_else(none)?.to_string()).join(LinkFile::NAME);
    let text = match looking_again(&path, |path| fs::read(path)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none()),
        Err(source) => return Err(unreadable(&path, source)),
    };
    let malformed = |source| LinkError::Malformed { path: path.clone(), source };
    // A later version may have other fields: its number is looked at first.
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(malformed)?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(found) if found > u64::from(LinkFile::VERSION) => {
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
        let dir = dir.join("runs/r/epochs").join(epoch);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("link.json"), text).unwrap();
    }

    fn text(epoch: u32, version: u32) -> String {
        format!(r#"{{"version":{version},"epoch":{epoch},"addresses":["https://h:1"],"certificate":"","token":"t"}}"#)
    }

    #[test]
    fn the_newest_epoch_that_is_not_sealed_is_the_coordinators() {
        let dir = tempfile::tempdir().unwrap();
        let run: RunId = "r".parse().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        let newest = || newest(&run, &volume);
        assert!(matches!(newest(), Err(LinkError::NoRun { .. })));
        fs::create_dir_all(dir.path().join("runs/r")).unwrap();
        assert!(matches!(newest(), Err(LinkError::None { .. })));
        for (name, epoch) in [("9", 9), ("10", 10), ("11.sealed", 11), (".claim-x", 12)] {
            write(dir.path(), name, &text(epoch, 2));
        }
        assert_eq!(newest().unwrap().1.epoch, Epoch(10));
        fs::create_dir(dir.path().join("runs/r/epochs/12")).unwrap();
        assert!(matches!(newest(), Err(LinkError::None { .. })));
        write(dir.path(), "12", "{");
        assert!(matches!(newest(), Err(LinkError::Malformed { .. })));
        write(dir.path(), "12", r#"{"version":3}"#);
        assert!(matches!(newest(), Err(LinkError::TooNew { found: 3, .. })));
    }
}
