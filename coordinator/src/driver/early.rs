//! Tasks that start while the rest of their dataset is being staged.
//!
//! Such a run is planned from the listing. What is staged moves when its snapshot is published, so each object gets a
//! second name, which does not, below the run's own `inputs/`; a task starts once all of its inputs have one. When the
//! snapshot is there, its listing has to be the one that was planned from: an object that was replaced in between would
//! have been read as it was by one task, and as it is by another.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use forebay_datasets::{
    snapshot::SnapshotRecord,
    stage::{Follow, Staging},
    threads::on_threads,
    volume::{self, Volume, VolumeError},
};
use forebay_jobs::plan::{self, Plan};
use tokio::sync::mpsc::UnboundedSender;

use super::prepare::News;
use crate::rundir::{INPUTS, RunDir};

/// Names made at the same time: on a network file system each is a round trip.
const AT_ONCE: usize = 16;

/// Plans the run as soon as its dataset is listed, and says which tasks can start.
pub(super) struct Early {
    volume: Volume,
    run: RunDir,
    epoch_dir: PathBuf,
    news: UnboundedSender<News>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    plan: Option<Arc<Plan>>,
    paths: Vec<String>,
    tasks: Tasks,
}

/// Which tasks wait for which objects.
#[derive(Debug, Default, PartialEq)]
struct Tasks {
    /// Of each object: the tasks that read of it, which follow each other.
    readers: Vec<Option<RangeInclusive<u32>>>,
    /// Of each task: how many objects it waits for.
    missing: Vec<u32>,
}

impl Early {
    /// `plan` is what an earlier coordinator has planned.
    pub(super) fn new(
        (volume, run, epoch_dir): (Volume, RunDir, PathBuf),
        news: UnboundedSender<News>,
        plan: Option<Arc<Plan>>,
    ) -> Self {
        let state = State { plan, ..State::default() };
        Self { volume, run, epoch_dir, news, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// The plan, if the run has begun.
    pub(super) fn plan(&self) -> Option<Arc<Plan>> {
        self.state().plan.clone()
    }

    fn inputs(&self) -> PathBuf {
        self.run.path().join(INPUTS)
    }

    /// Plans the run; none if it cannot, or need not, begin yet. Whatever is wrong is told once all is staged.
    fn plan_ahead(&self, staging: &Staging) -> Option<Plan> {
        let data = self.volume.relative(&self.inputs())?;
        let plan = plan::plan_ahead(self.run.job(), staging, &data).ok().filter(|plan| plan.splits.len() > 1)?;
        let kept = volume::create_dirs(&self.inputs())
            .and_then(|()| self.run.install(&self.epoch_dir, RunDir::PLAN, |path| plan.write(path)));
        match kept {
            Ok(()) => Some(plan),
            Err(error) => {
                tracing::warn!(%error, "tasks start when all is staged");
                None
            }
        }
    }

    /// Gives every input its name that none has yet, now that the snapshot is published.
    pub(super) fn complete(&self, record: &SnapshotRecord) -> Result<(), VolumeError> {
        let Some(plan) = self.plan() else { return Ok(()) };
        let inputs = self.inputs();
        let data = self.volume.datasets_dir().join(&record.name).join("snapshots").join(&record.id.0).join("data");
        let mut paths: Vec<&str> = Vec::new();
        for piece in plan.splits.iter().flat_map(|split| &split.pieces) {
            let path = piece.path.strip_prefix(&plan.data).and_then(|path| path.strip_prefix('/'));
            paths.extend(path.filter(|path| paths.last() != Some(path)));
        }
        with_each(&paths, |path| match inputs.join(path).try_exists() {
            Ok(true) => Ok(()),
            _ => self.name(&data, path),
        })?;
        volume::sync_tree(&inputs)
    }

    fn name(&self, data: &Path, path: &str) -> Result<(), VolumeError> {
        let inputs = self.inputs();
        volume::create_dirs_below(&inputs, Path::new(path))?;
        match self.volume.share(&data.join(path), &inputs.join(path)) {
            Ok(_) | Err(VolumeError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Follow for Early {
    fn planned(&self, staging: Staging) -> Option<Vec<usize>> {
        let mut state = self.state();
        match &state.plan {
            // The run will be told that it has changed, when its snapshot is there.
            Some(plan) if plan.listing.as_deref() != Some(&*staging.listing) => return None,
            Some(_) => {}
            None => {
                let plan = Arc::new(self.plan_ahead(&staging)?);
                // The loop ends before its preparation does only when all ends.
                let _ = self.news.send(News::Planned(Arc::clone(&plan)));
                state.plan = Some(plan);
            }
        }
        let plan = state.plan.clone()?;
        state.tasks = Tasks::new(&plan, &staging)?;
        let order = state.tasks.order(&staging);
        state.paths = staging.objects.into_iter().map(|object| object.path).collect();
        Some(order)
    }

    fn durable(&self, data: &Path, objects: &[usize]) -> Result<(), VolumeError> {
        let mut state = self.state();
        let paths: Vec<_> = objects.iter().filter_map(|object| state.paths.get(*object)).map(String::as_str).collect();
        with_each(&paths, |path| self.name(data, path))?;
        let ready = state.tasks.staged(objects);
        if !ready.is_empty() {
            let _ = self.news.send(News::InputsStaged(ready));
        }
        Ok(())
    }
}

impl Tasks {
    /// None if the plan is over other objects.
    fn new(plan: &Plan, staging: &Staging) -> Option<Self> {
        let mut readers = vec![None; staging.objects.len()];
        let mut missing = Vec::with_capacity(plan.splits.len());
        let mut object = 0;
        for (task, split) in (0..).zip(&plan.splits) {
            let mut last = None;
            let mut count = 0;
            for piece in &split.pieces {
                // Splits go through the objects in order.
                while staging.objects.get(object)?.key != piece.key {
                    object += 1;
                }
                let readers: &mut Option<RangeInclusive<u32>> = &mut readers[object];
                *readers = Some(readers.as_ref().map_or(task, |readers| *readers.start())..=task);
                count += u32::from(last != Some(object));
                last = Some(object);
            }
            missing.push(count);
        }
        Some(Self { readers, missing })
    }

    /// The chunks in the order in which tasks want them.
    fn order(&self, staging: &Staging) -> Vec<usize> {
        let first = |chunk: &usize| self.readers[staging.chunks[*chunk].clone()].iter().flatten().next();
        let mut chunks: Vec<_> = (0..staging.chunks.len()).collect();
        chunks.sort_by_key(|chunk| first(chunk).map_or(u32::MAX, |readers| *readers.start()));
        chunks
    }

    /// These objects are there: the tasks that now have all of theirs.
    fn staged(&mut self, objects: &[usize]) -> Vec<u32> {
        let mut ready = Vec::new();
        for task in objects.iter().filter_map(|object| self.readers.get_mut(*object)?.take()).flatten() {
            let missing = &mut self.missing[task as usize];
            *missing -= 1;
            ready.extend((*missing == 0).then_some(task));
        }
        ready
    }
}

/// Does the same with each path; the first error counts.
fn with_each(paths: &[&str], each: impl Fn(&str) -> Result<(), VolumeError> + Sync) -> Result<(), VolumeError> {
    on_threads(AT_ONCE, paths, || (), |(), path| each(path)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use forebay_datasets::{
        split::{Part, Piece, Split},
        stage::Expected,
    };

    use super::*;

    fn staging() -> Staging {
        let expected = |key: &str| Expected { key: key.to_owned(), path: key.to_owned(), size: 9 };
        let objects = ["a", "b", "c/", "d"].map(expected).to_vec();
        Staging { listing: "l".to_owned(), objects, chunks: vec![0..1, 1..3, 3..4] }
    }

    fn plan(splits: &[&[&str]]) -> Plan {
        let piece = |key: &&str| {
            let (key, path) = ((*key).to_owned(), format!("runs/r/inputs/{key}"));
            Piece { key, path, size: 9, partial: false, part: Part::Bytes { offset: 0, length: 3 } }
        };
        let splits = splits.iter().map(|pieces| Split { pieces: pieces.iter().map(piece).collect() }).collect();
        let data = "runs/r/inputs".to_owned();
        Plan { snapshot: None, listing: Some("l".to_owned()), data, splits, partitions: None, table: None }
    }

    #[test]
    fn a_task_is_ready_once_each_of_its_objects_is_there() {
        let mut tasks = Tasks::new(&plan(&[&["a"], &["a", "a", "b"], &["b", "d"], &["d"]]), &staging()).unwrap();
        assert_eq!(tasks.missing, [1, 2, 2, 1]);
        assert_eq!(tasks.staged(&[3, 2]), [3]);
        assert!(tasks.staged(&[3]).is_empty(), "an object is there once");
        assert_eq!(tasks.staged(&[0]), [0]);
        assert_eq!(tasks.staged(&[1]), [1, 2]);
    }

    #[test]
    fn what_no_task_reads_is_staged_last() {
        let tasks = Tasks::new(&plan(&[&["b"], &["d"]]), &staging()).unwrap();
        assert_eq!(tasks.order(&staging()), [1, 2, 0]);
    }

    #[test]
    fn a_plan_over_other_objects_is_none() {
        assert_eq!(Tasks::new(&plan(&[&["x"]]), &staging()), None);
    }
}
