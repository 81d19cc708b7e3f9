//! Ends programs when their worker is killed.
//!
//! A worker that gets SIGKILL cannot end anything. The guard is a shell in a process group of its own that waits for the
//! end of a pipe that only the worker holds open. When the pipe ends, however the worker ended, it kills the process groups
//! of the programs that run. These it reads from a file in memory, which the worker keeps up to date: so the guard sleeps
//! while programs come and go.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, PipeWriter},
    os::unix::{fs::FileExt, process::CommandExt},
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    process::Pid,
};

use crate::process::{held, reap, spawn};

/// Its standard input is the list, and its standard output the reading end of the pipe; it keeps no log open.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
read -r _ <&1
while read -r group; do
    case $group in [1-9]*) kill -KILL "-$group" ;; esac
done 2>/dev/null
"#;
/// A line of the list: a number, blanks, and the newline.
const LINE: usize = 12;

/// A running guard. Dropped, it lets its shell end.
#[derive(Debug)]
pub(crate) struct Guard {
    shell: Child,
    pipe: Option<PipeWriter>,
    list: File,
    lines: Mutex<Lines>,
}

/// Which lines of the list are free: those that were, and all from the first that was never used.
#[derive(Debug, Default)]
struct Lines {
    free: BTreeSet<u64>,
    unused: u64,
}

impl Guard {
    /// Starts the guard.
    pub(crate) fn start() -> io::Result<Self> {
        let list = File::from(memfd_create("forebay-guard", MemfdFlags::CLOEXEC)?);
        let (ends, pipe) = io::pipe()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "forebay-guard"]).env_clear().current_dir("/").process_group(0);
        command.stdin(list.try_clone()?).stdout(ends).stderr(Stdio::null());
        let shell = spawn(&mut command)?;
        Ok(Self { shell, pipe: Some(pipe), list, lines: Mutex::default() })
    }

    /// As long as what this returns lives, this process group ends with the worker.
    pub(crate) fn add(&self, group: Pid) -> Guarded<'_> {
        if self.is_gone() {
            tracing::warn!("the guard is gone: programs would survive this worker's being killed");
        }
        let line = {
            let mut lines = held(&self.lines);
            lines.free.pop_first().unwrap_or_else(|| {
                lines.unused += 1;
                lines.unused - 1
            })
        };
        self.write(line, &group.as_raw_nonzero().to_string());
        Guarded { guard: self, line }
    }

    /// Whether nobody holds the pipe's other end.
    fn is_gone(&self) -> bool {
        let mut polled: Vec<_> = self.pipe.iter().map(|pipe| PollFd::new(pipe, PollFlags::empty())).collect();
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Of a fixed place and without a cursor: the shell's position in the file is this process's too.
    fn write(&self, line: u64, text: &str) {
        let text = format!("{text:<0$}\n", LINE - 1);
        if let Err(error) = self.list.write_all_at(text.as_bytes(), line * LINE as u64) {
            tracing::warn!(%error, "the guard is not told: programs would survive this worker's being killed");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pipe = None;
        // It ends by itself now; its exit code says nothing.
        let _ = reap(&mut self.shell);
    }
}

/// A process group that ends with the worker.
#[derive(Debug)]
pub(crate) struct Guarded<'a> {
    guard: &'a Guard,
    line: u64,
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        self.guard.write(self.line, "");
        held(&self.guard.lines).free.insert(self.line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ended with the test, however that ends.
    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            Self(spawn(Command::new("sleep").arg("1000").process_group(0)).unwrap())
        }

        fn group(&self) -> Pid {
            Pid::from_child(&self.0)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = reap(&mut self.0);
        }
    }

    #[test]
    fn what_is_left_when_the_worker_ends_is_killed_and_nothing_else() {
        let guard = Guard::start().unwrap();
        let (mut ended, mut killed, mut kept) = (Sleeper::start(), Sleeper::start(), Sleeper::start());
        let [was, is_not_any_more] = [&ended, &kept].map(|sleeper| guard.add(sleeper.group()));
        drop(was);
        // In the line of the first.
        let last = guard.add(killed.group());
        drop(is_not_any_more);
        std::mem::forget(last);
        // Waits for the shell, which has killed by then.
        drop(guard);
        assert!(ended.0.try_wait().unwrap().is_none());
        assert!(kept.0.try_wait().unwrap().is_none());
        // SIGKILL is on its way: the wait is as long as dying takes, and would end with the sleep only if it were not.
        let mut status = killed.0.try_wait().unwrap();
        for _ in 0..1000 {
            if status.is_none() {
                std::thread::sleep(std::time::Duration::from_millis(5));
                status = killed.0.try_wait().unwrap();
            }
        }
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status.unwrap()), Some(9));
    }
    #[test]
    fn a_guard_that_is_gone_is_noticed() {
        let mut guard = Guard::start().unwrap();
        assert!(!guard.is_gone());
        guard.shell.kill().unwrap();
        reap(&mut guard.shell).unwrap();
        assert!(guard.is_gone());
    }
}
