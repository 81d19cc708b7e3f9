//! Runs one program and ends it whole.
//!
//! Each program leads a process group of its own. Its streams are pumped by threads, so that it never waits for
//! anything but its consumer, and its end is seen by a thread that leaves it a zombie: as long as it is one, its process
//! group's number cannot be given to anybody else, and killing the group hits only what the program left. Those who
//! left the group too (`setsid`, daemons) become children of the worker, which is a subreaper; they are known by the
//! scratch directory in their environment, and killed as well.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, kill_process_group, test_kill_process_group, waitid,
    waitpgid, waitpid,
};
use tokio::sync::oneshot;

use crate::{
    guard::Guard,
    logs::{Sink, Tail},
    stop::{Stop, Why},
};

/// Between SIGTERM and SIGKILL.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// How long pumps may go on once everything that could be found has been killed.
const PUMPS: Duration = Duration::from_secs(10);
/// What one read of a pipe takes at most: what Linux's pipes hold.
const CHUNK: usize = 64 << 10;

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

/// Runs something on a thread of its own; the receiver fails if it panics.
pub(crate) fn on_thread<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Nobody may be waiting any more.
        let _ = sender.send(run());
    })?;
    Ok(receiver)
}

/// What becomes of a program's streams.
pub(crate) struct Streams<F, T> {
    /// Writes its standard input; none gives it an empty one.
    pub(crate) feed: Option<F>,
    /// Takes its standard output; none sends it to the logs.
    pub(crate) take: Option<T>,
    /// Log of its standard output.
    pub(crate) stdout: Sink,
    /// Log of its standard error.
    pub(crate) stderr: Sink,
}

/// How a program ended, and what came of its streams.
#[derive(Debug)]
pub(crate) struct Ended<F, T> {
    /// Its status.
    pub(crate) status: ExitStatus,
    /// What the feeder returned.
    pub(crate) fed: Option<F>,
    /// What the taker returned.
    pub(crate) taken: Option<T>,
    /// The last lines of its standard error.
    pub(crate) stderr: String,
}

/// Why a program could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// It did not start.
    #[error("cannot start `{program}`")]
    Spawn {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system gave no pipe or no thread.
    #[error("cannot prepare the streams of `{program}`")]
    Streams {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system does not tell of its end.
    #[error("cannot wait for `{program}`")]
    Wait {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something that could not be found holds a pipe open.
    #[error("`{program}` has ended, and something that it started in the background still holds its {stream} open")]
    HeldOpen {
        /// Its name.
        program: String,
        /// Which.
        stream: &'static str,
    },
    /// A bug.
    #[error("the thread at the {stream} of `{program}` panicked")]
    Panicked {
        /// The program.
        program: String,
        /// Which.
        stream: &'static str,
    },
}

impl ProcessError {
    /// Whether another try can help.
    pub(crate) fn is_retryable(&self) -> bool {
        let Self::Spawn { source, .. } = self else { return true };
        let lasting = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::InvalidInput];
        // ENOEXEC has no kind of its own.
        !lasting.contains(&source.kind()) && source.raw_os_error() != Some(rustix::io::Errno::NOEXEC.raw_os_error())
    }
}

/// Runs a program to its end, or to the end that `stop` orders: SIGTERM to its group, SIGKILL after [`GRACE`], or at once
/// for [`Why::Abort`]. When this returns, its group is gone, and so is everything else with `mark` in its environment.
pub(crate) async fn run<F, T>(
    mut command: Command,
    mark: &str,
    streams: Streams<
        impl FnOnce(io::PipeWriter) -> F + Send + 'static,
        impl FnOnce(BufReader<io::PipeReader>) -> T + Send + 'static,
    >,
    stop: &Stop,
    guard: Option<&Guard>,
) -> Result<Ended<F, T>, ProcessError>
where
    F: Send + 'static,
    T: Send + 'static,
{
    let program = || command_name(&command);
    let name = program();
    let no_streams = |source| ProcessError::Streams { program: name.clone(), source };
    let Streams { feed, take, stdout, stderr } = streams;

    let (out_read, out_write) = io::pipe().map_err(no_streams)?;
    let (err_read, err_write) = io::pipe().map_err(no_streams)?;
    let (stdin, in_write) = match feed {
        None => (Stdio::null(), None),
        Some(feed) => {
            let (read, write) = io::pipe().map_err(no_streams)?;
            (read.into(), Some((feed, write)))
        }
    };
    command.stdin(stdin).stdout(out_write).stderr(err_write).process_group(0);
    let spawned = spawn(&mut command);
    // The command holds the program's ends of the pipes: they would never end.
    drop(command);
    let child = spawned.map_err(|source| ProcessError::Spawn { program: name.clone(), source })?;
    let group = Pid::from_child(&child);
    let mut running = Running { child: Some(child), group, guard };
    if let Some(guard) = guard {
        guard.add(group);
    }

    let fed = in_write.map(|(feed, write)| on_thread("feed", move || feed(write))).transpose().map_err(no_streams)?;
    let (taken, logged) = match take {
        Some(take) => {
            let reader = BufReader::with_capacity(CHUNK, out_read);
            (Some(on_thread("take", move || take(reader)).map_err(no_streams)?), None)
        }
        None => (None, Some(on_thread("stdout", move || pump(out_read, stdout)).map_err(no_streams)?)),
    };
    let tail = on_thread("stderr", move || pump(err_read, stderr)).map_err(no_streams)?;

    let no_wait = |source| ProcessError::Wait { program: name.clone(), source };
    let mut end = on_thread("wait", move || wait_for_end(group)).map_err(no_streams)?;
    let seen = tokio::select! {
        seen = &mut end => Some(seen),
        () = stop.ordered(Why::Drain) => None,
    };
    let seen = match seen {
        Some(seen) => seen,
        None => {
            signal(group, Signal::TERM);
            let in_time = tokio::select! {
                seen = &mut end => Some(seen),
                () = tokio::time::sleep(GRACE) => None,
                () = stop.ordered(Why::Abort) => None,
            };
            match in_time {
                Some(seen) => seen,
                None => {
                    signal(group, Signal::KILL);
                    end.await
                }
            }
        }
    };
    seen.unwrap_or_else(|_| Err(io::Error::other("the waiting thread panicked"))).map_err(no_wait)?;
    // It is a zombie still, so that the group is its own.
    signal(group, Signal::KILL);
    let status = running.reap().map_err(no_wait)?;
    end_group(group).await;
    end_marked(mark).await;
    drop(running);

    let panicked = |stream| ProcessError::Panicked { program: name.clone(), stream };
    let held_open = |stream| ProcessError::HeldOpen { program: name.clone(), stream };
    let pumps = async {
        let fed = match fed {
            Some(fed) => Some(fed.await.map_err(|_| panicked("standard input"))?),
            None => None,
        };
        let tail = tail.await.map_err(|_| panicked("standard error"))?;
        if let Some(logged) = logged {
            logged.await.map_err(|_| panicked("standard output"))?;
        }
        Ok((fed, tail.to_text()))
    };
    let (fed, stderr) = tokio::time::timeout(PUMPS, pumps).await.map_err(|_| held_open("streams"))??;
    // What takes the output may have much to do after the last byte: sorting, writing, syncing.
    let taken = match taken {
        Some(taken) => Some(taken.await.map_err(|_| panicked("standard output"))?),
        None => None,
    };
    Ok(Ended { status, fed, taken, stderr })
}

fn command_name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// A program that must not outlive whoever runs it, even if that future is dropped.
struct Running<'a> {
    child: Option<Child>,
    group: Pid,
    guard: Option<&'a Guard>,
}

impl Running<'_> {
    fn reap(&mut self) -> io::Result<ExitStatus> {
        match self.child.take() {
            Some(mut child) => reap(&mut child),
            None => Ok(ExitStatus::from_raw(0)),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.child.is_some() {
            signal(self.group, Signal::KILL);
            let _ = self.reap();
        }
        if let Some(guard) = self.guard {
            guard.remove(self.group);
        }
    }
}

/// Waits until a child has ended, and leaves it unreaped.
fn wait_for_end(pid: Pid) -> io::Result<()> {
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn signal(group: Pid, signal: Signal) {
    match kill_process_group(group, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => tracing::warn!(group = group.as_raw_nonzero(), %error, "a process group cannot be signalled"),
    }
}

/// Waits until nothing of a killed group is left. Its orphans are this process's to reap.
async fn end_group(group: Pid) {
    for pause in pauses() {
        while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
        if test_kill_process_group(group).is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
    tracing::warn!(group = group.as_raw_nonzero(), "a killed process group does not end");
}

/// Kills the orphans that left their group, and those that they leave behind.
async fn end_marked(mark: &str) {
    for pause in pauses() {
        if !kill_marked_orphans(mark) {
            return;
        }
        tokio::time::sleep(pause).await;
    }
    tracing::warn!(mark, "killed processes do not end");
}

/// Two seconds, the first looks in quick succession.
fn pauses() -> impl Iterator<Item = Duration> {
    (0..50).map(|turn: u64| Duration::from_millis((1 << turn.min(5)) + turn))
}

/// One look at this process's adopted children. Says whether there was one with the mark.
fn kill_marked_orphans(mark: &str) -> bool {
    let children = held(&CHILDREN);
    let mut found = false;
    for pid in own_children().into_iter().filter(|pid| !children.contains(pid)).filter_map(Pid::from_raw) {
        // An ended process has no environment any more.
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            found = true;
            if let Err(error) = kill_process(pid, Signal::KILL) {
                tracing::debug!(pid = pid.as_raw_nonzero(), %error, "a detached process cannot be killed");
            }
        }
        // No child that anybody waits for is looked at here.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
    found
}

fn own_children() -> Vec<i32> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Logs a stream to its end. A log that cannot be written is no reason to stop the program.
fn pump(mut stream: io::PipeReader, mut log: Sink) -> Tail {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return log.finish(),
            Ok(read) => {
                let _ = log.write_all(&buffer[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(%error, "a program's stream broke");
                return log.finish();
            }
        }
    }
}
