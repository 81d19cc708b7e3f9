//! What an engine such as Slurm, ECS or Kubernetes has to be able to do, for [`Managed`](super::managed::Managed) to be a
//! fleet over it: start members under a token, list them, stop them.
//!
//! A *member* is what the engine calls one of its own: an array task, a task, a pod. A worker that runs as one has a name
//! that begins with the member's and ends with a nonce of its process ([`WorkerId::of_member`]). So a worker tells which
//! member it is, and an engine that begins a member anew while its old worker still runs gets two workers, not one.
//!
//! An engine decides nothing, waits for nothing but its answer, and retries nothing that [`Managed`] could retry.
//!
//! [`Managed`]: super::managed::Managed
//! [`WorkerId::of_member`]: forebay_jobs::id::WorkerId::of_member

use std::{fmt, future::Future, time::Duration};

use forebay_jobs::id::{Epoch, MemberId, RunId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Starts, lists and stops members for one run. Any call may fail, be slow, and tell late what is already so.
pub trait Engine: Send + Sync + 'static {
    /// What it can take.
    fn limits(&self) -> Limits;

    /// Starts as many members as the call says, all marked with its token so that [`list`](Self::list) tells it. The same
    /// token again starts nothing twice, and answers with all that it has started: by the engine's own client tokens, or
    /// else, if [`Call::again`], by looking first for what is marked with it.
    ///
    /// # Errors
    /// Nothing was started, unless the class is [`Class::Unknown`]. What was started in part is an answer, not an error.
    fn start(&self, call: &Call) -> impl Future<Output = Result<Started, EngineError>> + Send;

    /// All members of the run, of every epoch: those that exist, and those that ended lately. `known` are those that are
    /// taken to exist, for engines that can tell more of a member that they are asked for.
    fn list(&self, known: &[MemberId]) -> impl Future<Output = Result<Vec<Sighting>, EngineError>> + Send;

    /// Asks these to end, and makes them if they do not. One that does not exist is none to stop.
    fn stop(&self, members: &[MemberId]) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// What can be found out about the end of a member that never said hello: its exit code, its last words.
    fn explain(&self, _member: &MemberId) -> impl Future<Output = Option<String>> + Send {
        std::future::ready(None)
    }
}

/// What an engine can take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Members in one call at most.
    pub batch: u32,
    /// From one call that starts members to the next.
    pub pause: Duration,
    /// A list may be so old: who was started later may not be in it, who ended later may still be.
    pub settle: Duration,
    /// From one list to the next, at first and at most.
    pub poll: (Duration, Duration),
    /// How long any call may take.
    pub call: Duration,
}

/// Members to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What they are marked with; written down before the engine is asked.
    pub token: Token,
    /// How many.
    pub count: u32,
    /// Whether it was asked before, and may have done it.
    pub again: bool,
}

/// What a call has started, in this try or an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// Those that exist now.
    pub members: Vec<MemberId>,
    /// Why these are fewer than were asked for.
    pub refused: Option<EngineError>,
}

/// A member in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Which.
    pub member: MemberId,
    /// What it is marked with.
    pub token: Token,
    /// What it does.
    pub state: State,
    /// How often the engine has begun it anew, if it tells.
    pub life: u32,
}

/// What a member does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits for its place, at first or again.
    Queued,
    /// Its worker is there, or is about to be.
    Running,
    /// It is on its way to its end.
    Ending,
    /// It has ended.
    Ended {
        /// How, in the engine's words.
        why: String,
    },
}

/// What an engine did not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct EngineError {
    /// What that means for the next try.
    pub class: Class,
    /// Why, in the engine's words, and what to do where somebody has to do something.
    pub why: String,
}

impl EngineError {
    /// An error of a class.
    pub fn new(class: Class, why: impl Into<String>) -> Self {
        Self { class, why: why.into() }
    }
}

/// What an error means for the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// There is no room now: later there may be.
    Capacity,
    /// It was asked too often.
    Throttled,
    /// What it was asked for is wrong, and stays so.
    Permanent,
    /// No answer came: it may have been done.
    Unknown,
}

/// What marks all members of a run, such as `forebay-0123456789abcdef`: of letters, digits and hyphens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(String);

impl Tag {
    /// Of a run on a volume. Runs of the same name on other volumes have others.
    pub fn of(volume: &str, run: &RunId) -> Self {
        let digest = Sha256::digest(format!("{volume}/{run}").as_bytes());
        let digits: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self(format!("forebay-{digits}"))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a token off a text, if it is one of this run's.
    pub fn token(&self, text: &str) -> Option<Token> {
        let (epoch, nonce) = text.strip_prefix(&self.0)?.strip_prefix('-')?.split_once('-')?;
        let is_nonce = nonce.len() == 8 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(Token { epoch: Epoch(epoch.parse().ok()?), text: text.to_owned() }).filter(|_| is_nonce)
    }

    /// A token that nobody has used.
    pub(super) fn fresh(&self, epoch: Epoch) -> Token {
        Token { epoch, text: format!("{}-{epoch}-{:08x}", self.0, rand::random::<u32>()) }
    }
}

/// Marks what one call starts: the run's tag, the epoch, and a nonce; of letters, digits and hyphens, 44 at most.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Token {
    epoch: Epoch,
    text: String,
}

impl Token {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whose coordinator called.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
