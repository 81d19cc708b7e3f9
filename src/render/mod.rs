//! How things look: tables on standard output, notes and progress bars on standard error.

mod preview;
mod progress;

use indicatif::HumanBytes;

pub use self::{
    preview::preview,
    progress::{RunView, StageBar, bytes_bar},
};

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

/// `1 task`, `2 tasks`
pub fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
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
