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
    /// Others have nothing to do, and are to do what it has not come to, where its kind of work can leave that to them.
    Yield,
    /// The worker goes: what is not done is given back.
    Drain,
    /// The coordinator wants it no more.
    Cancelled,
    /// It ran for longer than its job allows.
    TimedOut,
    /// The worker ends at once: programs get no grace.
    Abort,
}

/// The least urgent order that cancels each of an attempt's tokens.
const LEAST: [Why; 3] = [Why::Yield, Why::Drain, Why::Cancelled];

/// One attempt's order to end: set by whoever owns the attempt, seen by whatever does its work.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<Order>);

#[derive(Debug, Default)]
struct Order {
    why: Mutex<Option<Why>>,
    /// Cancelled by an order of at least this urgency: to yield, to drain, and to end whatever that takes.
    tokens: [CancellationToken; 3],
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
        let due = LEAST.iter().zip(&self.0.tokens).filter(|(least, _)| why >= **least);
        due.for_each(|(_, token)| token.cancel());
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
        &self.0.tokens[1]
    }

    /// For work that can be done with what it has read: when it is to do so, and when it is to end.
    pub(crate) fn yielding(&self) -> (&CancellationToken, &CancellationToken) {
        (&self.0.tokens[0], &self.0.tokens[2])
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
    fn what_can_be_done_early_is_not_cancelled_by_a_drain() {
        let stop = Stop::default();
        let (yields, ends) = stop.yielding();
        let cancelled = || [yields, stop.token(), ends].map(CancellationToken::is_cancelled);
        for (order, expected) in [
            (Why::Yield, [true, false, false]),
            (Why::Drain, [true, true, false]),
            (Why::Cancelled, [true, true, true]),
        ] {
            stop.order(order);
            assert_eq!(cancelled(), expected, "{order:?}");
        }
    }

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
