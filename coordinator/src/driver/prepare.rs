//! From a job to its plan: the dataset is staged, cut, and what can be checked before the first task is checked.

use std::path::PathBuf;

use forebay_datasets::{
    snapshot::{self, Snapshot},
    stage::{self, StageError},
    volume::Volume,
};
use forebay_jobs::{
    kinds::{TaskError, sql},
    plan::{self, Plan, PlanError},
    spec::Work,
};

use super::{CoordinateError, RunProgress, Tell, reading::Reading, result::StagedFigures};
use crate::{commit::chain, rundir::RunDir};

/// What preparing came to.
#[derive(Debug)]
pub(super) enum Prepared {
    /// The plan, which is durable.
    Plan(Plan),
    /// The job can never run over this snapshot.
    Never(String),
}

/// Stages and plans.
///
/// # Errors
/// What another try, later or elsewhere, may get past.
pub(super) async fn prepare(
    volume: Volume,
    run: RunDir,
    epoch_dir: PathBuf,
    tell: Tell,
    reading: &Reading,
) -> Result<Prepared, CoordinateError> {
    let (snapshot, staged) = held_snapshot_of(&volume, &run, &tell, reading).await?;
    tell(RunProgress::Staged { snapshot: snapshot.record.id.to_string(), figures: staged.clone() });
    let planned = {
        let (volume, run, snapshot) = (volume.clone(), run.clone(), snapshot.clone());
        tokio::task::spawn_blocking(move || plan::plan(run.job(), &snapshot, &volume)).await?
    };
    let plan = match planned {
        Ok(plan) => plan,
        Err(error @ PlanError::Volume(_)) => return Err(error.into()),
        Err(error) => return Ok(Prepared::Never(chain(&error))),
    };
    if let (Work::Sql(sql), Some(split)) = (&run.job().work, plan.splits.first()) {
        match sql::check_staged(&volume, sql, split).await {
            Ok(()) => {}
            Err(TaskError::BadInput(error)) => return Ok(Prepared::Never(error)),
            Err(error) => return Err(CoordinateError::Check(error)),
        }
    }
    let install = move || -> Result<Plan, CoordinateError> {
        run.write_staged(&epoch_dir, &staged)?;
        run.install(&epoch_dir, RunDir::PLAN, |path| plan.write(path))?;
        Ok(plan)
    };
    Ok(Prepared::Plan(tokio::task::spawn_blocking(install).await??))
}

/// The snapshot, which stays from here on.
async fn held_snapshot_of(
    volume: &Volume,
    run: &RunDir,
    tell: &Tell,
    reading: &Reading,
) -> Result<(Snapshot, StagedFigures), CoordinateError> {
    let (snapshot, staged) = snapshot_of(volume, run, tell).await?;
    match reading.take(volume, run, &snapshot.record.id.0).await {
        Ok(()) => Ok((snapshot, staged)),
        // Removed between staging and lease, since somebody else had staged something newer in between.
        Err(CoordinateError::SnapshotGone { .. }) if run.job().dataset.version.is_none() => {
            let (snapshot, staged) = snapshot_of(volume, run, tell).await?;
            reading.take(volume, run, &snapshot.record.id.0).await?;
            Ok((snapshot, staged))
        }
        Err(error) => Err(error),
    }
}

async fn snapshot_of(volume: &Volume, run: &RunDir, tell: &Tell) -> Result<(Snapshot, StagedFigures), CoordinateError> {
    let dataset = &run.job().dataset;
    let figures = |snapshot: &Snapshot| StagedFigures {
        objects: snapshot.record.objects,
        bytes: snapshot.record.bytes,
        ..StagedFigures::default()
    };
    if let Some(version) = &dataset.version {
        let snapshot = snapshot::open(volume, &dataset.name, Some(version)).map_err(StageError::from)?;
        let figures = figures(&snapshot);
        return Ok((snapshot, figures));
    }
    let request = dataset.stage_request().map_err(StageError::from)?;
    let staged = stage::stage(volume, &request, &|progress| tell(RunProgress::Staging(progress))).await?;
    let snapshot = snapshot::load(volume, staged.record).map_err(StageError::from)?;
    let figures = StagedFigures {
        fetched_objects: staged.fetched_objects,
        fetched_bytes: staged.fetched_bytes,
        seconds: staged.seconds,
        ..figures(&snapshot)
    };
    Ok((snapshot, figures))
}
