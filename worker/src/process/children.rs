//! The processes that a worker is the parent of: those that it spawns, and those that their parents left to it.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, Command, ExitStatus},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process, kill_process_group, pidfd_open, test_kill_process_group,
    waitpgid, waitpid,
};

/// The children of this process, so that reaping orphans never takes a child's status from whoever waits for it. Held
/// while a child is spawned, and while files are written that are to be executed: a child that is forked between
/// open and close would keep them open for writing, and their execution would fail (ETXTBSY).
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Locks; what a panic left is whole, since every change here is one call.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spawns a child and knows it from then on. Every child of a worker is spawned here and reaped by [`reap`].
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut children = held(&CHILDREN);
    let child = command.spawn()?;
    children.insert(Pid::from_child(&child).as_raw_nonzero().get());
    Ok(child)
}

/// Waits for a child.
pub(crate) fn reap(child: &mut Child) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child).as_raw_nonzero().get();
    let status = child.wait();
    held(&CHILDREN).remove(&pid);
    status
}

/// Does something during which no child is spawned.
pub(crate) fn while_nothing_is_spawned<T>(act: impl FnOnce() -> T) -> T {
    let _children = held(&CHILDREN);
    act()
}

/// Makes this process the parent of its descendants' orphans.
pub(crate) fn become_subreaper() {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::warn!(%error, "programs that detach themselves will not be found");
    }
}

/// Readable once a child has ended, which leaves it unreaped (pidfd_open(2)).
#[derive(Debug)]
pub(super) struct End(OwnedFd);

impl End {
    pub(super) fn of(child: Pid) -> io::Result<Self> {
        Ok(Self(pidfd_open(child, PidfdFlags::empty())?))
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until nothing of a group runs any more, be its leader an unreaped zombie. The kernel has no event for that, so
/// this looks.
pub(super) async fn wait_for_group(group: Pid) {
    while group_runs(group) {
        // Until the next look.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn group_runs(group: Pid) -> bool {
    let runs = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name may hold anything, parentheses too: proc(5).
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, of) = (fields.next()?, fields.nth(1)?);
        Some(!matches!(state, "Z" | "X") && of.parse() == Ok(group.as_raw_nonzero().get()))
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().any(|entry| runs(entry).unwrap_or(false))
}

/// Signals a process group, which may have ended.
pub(super) fn signal(group: Pid, signal: Signal) {
    match kill_process_group(group, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => tracing::warn!(group = group.as_raw_nonzero(), %error, "a process group cannot be signalled"),
    }
}

/// Waits until nothing of a killed group is left. Its orphans are this process's to reap, and no call waits for a group
/// with an end to its patience: so this looks, at growing intervals.
pub(super) async fn end_group(group: Pid) {
    for pause in pauses() {
        while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
        if test_kill_process_group(group).is_err() {
            return;
        }
        // Until the next look.
        tokio::time::sleep(pause).await;
    }
    tracing::warn!(group = group.as_raw_nonzero(), "a killed process group does not end");
}

/// Kills the orphans that left their group, and those that they leave behind. Who dies gives no event of whom it leaves,
/// so this looks, at growing intervals.
pub(super) async fn end_marked(mark: &str) {
    for pause in pauses() {
        if !kill_marked_orphans(mark) {
            return;
        }
        // Until the next look.
        tokio::time::sleep(pause).await;
    }
    tracing::warn!(mark, "killed processes do not end");
}

/// Two seconds, the first looks in quick succession.
fn pauses() -> impl Iterator<Item = Duration> {
    (0..50).map(|turn: u64| Duration::from_millis((1 << turn.min(5)) + turn))
}

/// One look at this process's adopted children. Says whether another look could show more: one had the mark, or has just
/// ended and may leave children of its own, or is about to end or to execute and shows no environment.
fn kill_marked_orphans(mark: &str) -> bool {
    let children = held(&CHILDREN);
    let mut found = false;
    for pid in own_children().into_iter().filter(|pid| !children.contains(pid)).filter_map(Pid::from_raw) {
        let environment = match fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) {
            Ok(environment) => environment,
            // Another user's, by now.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
            Err(_) => Vec::new(),
        };
        found |= environment.is_empty();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            found = true;
            if let Err(error) = kill_process(pid, Signal::KILL) {
                tracing::debug!(pid = pid.as_raw_nonzero(), %error, "a detached process cannot be killed");
            }
        }
        // No child that anybody waits for is looked at here.
        found |= matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some(_)));
    }
    found
}

fn own_children() -> Vec<i32> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}
