//! What is wrong with a job file, where, and what to do about it.

use std::ops::Range;

use toml::Spanned;

/// What is wrong with a job file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SpecError {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// Bytes of the text that are wrong.
    pub span: Option<Range<usize>>,
}

impl SpecError {
    pub(super) fn at<T>(place: &Spanned<T>, message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, span: Some(place.span()) }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Keys of the design that a later version brings. They are refused by name: a job that asks for them must not run
/// without.
const LATER: [&str; 4] = ["sweep", "schedule", "train", "infer"];

/// toml's own error, in the words of a job file.
pub(super) fn syntax(error: &toml::de::Error, text: &str) -> SpecError {
    let message = error.message();
    // A span over the whole file points at nothing.
    let span = error.span().filter(|span| span.len() < text.trim_end().len());
    if let Some(rest) = message.strip_prefix("unknown field `")
        && let Some((unknown, known)) = rest.split_once("`, ")
    {
        let (message, help) = unknown_key(unknown, known);
        return SpecError { message, help: Some(help), span };
    }
    let message = if let Some(key) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        match key {
            "dataset" => "the table [dataset] is missing".to_owned(),
            key => format!("the key `{key}` is missing"),
        }
    } else if let Some((number, _)) = message.strip_prefix("invalid value: integer `").and_then(|m| m.split_once('`')) {
        format!("{number} is out of range")
    } else if message.ends_with(", expected u32") {
        message.replace(", expected u32", ", expected a whole number")
    } else {
        message.to_owned()
    };
    SpecError { message, help: None, span }
}

/// What is said of a key that is not known, by what serde says of those that are.
fn unknown_key(unknown: &str, known: &str) -> (String, String) {
    if LATER.contains(&unknown) {
        return (format!("`{unknown}` is not supported by this version"), "remove it".to_owned());
    }
    let known: Vec<_> = known.split('`').skip(1).step_by(2).collect();
    let near = known.iter().map(|known| (distance(known, unknown), known)).min().filter(|(distance, _)| *distance <= 2);
    let help = match near {
        Some((_, near)) => format!("did you mean `{near}`?"),
        None => format!("the keys here are {}", known.join(", ")),
    };
    (format!("unknown key `{unknown}`"), help)
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits() {
        assert_eq!([distance("query", "querry"), distance("a", ""), distance("abc", "abc")], [1, 1, 0]);
    }
}
