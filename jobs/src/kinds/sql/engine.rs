//! Which engine executes a query, and why.
//!
//! One worker's DataFusion needs no exchange between stages, and no other worker: it is what a query gets that does not
//! say otherwise and is small. Ballista reads and computes in all workers, and pays for it by writing between stages
//! what DataFusion hands from thread to thread.

use std::collections::BTreeMap;

use datafusion::{error::DataFusionError, prelude::SessionConfig};
use forebay_datasets::split::Split;

use super::{
    ballista,
    options::{config, with_options},
    query_of, views,
};
use crate::spec::{DatasetSpec, Engine, JobSpec, LinkKind, OnBadRecord, SqlSpec, Work};

/// Bytes of input from which on several workers are worth the exchange.
const LARGE: u64 = 1 << 30;

/// Options whose values Ballista's stages depend on: what one of them would pass on within a process does not come over.
const FIXED: [(&str, &str); 6] = [
    ("datafusion.optimizer.enable_round_robin_repartition", "false"),
    ("datafusion.optimizer.enable_physical_uncorrelated_scalar_subquery", "false"),
    ("datafusion.optimizer.enable_dynamic_filter_pushdown", "false"),
    ("datafusion.optimizer.enable_join_dynamic_filter_pushdown", "false"),
    ("datafusion.optimizer.enable_topk_dynamic_filter_pushdown", "false"),
    ("datafusion.optimizer.enable_aggregate_dynamic_filter_pushdown", "false"),
];

/// An engine, and why it is that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which.
    pub engine: Engine,
    /// A sentence's end: "since …".
    pub why: String,
}

/// What executes a job's query over so many bytes of input.
pub fn choose(job: &JobSpec, bytes: u64) -> Choice {
    let choice = |engine, why: &str| Choice { engine, why: why.to_owned() };
    let Work::Sql(sql) = &job.work else { return choice(Engine::Datafusion, "the job is no query") };
    if let Some(engine) = sql.engine {
        return choice(engine, "the job says so");
    }
    if job.workers.count < 2 {
        return choice(Engine::Datafusion, "there is one worker");
    }
    if job.workers.link == LinkKind::Files {
        return choice(Engine::Datafusion, "its workers have no network between them ([workers] link)");
    }
    if let Some(why) = beyond_ballista(sql, &job.dataset) {
        return Choice { engine: Engine::Datafusion, why };
    }
    let (mib, large) = (bytes >> 20, LARGE >> 20);
    match bytes >= LARGE {
        true => choice(Engine::Ballista, &format!("{mib} MiB for {} workers are {large} or more", job.workers.count)),
        false => {
            choice(Engine::Datafusion, &format!("{mib} MiB are less than the {large} that are worth several workers"))
        }
    }
}

/// What executes a job's query over what is staged.
pub fn choose_over(job: &JobSpec, split: &Split) -> Choice {
    choose(job, split.pieces.iter().map(|piece| piece.size).sum())
}

/// Whether a job's query may be executed by several workers, whatever its input.
pub fn may_distribute(job: &JobSpec) -> bool {
    choose(job, u64::MAX).engine == Engine::Ballista
}

/// Why the engine that a query asks for cannot execute it.
pub fn refused_by(sql: &SqlSpec, dataset: &DatasetSpec) -> Option<String> {
    match sql.engine {
        Some(Engine::Ballista) => beyond_ballista(sql, dataset),
        Some(Engine::Datafusion | Engine::Splits) | None => None,
    }
}

fn beyond_ballista(sql: &SqlSpec, dataset: &DatasetSpec) -> Option<String> {
    if dataset.on_bad_record == OnBadRecord::Skip {
        return Some("Ballista does not tell which records were skipped ([dataset] on_bad_record)".to_owned());
    }
    let is_set = |(name, value): &&(&str, &str)| sql.options.get(*name).is_some_and(|set| set != value);
    FIXED.iter().find(is_set).map(|(name, value)| format!("Ballista needs `{name}` to be {value}"))
}

/// What a job's query is planned with, for so many threads of each worker.
pub(super) fn config_of(engine: Engine, job: &JobSpec, threads: usize) -> Result<SessionConfig, DataFusionError> {
    let options = query_of(job).map(|sql| sql.options.clone()).unwrap_or_default();
    match engine {
        Engine::Datafusion => with_options(views::set(config(threads), true), &options),
        Engine::Splits => with_options(config(threads), &options),
        Engine::Ballista => ballista::config_of(threads * job.workers.count as usize, &options),
    }
}

/// What Ballista's stages depend on, to be set after all else.
pub(super) fn fixed() -> BTreeMap<String, String> {
    FIXED.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::spec::parse::job_file;

    fn job(rest: &str) -> JobSpec {
        let text = format!("name = 'j'\n[dataset]\nsource = 's3://b'\n{rest}");
        job_file(&text, Path::new("/"), &[]).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn several_workers_and_much_input_make_it_ballista_and_the_job_overrules_that() {
        let chosen = |rest: &str, bytes| choose(&job(rest), bytes).engine;
        let sql = "[sql]\nquery = 'select 1'\n";
        let (two, much) = (format!("{sql}[workers]\ncount = 2\n"), u64::MAX);
        assert_eq!(chosen(sql, much), Engine::Datafusion);
        assert_eq!((chosen(&two, LARGE - 1), chosen(&two, LARGE)), (Engine::Datafusion, Engine::Ballista));
        assert_eq!(chosen("[sql]\nquery = 'select 1'\nengine = 'ballista'\n", 0), Engine::Ballista);
        let datafusion = two.replace("[workers]", "engine = 'datafusion'\n[workers]");
        assert_eq!(chosen(&datafusion, much), Engine::Datafusion);
        assert!(may_distribute(&job(&two)) && !may_distribute(&job(&datafusion)) && !may_distribute(&job(sql)));
    }

    #[test]
    fn what_ballista_cannot_do_is_left_to_datafusion() {
        let option = "options = { 'datafusion.optimizer.enable_join_dynamic_filter_pushdown' = true }\n";
        for rest in [
            "on_bad_record = 'skip'\n[sql]\nquery = 'select 1'\n".to_owned(),
            format!("[sql]\nquery = 'select 1'\n{option}"),
        ] {
            let auto = job(&format!("{rest}[workers]\ncount = 2\n"));
            assert_eq!(choose(&auto, u64::MAX).engine, Engine::Datafusion);
            let text = format!("name = 'j'\n[dataset]\nsource = 's3://b'\n{rest}engine = 'ballista'\n");
            let error = job_file(&text, Path::new("/"), &[]).unwrap_err();
            assert!(error.message.starts_with("Ballista ") && error.help.unwrap().contains("datafusion"), "{rest}");
        }
    }
}
