//! From a job to its plan: the dataset is staged, cut, and what can be checked before the first task is checked.

use std::{path::PathBuf, sync::Arc};

use forebay_datasets::{
    snapshot::{self, SnapshotRecord},
    stage::{self, Follow, StageError},
    volume::Volume,
};
use forebay_jobs::{
    kinds::{TaskError, sql},
    plan::{self, Plan, PlanError, starts_early},
    spec::Work,
};
use tokio::sync::mpsc::UnboundedSender;

use super::{CoordinateError, RunProgress, Tell, early::Early, reading::Reading, result::StagedFigures};
use crate::{commit::chain, rundir::RunDir};

/// What preparing comes to, step by step.
#[derive(Debug)]
pub(super) enum News {
    /// The plan, which is durable.
    Planned(Arc<Plan>),
    /// The inputs of these tasks of the first phase are durable.
    InputsStaged(Vec<u32>),
    /// All of the dataset of a run that was planned ahead is.
    Staged(String),
    /// The job can never run over what its source holds.
    Never(String),
}

/// Stages and plans; `plan` is what an earlier coordinator has planned ahead of the snapshot.
///
/// # Errors
/// What another try, later or elsewhere, may get past.
pub(super) async fn prepare(
    volume: Volume,
    run: RunDir,
    epoch_dir: PathBuf,
    (tell, news): (Tell, UnboundedSender<News>),
    reading: &Reading,
    plan: Option<Arc<Plan>>,
) -> Result<(), CoordinateError> {
    let early = match starts_early(run.job()) {
        true => Some(Arc::new(Early::new((volume.clone(), run.clone(), epoch_dir.clone()), news.clone(), plan))),
        false => None,
    };
    let (record, staged) = held_snapshot_of(&volume, &run, &tell, reading, early.as_ref()).await?;
    tell(RunProgress::Staged { snapshot: record.id.to_string(), figures: staged.clone() });
    let told = match early.filter(|early| early.plan().is_some()) {
        Some(early) => {
            let install = move || finish(&run, &epoch_dir, &early, &record, &staged);
            tokio::task::spawn_blocking(install).await??
        }
        None => plan_over(volume, run, epoch_dir, record, staged).await?,
    };
    // Who does not listen any more has ended.
    let _ = news.send(told);
    Ok(())
}

/// The snapshot of a run that was planned ahead of it is there.
fn finish(
    run: &RunDir,
    epoch_dir: &std::path::Path,
    early: &Early,
    record: &SnapshotRecord,
    staged: &StagedFigures,
) -> Result<News, CoordinateError> {
    if early.plan().is_some_and(|plan| plan.listing.as_ref() != Some(&record.listing)) {
        let source = &record.source;
        return Ok(News::Never(format!(
            "{source} changed while it was being staged, and tasks had started by then: run the job again, or set \
             `early_start = false` under [dataset]"
        )));
    }
    early.complete(record)?;
    run.write_staged(epoch_dir, staged)?;
    Ok(News::Staged(record.id.to_string()))
}

/// Plans over a snapshot that is there.
async fn plan_over(
    volume: Volume,
    run: RunDir,
    epoch_dir: PathBuf,
    record: SnapshotRecord,
    staged: StagedFigures,
) -> Result<News, CoordinateError> {
    let planned = {
        let (volume, run) = (volume.clone(), run.clone());
        let plan = move || {
            let snapshot = snapshot::load(&volume, record).map_err(StageError::from)?;
            Ok::<_, CoordinateError>(plan::plan(run.job(), &snapshot, &volume))
        };
        tokio::task::spawn_blocking(plan).await??
    };
    let plan = match planned {
        Ok(plan) => plan,
        Err(error @ PlanError::Volume(_)) => return Err(error.into()),
        Err(error) => return Ok(News::Never(chain(&error))),
    };
    if let (Work::Sql(sql), Some(split)) = (&run.job().work, plan.splits.first()) {
        match sql::check_staged(&volume, sql, split).await {
            Ok(()) => {}
            Err(TaskError::BadInput(error)) => return Ok(News::Never(error)),
            Err(error) => return Err(CoordinateError::Check(error)),
        }
    }
    let install = move || -> Result<News, CoordinateError> {
        run.write_staged(&epoch_dir, &staged)?;
        run.install(&epoch_dir, RunDir::PLAN, |path| plan.write(path))?;
        Ok(News::Planned(Arc::new(plan)))
    };
    tokio::task::spawn_blocking(install).await?
}

/// The snapshot, which stays from here on.
async fn held_snapshot_of(
    volume: &Volume,
    run: &RunDir,
    tell: &Tell,
    reading: &Reading,
    early: Option<&Arc<Early>>,
) -> Result<(SnapshotRecord, StagedFigures), CoordinateError> {
    let (record, staged) = snapshot_of(volume, run, tell, early).await?;
    match reading.take(volume, run, &record.id.0).await {
        Ok(()) => Ok((record, staged)),
        // Removed between staging and lease, since somebody else had staged something newer in between.
        Err(CoordinateError::SnapshotGone { .. }) if run.job().dataset.version.is_none() => {
            let (record, staged) = snapshot_of(volume, run, tell, early).await?;
            reading.take(volume, run, &record.id.0).await?;
            Ok((record, staged))
        }
        Err(error) => Err(error),
    }
}

async fn snapshot_of(
    volume: &Volume,
    run: &RunDir,
    tell: &Tell,
    early: Option<&Arc<Early>>,
) -> Result<(SnapshotRecord, StagedFigures), CoordinateError> {
    let dataset = &run.job().dataset;
    let figures = |record: &SnapshotRecord| StagedFigures {
        objects: record.objects,
        bytes: record.bytes,
        ..StagedFigures::default()
    };
    if let Some(version) = &dataset.version {
        let record = snapshot::find(volume, &dataset.name, Some(version)).map_err(StageError::from)?;
        let figures = figures(&record);
        return Ok((record, figures));
    }
    let request = dataset.stage_request().map_err(StageError::from)?;
    let follower = early.map(|early| Arc::clone(early) as Arc<dyn Follow>);
    let progress = |progress| tell(RunProgress::Staging(progress));
    let staged = stage::stage_followed(volume, &request, &progress, follower).await?;
    let figures = StagedFigures {
        fetched_objects: staged.fetched_objects,
        fetched_bytes: staged.fetched_bytes,
        seconds: staged.seconds,
        ..figures(&staged.record)
    };
    Ok((staged.record, figures))
}
