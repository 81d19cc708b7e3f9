//! Keeps the lease while the coordinator works.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::CoordinateError;
use crate::lease::{Claim, LeaseError};

/// Between two renewals.
const RENEWAL: Duration = Duration::from_secs(3);
/// Who could not renew for so long stops, well before others may think the lease dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// Renews the lease for as long as that works. Returns once it is lost.
pub(super) async fn keep(claim: Arc<Claim>) -> CoordinateError {
    let mut renewed = Instant::now();
    loop {
        // A lease lives by the clock: others judge it by its age.
        tokio::time::sleep(RENEWAL).await;
        let asked = Instant::now();
        let claim = Arc::clone(&claim);
        // A network file system that does not answer blocks its thread, but not this one.
        let renewal = tokio::task::spawn_blocking(move || claim.renew());
        match tokio::time::timeout_at(renewed + PATIENCE, renewal).await {
            Ok(Ok(Ok(()))) => renewed = asked,
            Ok(Ok(Err(LeaseError::Lost { .. }))) | Err(_) => return CoordinateError::Deposed,
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the lease could not be renewed"),
            Ok(Err(error)) => return error.into(),
        }
    }
}

/// Whether somebody else has the run by now; false also means: cannot be told.
pub(super) async fn is_deposed(claim: &Arc<Claim>) -> bool {
    matches!(renewed(claim).await, Some(Err(LeaseError::Lost { .. })))
}

/// Whether the run is still this process's, beyond doubt.
pub(super) async fn holds(claim: &Arc<Claim>) -> bool {
    matches!(renewed(claim).await, Some(Ok(())))
}

async fn renewed(claim: &Arc<Claim>) -> Option<Result<(), LeaseError>> {
    let claim = Arc::clone(claim);
    let renewal = tokio::task::spawn_blocking(move || claim.renew());
    tokio::time::timeout(RENEWAL, renewal).await.ok()?.ok()
}

/// Gives the lease back, so that nobody has to wait until it is dead.
pub(super) async fn release(claim: Arc<Claim>) {
    let released = tokio::task::spawn_blocking(move || claim.release()).await;
    if let Ok(Err(error)) = released {
        tracing::debug!(%error, "the lease could not be given back");
    }
}
