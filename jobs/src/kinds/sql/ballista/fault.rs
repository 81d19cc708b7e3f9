//! How a task of a stage fails.
//!
//! Ballista carries an error as a text. What has to be known of it beside what it says (whether another try can help,
//! whether the memory was too small) is told in the text, where the error is still whole, and read from it again.

use ballista_core::error::BallistaError;
use datafusion::error::DataFusionError;
use serde::{Deserialize, Serialize};

use super::super::{bad::BadRecord, blame, cause, execute::is_exhausted, held::NotHeld, passing, readable};
use crate::kinds::TaskError;

const BEGINS: &str = "⟦forebay ";
const ENDS: &str = " ⟧";

/// What an executor's error was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fault {
    /// For people.
    message: String,
    /// Memory was too small.
    exhausted: bool,
    /// It can be one of bytes that cannot be read, which are then looked for.
    of_bytes: bool,
}

/// The same error, which a text can carry. What Ballista itself tries again stays as it is.
pub fn told(error: DataFusionError) -> DataFusionError {
    let whole = within(&error);
    let is_ballistas = matches!(whole.find_root(), DataFusionError::External(inner) if inner.is::<BallistaError>());
    let is_known = cause::<NotHeld>(whole).is_some() || cause::<BadRecord>(whole).is_some();
    if is_ballistas || (!is_known && passing(whole).is_some()) {
        return error;
    }
    let message = match (cause::<NotHeld>(whole), cause::<BadRecord>(whole)) {
        (Some(not_held), _) => not_held.to_string(),
        (_, Some(record)) => record.to_string(),
        _ => readable(whole),
    };
    let of_bytes = !is_known && blame::is_of_bytes(whole.find_root());
    let fault = Fault { message, exhausted: is_exhausted(whole), of_bytes };
    match serde_json::to_string(&fault) {
        // A text of a text of it must stay readable.
        Ok(text) => DataFusionError::Execution(format!("{BEGINS}{}{ENDS}", hex(&text))),
        Err(_) => error,
    }
}

/// The error of DataFusion's that one of Ballista's carries, as what writes a stage's rows gives it.
fn within(error: &DataFusionError) -> &DataFusionError {
    match error.find_root() {
        DataFusionError::External(inner) => match inner.downcast_ref() {
            Some(BallistaError::DataFusionError(inner)) => within(inner),
            _ => error,
        },
        _ => error,
    }
}

impl Fault {
    /// What the text of an error tells.
    pub(super) fn in_text(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once(BEGINS)?;
        let (fault, _) = rest.split_once(ENDS)?;
        serde_json::from_slice(&unhex(fault)?).ok()
    }

    /// As DataFusion would have given it here.
    pub(super) fn error(self) -> Result<DataFusionError, TaskError> {
        match self {
            Self { exhausted: true, message, .. } => Ok(DataFusionError::ResourcesExhausted(message)),
            Self { of_bytes: true, message, .. } => Ok(DataFusionError::External(message.into())),
            Self { message, .. } => Err(TaskError::BadInput(message)),
        }
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrives(error: DataFusionError) -> Result<DataFusionError, TaskError> {
        // As Ballista writes it.
        let text = format!("Job x failed: {:?}", BallistaError::from(told(error)));
        Fault::in_text(&text).unwrap_or_else(|| panic!("{text}")).error()
    }

    #[test]
    fn what_an_error_is_survives_its_being_a_text() {
        let record = BadRecord { key: "a \"b\"".to_owned(), line: 3, why: "ü".to_owned() };
        let message = record.to_string();
        let error = arrives(DataFusionError::External(Box::new(record))).unwrap_err();
        assert!(matches!(&error, TaskError::BadInput(text) if *text == message), "{error}");
        let error = arrives(DataFusionError::ResourcesExhausted("no room".to_owned())).unwrap();
        assert!(is_exhausted(&error), "{error}");
        let carried =
            BallistaError::DataFusionError(Box::new(DataFusionError::ResourcesExhausted("no room".to_owned())));
        let error = arrives(DataFusionError::Shared(carried.into_datafusion().into())).unwrap();
        assert!(is_exhausted(&error), "{error}");
        let error = arrives(DataFusionError::ParquetError(Box::new(
            datafusion::parquet::errors::ParquetError::General("torn".to_owned()),
        )));
        assert!(blame::is_of_bytes(error.unwrap().find_root()));
    }

    #[test]
    fn what_ballista_tries_again_stays_as_it_is() {
        let error = told(DataFusionError::IoError(std::io::Error::other("away")));
        assert!(matches!(error, DataFusionError::IoError(_)), "{error}");
        let error = told(BallistaError::FetchFailed("e".to_owned(), 1, 2, "gone".to_owned()).into_datafusion());
        assert!(matches!(error, DataFusionError::External(_)), "{error}");
        assert_eq!(Fault::in_text("Job x failed: no executor"), None);
    }
}
