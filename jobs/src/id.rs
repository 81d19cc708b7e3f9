//! Ids of the domain, each a type of its own.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};

/// Names one run on its volume. 1 to 64 characters of `a-z A-Z 0-9 . _ -`, the first a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(Arc<str>);

/// Names one worker within its run, such as `local-3`. The same characters as a [`RunId`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId(Arc<str>);

/// Names what an engine such as Slurm runs a worker as, such as `slurm-17_3`. The same characters as a [`RunId`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemberId(Arc<str>);

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no {what} id: it takes 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or a digit"
)]
pub struct IdError {
    what: &'static str,
    text: String,
}

fn checked(what: &'static str, text: &str) -> Result<String, IdError> {
    let fits = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && text.as_bytes()[0].is_ascii_alphanumeric();
    if fits { Ok(text.to_owned()) } else { Err(IdError { what, text: text.to_owned() }) }
}

macro_rules! text_id {
    ($name:ident, $what:literal) => {
        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                checked($what, text).map(|text| Self(text.into()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> Self {
                (*id.0).to_owned()
            }
        }
    };
}
text_id!(RunId, "run");
text_id!(WorkerId, "worker");
text_id!(MemberId, "member");

impl WorkerId {
    /// The name of a process that an engine runs as `member`. The nonce is the process's own: an engine that begins a
    /// member anew while its old process still runs has two workers.
    ///
    /// # Errors
    /// A member's name of more than 55 characters leaves no room for it.
    pub fn of_member(member: &MemberId, nonce: u32) -> Result<Self, IdError> {
        format!("{member}.{nonce:08x}").parse()
    }

    /// What an engine runs it as, if one does.
    pub fn member(&self) -> Option<MemberId> {
        let (member, nonce) = self.as_str().rsplit_once('.')?;
        let is_nonce = nonce.len() == 8 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
        member.parse().ok().filter(|_| is_nonce)
    }
}

/// The number of a coordinator's lease on a run, from 1. What an older epoch writes no longer counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A unit of work: the `index`th task of the `phase`th phase, both from 0. Shown as `0-17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskId {
    /// Phase, from 0.
    pub phase: u32,
    /// Index within the phase, from 0.
    pub index: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.phase, self.index)
    }
}

impl FromStr for TaskId {
    type Err = IdError;

    /// `17` is task 17 of the first phase, `1-17` of the second.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (phase, index) = text.split_once('-').unwrap_or(("0", text));
        match (phase.parse(), index.parse()) {
            (Ok(phase), Ok(index)) => Ok(Self { phase, index }),
            _ => Err(IdError { what: "task", text: text.to_owned() }),
        }
    }
}

/// One try at a task. The epoch is part of the id, so that no two coordinators ever name the same attempt.
/// Shown, named on the volume, and serialised, as `0-17.2.1`: task, number, epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId {
    /// The task that is tried.
    pub task: TaskId,
    /// From 1; counts every try, those that used up no attempt too.
    pub number: u32,
    /// The epoch in which it was started.
    pub epoch: Epoch,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.task, self.number, self.epoch)
    }
}

impl FromStr for AttemptId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let read = || {
            let (rest, epoch) = text.rsplit_once('.')?;
            let (task, number) = rest.rsplit_once('.')?;
            let (phase, index) = task.split_once('-')?;
            let task = TaskId { phase: phase.parse().ok()?, index: index.parse().ok()? };
            Some(Self { task, number: number.parse().ok()?, epoch: Epoch(epoch.parse().ok()?) })
        };
        read().ok_or_else(|| IdError { what: "attempt", text: text.to_owned() })
    }
}

impl Serialize for AttemptId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AttemptId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(AttemptText)
    }
}

/// Reads an attempt's id from its text, which need not be kept.
struct AttemptText;

impl Visitor<'_> for AttemptText {
    type Value = AttemptId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an attempt, such as 0-17.2.1")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AttemptId, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_no_safe_names_are_refused() {
        let longest = "a".repeat(64);
        for good in ["a", "7", "Delay-by_carrier.2-20260102-030405-9f3c", &longest] {
            assert_eq!(good.parse::<RunId>().unwrap().as_str(), good);
        }
        let longer = "a".repeat(65);
        for bad in ["", ".", "..", ".hidden", "-x", "_x", "a/b", "a\\b", "a b", "a\n", "a\0", "ä", &longer] {
            assert!(bad.parse::<RunId>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<WorkerId>(bad.into()).is_err(), "{bad:?}: JSON is checked too");
        }
        let error = "a/b".parse::<WorkerId>().unwrap_err().to_string();
        assert!(error.starts_with("`a/b` is no worker id"), "{error}");
    }

    #[test]
    fn a_worker_of_an_engine_tells_its_member_and_no_other_worker_does() {
        let member: MemberId = "slurm-17_3".parse().unwrap();
        let worker = WorkerId::of_member(&member, 0xab).unwrap();
        assert_eq!((worker.as_str(), worker.member()), ("slurm-17_3.000000ab", Some(member)));
        for other in ["local-1-2", "at-host.example-33", "a.b", "at-host.12345678x"] {
            assert_eq!(other.parse::<WorkerId>().unwrap().member(), None, "{other}");
        }
        assert!(WorkerId::of_member(&"m".repeat(56).parse().unwrap(), 1).is_err());
    }

    #[test]
    fn a_task_is_read_as_it_is_shown_and_without_its_phase() {
        let task = TaskId { phase: 1, index: 17 };
        assert_eq!(task.to_string().parse(), Ok(task));
        assert_eq!("17".parse(), Ok(TaskId { phase: 0, index: 17 }));
        for bad in ["", "-", "1-", "-1", "a-1", "1-2-3", "4294967296"] {
            assert!(bad.parse::<TaskId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn attempts_of_two_epochs_never_share_a_name() {
        let attempt = |epoch| AttemptId { task: TaskId { phase: 0, index: 17 }, number: 2, epoch: Epoch(epoch) };
        assert_eq!([attempt(1).to_string(), attempt(2).to_string()], ["0-17.2.1", "0-17.2.2"]);
    }

    #[test]
    fn tasks_are_ordered_by_phase_and_then_by_number() {
        let task = |phase, index| TaskId { phase, index };
        assert!(task(0, 2) < task(0, 10) && task(0, 10) < task(1, 0));
    }

    #[test]
    fn ids_survive_json() {
        let attempt = AttemptId { task: TaskId { phase: 1, index: 2 }, number: 3, epoch: Epoch(4) };
        let ids = ("r".parse::<RunId>().unwrap(), attempt);
        let text = serde_json::to_string(&ids).unwrap();
        assert_eq!(text, r#"["r","1-2.3.4"]"#);
        assert_eq!(serde_json::from_str::<(RunId, AttemptId)>(&text).unwrap(), ids);
        for bad in ["", "1-2", "1-2.3", "1-2.3.", "-2.3.4", "1-2.3.4.5", "2.3.4"] {
            assert!(serde_json::from_value::<AttemptId>(bad.into()).is_err(), "{bad:?}");
        }
    }
}
