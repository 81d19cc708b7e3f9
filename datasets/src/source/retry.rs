//! Trying again what may succeed a little later: exponential backoff with full jitter.

use std::time::Duration;

use super::SourceError;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// A server may ask to be left alone for so long, and no longer.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// How often one request was tried, and when it may be tried again.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    tries: u32,
}

impl Schedule {
    /// How long to wait after this error; none if it is not worth another try.
    pub(crate) fn next(&mut self, error: &SourceError) -> Option<Duration> {
        self.tries += 1;
        let most = match error {
            // A server that is not there at all is reported soon: the user is waiting for that answer.
            SourceError::Unreachable { .. } => 3,
            // Of ten thousand objects with one answer in ten refused, none is given up by chance.
            SourceError::Busy { .. } | SourceError::Broken { .. } => 10,
            error if error.is_transient() => 6,
            _ => return None,
        };
        if self.tries >= most {
            return None;
        }
        tracing::debug!(%error, tries = self.tries, "trying again");
        // Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        let ceiling = FIRST.saturating_mul(1 << (self.tries - 1)).min(LONGEST);
        let asked = match error {
            SourceError::Busy { after: Some(after), .. } => (*after).min(LONGEST_ASKED),
            _ => Duration::ZERO,
        };
        Some(asked + ceiling.mul_f64(rand::random()))
    }
}

/// Repeats a request while its error is transient.
pub(crate) async fn transient<T>(request: impl AsyncFn() -> Result<T, SourceError>) -> Result<T, SourceError> {
    let mut schedule = Schedule::default();
    loop {
        match request().await {
            Err(error) => match schedule.next(&error) {
                // The wait that the schedule, or the server, asks for.
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            },
            done => return done,
        }
    }
}

/// The same on a thread that may wait.
pub(crate) fn blocking<T>(mut request: impl FnMut() -> Result<T, SourceError>) -> Result<T, SourceError> {
    let mut schedule = Schedule::default();
    loop {
        match request() {
            Err(error) => match schedule.next(&error) {
                // The wait that the schedule, or the server, asks for.
                Some(wait) => std::thread::sleep(wait),
                None => return Err(error),
            },
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_get_better_is_not_tried_again_and_the_rest_only_so_often() {
        let tries = |error: SourceError| {
            let mut schedule = Schedule::default();
            std::iter::from_fn(|| schedule.next(&error)).count()
        };
        assert_eq!(tries(SourceError::Gone { key: "k".to_owned() }), 0);
        assert_eq!(tries(SourceError::Unreachable { endpoint: String::new(), why: String::new() }), 2);
        assert_eq!(tries(SourceError::Busy { key: String::new(), code: String::new(), after: None }), 9);
    }

    #[test]
    fn a_server_that_asks_for_patience_gets_it() {
        let wait = |seconds| {
            let after = Some(Duration::from_secs(seconds));
            Schedule::default().next(&SourceError::Busy { key: String::new(), code: String::new(), after }).unwrap()
        };
        assert!(wait(5) >= Duration::from_secs(5));
        assert!(wait(100_000) < Duration::from_secs(70));
    }
}
