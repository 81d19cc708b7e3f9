//! What a worker tells of its attempts, or keeps while there is nobody to tell.

use forebay_jobs::{
    kept,
    task::{AttemptReport, Outcome},
    wire::FromWorker,
};

use super::{Agent, Closed};

/// Files that the reports of one message name, so that it stays below the largest of the link; a single report with
/// more travels alone.
const FILES_A_MESSAGE: usize = 10_000;

impl Agent {
    /// Tells the coordinator what has ended and what has been started; without one, keeps what has ended for the next.
    pub(super) async fn tell(&mut self) -> Result<(), Closed> {
        let (ended, started) = self.board.take_news(self.line.is_up());
        self.unnoted.extend(ended.iter().map(|report| (report.attempt, report.clone())));
        if !self.line.is_up() {
            self.keep(ended).await;
            return Ok(());
        }
        let mut batch: Vec<AttemptReport> = Vec::new();
        let mut named = 0;
        for report in ended {
            named += files(&report);
            if named > FILES_A_MESSAGE && !batch.is_empty() {
                named = files(&report);
                self.send(FromWorker::Reports(std::mem::take(&mut batch))).await?;
            }
            batch.push(report);
        }
        if !batch.is_empty() {
            self.send(FromWorker::Reports(batch)).await?;
        }
        if started.is_empty() { Ok(()) } else { self.send(FromWorker::Started(started)).await }
    }

    /// Keeps reports as a file, so that they count even if this worker should not live to see a coordinator.
    async fn keep(&mut self, reports: Vec<AttemptReport>) {
        if reports.is_empty() {
            return;
        }
        let (run_dir, worker, from) = (self.me.run_dir.clone(), self.me.worker.clone(), self.kept + 1);
        let kept = tokio::task::spawn_blocking(move || kept::keep(&run_dir, &worker, from, &reports)).await;
        match kept {
            Ok(Ok(number)) => self.kept = number,
            // They are told to the next coordinator all the same.
            Ok(Err(error)) => tracing::warn!(%error, "reports could not be kept as a file"),
            Err(error) => tracing::warn!(%error, "reports could not be kept as a file"),
        }
    }
}

/// How many files a report names.
fn files(report: &AttemptReport) -> usize {
    match &report.outcome {
        Outcome::Done { outputs, .. } => outputs.len(),
        Outcome::Failed(_) | Outcome::GivenBack => 0,
    }
}
