//! The processes that a worker is the parent of: those that it spawns, and those that their parents left to it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    process::{Child, Command, ExitStatus},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock},
    thread::sleep,
    time::Duration,
};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process, kill_process_group, pidfd_open, test_kill_process_group,
    waitpgid, waitpid,
};

/// The children that this process has spawned and not reaped, so that reaping orphans never takes a child's status from
/// whoever waits for it.
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
/// Shared by those who spawn. Whoever has it alone knows that every child is in [`CHILDREN`] that was not adopted, and
/// that nobody is between a fork and an execution.
static SPAWNING: RwLock<()> = RwLock::new(());

/// Locks; what a panic left is whole, since every change here is one call.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spawns a child and knows it from then on. Every child of a worker is spawned here and reaped by [`reap`].
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _spawning = SPAWNING.read().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    held(&CHILDREN).insert(Pid::from_child(&child).as_raw_nonzero().get());
    Ok(child)
}

/// Waits for a child.
pub(crate) fn reap(child: &mut Child) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child).as_raw_nonzero().get();
    let status = child.wait();
    held(&CHILDREN).remove(&pid);
    status
}

/// Does something during which no child is spawned. Files that are to be executed are written so: a child that is forked
/// between open and close would keep them open for writing, and their execution would fail (ETXTBSY).
pub(crate) fn while_nothing_is_spawned<T>(act: impl FnOnce() -> T) -> T {
    let _alone = SPAWNING.write().unwrap_or_else(PoisonError::into_inner);
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

/// Whether anything of a group still runs, be its leader an unreaped zombie.
pub(super) fn group_runs(group: Pid) -> bool {
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

/// Waits until nothing of a killed group is left, and says whether that came true. Its orphans are this process's to
/// reap, and no call waits for a group with an end to its patience: so this looks, at growing intervals.
pub(super) fn end_group(group: Pid) -> bool {
    for pause in pauses() {
        while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
        if test_kill_process_group(group).is_err() {
            return true;
        }
        // Until the next look.
        sleep(pause);
    }
    tracing::warn!(group = group.as_raw_nonzero(), "a killed process group does not end");
    false
}

/// Kills the orphans that left their group, and those that they leave behind; says whether it is known that no orphan at
/// all is left. Who dies gives no event of whom it leaves, so this looks, at growing intervals.
pub(super) fn end_marked(mark: &str) -> bool {
    for pause in pauses() {
        let Ok(orphans) = orphans() else { return false };
        if orphans.is_empty() {
            return true;
        }
        if !kill_marked(&orphans, mark) {
            return false;
        }
        // Until the next look.
        sleep(pause);
    }
    tracing::warn!(mark, "killed processes do not end");
    false
}

/// Two seconds, the first looks in quick succession.
fn pauses() -> impl Iterator<Item = Duration> {
    (0..50).map(|turn: u64| Duration::from_millis((1 << turn.min(5)) + turn))
}

/// Kills those with the mark. Says whether another look could show more: one had the mark, or has just ended and may leave
/// children of its own, or is about to end or to execute and shows no environment.
fn kill_marked(orphans: &[Pid], mark: &str) -> bool {
    let mut found = false;
    for pid in orphans.iter().copied() {
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

/// The children that this process has adopted.
fn orphans() -> io::Result<Vec<Pid>> {
    let unknown = |pids: &mut Vec<i32>| {
        let known = held(&CHILDREN);
        pids.retain(|pid| !known.contains(pid));
    };
    let mut pids = of_main_thread()?;
    unknown(&mut pids);
    if !pids.is_empty() {
        // One of them may be a child that is being spawned.
        let _alone = SPAWNING.write().unwrap_or_else(PoisonError::into_inner);
        unknown(&mut pids);
    }
    Ok(pids.into_iter().filter_map(Pid::from_raw).collect())
}

/// The children of the main thread. A subreaper's first thread that is not about to end adopts (`find_new_reaper` in the
/// kernel's exit.c), and a process's main thread lives as long as it does.
fn of_main_thread() -> io::Result<Vec<i32>> {
    static LIST: OnceLock<io::Result<File>> = OnceLock::new();
    let open = || File::open(format!("/proc/self/task/{}/children", std::process::id()));
    // A kernel without CONFIG_PROC_CHILDREN has none.
    let list = LIST.get_or_init(open).as_ref().map_err(|error| error.kind())?;
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match list.read_at(&mut chunk, text.len() as u64)? {
            0 => break,
            read => text.extend_from_slice(&chunk[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&text).split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}
