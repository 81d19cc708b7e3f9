//! Ends programs when their worker is killed.
//!
//! A worker that gets SIGKILL cannot end anything. The guard is a shell in a process group of its own that knows every
//! running program's process group, and reads from a pipe that only the worker holds open. When the pipe ends, however
//! the worker ended, the guard kills the groups that are left.

use std::{
    io::{self, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Mutex,
};

use rustix::process::Pid;

use crate::process::{held, reap, spawn};

/// `+ 17` adds a group, `- 17` removes it. Its own standard streams are closed, so that it keeps no log open.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
groups=' '
while read -r what group; do
    case $what in
    +) groups="$groups$group " ;;
    -) groups="${groups%% $group *} ${groups#* $group }" ;;
    esac
done
for group in $groups; do kill -KILL "-$group"; done 2>/dev/null
"#;

/// A running guard. Dropped, it lets its shell end.
#[derive(Debug)]
pub(crate) struct Guard {
    shell: Child,
    pipe: Mutex<Option<ChildStdin>>,
}

impl Guard {
    /// Starts the guard.
    pub(crate) fn start() -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "forebay-guard"]).env_clear().current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = spawn(&mut command)?;
        let pipe = Mutex::new(shell.stdin.take());
        Ok(Self { shell, pipe })
    }

    /// From now on this process group ends with the worker.
    pub(crate) fn add(&self, group: Pid) {
        self.tell('+', group);
    }

    /// This process group has ended.
    pub(crate) fn remove(&self, group: Pid) {
        self.tell('-', group);
    }

    fn tell(&self, what: char, group: Pid) {
        if let Some(pipe) = held(&self.pipe).as_mut()
            && let Err(error) = pipe.write_all(format!("{what} {}\n", group.as_raw_nonzero()).as_bytes())
        {
            tracing::warn!(%error, "the guard is gone: programs would survive this worker's being killed");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        *held(&self.pipe) = None;
        // It ends by itself now; its exit code says nothing.
        let _ = reap(&mut self.shell);
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
        for sleeper in [&ended, &killed, &kept] {
            guard.add(sleeper.group());
        }
        guard.remove(ended.group());
        guard.remove(kept.group());
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
}
