//! DataFusion's options: those that forebay sets, and then those that the job sets.

use std::collections::BTreeMap;

use datafusion::{common::config::ConfigOptions, error::DataFusionError, prelude::SessionConfig};

use super::views;

/// Parts of DataFusion that a query goes through.
const NAMESPACES: [&str; 3] = ["datafusion.execution.", "datafusion.optimizer.", "datafusion.sql_parser."];

/// What is set for every query.
pub(super) fn config(threads: usize) -> SessionConfig {
    views::set(SessionConfig::new().with_target_partitions(threads.max(1)).with_information_schema(false), false)
}

/// The same with the options of a job.
pub(super) fn with_options(
    mut config: SessionConfig,
    options: &BTreeMap<String, String>,
) -> Result<SessionConfig, DataFusionError> {
    options.iter().try_for_each(|(name, value)| config.options_mut().set(name, value))?;
    Ok(config)
}

/// Finds what is wrong with an option.
///
/// # Errors
/// What is wrong, and what to do.
pub fn check_option(name: &str, value: &str) -> Result<(), (String, String)> {
    if name.starts_with("datafusion.runtime.") {
        let help = "[workers] memory is the memory of a query, and the worker's scratch directory is where it spills";
        return Err((format!("`{name}` is forebay's to set"), help.to_owned()));
    }
    let mut known = ConfigOptions::new();
    let entries = known.entries();
    let Some(entry) = entries.iter().find(|entry| entry.key == name) else {
        let tail = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let near = entries.iter().map(|entry| &entry.key).find(|key| tail(key) == tail(name));
        let help = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "they are listed in https://datafusion.apache.org/user-guide/configs.html".to_owned(),
        };
        return Err((format!("DataFusion has no option `{name}`"), help));
    };
    // DataFusion's own writers are not used.
    if entry.description.starts_with("(writing)") || !NAMESPACES.iter().any(|space| name.starts_with(space)) {
        let help = "remove it; how the output is written, [output] says";
        return Err((format!("`{name}` has no effect here"), help.to_owned()));
    }
    known.set(name, value).map_err(|error| {
        (format!("`{name}` cannot be `{value}`"), error.find_root().strip_backtrace().trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_or_has_no_effect_is_refused() {
        check_option("datafusion.execution.batch_size", "4096").unwrap();
        check_option("datafusion.optimizer.prefer_hash_join", "false").unwrap();
        for (name, value, message) in [
            ("datafusion.execution.batchsize", "1", "has no option"),
            ("datafusion.execution.batch_size", "many", "cannot be `many`"),
            ("datafusion.execution.batch_size", "0", "cannot be `0`"),
            ("datafusion.execution.parquet.compression", "zstd(3)", "no effect"),
            ("datafusion.catalog.has_header", "true", "no effect"),
            ("datafusion.runtime.memory_limit", "1G", "forebay's to set"),
            ("execution.batch_size", "1", "has no option"),
        ] {
            let (given, _) = check_option(name, value).unwrap_err();
            assert!(given.contains(message), "{name}: {given}");
        }
        let (_, help) = check_option("execution.batch_size", "1").unwrap_err();
        assert_eq!(help, "did you mean `datafusion.execution.batch_size`?");
        let options = BTreeMap::from([("datafusion.execution.batch_size".to_owned(), "77".to_owned())]);
        assert_eq!(with_options(config(2), &options).unwrap().batch_size(), 77);
    }
}
