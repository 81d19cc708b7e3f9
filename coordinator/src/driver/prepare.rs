//! From a job to its plan: the dataset is staged, cut, and what can be checked before the first task is checked.

use std::path::PathBuf;

use forebay_datasets::{
    columns::Columns,
    snapshot::{self, Snapshot},
    source::Source,
    stage::{self, StageError, StageRequest},
    volume::Volume,
};
use forebay_jobs::{
    kinds::{TaskError, sql},
    plan::{self, Plan, PlanError},
    spec::{ColumnsSpec, DatasetSpec, SqlSpec, Work},
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
    let (snapshot, mut staged) =
        held_snapshot_of(&volume, &run, run.job().dataset.columns.clone(), &tell, reading).await?;
    let mut checked = plan_over(&volume, &run, &snapshot).await?;
    if let (Checked::NotHeld(missing), ColumnsSpec::Needed) = (&checked, &run.job().dataset.columns) {
        // One object of each table did not tell of all columns; the whole has them.
        tracing::warn!(%missing, "staging the dataset whole");
        let (snapshot, again) = held_snapshot_of(&volume, &run, ColumnsSpec::All, &tell, reading).await?;
        staged = StagedFigures {
            fetched_objects: staged.fetched_objects + again.fetched_objects,
            fetched_bytes: staged.fetched_bytes + again.fetched_bytes,
            seconds: staged.seconds + again.seconds,
            ..again
        };
        checked = plan_over(&volume, &run, &snapshot).await?;
    }
    let plan = match checked {
        Checked::Plan(plan) => plan,
        Checked::Never(error) | Checked::NotHeld(error) => return Ok(Prepared::Never(error)),
    };
    tell(RunProgress::Staged { snapshot: plan.snapshot.clone(), figures: staged.clone() });
    let install = move || -> Result<Plan, CoordinateError> {
        run.write_staged(&epoch_dir, &staged)?;
        run.install(&epoch_dir, RunDir::PLAN, |path| plan.write(path))?;
        Ok(plan)
    };
    Ok(Prepared::Plan(tokio::task::spawn_blocking(install).await??))
}

/// What a plan over a snapshot came to.
enum Checked {
    Plan(Plan),
    /// The job can never run over this snapshot.
    Never(String),
    /// The job reads columns that the snapshot does not hold.
    NotHeld(String),
}

async fn plan_over(volume: &Volume, run: &RunDir, snapshot: &Snapshot) -> Result<Checked, CoordinateError> {
    let planned = {
        let (volume, run, snapshot) = (volume.clone(), run.clone(), snapshot.clone());
        tokio::task::spawn_blocking(move || plan::plan(run.job(), &snapshot, &volume)).await?
    };
    let plan = match planned {
        Ok(plan) => plan,
        Err(error @ PlanError::Volume(_)) => return Err(error.into()),
        Err(error) => return Ok(Checked::Never(chain(&error))),
    };
    if let (Work::Sql(sql), Some(split)) = (&run.job().work, plan.splits.first()) {
        match sql::check_staged(volume, sql, split).await {
            Ok(()) => {}
            Err(TaskError::BadInput(error)) => return Ok(Checked::Never(error)),
            Err(error @ TaskError::NotHeld(_)) => return Ok(Checked::NotHeld(error.to_string())),
            Err(error) => return Err(CoordinateError::Check(error)),
        }
    }
    Ok(Checked::Plan(plan))
}

/// The snapshot, which stays from here on.
async fn held_snapshot_of(
    volume: &Volume,
    run: &RunDir,
    columns: ColumnsSpec,
    tell: &Tell,
    reading: &Reading,
) -> Result<(Snapshot, StagedFigures), CoordinateError> {
    let (snapshot, staged) = snapshot_of(volume, run, columns.clone(), tell).await?;
    match reading.take(volume, run, &snapshot.record.id.0).await {
        Ok(()) => Ok((snapshot, staged)),
        // Removed between staging and lease, since somebody else had staged something newer in between.
        Err(CoordinateError::SnapshotGone { .. }) if run.job().dataset.version.is_none() => {
            let (snapshot, staged) = snapshot_of(volume, run, columns, tell).await?;
            reading.take(volume, run, &snapshot.record.id.0).await?;
            Ok((snapshot, staged))
        }
        Err(error) => Err(error),
    }
}

async fn snapshot_of(
    volume: &Volume,
    run: &RunDir,
    columns: ColumnsSpec,
    tell: &Tell,
) -> Result<(Snapshot, StagedFigures), CoordinateError> {
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
    let mut request =
        DatasetSpec { columns: columns.clone(), ..dataset.clone() }.stage_request().map_err(StageError::from)?;
    if let (ColumnsSpec::Needed, Work::Sql(sql)) = (&columns, &run.job().work) {
        request.columns = needed_of(&request, sql).await?;
    }
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

/// The columns that a query reads of the source's Parquet objects.
async fn needed_of(request: &StageRequest, sql: &SqlSpec) -> Result<Option<Columns>, StageError> {
    let mut source = Source::connect(&request.url, &request.options).await?;
    Ok(sql::needed_columns(&mut source, sql).await)
}
