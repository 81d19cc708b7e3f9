//! What an error of DataFusion's says to people, and to whoever tries again.

use std::{error::Error, io};

use datafusion::error::DataFusionError;

/// An error of one's own behind one of DataFusion's.
pub(super) fn cause<T: Error + Clone + 'static>(error: &(dyn Error + 'static)) -> Option<T> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found.clone());
        }
        // An I/O error names itself as its own cause's cause, and what is shared says nothing of what it holds.
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let shared = error.downcast_ref::<DataFusionError>().and_then(|error| match error {
            DataFusionError::Shared(inner) => Some(inner.as_ref() as &(dyn Error + 'static)),
            _ => None,
        });
        let inside = inside.map(|inside| inside as &(dyn Error + 'static));
        cause = shared.or(inside).or_else(|| error.source());
    }
    None
}

/// The error of the system behind one of DataFusion's, which another try may get past.
pub(super) fn passing(error: &DataFusionError) -> Option<io::Error> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(system) = error.downcast_ref::<io::Error>() {
            return Some(io::Error::new(system.kind(), system.to_string()));
        }
        cause = error.source();
    }
    None
}

/// DataFusion's message without its own classification of it.
pub(super) fn readable(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    let prefixes = [
        "Error during planning: ",
        "Schema error: ",
        "SQL error: ",
        "Execution error: ",
        "This feature is not implemented: ",
        "Resources exhausted: ",
        "Arrow error: ",
        "Parquet error: ",
        "External error: ",
    ];
    let mut text = text.trim();
    while let Some(rest) = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        text = rest;
    }
    match text.strip_prefix("ParserError(\"").and_then(|rest| rest.strip_suffix("\")")) {
        Some(inner) => inner.replace("\\\"", "\"").replace("\\'", "'"),
        None => text.to_owned(),
    }
}
