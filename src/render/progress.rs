//! What moves while a command works: bars on a terminal, a line now and then elsewhere, nothing when quiet.

use std::{
    borrow::Cow,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use forebay_coordinator::driver::{PhaseFigures, RunProgress};
use forebay_datasets::stage::StageProgress;
use forebay_jobs::{
    id::RunId,
    spec::{JobSpec, Work},
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{bytes, count};

/// Between two lines that say how far the tasks are.
const LINE_EVERY: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(100);
const BYTES: &str = "{prefix:9} {bar:30.cyan/dim} {bytes:>11} of {total_bytes}  {bytes_per_sec}  {msg}";
const TASKS: &str = "{prefix:9} {bar:30.cyan/dim} {pos:>6} of {len}  {msg}";
const STAGED: &str = "{prefix:9} {bar:30.cyan/dim} {msg}";
const STEP: &str = "{prefix:9} {spinner:.cyan} {msg}";

/// Of one of the templates above, all of which a test builds.
fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the templates are constants, and tested");
    style.progress_chars("━╸─").tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
}

/// A bar over bytes; hidden when quiet, and where standard error is no terminal.
pub fn bytes_bar(quiet: bool, total: u64) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    bar.set_style(style(BYTES));
    bar
}

/// A staging's progress.
pub struct StageBar(ProgressBar);

impl StageBar {
    pub fn new(quiet: bool) -> Self {
        let bar = bytes_bar(quiet, 0);
        bar.set_prefix("staging");
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    pub fn advance(&self, progress: StageProgress) {
        match progress {
            StageProgress::Listed { objects } => self.0.set_message(format!("{objects} objects listed")),
            StageProgress::Planned { fetch_objects, fetch_bytes, .. } => {
                self.0.set_length(fetch_bytes);
                self.0.set_message(count(fetch_objects, "object"));
            }
            StageProgress::Found { bytes } => self.0.inc_length(bytes),
            StageProgress::Fetched { bytes, .. } => self.0.inc(bytes),
        }
    }

    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// What a run does, as it does it.
pub struct RunView {
    run: RunId,
    phases: &'static [&'static str],
    surface: Surface,
}

enum Surface {
    Quiet,
    Lines(Mutex<Lines>),
    Bars(Mutex<Bars>),
}

struct Lines {
    said: Vec<PhaseFigures>,
    at: Instant,
}

struct Bars {
    all: MultiProgress,
    staging: Option<StageBar>,
    phases: Vec<ProgressBar>,
    last_step: Option<ProgressBar>,
}

impl RunView {
    pub fn new(quiet: bool, run: &RunId, job: &JobSpec) -> Self {
        let surface = match quiet {
            true => Surface::Quiet,
            false if rustix::termios::isatty(std::io::stderr()) => Surface::Bars(Mutex::new(Bars {
                all: MultiProgress::new(),
                staging: None,
                phases: Vec::new(),
                last_step: None,
            })),
            false => Surface::Lines(Mutex::new(Lines { said: Vec::new(), at: Instant::now() })),
        };
        Self { run: run.clone(), phases: phases(job), surface }
    }

    pub fn advance(&self, progress: RunProgress) {
        match &self.surface {
            Surface::Quiet => {}
            Surface::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(line) = self.line(&mut lines, progress) {
                    eprintln!("{line}");
                }
            }
            Surface::Bars(bars) => self.draw(&mut bars.lock().unwrap_or_else(PoisonError::into_inner), progress),
        }
    }

    /// Leaves the bars as they are; what is printed next stands below them.
    pub fn finish(&self) {
        if let Surface::Bars(bars) = &self.surface {
            let bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
            bars.phases.iter().for_each(ProgressBar::abandon);
            bars.staging.iter().for_each(StageBar::finish);
            bars.last_step.iter().for_each(ProgressBar::finish_and_clear);
        }
    }

    /// What is worth saying wherever it is said.
    fn news(&self, progress: &RunProgress) -> Option<String> {
        match progress {
            RunProgress::Coordinating { epoch } if epoch.0 > 1 => {
                Some(format!("resuming run {}, epoch {epoch}", self.run))
            }
            RunProgress::Attached { holder } => Some(format!("run {} is coordinated by {holder}; waiting", self.run)),
            RunProgress::AttemptFailed { attempt, failure } => {
                Some(format!("task {}, attempt {}: {failure}", attempt.task, attempt.number))
            }
            _ => None,
        }
    }

    fn line(&self, lines: &mut Lines, progress: RunProgress) -> Option<String> {
        match &progress {
            RunProgress::Staging(StageProgress::Planned { fetch_objects, fetch_bytes, .. }) => {
                Some(format!("staging {}, {}", count(*fetch_objects, "object"), bytes(*fetch_bytes)))
            }
            RunProgress::Staged { figures, .. } => Some(format!(
                "staged {}, {}; fetched {} in {:.1} s",
                count(figures.objects, "object"),
                bytes(figures.bytes),
                bytes(figures.fetched_bytes),
                figures.seconds
            )),
            RunProgress::Tasks { phases, workers } => {
                let ended = |phase: &PhaseFigures| phase.succeeded + phase.failed == phase.total;
                let news = phases.iter().zip(&lines.said).any(|(now, said)| ended(now) && !ended(said))
                    || lines.said.is_empty();
                if phases.is_empty() || !(news || lines.at.elapsed() >= LINE_EVERY) {
                    return None;
                }
                (lines.said, lines.at) = (phases.clone(), Instant::now());
                let shown: Vec<_> = (0..).zip(phases).map(|(index, phase)| self.phase_line(index, phase)).collect();
                Some(format!("{}; {}", shown.join("; "), count(u64::from(*workers), "worker")))
            }
            RunProgress::Publishing => Some("publishing".to_owned()),
            RunProgress::Exporting => Some("copying the output".to_owned()),
            other => self.news(other),
        }
    }

    fn phase_line(&self, index: usize, phase: &PhaseFigures) -> String {
        let failed = if phase.failed > 0 { format!(", {} failed", phase.failed) } else { String::new() };
        format!("{}: {} of {}{failed}", self.phase_name(index), phase.succeeded, count(phase.total, "task"))
    }

    fn phase_name(&self, index: usize) -> &'static str {
        self.phases.get(index).copied().unwrap_or("tasks")
    }

    fn draw(&self, bars: &mut Bars, progress: RunProgress) {
        match progress {
            RunProgress::Staging(progress) => {
                let all = &bars.all;
                let bar = bars.staging.get_or_insert_with(|| {
                    let bar = all.add(ProgressBar::new(0).with_prefix("staging").with_style(style(BYTES)));
                    bar.enable_steady_tick(TICK);
                    StageBar(bar)
                });
                bar.advance(progress);
            }
            RunProgress::Staged { figures, .. } => {
                if let Some(StageBar(bar)) = &bars.staging {
                    let (objects, seconds) = (figures.objects, figures.seconds);
                    let what = match figures.fetched_objects {
                        0 => format!("{}, unchanged", count(objects, "object")),
                        fetched if fetched == objects => format!("{} in {seconds:.1} s", count(objects, "object")),
                        fetched => format!("{fetched} of {objects} new, {seconds:.1} s"),
                    };
                    bar.set_style(style(STAGED));
                    bar.set_length(1);
                    bar.set_position(1);
                    bar.abandon_with_message(format!("{:>11}  {what}", bytes(figures.bytes)));
                    bars.staging = None;
                }
            }
            RunProgress::Tasks { phases, workers } => {
                while bars.phases.len() < phases.len() {
                    let name = Cow::Borrowed(self.phase_name(bars.phases.len()));
                    let bar = ProgressBar::new(0).with_prefix(name).with_style(style(TASKS));
                    bars.phases.push(bars.all.add(bar));
                }
                for (bar, phase) in bars.phases.iter().zip(&phases) {
                    let mut parts = Vec::new();
                    if phase.running > 0 {
                        parts.push(format!("{} running", phase.running));
                    }
                    if phase.succeeded + phase.running > 0 {
                        parts.push(count(u64::from(workers), "worker"));
                    }
                    if phase.failed > 0 {
                        parts.push(format!("{} failed", phase.failed));
                    }
                    bar.set_length(phase.total);
                    bar.set_position(phase.succeeded);
                    bar.set_message(parts.join(", "));
                }
            }
            RunProgress::Publishing | RunProgress::Exporting => {
                let what = if matches!(progress, RunProgress::Publishing) { "publishing" } else { "copying" };
                bars.last_step.iter().for_each(ProgressBar::finish_and_clear);
                let bar = bars.all.add(ProgressBar::new_spinner().with_prefix(what).with_style(style(STEP)));
                bar.enable_steady_tick(TICK);
                bars.last_step = Some(bar);
            }
            other => {
                if let Some(news) = self.news(&other) {
                    // The terminal is gone: nobody reads it.
                    let _ = bars.all.println(news);
                }
            }
        }
    }
}

/// What the phases of a job are called.
fn phases(job: &JobSpec) -> &'static [&'static str] {
    match &job.work {
        Work::Sql(_) if job.is_by_splits() => &["aggregate", "combine"],
        Work::Sql(_) => &["query"],
        Work::Command(_) => &["command"],
        Work::Mapreduce(_) => &["map", "reduce"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_one() {
        for template in [BYTES, TASKS, STAGED, STEP] {
            drop(style(template));
        }
    }
}
