//! What a job's query is planned over: its tables, as far as it can want them.
//!
//! Which files a table's columns are told by depends on what the query filters by, and the query can only be planned
//! once there are columns. So where partitions give a choice, the query is planned twice: over the columns of one file
//! of each table, which shows which files its filters let through, and then over those of these files.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    common::tree_node::TreeNodeRecursion,
    dataframe::DataFrame,
    error::Result as DataFusionResult,
    execution::runtime_env::RuntimeEnv,
    logical_expr::{Expr, LogicalPlan, expr_rewriter::unnormalize_cols},
    prelude::{SessionConfig, SessionContext},
};
use forebay_datasets::{split::Split, volume::Volume};

use super::{
    bad::BadRecords,
    bad_query, ballista,
    held::{HeldFiles, volume_url},
    known::{KnownTable, Scan},
    needed,
    provider::Files,
    readable,
    script::Script,
    table::{Columns, Table, TableFile, bad_table},
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

/// The tables of a query, opened, and what was learnt of them.
pub(super) struct Session {
    pub(super) bad: Arc<BadRecords>,
    config: SessionConfig,
    runtime: Arc<RuntimeEnv>,
    script: Script,
    held: Arc<HeldFiles>,
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
        let mut session = Self::empty(over, config, runtime)?;
        let mut tables = Vec::new();
        for (name, spec) in &over.sql.tables {
            tables.push(Arc::new(Table::of(over.volume, name, spec, over.split)?));
        }
        let (chosen, context) = (session.chosen(&tables).await?, session.context());
        for (table, chosen) in tables.into_iter().zip(chosen) {
            let (columns, chosen) = match chosen {
                Chosen::Sketch(columns) => (columns, Vec::new()),
                Chosen::Files(files) => (table.opened(&context, &files, &session.bad).await?, files),
            };
            session.tables.push(Opened { table, columns, chosen });
        }
        Ok(session)
    }

    /// Without a table yet.
    fn empty(over: Over<'_>, config: &SessionConfig, runtime: &Arc<RuntimeEnv>) -> Result<Self, TaskError> {
        let held = Arc::new(HeldFiles::of(over.volume, &over.split.pieces)?);
        let script = Script::parse(&over.sql.query).map_err(TaskError::BadInput)?;
        let bad = Arc::new(BadRecords::new(over.on_bad_record));
        let (config, runtime) = (config.clone(), Arc::clone(runtime));
        let session = Self { bad, config, runtime, script, held, tables: Vec::new() };
        session.register_held();
        Ok(session)
    }

    /// The table of a query by splits, of which a split may hold any part or none: nothing is opened.
    pub(super) fn known(
        over: Over<'_>,
        known: &KnownTable,
        config: &SessionConfig,
        runtime: &Arc<RuntimeEnv>,
    ) -> Result<Self, TaskError> {
        let mut session = Self::empty(over, config, runtime)?;
        for (name, spec) in &over.sql.tables {
            let table = Table::of_known(over.volume, (name, spec, known), over.split)?;
            let columns = Columns::new(Arc::clone(&known.files), &table.partitions);
            let chosen = (0..table.files.len()).collect();
            session.tables.push(Opened { table: Arc::new(table), columns, chosen });
        }
        Ok(session)
    }

    /// What is known of the table of a query by splits, and which of the files it can want.
    pub(super) fn scan(&self) -> Option<Scan> {
        let [Opened { table, columns, chosen }] = &self.tables[..] else { return None };
        let known = KnownTable::new(table.format, &columns.all, &table.partitions);
        let keys = chosen.iter().map(|at| table.files[*at].key.clone()).collect();
        let is_lines = table.text.as_ref().is_some_and(|text| text.is_lines());
        Some(Scan { table: known, keys, is_lines })
    }

    /// The same tables with other options and fresh memory.
    pub(super) fn with(self, config: SessionConfig, runtime: Arc<RuntimeEnv>) -> Self {
        let session = Self { config, runtime, ..self };
        session.register_held();
        session
    }

    fn register_held(&self) {
        self.runtime.register_object_store(volume_url().as_ref(), Arc::<HeldFiles>::clone(&self.held));
    }

    fn context(&self) -> SessionContext {
        let context = SessionContext::new_with_config_rt(self.config.clone(), Arc::clone(&self.runtime));
        SessionContext::new_with_state(ballista::upgraded(context.state()))
    }

    /// The query, in a context of its own, in which its views are made.
    pub(super) async fn frame(&self) -> DataFusionResult<DataFrame> {
        self.frame_over(self.tables.iter().map(|opened| (&opened.table, &opened.columns))).await
    }

    async fn frame_over(&self, tables: impl Iterator<Item = (&Arc<Table>, &Columns)>) -> DataFusionResult<DataFrame> {
        let context = self.context();
        for (table, columns) in tables {
            context.register_table(table_reference(&table.name), Arc::new(self.files_of(table, columns)))?;
        }
        self.script.frame(&context).await
    }

    fn files_of(&self, table: &Arc<Table>, columns: &Columns) -> Files {
        let (table, bad) = (Arc::clone(table), Arc::clone(&self.bad));
        Files { table, columns: columns.clone(), bad, are_here: true }
    }

    /// Whether all that the query reads is held.
    pub(super) fn check_held(&self, frame: DataFrame) -> Result<(), TaskError> {
        if self.held.is_whole() {
            return Ok(());
        }
        let needed = needed::of_plan(&frame.into_optimized_plan().map_err(|error| bad_query(&error))?);
        let needed = needed.map_err(|error| bad_query(&error))?;
        for Opened { table, chosen, .. } in &self.tables {
            let Some(needed) = needed.get(&table.name) else { continue };
            // What the keys tell is read off no file.
            let is_in_files = |name: &&str| !table.partitions.iter().any(|field| field.name() == name);
            let needed = needed.iter().filter(is_in_files).collect();
            let keys: Vec<_> = chosen.iter().map(|at| table.files[*at].key.as_str()).collect();
            self.held.check(&keys, &needed)?;
        }
        Ok(())
    }

    /// The files that the query can want, by table.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Table, &TableFile)> {
        let of = |opened: &'_ Opened| opened.chosen.clone();
        self.tables
            .iter()
            .flat_map(move |opened| of(opened).into_iter().map(|at| (opened.table.as_ref(), &opened.table.files[at])))
    }

    /// Of each table, the files that the query's filters let through.
    async fn chosen(&self, tables: &[Arc<Table>]) -> Result<Vec<Chosen>, TaskError> {
        let all = || tables.iter().map(|table| Chosen::Files((0..table.files.len()).collect())).collect::<Vec<_>>();
        let is_choice = |table: &Arc<Table>| table.files.windows(2).any(|pair| pair[0].values != pair[1].values);
        if !tables.iter().any(is_choice) {
            return Ok(all());
        }
        let (context, mut sketches) = (self.context(), Vec::new());
        for table in tables {
            sketches.push(sketch(&context, table, &self.bad).await?);
        }
        let mut plan = self.plan_over(tables, &sketches).await;
        if plan.is_none() {
            // A column that the first file lacks another one may have.
            for (table, sketch) in tables.iter().zip(&mut sketches) {
                *sketch = table.opened_if_readable(&context, &self.bad).await?;
            }
            plan = self.plan_over(tables, &sketches).await;
        }
        // What is wrong with it is told over all files.
        let Some(plan) = plan else { return Ok(all()) };
        let scans = filters(&plan).map_err(|error| bad_query(&error))?;
        let mut chosen = Vec::new();
        for (table, columns) in tables.iter().zip(sketches) {
            let (mut some, files) = (Vec::new(), self.files_of(table, &columns));
            for filters in scans.get(&table.name).into_iter().flatten() {
                some.extend(files.chosen(filters).map_err(|error| bad_table(&table.name, &readable(&error)))?);
            }
            some.sort_unstable();
            some.dedup();
            chosen.push(if some.is_empty() { Chosen::Sketch(columns) } else { Chosen::Files(some) });
        }
        Ok(chosen)
    }

    /// The query's optimized plan over tables of these columns, if there is one.
    async fn plan_over(&self, tables: &[Arc<Table>], columns: &[Columns]) -> Option<LogicalPlan> {
        self.frame_over(tables.iter().zip(columns)).await.ok()?.into_optimized_plan().ok()
    }
}

/// The files of a table that a query can want.
enum Chosen {
    /// It wants none: the columns are those of another.
    Sketch(Columns),
    Files(Vec<usize>),
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
