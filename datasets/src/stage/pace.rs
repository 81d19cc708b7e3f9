//! How many requests are in flight: as many as help, and fewer when the server or the volume shows that it is too many.
//!
//! The limit doubles round by round while that makes more work done, then holds, and looks now and then whether more
//! would help. A sign of overload halves it, at most once a second, and then it grows again by one a round
//! (AIMD, <https://www.rfc-editor.org/rfc/rfc5681>). The clock is an argument.

use std::time::{Duration, Instant};

const FIRST: usize = 8;
/// A round is this long at least, so that its figure means something.
const ROUND: Duration = Duration::from_millis(60);
/// More than before by less than this is no gain.
const GAIN: f64 = 1.08;
/// How long a limit that serves well is kept before a higher one is tried.
const HOLD: Duration = Duration::from_secs(3);
/// Between two halvings: what is already in flight is not answered better at once.
const COOLING: Duration = Duration::from_secs(1);
/// A request is so much work beside its bytes.
const REQUEST: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Doubling.
    Rising,
    /// Kept until then.
    Holding(Instant),
    /// A higher limit is tried; this was the one before.
    Trying(usize),
    /// After a sign of overload: one more a round.
    Recovering,
}

/// The limit, and what it is made of.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    most: usize,
    mode: Mode,
    round: Instant,
    done: usize,
    work: u64,
    /// Work a second of the best round so far at about this limit.
    best: f64,
    cooling: Option<Instant>,
}

impl Pace {
    /// At most so many.
    pub(super) fn new(most: usize, now: Instant) -> Self {
        let limit = FIRST.min(most);
        Self { limit, most, mode: Mode::Rising, round: now, done: 0, work: 0, best: 0.0, cooling: None }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// A request has succeeded.
    pub(super) fn succeeded(&mut self, bytes: u64, now: Instant) {
        self.done += 1;
        self.work += bytes + REQUEST;
        let took = now.saturating_duration_since(self.round);
        if self.done < self.limit || took < ROUND {
            return;
        }
        let rate = self.work as f64 / took.as_secs_f64();
        let gained = rate > self.best * GAIN;
        match self.mode {
            Mode::Rising if gained => self.limit = (self.limit * 2).min(self.most),
            Mode::Rising => self.mode = Mode::Holding(now + HOLD),
            Mode::Holding(until) if now >= until && self.limit < self.most => {
                self.mode = Mode::Trying(self.limit);
                self.limit = (self.limit + self.limit.div_ceil(4)).min(self.most);
                // What is compared with is what this limit does now, not what it did once.
                self.best = rate;
            }
            Mode::Holding(_) => {}
            Mode::Trying(before) => {
                if !gained {
                    self.limit = before;
                }
                self.mode = Mode::Holding(now + HOLD);
            }
            Mode::Recovering => self.limit = (self.limit + 1).min(self.most),
        }
        if self.mode != Mode::Recovering {
            self.best = self.best.max(rate);
        }
        (self.round, self.done, self.work) = (now, 0, 0);
    }

    /// The server asked for less, or did not keep up.
    pub(super) fn overloaded(&mut self, now: Instant) {
        if self.cooling.is_some_and(|until| now < until) {
            return;
        }
        self.limit = (self.limit / 2).max(1);
        self.mode = Mode::Recovering;
        self.cooling = Some(now + COOLING);
        (self.round, self.done, self.work) = (now, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a server that does at most `most` requests at once well, each in 10 ms, for so long.
    fn run(pace: &mut Pace, most: usize, now: &mut Instant, time: Duration) {
        let end = *now + time;
        while *now < end {
            let limit = pace.limit();
            // What is too much waits in the server.
            *now += Duration::from_millis(10) * u32::try_from(limit.div_ceil(most)).unwrap();
            (0..limit).for_each(|_| pace.succeeded(1000, *now));
        }
    }

    #[test]
    fn it_rises_while_that_helps_and_no_further() {
        for (most, at_least, at_most) in [(16, 16, 32), (100, 100, 256), (10_000, 256, 256), (1, 8, 16)] {
            let mut now = Instant::now();
            let mut pace = Pace::new(256, now);
            run(&mut pace, most, &mut now, Duration::from_secs(4));
            assert!((at_least..=at_most).contains(&pace.limit()), "{most}: {}", pace.limit());
        }
    }

    #[test]
    fn overload_halves_it_once_a_second_and_it_recovers_one_by_one() {
        let mut now = Instant::now();
        let mut pace = Pace::new(256, now);
        run(&mut pace, 1000, &mut now, Duration::from_secs(4));
        assert_eq!(pace.limit(), 256);
        (0..100).for_each(|_| pace.overloaded(now));
        assert_eq!(pace.limit(), 128);
        for _ in 0..20 {
            now += COOLING;
            pace.overloaded(now);
        }
        assert_eq!(pace.limit(), 1);
        run(&mut pace, 1000, &mut now, Duration::from_secs(1));
        assert!((5..40).contains(&pace.limit()), "{}", pace.limit());
    }

    #[test]
    fn it_never_passes_its_budget() {
        let mut now = Instant::now();
        let mut pace = Pace::new(3, now);
        run(&mut pace, 1000, &mut now, Duration::from_secs(4));
        assert_eq!(pace.limit(), 3);
    }
}
