//! The lease of a run on the snapshot that it reads: taken before the run is planned, renewed while it is coordinated,
//! and ended with the run. A run that is interrupted keeps it for a week, within which it can be resumed.

use std::sync::{Arc, Mutex, PoisonError};

use forebay_datasets::{
    lease::{self, KEPT_FOR, Lease, RENEWAL, Reader},
    snapshot::{SnapshotError, SnapshotId},
    volume::Volume,
};
use forebay_jobs::kept::RESULT;

use super::CoordinateError;
use crate::rundir::RunDir;

/// The lease, once there is one.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading(Arc<Mutex<Option<Lease>>>);

impl Reading {
    /// Takes the run's lease on a snapshot.
    ///
    /// # Errors
    /// [`CoordinateError::SnapshotGone`] if the snapshot is not there.
    pub(super) async fn take(&self, volume: &Volume, run: &RunDir, id: &str) -> Result<(), CoordinateError> {
        let (slot, volume, run, id) = (Arc::clone(&self.0), volume.clone(), run.clone(), SnapshotId(id.to_owned()));
        let take = move || {
            let lease = lease::take(&volume, &run.job().dataset.name, &id, &reader(&volume, &run));
            let lease = lease.map_err(|error| of_snapshot(error, &run))?;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease);
            Ok(())
        };
        tokio::task::spawn_blocking(take).await?
    }

    /// Renews it for as long as that works. Returns once the snapshot is gone.
    pub(super) async fn keep(&self, run: &RunDir) -> CoordinateError {
        loop {
            // A lease lives by the clock: others judge it by its age.
            tokio::time::sleep(RENEWAL).await;
            let slot = Arc::clone(&self.0);
            let renew = move || match &*slot.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(lease) => lease.renew(),
                None => Ok(()),
            };
            match tokio::task::spawn_blocking(renew).await {
                Ok(Ok(())) => {}
                Ok(Err(error @ SnapshotError::NoSnapshot { .. })) => return of_snapshot(error, run),
                // It lives for many renewals, and any other error may pass.
                Ok(Err(error)) => tracing::warn!(%error, "the lease on the snapshot could not be renewed"),
                Err(error) => return error.into(),
            }
        }
    }
}

/// Ends the lease of a run that has ended.
pub(super) fn end(volume: &Volume, run: &RunDir) {
    if let Err(error) = lease::end(volume, &run.job().dataset.name, &key(run)) {
        tracing::debug!(run = %run.id(), %error, "its lease on the snapshot could not be ended; it ends with its result");
    }
}

fn key(run: &RunDir) -> String {
    format!("run-{}", run.id())
}

fn reader(volume: &Volume, run: &RunDir) -> Reader {
    Reader {
        key: key(run),
        name: format!("run {}", run.id()),
        kept_for: KEPT_FOR,
        ends_with: volume.relative(&run.path().join(RESULT)),
    }
}

fn of_snapshot(error: SnapshotError, run: &RunDir) -> CoordinateError {
    match error {
        SnapshotError::NoSnapshot { name, id } => CoordinateError::SnapshotGone { name, id, run: run.id().clone() },
        error => forebay_datasets::stage::StageError::from(error).into(),
    }
}
