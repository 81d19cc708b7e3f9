//! Runs one program and ends it whole.
//!
//! Each program leads a process group of its own. Its streams are pumped by a thread, so that it never waits for
//! anything but its consumer, and its end is seen by the same thread, which leaves it a zombie: as long as it is one,
//! its process group's number cannot be given to anybody else, and killing the group hits only what the program left.
//! Those who left the group too (`setsid`, daemons) become children of the worker, which is a subreaper; they are known by the
//! scratch directory in their environment, and killed as well.

mod children;

use std::{
    io::{self, BufReader, Read, Write},
    os::{
        fd::AsFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, Signal},
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::children::{End, end_group, end_marked, signal, wait_for_group};
pub(crate) use self::children::{become_subreaper, held, reap, spawn, while_nothing_is_spawned};
use crate::{
    guard::Guard,
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
/// What one read of a pipe takes at most: what Linux's pipes hold.
const CHUNK: usize = 64 << 10;

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
    unread: Option<oneshot::Sender<()>>,
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
pub(crate) async fn run<F, T>(
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
    let Streams { feed, fed_in_vain, take, stdout, stderr } = streams;

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
    let mut logged = vec![(err_read, stderr)];
    let taken = match take {
        Some(take) => {
            let (whole, read_whole) = oneshot::channel();
            let output = BufReader::with_capacity(CHUNK, Watched { pipe: out_read, unread: Some(whole) });
            Some((on_thread("take", move || take(output)).map_err(no_streams)?, read_whole))
        }
        None => {
            logged.push((out_read, stdout));
            None
        }
    };
    let no_wait = |source| ProcessError::Wait { program: name.clone(), source };
    let end_seen = End::of(group).map_err(no_wait)?;
    let (ended, mut end) = oneshot::channel();
    let tails = on_thread("streams", move || pump(end_seen, ended, logged)).map_err(no_streams)?;
    let seen = tokio::select! {
        seen = &mut end => Some(seen),
        () = stop.ordered(Why::Drain) => None,
    };
    let stopped = seen.is_none();
    let seen = match seen {
        Some(seen) => seen,
        None => {
            signal(group, Signal::TERM);
            let grace = if stop.why() == Some(Why::Drain) { DRAIN_GRACE } else { GRACE };
            // A shell dies of the signal at once; what it started may be writing its checkpoint.
            let all_end = async {
                let seen = (&mut end).await;
                wait_for_group(group).await;
                seen
            };
            let in_time = tokio::select! {
                seen = all_end => Some(seen),
                // The grace between the two signals is time, by definition.
                () = tokio::time::sleep(grace) => None,
                () = stop.ordered(Why::Abort) => None,
            };
            match in_time {
                Some(seen) => seen,
                None => {
                    signal(group, Signal::KILL);
                    // Its leader may have been seen to end before.
                    if end.is_terminated() { Ok(()) } else { end.await }
                }
            }
        }
    };
    seen.map_err(|_| no_wait(io::Error::other("the thread at its streams failed")))?;
    // It is a zombie still, so that the group is its own.
    signal(group, Signal::KILL);
    let status = running.reap().map_err(no_wait)?;
    end_group(group).await;
    end_marked(mark).await;
    drop(running);
    fed_in_vain.cancel();

    let panicked = |stream| ProcessError::Panicked { program: name.clone(), stream };
    let (taken, read_whole) = taken.unzip();
    let pumps = async {
        let fed = match fed {
            Some(fed) => Some(fed.await.map_err(|_| panicked("standard input"))?),
            None => None,
        };
        // Of what was logged, standard error came first.
        let [stderr, ..] = &tails.await.map_err(|_| panicked("streams"))?[..] else { return Err(panicked("streams")) };
        let stderr = stderr.to_text();
        if let Some(read_whole) = read_whole {
            // Nothing is ever sent: the other end goes.
            let _ = read_whole.await;
        }
        Ok((fed, stderr))
    };
    let in_time = tokio::time::timeout(STREAMS, pumps).await;
    let (fed, stderr) = in_time.map_err(|_| ProcessError::HeldOpen { program: name.clone() })??;
    // What takes the output may have much to do after the last byte: sorting, writing, syncing.
    let taken = match taken {
        Some(taken) => Some(taken.await.map_err(|_| panicked("standard output"))?),
        None => None,
    };
    Ok(Ended { status, fed, taken, stderr, stopped })
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

/// Tells when a program has ended, and logs its streams to their ends, which may come later. A log that cannot be written
/// is no reason to stop the program. One thread for all: starting it costs as much as a short program.
fn pump(end: End, ended: oneshot::Sender<()>, streams: Vec<(io::PipeReader, Sink)>) -> Vec<Tail> {
    let mut buffer = vec![0; CHUNK];
    let mut waiting = Some((end, ended));
    let mut streams: Vec<_> = streams.into_iter().map(|(pipe, log)| (Some(pipe), log)).collect();
    while waiting.is_some() || streams.iter().any(|(pipe, _)| pipe.is_some()) {
        let open = streams.iter().enumerate().filter_map(|(at, (pipe, _))| Some((at, pipe.as_ref()?.as_fd())));
        let (places, pipes): (Vec<_>, Vec<_>) = open.unzip();
        let fds = waiting.iter().map(|(end, _)| end.as_fd()).chain(pipes);
        let mut polled: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "a program's streams cannot be waited for");
                break;
            }
        }
        let mut ready: Vec<_> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        if waiting.is_some() && ready.remove(0) {
            // Whoever waited may have gone.
            let _ = waiting.take().map(|(_, ended)| ended.send(()));
        }
        for at in places.into_iter().zip(ready).filter_map(|(at, ready)| ready.then_some(at)) {
            let (pipe, log) = &mut streams[at];
            match pipe.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut buffer)) {
                Ok(0) => *pipe = None,
                Ok(read) => {
                    let _ = log.write_all(&buffer[..read]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "a program's stream broke");
                    *pipe = None;
                }
            }
        }
    }
    streams.into_iter().map(|(_, log)| log.finish()).collect()
}

#[cfg(test)]
mod tests;
