//! What coordinator and worker say to each other: one bidirectional gRPC stream a worker, JSON messages, in batches.

use std::{collections::BTreeSet, fmt};

use forebay_datasets::volume::Holder;
use serde::{Deserialize, Serialize};

use crate::{
    id::{AttemptId, Epoch, RunId, WorkerId},
    spec::JobSpec,
    task::{AttemptReport, TaskSpec},
};

/// From the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToWorker {
    /// Answers [`FromWorker::Hello`]: says whether both sides see one volume, which an id alone does not, since a copy has
    /// the same. Answered by [`FromWorker::Seen`].
    Look {
        /// A file that the coordinator has just written, by its place on the volume.
        canary: String,
    },
    /// The worker may work.
    Welcome {
        /// The coordinator's epoch.
        epoch: Epoch,
        /// The run's job, as resolved.
        job: Box<JobSpec>,
    },
    /// Attempts to execute, in this order; those beyond the worker's slots wait in it.
    Assign(Vec<Assignment>),
    /// Attempts to end, started or not. Each is reported, as `Failed(Cancelled)` if it had not ended by itself.
    Kill(Vec<AttemptId>),
    /// Attempts to be done with what they have read, and to report what is left, where their kind of work can do that:
    /// others have nothing to do.
    Yield(Vec<AttemptId>),
    /// The ends of these attempts are noted, as far as they count. Until then a worker keeps its reports.
    Noted(Vec<AttemptId>),
    /// Nothing more will come: end.
    Shutdown,
}

/// One attempt to execute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Its id.
    pub attempt: AttemptId,
    /// What it is to do.
    pub spec: TaskSpec,
    /// Whether another attempt at the task goes on, from which it must take nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside: bool,
    /// Where the members of a gang meet; none for other tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendezvous: Option<Rendezvous>,
}

/// Where the members of a gang meet: at a port on the host of the first of them, another one each try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendezvous {
    /// The host's address, as its worker came to the coordinator.
    pub address: String,
    /// A TCP port.
    pub port: u16,
}

/// From a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(clippy::large_enum_variant, reason = "a stream has one hello, and few messages wait at a time")]
pub enum FromWorker {
    /// The first message of a stream.
    Hello {
        /// The run it wants to work for.
        run: RunId,
        /// Itself.
        worker: WorkerId,
        /// How many attempts it executes at once.
        slots: u32,
        /// Its process.
        process: Holder,
        /// What it was assigned before, by whichever coordinator, and has not ended or has yet to report.
        holds: BTreeSet<AttemptId>,
        /// Milliseconds until it has to end; none if nothing says so.
        left: Option<u64>,
        /// Version of forebay; coordinator and worker must agree.
        version: String,
        /// The volume's id, as the worker reads it from `volume.json`.
        volume: String,
        /// Where the worker has the volume: said to users, and to nobody else.
        root: String,
        /// The native jobs that are compiled into it.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        natives: BTreeSet<String>,
    },
    /// What is in the file that [`ToWorker::Look`] names; none if it cannot be read.
    Seen(Option<String>),
    /// These attempts are in slots now.
    Started(Vec<AttemptId>),
    /// These attempts ended.
    Reports(Vec<AttemptReport>),
    /// It is about to end, and takes nothing more.
    Draining,
    /// Still there.
    Heartbeat,
}

/// Asks a run's coordinator to end it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// Which run.
    pub run: RunId,
}

/// The coordinator took note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelReply {}

/// `link.json`: how a coordinator is reached. It lies in a directory that only the run's user can read; who cannot
/// read it cannot join the run.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFile {
    /// Version of this file's format.
    pub version: u32,
    /// The coordinator's epoch.
    pub epoch: Epoch,
    /// `https://host:port`, in the order in which they are to be tried; none where only letters arrive.
    pub addresses: Vec<String>,
    /// Whether it also reads letters that are left beside this file ([`mail`](crate::mail)).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mail: bool,
    /// The only certificate that a worker trusts, made for this epoch; its name is [`SERVER_NAME`].
    pub certificate: String,
    /// Shown by every worker in each call.
    pub token: String,
    /// Where the stages of the run's query are scheduled; none where one worker does all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
}

/// How the scheduler and the executors of a run's query reach each other. All of them show the same certificate, and
/// take nobody who does not show it as well: who holds the key may schedule, execute and read what lies between stages.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// `https://host:port` of the scheduler.
    pub address: String,
    /// The only certificate that is trusted, made for this epoch; its name is [`SERVER_NAME`].
    pub certificate: String,
    /// The certificate's private key.
    pub key: String,
}

/// Without the key, which must not end up in a log.
impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("address", &self.address).finish_non_exhaustive()
    }
}

impl LinkFile {
    /// The version that is written and understood.
    pub const VERSION: u32 = 2;
    /// Its name, in the directory of its epoch.
    pub const NAME: &str = "link.json";
}

/// Without the token, which must not end up in a log.
impl fmt::Debug for LinkFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, epoch, addresses, mail, .. } = self;
        let mut shown = f.debug_struct("LinkFile");
        shown.field("version", version).field("epoch", epoch).field("addresses", addresses).field("mail", mail);
        shown.finish_non_exhaustive()
    }
}

/// The name in the coordinator's certificate.
pub const SERVER_NAME: &str = "forebay";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use forebay_datasets::{checksum::Crc64, split::Split};

    use super::*;
    use crate::{
        id::TaskId,
        task::{Failure, Outcome, OutputFile, TaskInput},
    };

    #[test]
    fn messages_survive_their_encoding() {
        let task = TaskId { phase: 1, index: 7 };
        let attempt = AttemptId { task, number: 2, epoch: Epoch(3) };
        let file = OutputFile {
            path: "runs/r/attempts/0-7.2.3/part".into(),
            publish_as: None,
            partition: Some(4),
            size: u64::MAX,
            checksum: Crc64(u64::MAX),
            rows: Some(9),
        };
        let spec = TaskSpec { task, count: 8, input: TaskInput::Shuffle(vec![file.clone()]) };
        let rendezvous = Rendezvous { address: "10.0.0.1".into(), port: 20_000 };
        let assign = ToWorker::Assign(vec![Assignment { attempt, spec, beside: true, rendezvous: Some(rendezvous) }]);
        let text = serde_json::to_vec(&assign).unwrap();
        assert_eq!(serde_json::from_slice::<ToWorker>(&text).unwrap(), assign);
        let outcomes = [
            Outcome::Done {
                outputs: vec![file],
                metrics: BTreeMap::from([("rows".to_owned(), 0.1)]),
                rest: Some(Split::default()),
            },
            Outcome::Failed(Failure::ExitCode { code: 1, stderr: "\u{1b}[31mno\n".into() }),
            Outcome::Failed(Failure::WorkerLost),
            Outcome::GivenBack,
        ];
        let reports = outcomes.map(|outcome| AttemptReport { attempt, outcome, seconds: 1.5 }).to_vec();
        let reports = FromWorker::Reports(reports);
        let text = serde_json::to_vec(&reports).unwrap();
        assert_eq!(serde_json::from_slice::<FromWorker>(&text).unwrap(), reports);
    }

    #[test]
    fn a_token_is_not_shown() {
        let (address, token) = ("https://127.0.0.1:1".to_owned(), "secret".to_owned());
        let cluster = Cluster { address: address.clone(), certificate: String::new(), key: token.clone() };
        let shown = format!("{cluster:?}");
        assert!(shown.contains("127.0.0.1") && !shown.contains("secret"), "{shown}");
        let (version, epoch, certificate, cluster) = (LinkFile::VERSION, Epoch(1), String::new(), Some(cluster));
        let link = LinkFile { version, epoch, addresses: vec![address], mail: false, certificate, token, cluster };
        let shown = format!("{link:?}");
        assert!(shown.contains("127.0.0.1") && !shown.contains("secret"), "{shown}");
    }
}
