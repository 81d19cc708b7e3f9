//! A DataFusion session that has a job's tables and views.
//!
//! Which files a table's columns are told by depends on what the query filters by, and the query can only be planned
//! once there are columns. So where partitions give a choice, the query is planned twice: over the columns of one file
//! of each table, which shows which files its filters let through, and then over those of these files.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    common::tree_node::TreeNodeRecursion,
    dataframe::DataFrame,
    error::{DataFusionError, Result as DataFusionResult},
    execution::runtime_env::RuntimeEnv,
    logical_expr::{Expr, LogicalPlan, expr_rewriter::unnormalize_cols},
    prelude::{SessionConfig, SessionContext},
};
use forebay_datasets::{split::Split, volume::Volume};

use super::{
    bad::BadRecords,
    held::HeldFiles,
    needed,
    provider::Files,
    readable,
    script::Script,
    table::{Columns, Table, bad_table, files_url},
    table_reference,
};
use crate::{
    kinds::TaskError,
    spec::{OnBadRecord, SqlSpec},
};

/// What a query is over.
#[derive(Clone, Copy)]
pub(super) struct Over<'a> {
    pub(super) volume: &'a Volume,
    pub(super) sql: &'a SqlSpec,
    pub(super) split: &'a Split,
    pub(super) on_bad_record: OnBadRecord,
}

/// A session, its tables, and what was learnt while they were opened.
pub(super) struct Session {
    pub(super) context: SessionContext,
    pub(super) bad: Arc<BadRecords>,
    script: Script,
    held: Option<Arc<HeldFiles>>,
    tables: Vec<Opened>,
}

struct Opened {
    table: Arc<Table>,
    columns: Columns,
    /// The files that the query can want.
    chosen: Vec<usize>,
}

impl Session {
    /// Opens the tables, as far as the query can want them.
    pub(super) async fn open(
        over: Over<'_>,
        config: &SessionConfig,
        runtime: &Arc<RuntimeEnv>,
    ) -> Result<Self, TaskError> {
        let held = HeldFiles::of(over.volume, &over.split.pieces)?.map(Arc::new);
        if let Some(held) = &held {
            runtime.register_object_store(&files_url(), Arc::<HeldFiles>::clone(held));
        }
        let context = || SessionContext::new_with_config_rt(config.clone(), Arc::clone(runtime));
        let script = Script::parse(&over.sql.query).map_err(TaskError::BadInput)?;
        let bad = Arc::new(BadRecords::new(over.on_bad_record));
        let mut tables = Vec::new();
        for (name, spec) in &over.sql.tables {
            tables.push(Arc::new(Table::of(over.volume, name, spec, over.split)?));
        }
        let chosen = chosen(&context, &script, &tables, &bad).await?;
        let session = context();
        let mut opened = Vec::new();
        for (table, chosen) in tables.into_iter().zip(chosen) {
            let columns = match &chosen {
                Chosen::Sketch(columns) => columns.clone(),
                Chosen::Files(files) => table.opened(&session, files, &bad).await?,
            };
            let chosen = match chosen {
                Chosen::Sketch(_) => Vec::new(),
                Chosen::Files(files) => files,
            };
            register(&session, &table, &columns, &bad)?;
            opened.push(Opened { table, columns, chosen });
        }
        Ok(Self { context: session, bad, script, held, tables: opened })
    }

    /// The query, planned in a context that has the tables.
    pub(super) async fn frame(&self) -> DataFusionResult<DataFrame> {
        self.script.frame(&self.context).await
    }

    /// The same session with other options and fresh memory.
    pub(super) fn again(&self, config: SessionConfig, runtime: Arc<RuntimeEnv>) -> Result<Self, TaskError> {
        if let Some(held) = &self.held {
            runtime.register_object_store(&files_url(), Arc::<HeldFiles>::clone(held));
        }
        let context = SessionContext::new_with_config_rt(config, runtime);
        let mut tables = Vec::new();
        for Opened { table, columns, chosen } in &self.tables {
            register(&context, table, columns, &self.bad)?;
            let (table, columns, chosen) = (Arc::clone(table), columns.clone(), chosen.clone());
            tables.push(Opened { table, columns, chosen });
        }
        let (bad, script, held) = (Arc::clone(&self.bad), self.script.clone(), self.held.clone());
        Ok(Self { context, bad, script, held, tables })
    }

    /// Whether all that the query reads is held.
    pub(super) fn check_held(&self, frame: DataFrame) -> Result<(), TaskError> {
        let Some(held) = &self.held else { return Ok(()) };
        let wrong = |error: DataFusionError| TaskError::BadInput(readable(&error));
        let needed = needed::of_plan(&frame.into_optimized_plan().map_err(wrong)?).map_err(wrong)?;
        for Opened { table, chosen, .. } in &self.tables {
            let Some(needed) = needed.get(&table.name) else { continue };
            // What the keys tell is read off no file.
            let is_in_files = |name: &&str| !table.partitions.iter().any(|field| field.name() == name);
            let needed = needed.iter().filter(is_in_files).collect();
            let keys: Vec<_> = chosen.iter().map(|at| table.files[*at].key.as_str()).collect();
            held.check(&keys, &needed)?;
        }
        Ok(())
    }

    /// The files that the query can want, by table.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Table, &super::table::TableFile)> {
        let of = |opened: &'_ Opened| -> Vec<usize> { opened.chosen.clone() };
        self.tables
            .iter()
            .flat_map(move |opened| of(opened).into_iter().map(|at| (opened.table.as_ref(), &opened.table.files[at])))
    }
}

/// The files of a table that a query can want.
enum Chosen {
    /// It does not occur in the query.
    Sketch(Columns),
    Files(Vec<usize>),
}

/// Of each table, the files that the query's filters let through.
async fn chosen(
    context: &(dyn Fn() -> SessionContext + Sync),
    script: &Script,
    tables: &[Arc<Table>],
    bad: &Arc<BadRecords>,
) -> Result<Vec<Chosen>, TaskError> {
    let all = || tables.iter().map(|table| Chosen::Files((0..table.files.len()).collect())).collect::<Vec<_>>();
    let is_choice = |table: &Arc<Table>| table.files.windows(2).any(|pair| pair[0].values != pair[1].values);
    if !tables.iter().any(is_choice) {
        return Ok(all());
    }
    let mut sketches = Vec::new();
    for table in tables {
        sketches.push(sketch(&context(), table, bad).await?);
    }
    let mut plan = plan_over(context, script, tables, &sketches, bad).await;
    if plan.is_none() {
        // A column that the first file lacks another one may have.
        for (table, sketch) in tables.iter().zip(&mut sketches) {
            *sketch = table.opened_if_readable(&context(), bad).await?;
        }
        plan = plan_over(context, script, tables, &sketches, bad).await;
    }
    // What is wrong with it is told over all files.
    let Some(plan) = plan else { return Ok(all()) };
    let scans = filters(&plan).map_err(|error| TaskError::BadInput(readable(&error)))?;
    let mut chosen = Vec::new();
    for (table, columns) in tables.iter().zip(sketches) {
        let Some(scans) = scans.get(&table.name) else {
            chosen.push(Chosen::Sketch(columns));
            continue;
        };
        let files = Files { table: Arc::clone(table), columns: columns.clone(), bad: Arc::clone(bad), are_here: true };
        let mut some = Vec::new();
        for filters in scans {
            some.extend(files.chosen(filters).map_err(|error| bad_table(&table.name, &readable(&error)))?);
        }
        some.sort_unstable();
        some.dedup();
        chosen.push(if some.is_empty() { Chosen::Sketch(columns) } else { Chosen::Files(some) });
    }
    Ok(chosen)
}

/// The query's optimized plan over tables of these columns, if there is one.
async fn plan_over(
    context: &(dyn Fn() -> SessionContext + Sync),
    script: &Script,
    tables: &[Arc<Table>],
    columns: &[Columns],
    bad: &Arc<BadRecords>,
) -> Option<LogicalPlan> {
    let context = context();
    for (table, columns) in tables.iter().zip(columns) {
        register(&context, table, columns, bad).ok()?;
    }
    script.frame(&context).await.ok()?.into_optimized_plan().ok()
}

/// The columns of the first file that can be read.
async fn sketch(context: &SessionContext, table: &Table, bad: &BadRecords) -> Result<Columns, TaskError> {
    let mut first = None;
    for at in 0..table.files.len() {
        match table.opened(context, &[at], bad).await {
            Ok(columns) => return Ok(columns),
            Err(error) => _ = first.get_or_insert(error),
        }
    }
    Err(first.unwrap_or_else(|| bad_table(&table.name, "no object")))
}

/// The filters of each scan of each table in an optimized plan.
fn filters(plan: &LogicalPlan) -> DataFusionResult<BTreeMap<String, Vec<Vec<Expr>>>> {
    let mut filters: BTreeMap<String, Vec<Vec<Expr>>> = BTreeMap::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            filters.entry(scan.table_name.table().to_owned()).or_default().push(unnormalize_cols(scan.filters.clone()));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(filters)
}

fn register(
    context: &SessionContext,
    table: &Arc<Table>,
    columns: &Columns,
    bad: &Arc<BadRecords>,
) -> Result<(), TaskError> {
    let files = Files { table: Arc::clone(table), columns: columns.clone(), bad: Arc::clone(bad), are_here: true };
    let registered = context.register_table(table_reference(&table.name), Arc::new(files));
    registered.map(drop).map_err(|error| bad_table(&table.name, &readable(&error)))
}
