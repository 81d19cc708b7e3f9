//! Runs one program and ends it whole, on the thread that asks for it.
//!
//! Each program leads a process group of its own. The thread logs its streams, so that it never waits for anything but
//! its consumer, and sees its end, which leaves it a zombie: as long as it is one, its process group's number cannot be
//! given to anybody else, and killing the group hits only what the program left. Those who left the group too (`setsid`,
//! daemons) become children of the worker, which is a subreaper; they are known by the scratch directory in their
//! environment, and killed as well.

mod children;
mod watch;

use std::{
    io::{self, BufReader, Read},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use tokio_util::sync::CancellationToken;

pub(crate) use self::children::{become_subreaper, held, reap, spawn, while_nothing_is_spawned};
use self::{
    children::{End, end_group, end_marked, group_runs, signal},
    watch::Watch,
};
use crate::{
    guard::{Guard, Guarded},
    logs::{Sink, Tail},
    stop::{Stop, Why},
};

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);
/// The same when the worker itself goes: whoever ends it waits ten seconds too, and it has to report after this.
pub(crate) const DRAIN_GRACE: Duration = Duration::from_secs(8);
/// How long streams may go on once everything that could be found has been killed: what is in the pipes is read in no
/// time, but whoever takes it may be writing to a slow volume.
const STREAMS: Duration = Duration::from_secs(30);
/// Between two looks at what has no event.
const LOOK: Duration = Duration::from_millis(20);
/// What one read of a logged pipe takes at most: what Linux's pipes hold.
const CHUNK: usize = 64 << 10;
/// The same of what a program writes for who takes it.
const TAKEN: usize = 256 << 10;
/// All pipes of a worker that records go through are to hold so much together, beyond which a user who is not root would
/// soon get none but tiny ones (`pipe-user-pages-soft`, pipe(7)); and one no more than the system gives by default.
const PIPES: usize = 16 << 20;
const WIDEST: usize = 1 << 20;

/// Runs something on a thread of its own; the receiver fails if it panics.
fn on_thread<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> io::Result<Receiver<T>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Nobody may be waiting any more.
        let _ = sender.send(run());
    })?;
    Ok(receiver)
}

/// A pipe for records: a wider one takes fewer turns between those at its ends. Where the system refuses it is as any other.
fn wide_pipe(slots: u32) -> io::Result<(io::PipeReader, io::PipeWriter)> {
    let (read, write) = io::pipe()?;
    let capacity = (PIPES / (2 * slots.max(1) as usize)).min(WIDEST);
    if capacity > CHUNK {
        let _ = rustix::pipe::fcntl_setpipe_size(&write, capacity);
    }
    Ok((read, write))
}

/// What becomes of a program's streams.
pub(crate) struct Streams<F, T> {
    /// How many programs run at once.
    pub(crate) slots: u32,
    /// Writes its standard input; none gives it an empty one.
    pub(crate) feed: Option<F>,
    /// Cancelled when the program has ended, for what feeds it and has nothing to write yet.
    pub(crate) fed_in_vain: CancellationToken,
    /// Takes its standard output; none sends it to the logs.
    pub(crate) take: Option<T>,
    /// Log of its standard output.
    pub(crate) stdout: Sink,
    /// Log of its standard error.
    pub(crate) stderr: Sink,
}

/// A program's standard output, for whoever takes it.
pub(crate) type Output = BufReader<Watched>;

/// A pipe that tells when all of it was read, or when nobody reads it any more.
pub(crate) struct Watched {
    pipe: io::PipeReader,
    /// Dropped at the pipe's end.
    unread: Option<Sender<()>>,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.pipe.read(buffer)?;
        if read == 0 {
            self.unread = None;
        }
        Ok(read)
    }
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
    /// Whether it was told to end before it did.
    pub(crate) stopped: bool,
    /// Whether nothing is left that it could have started.
    pub(crate) whole: bool,
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
    #[error("`{program}` has ended, and something that it started in the background still holds its streams open")]
    HeldOpen {
        /// Its name.
        program: String,
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

/// Runs a program to its end, or to the end that `stop` orders: SIGTERM to its group, SIGKILL after a grace, or at once
/// for [`Why::Abort`]. When this returns, its group is gone, and so is everything else with `mark` in its environment.
pub(crate) fn run<F, T>(
    mut command: Command,
    mark: &str,
    streams: Streams<impl FnOnce(io::PipeWriter) -> F + Send + 'static, impl FnOnce(Output) -> T + Send + 'static>,
    stop: &Stop,
    guard: Option<&Guard>,
) -> Result<Ended<F, T>, ProcessError>
where
    F: Send + 'static,
    T: Send + 'static,
{
    let name = command.get_program().to_string_lossy().into_owned();
    let no_streams = |source| ProcessError::Streams { program: name.clone(), source };
    let Streams { slots, feed, fed_in_vain, take, stdout, stderr } = streams;

    let out = if take.is_some() { wide_pipe(slots) } else { io::pipe() };
    let (out_read, out_write) = out.map_err(no_streams)?;
    let (err_read, err_write) = io::pipe().map_err(no_streams)?;
    let (stdin, in_write) = match feed {
        None => (Stdio::null(), None),
        Some(feed) => {
            let (read, write) = wide_pipe(slots).map_err(no_streams)?;
            (read.into(), Some((feed, write)))
        }
    };
    command.stdin(stdin).stdout(out_write).stderr(err_write).process_group(0);
    let spawned = spawn(&mut command);
    // The command holds the program's ends of the pipes: they would never end.
    drop(command);
    let child = spawned.map_err(|source| ProcessError::Spawn { program: name.clone(), source })?;
    let group = Pid::from_child(&child);
    let mut running = Running { child: Some(child), group, _guarded: guard.map(|guard| guard.add(group)) };

    let fed = in_write.map(|(feed, write)| on_thread("feed", move || feed(write))).transpose().map_err(no_streams)?;
    let mut logged = vec![(err_read, stderr)];
    let taken = match take {
        Some(take) => {
            let (whole, read_whole) = mpsc::channel();
            let output = BufReader::with_capacity(TAKEN, Watched { pipe: out_read, unread: Some(whole) });
            Some((on_thread("take", move || take(output)).map_err(no_streams)?, read_whole))
        }
        None => {
            logged.push((out_read, stdout));
            None
        }
    };
    let no_wait = |source| ProcessError::Wait { program: name.clone(), source };
    let mut watch = Watch::new(End::of(group).map_err(no_wait)?, logged);
    let stopped = watch_to_the_end(&mut watch, group, stop).map_err(no_wait)?;
    // It is a zombie still, so that the group is its own.
    signal(group, Signal::KILL);
    let status = running.reap().map_err(no_wait)?;
    let whole = end_group(group) & end_marked(mark);
    drop(running);
    fed_in_vain.cancel();

    let until = Instant::now() + STREAMS;
    let panicked = |stream| ProcessError::Panicked { program: name.clone(), stream };
    let held_open = || ProcessError::HeldOpen { program: name.clone() };
    if !watch.drain_streams(until).map_err(no_wait)? {
        return Err(held_open());
    }
    let fed = match fed.map(|fed| fed.recv_timeout(until.saturating_duration_since(Instant::now()))) {
        None => None,
        Some(Ok(fed)) => Some(fed),
        Some(Err(RecvTimeoutError::Timeout)) => return Err(held_open()),
        Some(Err(RecvTimeoutError::Disconnected)) => return Err(panicked("standard input")),
    };
    let taken = match taken {
        None => None,
        Some((taken, read_whole)) => {
            // Nothing is ever sent: the other end goes.
            let left = until.saturating_duration_since(Instant::now());
            if read_whole.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                return Err(held_open());
            }
            // What takes the output may have much to do after the last byte: sorting, writing, syncing.
            Some(taken.recv().map_err(|_| panicked("standard output"))?)
        }
    };
    // Of what was logged, standard error came first.
    let stderr = watch.finish().first().map(Tail::to_text).unwrap_or_default();
    Ok(Ended { status, fed, taken, stderr, stopped, whole })
}

/// Logs a program's streams until it has ended, which it is told to once that is ordered. Says whether it was.
fn watch_to_the_end(watch: &mut Watch, group: Pid, stop: &Stop) -> io::Result<bool> {
    let bell = stop.bell()?;
    while !watch.has_ended() {
        if stop.why().is_some_and(|why| why >= Why::Drain) {
            end_within_grace(watch, group, stop)?;
            return Ok(true);
        }
        watch.turn(Some(bell), None)?;
    }
    Ok(false)
}

/// SIGTERM, and after the grace SIGKILL, to all of a group.
fn end_within_grace(watch: &mut Watch, group: Pid, stop: &Stop) -> io::Result<()> {
    let bell = stop.bell()?;
    signal(group, Signal::TERM);
    let until = Instant::now() + if stop.why() == Some(Why::Drain) { DRAIN_GRACE } else { GRACE };
    let mut is_quiet = true;
    loop {
        // What is ordered from here on rings again.
        bell.hush();
        let now = Instant::now();
        if stop.why() == Some(Why::Abort) || now >= until {
            break;
        }
        // A shell dies of the signal at once; what it started may be writing its checkpoint.
        if watch.has_ended() && is_quiet && !group_runs(group) {
            return Ok(());
        }
        let next = if watch.has_ended() { until.min(now + LOOK) } else { until };
        is_quiet = !watch.turn(Some(bell), Some(next))?;
    }
    signal(group, Signal::KILL);
    while !watch.has_ended() {
        watch.turn(None, None)?;
    }
    Ok(())
}

/// A program that must not outlive whoever runs it, whatever happens to that.
struct Running<'a> {
    child: Option<Child>,
    group: Pid,
    _guarded: Option<Guarded<'a>>,
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
    }
}

#[cfg(test)]
mod tests;
