//! How things look: tables on standard output, notes and progress bars on standard error.

use std::time::Duration;

use forebay_datasets::stage::StageProgress;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Columns with their headings, as narrow as they can be.
pub struct Table(comfy_table::Table);

impl Table {
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING).set_header(headings);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self(table)
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells);
    }

    pub fn print(&self) {
        for line in self.0.lines() {
            println!("{}", line.trim_end());
        }
    }
}

/// A sentence for people, beside the result.
pub fn note(quiet: bool, text: &str) {
    if !quiet {
        eprintln!("{text}");
    }
}

pub fn bytes(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// An RFC 3339 time to the second.
pub fn time(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_) => text.to_owned(),
    }
}

/// A bar over bytes; hidden when quiet, and where standard error is no terminal.
pub fn bytes_bar(quiet: bool, total: u64) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style =
        ProgressStyle::with_template("{prefix:9} {bar:30} {bytes:>11} of {total_bytes}  {bytes_per_sec}  {msg}");
    let bar = ProgressBar::with_draw_target(Some(total), target);
    bar.set_style(style.expect("the template is a constant"));
    bar
}

/// A staging's progress.
pub struct StageBar(ProgressBar);

impl StageBar {
    pub fn new(quiet: bool) -> Self {
        let bar = bytes_bar(quiet, 0);
        bar.set_prefix("staging");
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    pub fn advance(&self, progress: StageProgress) {
        match progress {
            StageProgress::Listed { objects } => self.0.set_message(format!("{objects} objects listed")),
            StageProgress::Planned { fetch_objects, fetch_bytes, .. } => {
                self.0.set_length(fetch_bytes);
                self.0.set_message(format!("{fetch_objects} objects"));
            }
            StageProgress::Fetched { bytes, .. } => self.0.inc(bytes),
        }
    }

    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
