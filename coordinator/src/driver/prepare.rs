//! From a job to its plan: the dataset is staged, cut, and what can be checked before the first task is checked.

use std::{path::PathBuf, sync::Arc};

use forebay_datasets::{
    columns::Columns,
    results,
    snapshot::{self, SnapshotRecord},
    source::Source,
    stage::{self, Follow, StageError, StageRequest},
    volume::Volume,
};
use forebay_jobs::{
    host::Host,
    identity::WorkIdentity,
    kinds::{TaskError, sql},
    plan::{self, Plan, PlanError, starts_early},
    spec::{ColumnsSpec, DatasetSpec, SqlSpec, Work},
};
use tokio::sync::mpsc::UnboundedSender;

use super::{CoordinateError, RunProgress, Tell, early::Early, reading::Reading, result::StagedFigures};
use crate::{
    commit::chain,
    reuse::{self, ReuseError},
    rundir::RunDir,
};

/// What preparing comes to, step by step.
#[derive(Debug)]
pub(super) enum News {
    /// What the run's work is, which was asked before all was staged.
    Identified(WorkIdentity),
    /// Earlier runs have left nothing: there will be work for a worker.
    WillWork,
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
    let is_known = is_known(&volume, &run, &news).await?;
    if !is_known {
        // Who does not listen any more has ended.
        let _ = news.send(News::WillWork);
    }
    // What could be reused is known once all is staged.
    let early = match starts_early(run.job()) && !is_known {
        true => Some(Arc::new(Early::new((volume.clone(), run.clone(), epoch_dir.clone()), news.clone(), plan))),
        false => None,
    };
    let columns = run.job().dataset.columns.clone();
    let (record, staged) = held_snapshot_of(&volume, &run, columns, (&tell, reading), early.as_ref()).await?;
    let told = match early.filter(|early| early.plan().is_some()) {
        Some(early) => {
            tell(RunProgress::Staged { snapshot: record.id.to_string(), figures: staged.clone() });
            let finish = move || finish(&run, &epoch_dir, &early, &record, &staged);
            tokio::task::spawn_blocking(finish).await??
        }
        None => plan_after(volume, run, epoch_dir, (&tell, reading), (record, staged)).await?,
    };
    // Who does not listen any more has ended.
    let _ = news.send(told);
    Ok(())
}

/// Whether earlier runs have left what this one may reuse.
async fn is_known(volume: &Volume, run: &RunDir, news: &UnboundedSender<News>) -> Result<bool, CoordinateError> {
    if !run.job().may_reuse() {
        return Ok(false);
    }
    let (volume, run, news) = (volume.clone(), run.clone(), news.clone());
    let look = move || -> Result<bool, ReuseError> {
        if !results::are_there(&volume) {
            return Ok(false);
        }
        let work = reuse::work_of(&run)?;
        let known = reuse::is_known(&volume, &work)?;
        // Who does not listen any more has ended.
        let _ = news.send(News::Identified(work));
        Ok(known)
    };
    Ok(tokio::task::spawn_blocking(look).await?.unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "earlier results cannot be read");
        false
    }))
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

/// Plans over a snapshot that is there; over a whole one, where the columns of this one do not do.
async fn plan_after(
    volume: Volume,
    run: RunDir,
    epoch_dir: PathBuf,
    (tell, reading): (&Tell, &Reading),
    (record, mut staged): (SnapshotRecord, StagedFigures),
) -> Result<News, CoordinateError> {
    let mut id = record.id.to_string();
    let mut checked = plan_over(&volume, &run, record).await?;
    if let (Checked::NotHeld(missing), ColumnsSpec::Needed) = (&checked, &run.job().dataset.columns) {
        // One object of each table did not tell of all columns; the whole has them.
        tracing::warn!(%missing, "staging the dataset whole");
        let (record, again) = held_snapshot_of(&volume, &run, ColumnsSpec::All, (tell, reading), None).await?;
        staged = StagedFigures {
            fetched_objects: staged.fetched_objects + again.fetched_objects,
            fetched_bytes: staged.fetched_bytes + again.fetched_bytes,
            seconds: staged.seconds + again.seconds,
            ..again
        };
        id = record.id.to_string();
        checked = plan_over(&volume, &run, record).await?;
    }
    tell(RunProgress::Staged { snapshot: id, figures: staged.clone() });
    let plan = match checked {
        Checked::Plan(plan) => plan,
        Checked::Never(error) | Checked::NotHeld(error) => return Ok(News::Never(error)),
    };
    let install = move || -> Result<News, CoordinateError> {
        run.write_staged(&epoch_dir, &staged)?;
        run.install(&epoch_dir, RunDir::PLAN, |path| plan.write(path))?;
        Ok(News::Planned(Arc::new(plan)))
    };
    tokio::task::spawn_blocking(install).await?
}

/// What a plan over a snapshot came to.
enum Checked {
    Plan(Plan),
    /// The job can never run over this snapshot.
    Never(String),
    /// The job reads columns that the snapshot does not hold.
    NotHeld(String),
}

async fn plan_over(volume: &Volume, run: &RunDir, record: SnapshotRecord) -> Result<Checked, CoordinateError> {
    let planned = {
        let (volume, run) = (volume.clone(), run.clone());
        let plan = move || {
            let snapshot = snapshot::load(&volume, record).map_err(StageError::from)?;
            let plan = plan::plan(run.job(), &snapshot, &volume);
            Ok::<_, CoordinateError>(plan.and_then(|plan| plan.fits(run.job(), &Host::here()).map(|()| plan)))
        };
        tokio::task::spawn_blocking(plan).await??
    };
    let plan = match checked(planned)? {
        Checked::Plan(plan) => plan,
        other => return Ok(other),
    };
    let scan = match (&run.job().work, plan.splits.first()) {
        (Work::Sql(_), Some(split)) => match sql::check_staged(volume, run.job(), split).await {
            Ok(scan) => scan,
            Err(TaskError::BadInput(error)) => return Ok(Checked::Never(error)),
            Err(error @ TaskError::NotBySplit(_)) => return Ok(Checked::Never(error.to_string())),
            Err(error @ TaskError::NotHeld(_)) => return Ok(Checked::NotHeld(error.to_string())),
            Err(error) => return Err(CoordinateError::Check(error)),
        },
        _ => None,
    };
    let Some(scan) = scan else { return Ok(Checked::Plan(plan)) };
    let (volume, run) = (volume.clone(), run.clone());
    let cut = tokio::task::spawn_blocking(move || plan.over_scan(run.job(), &volume, scan)).await?;
    checked(cut)
}

fn checked(plan: Result<Plan, PlanError>) -> Result<Checked, CoordinateError> {
    match plan {
        Ok(plan) => Ok(Checked::Plan(plan)),
        Err(error @ PlanError::Volume(_)) => Err(error.into()),
        Err(error) => Ok(Checked::Never(chain(&error))),
    }
}

/// The snapshot, which stays from here on.
async fn held_snapshot_of(
    volume: &Volume,
    run: &RunDir,
    columns: ColumnsSpec,
    (tell, reading): (&Tell, &Reading),
    early: Option<&Arc<Early>>,
) -> Result<(SnapshotRecord, StagedFigures), CoordinateError> {
    let (record, staged) = snapshot_of(volume, run, &columns, tell, early).await?;
    match reading.take(volume, run, &record.id.0).await {
        Ok(()) => Ok((record, staged)),
        // Removed between staging and lease, since somebody else had staged something newer in between.
        Err(CoordinateError::SnapshotGone { .. }) if run.job().dataset.version.is_none() => {
            let (record, staged) = snapshot_of(volume, run, &columns, tell, early).await?;
            reading.take(volume, run, &record.id.0).await?;
            Ok((record, staged))
        }
        Err(error) => Err(error),
    }
}

async fn snapshot_of(
    volume: &Volume,
    run: &RunDir,
    columns: &ColumnsSpec,
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
    let dataset = DatasetSpec { columns: columns.clone(), ..dataset.clone() };
    let mut request = dataset.stage_request().map_err(StageError::from)?;
    if let (ColumnsSpec::Needed, Work::Sql(sql)) = (columns, &run.job().work) {
        request.columns = needed_of(&request, sql).await?;
    }
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

/// The columns that a query reads of the source's Parquet objects.
async fn needed_of(request: &StageRequest, sql: &SqlSpec) -> Result<Option<Columns>, StageError> {
    let mut source = Source::connect(&request.url, &request.options).await?;
    Ok(sql::needed_columns(&mut source, sql).await)
}
