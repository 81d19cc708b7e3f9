//! Who holds a lease, and whether that process is still there.

use std::{fmt, fs};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};
use serde::{Deserialize, Serialize};

/// The process that holds a lease. What the system does not tell is none, and then only time says that it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Name of its host.
    pub host: String,
    /// Its id there.
    pub pid: i32,
    /// When it started, in the kernel's ticks since boot: ids are used again, this is not.
    pub pid_started: Option<u64>,
    /// In which namespace its id means something.
    pub pid_namespace: Option<String>,
    /// The one boot of the one host that it runs on.
    pub boot: Option<String>,
}

impl Holder {
    /// This process.
    pub fn this_process() -> Self {
        Self::of(rustix::process::getpid())
    }

    /// A process of this host and namespace.
    pub(crate) fn of(pid: Pid) -> Self {
        Self {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: pid.as_raw_nonzero().get(),
            pid_started: started(pid),
            pid_namespace: pid_namespace(),
            boot: boot(),
        }
    }

    /// Whether it can be seen from here that the process has ended. False also means: cannot be seen.
    pub fn is_gone(&self) -> bool {
        let seen_from_here = self.boot.is_some()
            && self.pid_namespace.is_some()
            && (&self.boot, &self.pid_namespace) == (&boot(), &pid_namespace());
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| seen_from_here) else { return false };
        if test_kill_process(pid) == Err(Errno::SRCH) {
            return true;
        }
        // Where /proc hides the processes of others, the id alone has to do.
        is_defunct(pid) || started(pid).is_some_and(|started| self.pid_started.is_some_and(|then| then != started))
    }
}

/// In the name of a directory, the process is known from the moment on at which that is made.
impl Holder {
    /// All but the host's name, with which no process is looked for.
    pub(crate) fn to_name(&self) -> String {
        let known = |part: Option<String>| part.unwrap_or_default();
        let namespace = self.pid_namespace.as_deref().map(|name| name.replace(|char: char| !char.is_ascii_digit(), ""));
        let started = self.pid_started.map(|ticks| ticks.to_string());
        format!("{}.{}.{}.{}", known(self.boot.clone()), known(namespace), self.pid, known(started))
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let mut parts = name.split('.').map(|part| Some(part.to_owned()).filter(|part| !part.is_empty()));
        let (boot, namespace, pid, started) = (parts.next()?, parts.next()?, parts.next()??, parts.next()?);
        Some(Self {
            host: String::new(),
            pid: pid.parse().ok()?,
            pid_started: started.and_then(|ticks| ticks.parse().ok()),
            pid_namespace: namespace.map(|number| format!("pid:[{number}]")),
            boot,
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)
    }
}

/// The fields of `/proc/<pid>/stat` from the state on; the name before them may hold anything.
fn stat(pid: Pid) -> Option<String> {
    let text = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let text = String::from_utf8_lossy(&text);
    Some(text.rsplit_once(')')?.1.trim_start().to_owned())
}

fn started(pid: Pid) -> Option<u64> {
    // Field 22 of all; the state is field 3.
    stat(pid)?.split(' ').nth(19)?.parse().ok()
}

fn is_defunct(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| stat.starts_with(['Z', 'X']))
}

fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

fn pid_namespace() -> Option<String> {
    Some(fs::read_link("/proc/self/ns/pid").ok()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_there_and_an_ended_one_is_not() {
        assert!(!Holder::this_process().is_gone());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = Holder::of(Pid::from_child(&child));
        child.wait().unwrap();
        assert!(ended.is_gone());
    }

    #[test]
    fn a_process_with_the_same_id_is_not_the_same() {
        let this = Holder::this_process();
        let earlier = Holder { pid_started: this.pid_started.map(|ticks| ticks - 1), ..this };
        assert!(earlier.is_gone());
    }

    #[test]
    fn a_name_tells_what_is_needed_to_look_for_the_process() {
        let this = Holder::this_process();
        let named = Holder::from_name(&format!("{}.more", this.to_name())).unwrap();
        assert_eq!(named, Holder { host: String::new(), ..this.clone() });
        let unknown = Holder { host: String::new(), pid_started: None, pid_namespace: None, boot: None, ..this };
        assert_eq!(Holder::from_name(&unknown.to_name()), Some(unknown));
        for name in ["", "ad2c5a5da823b418", "a.1..5", "a.1.x.5"] {
            assert_eq!(Holder::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn of_another_host_nothing_can_be_seen() {
        let this = Holder::this_process();
        let gone = Holder { pid_started: Some(0), ..this };
        assert!(gone.is_gone());
        assert!(!Holder { boot: Some("another".into()), ..gone.clone() }.is_gone());
        assert!(!Holder { pid_namespace: Some("pid:[1]".into()), ..gone.clone() }.is_gone());
        assert!(!Holder { boot: None, ..gone }.is_gone());
    }
}
