//! Trying again what may succeed a little later: exponential backoff with full jitter.

use std::time::Duration;

use crate::source::SourceError;

const TRIES: u32 = 6;
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// Repeats a request while its error is transient, at most six tries in all.
pub(crate) async fn transient<T>(request: impl AsyncFn() -> Result<T, SourceError>) -> Result<T, SourceError> {
    let mut tries = 1;
    loop {
        match request().await {
            Err(error) if error.is_transient() && tries < TRIES && !refused(&error, tries) => {
                tracing::debug!(%error, tries, "trying again");
                // Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
                let ceiling = FIRST.saturating_mul(1 << (tries - 1)).min(LONGEST);
                tokio::time::sleep(ceiling.mul_f64(rand::random())).await;
                tries += 1;
            }
            outcome => return outcome,
        }
    }
}

/// A server that is not there at all is reported after three tries: the user is waiting for that answer.
fn refused(error: &SourceError, tries: u32) -> bool {
    tries >= 3 && matches!(error, SourceError::Unreachable { .. })
}
