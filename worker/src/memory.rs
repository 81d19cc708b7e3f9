//! The memory that an attempt's program may use.
//!
//! Where this process may make control groups (cgroup v2, with the memory controller delegated to it), each attempt has
//! one of its own, and the kernel ends all of it when it grows beyond. Elsewhere the limit is `RLIMIT_DATA`, which counts
//! private writable memory of each process (setrlimit(2), since Linux 4.7): the program is refused more, and ends as it
//! will.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use forebay_jobs::id::AttemptId;

/// Enters the group before it becomes the program, so that nothing is ever outside.
const IN_GROUP: &str = r#"echo 0 >"$1/cgroup.procs" && shift && exec "$@""#;
const IN_LIMIT: &str = r#"ulimit -d "$1" && shift && exec "$@""#;

/// Where attempts get their groups.
#[derive(Debug)]
pub(crate) struct Groups {
    /// None: there is no delegated control group.
    dir: Option<PathBuf>,
}

impl Groups {
    /// Finds out what may be done here.
    pub(crate) fn new() -> Self {
        let dir = delegated().and_then(|dir| match prepare(&dir) {
            Ok(groups) => Some(groups),
            Err(error) => {
                tracing::debug!(dir = %dir.display(), %error, "no control groups: memory is limited process by process");
                None
            }
        });
        Self { dir }
    }

    /// Without looking.
    pub(crate) fn none() -> Self {
        Self { dir: None }
    }

    /// The limit of an attempt, in bytes.
    pub(crate) fn limit(&self, attempt: AttemptId, bytes: u64) -> io::Result<Limit> {
        let group = self.dir.as_ref().map(|dir| dir.join(attempt.to_string()));
        if let Some(group) = &group {
            fs::create_dir(group)?;
            let limit = Limit { bytes, group: Some(group.clone()) };
            fs::write(group.join("memory.max"), bytes.to_string())?;
            fs::write(group.join("memory.oom.group"), "1")?;
            // Where there is no swap there is no such file.
            let _ = fs::write(group.join("memory.swap.max"), "0");
            return Ok(limit);
        }
        Ok(Limit { bytes, group })
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Dropped, its group goes: everything in it has been ended by then.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) bytes: u64,
    group: Option<PathBuf>,
}

impl Limit {
    /// The command that becomes this program, within the limit.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("/bin/sh");
        match &self.group {
            Some(group) => command.args(["-c", IN_GROUP, "forebay"]).arg(group),
            None => command.args(["-c", IN_LIMIT, "forebay", &(self.bytes / 1024).to_string()]),
        };
        command.arg(program);
        command
    }

    /// Whether the kernel ended the program for this limit.
    pub(crate) fn was_exceeded(&self) -> bool {
        let events = self.group.as_ref().and_then(|group| fs::read_to_string(group.join("memory.events")).ok());
        events.is_some_and(|events| killed(&events) > 0)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Some(group) = &self.group
            && let Err(error) = fs::remove_dir(group)
        {
            tracing::debug!(group = %group.display(), %error, "was not removed");
        }
    }
}

/// Processes that were killed, by `memory.events`.
fn killed(events: &str) -> u64 {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// This process's group in the unified hierarchy, if it has the memory controller.
fn delegated() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let dir = group_dir(&mounts, &own)?;
    let controllers = fs::read_to_string(dir.join("cgroup.controllers")).ok()?;
    controllers.split_whitespace().any(|name| name == "memory").then_some(dir)
}

fn group_dir(mounts: &str, own: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // Fields 4 and 5 are the mount's root and point; the type follows a lone hyphen: proc_pid_mountinfo(5).
    let mount =
        mounts.lines().find(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup2 ")))?;
    Some(Path::new(mount.split(' ').nth(4)?).join(path))
}

/// Makes the group below which attempts get theirs. A group whose children are limited holds no processes itself, unless
/// it is the root: this one goes into a child, and where others stay, it cannot be done.
fn prepare(dir: &Path) -> io::Result<PathBuf> {
    let name = format!("forebay-{}", std::process::id());
    let groups = dir.join(&name);
    let give_memory = |dir: &Path| fs::write(dir.join("cgroup.subtree_control"), "+memory");
    fs::create_dir(&groups)?;
    let own = dir.join(format!("{name}-worker"));
    let prepared = give_memory(dir)
        .or_else(|_| {
            fs::create_dir(&own)?;
            fs::write(own.join("cgroup.procs"), "0")?;
            give_memory(dir)
        })
        .and_then(|()| give_memory(&groups));
    prepared.inspect_err(|_| {
        // Back to where it was.
        let _ = fs::write(dir.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&own);
        let _ = fs::remove_dir(&groups);
    })?;
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_a_process_is_found_where_it_is_mounted() {
        let mounts = "25 1 0:22 / /sys rw - sysfs sysfs rw\n30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        let own = "1:name=systemd:/x\n0::/user.slice/a b\n";
        assert_eq!(group_dir(mounts, own), Some(PathBuf::from("/sys/fs/cgroup/user.slice/a b")));
        assert_eq!(group_dir(mounts, "0::/\n"), Some(PathBuf::from("/sys/fs/cgroup/")));
        assert_eq!(group_dir("30 25 0:26 / /c rw - cgroup cgroup rw,memory\n", own), None);
        assert_eq!(group_dir(mounts, "4:memory:/x\n"), None);
    }

    #[test]
    fn kills_are_counted_and_not_the_times_that_the_limit_was_reached() {
        assert_eq!(killed("low 0\nhigh 0\nmax 73\noom 1\noom_kill 2\noom_group_kill 1\n"), 2);
        assert_eq!(killed("max 73\noom 1\noom_kill 0\n"), 0);
    }
}
