//! What the thread of a program waits for: its end, its streams, an order, and time.

use std::{
    io::{self, PipeReader, Read, Write},
    os::fd::AsFd,
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{CHUNK, children::End};
use crate::{
    logs::{Sink, Tail},
    stop::Bell,
};

/// A program that is watched, and its streams as far as they are logged.
pub(super) struct Watch {
    /// Until it has ended.
    end: Option<End>,
    /// Each pipe until it has ended.
    streams: Vec<(Option<PipeReader>, Sink)>,
    /// Empty as long as nothing was printed.
    buffer: Vec<u8>,
}

impl Watch {
    pub(super) fn new(end: End, streams: Vec<(PipeReader, Sink)>) -> Self {
        let streams = streams.into_iter().map(|(pipe, log)| (Some(pipe), log)).collect();
        Self { end: Some(end), streams, buffer: Vec::new() }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.end.is_none()
    }

    /// Waits until there is something, and logs it. False if it was the time that came.
    pub(super) fn turn(&mut self, bell: Option<&Bell>, until: Option<Instant>) -> io::Result<bool> {
        let mut polled = Vec::with_capacity(4);
        polled.extend(self.end.iter().map(|end| PollFd::new(end, PollFlags::IN)));
        let pipes = self.streams.iter().filter_map(|(pipe, _)| pipe.as_ref());
        polled.extend(pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        polled.extend(bell.map(|bell| PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN)));
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut polled, left.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(PollFd::revents).collect::<Vec<_>>().into_iter();
        if self.end.is_some() && ready.next().is_some_and(|events| !events.is_empty()) {
            self.end = None;
        }
        let open = self.streams.iter_mut().filter(|(pipe, _)| pipe.is_some());
        for ((pipe, log), events) in open.zip(ready).filter(|(_, events)| !events.is_empty()) {
            // What only hangs up is empty.
            if !events.contains(PollFlags::IN) || !log_some(pipe.as_mut(), log, &mut self.buffer) {
                *pipe = None;
            }
        }
        Ok(true)
    }

    /// Logs what the streams still hold. False if time came before their ends.
    pub(super) fn drain_streams(&mut self, until: Instant) -> io::Result<bool> {
        while self.streams.iter().any(|(pipe, _)| pipe.is_some()) {
            if Instant::now() >= until {
                return Ok(false);
            }
            self.turn(None, Some(until))?;
        }
        Ok(true)
    }

    /// The last lines of each stream.
    pub(super) fn finish(self) -> Vec<Tail> {
        self.streams.into_iter().map(|(_, log)| log.finish()).collect()
    }
}

/// Logs what a pipe holds. False at its end. A log that cannot be written is no reason to stop the program.
fn log_some(pipe: Option<&mut PipeReader>, log: &mut Sink, buffer: &mut Vec<u8>) -> bool {
    buffer.resize(CHUNK, 0);
    match pipe.map_or(Ok(0), |pipe| pipe.read(buffer)) {
        Ok(0) => false,
        Ok(read) => {
            let _ = log.write_all(&buffer[..read]);
            true
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
        Err(error) => {
            tracing::warn!(%error, "a program's stream broke");
            false
        }
    }
}
