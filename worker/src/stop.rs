//! How an attempt is told to end before its time.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, OnceLock},
};

use rustix::event::{EventfdFlags, eventfd};
use tokio_util::sync::CancellationToken;

use crate::process::held;

/// Why an attempt is to end. A later reason replaces an earlier one only if it is more urgent, that is, greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// The worker goes: what is not done is given back.
    Drain,
    /// The coordinator wants it no more.
    Cancelled,
    /// It ran for longer than its job allows.
    TimedOut,
    /// The worker ends at once: programs get no grace.
    Abort,
}

/// One attempt's order to end: set by whoever owns the attempt, seen by whatever does its work.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<Order>);

#[derive(Debug, Default)]
struct Order {
    why: Mutex<Option<Why>>,
    token: CancellationToken,
    bell: OnceLock<Bell>,
}

impl Stop {
    /// Orders the end.
    pub(crate) fn order(&self, why: Why) {
        {
            let mut held = held(&self.0.why);
            if held.is_some_and(|held| why <= held) {
                return;
            }
            *held = Some(why);
        }
        self.0.token.cancel();
        if let Some(bell) = self.0.bell.get() {
            bell.ring();
        }
    }

    /// The order, if there is one.
    pub(crate) fn why(&self) -> Option<Why> {
        *held(&self.0.why)
    }

    /// For work that only needs to know that it is to end.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.0.token
    }

    /// For what waits for files too: whoever has it first, and then looks at [`Stop::why`], misses no order.
    pub(crate) fn bell(&self) -> io::Result<&Bell> {
        match self.0.bell.get() {
            Some(bell) => Ok(bell),
            None => {
                let bell = Bell(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
                Ok(self.0.bell.get_or_init(|| bell))
            }
        }
    }
}

/// Readable once it was rung (eventfd(2)).
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    fn ring(&self) {
        if let Err(error) = rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            tracing::warn!(%error, "an attempt is not told that it is to end");
        }
    }

    /// Readable no more until it is rung again.
    pub(crate) fn hush(&self) {
        // It was not rung.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn only_a_more_urgent_reason_replaces_the_first() {
        let stop = Stop::default();
        assert_eq!(stop.why(), None);
        stop.order(Why::Cancelled);
        stop.order(Why::Drain);
        assert_eq!(stop.why(), Some(Why::Cancelled));
        stop.order(Why::Abort);
        assert_eq!(stop.why(), Some(Why::Abort));
        assert!(stop.token().is_cancelled());
    }

    #[test]
    fn each_more_urgent_order_rings() {
        let stop = Stop::default();
        let rings = |bell: &Bell| {
            let mut polled = [PollFd::new(bell, PollFlags::IN)];
            let rings = poll(&mut polled, Some(&Timespec::default())).unwrap() > 0;
            bell.hush();
            rings
        };
        let bell = stop.bell().unwrap();
        assert!(!rings(bell));
        for (why, heard) in [(Why::Cancelled, true), (Why::Drain, false), (Why::Abort, true)] {
            stop.clone().order(why);
            assert_eq!((rings(bell), rings(bell)), (heard, false), "{why:?}");
        }
    }
}
