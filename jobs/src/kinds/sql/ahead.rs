//! A query's plan before anything is staged: over what the listing tells of all objects, and one object's footer, or
//! first lines, of each table.

use std::{ops::ControlFlow, path::PathBuf, sync::Arc};

use datafusion::{
    execution::runtime_env::RuntimeEnv,
    object_store::{memory::InMemory, path::Path},
    physical_plan::displayable,
    prelude::SessionContext,
};
use forebay_datasets::source::{Listed, Source};

use super::{
    bad::BadRecords,
    bad_query, ballista, cause, engine,
    held::volume_url,
    needed::{Told, first_of_each},
    output,
    provider::Files,
    query_of,
    script::Script,
    splits::{Halves, NotBySplit},
    table::{Table, TableFile, bad_table},
    table_reference,
};
use crate::{kinds::TaskError, spec::JobSpec};

/// How a job's query would be executed once its source is staged; none if the source does not tell enough.
///
/// # Errors
/// What is wrong with the query over the columns of one object of each table: others may have more.
pub async fn explain_ahead(source: &mut Source, job: &JobSpec, threads: usize) -> Result<Option<String>, TaskError> {
    let sql = query_of(job)?;
    let Some(told) = first_of_each(source, sql).await else { return Ok(None) };
    let mut files: Vec<Vec<TableFile>> = told.iter().map(|_| Vec::new()).collect();
    let matchers = told.iter().map(|(name, ..)| sql.tables[name].matcher()).collect::<Result<Vec<_>, _>>();
    let matchers = matchers.map_err(|error| TaskError::BadInput(error.to_string()))?;
    let mut page = |objects: Vec<Listed>| {
        for object in objects {
            for (files, _) in files.iter_mut().zip(&matchers).filter(|(_, is_of_table)| is_of_table(&object.key)) {
                let location = Path::from(object.key.as_str());
                files.push(TableFile::new(&object.key, PathBuf::new(), location, object.size));
            }
        }
        ControlFlow::Continue(())
    };
    if source.list(&mut page).await.is_err() {
        return Ok(None);
    }
    let bytes = files.iter().flatten().map(|file| file.meta.size).sum();
    let threads = if job.is_by_splits() { 1 } else { threads };
    let engine = engine::choose(job, bytes).engine;
    let mut config = engine::config_of(engine, job, threads).map_err(|error| bad_query(&error))?;
    // There is no file to tell any.
    config.options_mut().execution.collect_statistics = false;
    let runtime = Arc::new(RuntimeEnv::default());
    // Nothing is there to be read yet.
    runtime.register_object_store(volume_url().as_ref(), Arc::new(InMemory::new()));
    let context = SessionContext::new_with_config_rt(config, runtime);
    let context = SessionContext::new_with_state(ballista::upgraded(context.state()));
    let bad = Arc::new(BadRecords::new(job.dataset.on_bad_record));
    for ((name, key, Told { columns, .. }), files) in told.into_iter().zip(files) {
        let table = Arc::new(Table::of_files(&name, &sql.tables[&name], files)?);
        let columns = table.columns([(key.as_str(), &columns)])?;
        let files = Files { table, columns, bad: Arc::clone(&bad), are_here: false };
        let registered = context.register_table(table_reference(&name), Arc::new(files));
        registered.map_err(|error| bad_table(&name, &super::readable(&error)))?;
    }
    let script = Script::parse(&sql.query).map_err(TaskError::BadInput)?;
    let frame = script.frame(&context).await.map_err(|error| bad_query(&error))?;
    output::check_output(frame.schema().as_arrow(), &job.output)?;
    if job.is_by_splits() {
        let halves = async { Halves::of(frame).await?.explain() };
        return halves
            .await
            .map(Some)
            .map_err(|error| cause::<NotBySplit>(&error).map_or_else(|| bad_query(&error), Into::into));
    }
    let plan = frame.create_physical_plan().await.map_err(|error| bad_query(&error))?;
    Ok(Some(displayable(plan.as_ref()).indent(false).to_string()))
}
