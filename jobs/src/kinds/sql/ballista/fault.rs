//! How a task of a stage fails.
//!
//! Ballista carries an error as a text. What has to be known of it beside what it says (whether another try can help,
//! whether the memory was too small) is told in the text, where the error is still whole, and read from it again.

use ballista_core::error::BallistaError;
use datafusion::{arrow::error::ArrowError, error::DataFusionError};
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
    // A text of a text of it must stay readable.
    match fault(&error).and_then(|fault| serde_json::to_string(&fault).ok()) {
        Some(text) => DataFusionError::Execution(format!("{BEGINS}{}{ENDS}", hex(&text))),
        None => error,
    }
}

/// What there is to tell of an error: nothing of one that is Ballista's own, or that another try may get past.
fn fault(error: &DataFusionError) -> Option<Fault> {
    let root = error.find_root();
    let ballistas = match root {
        DataFusionError::Shared(inner) => return fault(inner),
        DataFusionError::External(inner) => inner.downcast_ref::<BallistaError>(),
        _ => None,
    };
    match ballistas {
        // These pass on what the query failed with.
        Some(BallistaError::DataFusionError(inner)) => return fault(inner),
        Some(BallistaError::ArrowError(inner)) => return fault_of_arrow(inner),
        Some(_) => return None,
        None => {}
    }
    let message = match (cause::<NotHeld>(root), cause::<BadRecord>(root)) {
        (Some(not_held), _) => not_held.to_string(),
        (_, Some(record)) => record.to_string(),
        _ if passing(root).is_some() => return None,
        _ => {
            return Some(Fault { of_bytes: blame::is_of_bytes(root), ..Fault::of(readable(root), is_exhausted(root)) });
        }
    };
    Some(Fault::of(message, false))
}

fn fault_of_arrow(error: &ArrowError) -> Option<Fault> {
    match error {
        // Of what lies between stages, which another try makes anew.
        ArrowError::IpcError(_) | ArrowError::IoError(..) | ArrowError::ExternalError(_) => None,
        ArrowError::ParquetError(_) => Some(Fault { of_bytes: true, ..Fault::of(error.to_string(), false) }),
        _ => Some(Fault::of(error.to_string(), false)),
    }
}

impl Fault {
    fn of(message: String, exhausted: bool) -> Self {
        Self { message, exhausted, of_bytes: false }
    }

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
        let error = arrives(DataFusionError::ParquetError(Box::new(
            datafusion::parquet::errors::ParquetError::General("torn".to_owned()),
        )));
        assert!(blame::is_of_bytes(error.unwrap().find_root()));
    }

    #[test]
    fn what_ballista_passes_on_is_told_as_what_it_is() {
        let passed_on = |error: DataFusionError| {
            let error = BallistaError::DataFusionError(Box::new(error)).into_datafusion();
            DataFusionError::Shared(std::sync::Arc::new(error))
        };
        let error = arrives(passed_on(DataFusionError::ResourcesExhausted("no room".to_owned()))).unwrap();
        assert!(is_exhausted(&error), "{error}");
        let record = BadRecord { key: "a".to_owned(), line: 3, why: "b".to_owned() };
        let error = arrives(passed_on(DataFusionError::External(Box::new(record.clone())))).unwrap_err();
        assert!(matches!(&error, TaskError::BadInput(text) if *text == record.to_string()), "{error}");
        let error = BallistaError::from(ArrowError::DivideByZero).into_datafusion();
        assert!(arrives(error).unwrap_err().to_string().contains("Divide by zero"));
        let error = told(BallistaError::from(ArrowError::IpcError("torn".to_owned())).into_datafusion());
        assert!(matches!(error, DataFusionError::External(_)), "{error}");
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
