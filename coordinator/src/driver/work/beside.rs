//! What is done beside the loop, so that it goes on hearing: preparing, searching, publishing, copying.

use std::{sync::Arc, time::Duration};

use forebay_datasets::{
    output::{self, OutputError},
    source::{ErrorKind, SourceUrl},
};
use forebay_jobs::id::{AttemptId, WorkerId};
use tokio::runtime::Handle;

use super::{Work, is_of_all};
use crate::{
    commit::{self, CommitError, Published, chain},
    driver::{
        CoordinateError, FIRST, RunProgress,
        absent::Seen,
        earlier::{Found, Search},
        prepare::{self, News},
    },
    run::{Input, Wanted},
};

/// How long what was spawned may take to end.
const CLEANING_UP: Duration = Duration::from_secs(5);

/// Work beside the loop that has ended.
pub(in crate::driver) enum Finished {
    Prepared(Result<(), CoordinateError>),
    Checked {
        worker: WorkerId,
        attempt: AttemptId,
        input: Input,
    },
    /// Earlier runs were searched.
    Searched(Found),
    /// Absent workers were looked after.
    Looked(Vec<Seen>),
    Published(Result<Published, CommitError>),
    Exported(Result<(), OutputError>),
    /// It was told to end before its time.
    Stopped,
}

impl Work<'_> {
    pub(super) fn start_what_is_wanted(&mut self, wanted: &Wanted) {
        if self.session.machine.wants_staging()
            && let Some(news) = self.preparing.take()
        {
            let (volume, run, epoch_dir) = (self.volume.clone(), self.run.clone(), self.epoch_dir.clone());
            let (tell, reading, plan) = (Arc::clone(&self.tell), self.reading.clone(), self.plan.clone());
            self.spawn_apart(|| async move {
                Finished::Prepared(prepare::prepare(volume, run, epoch_dir, (tell, news), &reading, plan).await)
            });
        }
        if let (Some(phase), Some(plan)) = (wanted.seek, &self.plan)
            && self.seeking.replace(phase) != Some(phase)
        {
            let (of, known) = ((self.volume, self.run), self.identity.as_ref());
            let search = Search::new(of, self.epoch, plan, &self.session.machine, phase, known);
            self.tasks.spawn_blocking(move || Finished::Searched(search.run()));
        }
        if wanted.publish && !self.publishing {
            self.publishing = true;
            (self.tell)(RunProgress::Publishing);
            self.publish();
        }
        if wanted.export && !self.exporting {
            self.exporting = true;
            (self.tell)(RunProgress::Exporting);
            self.export();
        }
    }

    /// Runs on a thread of its own what rustc cannot prove to be `Send` for every lifetime (rust-lang/rust#96865), and
    /// what computes between its awaits.
    fn spawn_apart<F: Future<Output = Finished>>(&mut self, future: impl FnOnce() -> F + Send + 'static) {
        let (stop, runtime) = (self.stop.clone(), Handle::current());
        self.tasks.spawn_blocking(move || {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Finished::Stopped,
                    finished = future() => finished,
                }
            })
        });
    }

    pub(in crate::driver) fn hear_of_data(&mut self, news: News) -> Result<(), CoordinateError> {
        match news {
            News::Identified(work) => self.identity = Some(work),
            News::WillWork => self.will_work = true,
            News::Planned(plan) => {
                let (snapshot, phases) = (plan.snapshot.clone(), plan.phases());
                self.is_of_all = is_of_all(self.run, &plan);
                self.plan = Some(plan);
                self.session.take(&Input::Planned { snapshot, phases });
            }
            News::InputsStaged(tasks) => self.session.take(&Input::InputsStaged { tasks }),
            News::Staged(snapshot) => self.session.take(&Input::Staged { snapshot }),
            News::Never(error) if self.epoch == FIRST && self.plan.is_none() => {
                return Err(CoordinateError::NoPlan(error));
            }
            News::Never(error) => self.session.take(&Input::PlanFailed { error }),
        }
        Ok(())
    }

    pub(super) fn finished(&mut self, finished: Finished) -> Result<(), CoordinateError> {
        match finished {
            Finished::Stopped => {}
            Finished::Prepared(prepared) => prepared?,
            Finished::Checked { worker, attempt, input } => {
                self.session.take(&input);
                self.workers.checked(&worker, attempt);
                self.take_gone();
            }
            Finished::Searched(found) => self.found = Some(found),
            Finished::Looked(seen) => self.looked(seen),
            Finished::Published(Ok(Published { files, bytes, rows })) => {
                self.session.take(&Input::Published { files, bytes, rows });
            }
            Finished::Published(Err(error)) if error.is_permanent() => {
                self.session.take(&Input::PublishFailed { error: chain(&error) });
            }
            Finished::Published(Err(error)) => return Err(CoordinateError::Publish(error)),
            Finished::Exported(Ok(())) => self.session.take(&Input::Exported),
            // What is wrong with the target itself will stay wrong; all else may be better at the next resume.
            Finished::Exported(Err(OutputError::Target(error))) if error.kind() != ErrorKind::Storage => {
                self.session.take(&Input::ExportFailed { error: chain(&error) });
            }
            Finished::Exported(Err(error)) => return Err(CoordinateError::Export(error)),
        }
        Ok(())
    }

    /// Ends what was spawned, and waits until it has cleaned up behind itself.
    pub(in crate::driver) async fn stop(&mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(CLEANING_UP, ended).await.is_err() {
            tracing::warn!("some work beside the loop did not end in time");
        }
    }

    fn publish(&mut self) {
        let figures = &self.session.figures;
        let phases = u32::try_from(figures.phases.len()).unwrap_or(u32::MAX);
        let outputs = (0..phases).flat_map(|phase| self.session.machine.committed(phase));
        let outputs: Vec<_> = outputs.filter(|file| file.publish_as.is_some()).cloned().collect();
        let tasks = figures.tasks();
        let summary = serde_json::json!({
            "version": 1, "run": self.run.id(), "snapshot": figures.snapshot,
            "tasks": { "total": tasks.total, "succeeded": tasks.succeeded, "failed": tasks.failed },
        });
        let (volume, run, epoch_dir) = (self.volume.clone(), self.run.clone(), self.epoch_dir.clone());
        let epoch = self.epoch;
        self.tasks.spawn_blocking(move || {
            Finished::Published(commit::publish(&volume, &run, epoch, &epoch_dir, &outputs, &summary))
        });
    }

    fn export(&mut self) {
        let output = &self.run.job().output;
        let (to, options, from) = (output.to.clone().unwrap_or_default(), output.s3.options(), self.run.output_dir());
        self.spawn_apart(|| async move {
            let exported = match to.parse::<SourceUrl>() {
                Ok(to) => output::export(&from, &to, &options).await,
                Err(error) => Err(error.into()),
            };
            Finished::Exported(exported)
        });
    }
}
