//! How an attempt is told to end before its time.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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

/// One attempt's order to end: set by whoever owns the attempt, seen by whatever does its work.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    why: Arc<watch::Sender<Option<Why>>>,
    /// Cancelled by an order of at least this urgency.
    tokens: [(Why, CancellationToken); 3],
}

impl Default for Stop {
    fn default() -> Self {
        let tokens = [Why::Yield, Why::Drain, Why::Cancelled].map(|least| (least, CancellationToken::new()));
        Self { why: Arc::new(watch::Sender::new(None)), tokens }
    }
}

impl Stop {
    /// Orders the end.
    pub(crate) fn order(&self, why: Why) {
        self.why.send_if_modified(|held| {
            let urgent = held.is_none_or(|held| why > held);
            if urgent {
                *held = Some(why);
            }
            urgent
        });
        let due = self.tokens.iter().filter(|(least, _)| why >= *least);
        due.for_each(|(_, token)| token.cancel());
    }

    /// The order, if there is one.
    pub(crate) fn why(&self) -> Option<Why> {
        *self.why.borrow()
    }

    /// For work that only needs to know that it is to end.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.tokens[1].1
    }

    /// For work that can be done with what it has read: when it is to do so, and when it is to end.
    pub(crate) fn yielding(&self) -> (&CancellationToken, &CancellationToken) {
        (&self.tokens[0].1, &self.tokens[2].1)
    }

    /// Waits until the end is ordered with at least this urgency.
    pub(crate) async fn ordered(&self, least: Why) {
        let mut watch = self.why.subscribe();
        // The sender lives in `self`, so that waiting cannot fail.
        let _ = watch.wait_for(|why| why.is_some_and(|why| why >= least)).await;
    }
}

#[cfg(test)]
mod tests {
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

    #[tokio::test]
    async fn only_a_more_urgent_reason_replaces_the_first() {
        let stop = Stop::default();
        assert_eq!(stop.why(), None);
        stop.order(Why::Cancelled);
        stop.order(Why::Drain);
        assert_eq!(stop.why(), Some(Why::Cancelled));
        stop.ordered(Why::Drain).await;
        stop.order(Why::Abort);
        stop.ordered(Why::Abort).await;
        assert!(stop.token().is_cancelled());
    }
}
