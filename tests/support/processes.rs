//! Processes that a test starts, signals and outlives.

use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::Outcome;

/// The binary at work; killed if the test forgets it.
#[derive(Debug)]
pub struct Running(Option<Child>);

impl Running {
    pub fn new(command: &mut Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.0.as_ref().unwrap())
    }

    /// Waits for its end.
    pub fn outcome(mut self) -> Outcome {
        Outcome::of(self.0.take().unwrap().wait_with_output().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// The processes that it has started and that still run, the oldest first.
    pub fn children(&self) -> Vec<Pid> {
        let tasks = format!("/proc/{}/task", self.pid().as_raw_nonzero());
        let mut children = Vec::new();
        for task in std::fs::read_dir(tasks).into_iter().flatten().flatten() {
            let listed = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.extend(listed.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().unwrap())));
        }
        children.sort_by_key(|pid| pid.as_raw_nonzero());
        children
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Kills processes that may have ended by themselves.
pub fn kill(pids: &[Pid]) {
    signal(pids, Signal::KILL);
}

/// Sends a signal to processes that may have ended by themselves.
pub fn signal(pids: &[Pid], signal: Signal) {
    for pid in pids {
        let _ = kill_process(*pid, signal);
    }
}

pub fn is_running(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let defunct = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
    !defunct && test_kill_process(pid).is_ok()
}
