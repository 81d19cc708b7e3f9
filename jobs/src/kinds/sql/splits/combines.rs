//! Which queries are the same by splits: those whose rows can be aggregated part by part.
//!
//! From the scan up to the lowest aggregate there is only what makes of each row some rows without regard to others. So
//! the rows below the aggregate are those of the parts, one after the other, and a partial aggregate of each, put
//! together, is what DataFusion itself makes of several threads. Above the aggregate there can be anything: the last
//! task does all of it.

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    error::{DataFusionError, Result},
    logical_expr::{Expr, LogicalPlan, Volatility, utils::AggregateOrderSensitivity},
    physical_plan::aggregates::AggregateExec,
};

/// A query that cannot be aggregated a split at a time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("by splits a query aggregates the rows of one table, and this one has {what}: use engine = \"datafusion\"")]
pub struct NotBySplit {
    what: String,
}

impl From<NotBySplit> for DataFusionError {
    fn from(error: NotBySplit) -> Self {
        Self::External(Box::new(error))
    }
}

pub(super) fn not(what: impl Into<String>) -> NotBySplit {
    NotBySplit { what: what.into() }
}

/// Aggregates whose states, made of parts in their order, are put together to what the whole gives. Of those that look
/// at the order of rows only what takes it as it comes.
const COMBINE: &[&str] = &[
    "approx_distinct",
    "approx_median",
    "array_agg",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "max",
    "median",
    "min",
    "regr_avgx",
    "regr_avgy",
    "regr_count",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
    "stddev",
    "stddev_pop",
    "string_agg",
    "sum",
    "var",
    "var_pop",
];

/// Those of them that do with DISTINCT. The states of `bit_xor` then have another type than DataFusion says.
const COMBINE_DISTINCT: &[&str] = &["array_agg", "avg", "count", "max", "median", "min", "sum"];

/// Looks for functions that give something else in each task. Of a query as it is written: an optimizer puts in values.
pub(super) fn check_functions(query: &LogicalPlan) -> Result<()> {
    query.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|expression| match expression {
                Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                    Err(not(format!("`{}`, which another task finds different", call.func.name())).into())
                }
                _ => Ok(TreeNodeRecursion::Continue),
            })
        })
    })?;
    Ok(())
}

/// Looks at an optimized plan, from its scan up to its lowest aggregate.
pub(super) fn check_shape(plan: &LogicalPlan) -> Result<()> {
    let (mut scans, mut aggregates) = (0, 0);
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::TableScan(_) => scans += 1,
            LogicalPlan::Aggregate(_) => aggregates += 1,
            _ => {}
        }
        node.apply_expressions(|expression| {
            expression.apply(|expression| match expression {
                Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_) => {
                    Err(not("a subquery").into())
                }
                _ => Ok(TreeNodeRecursion::Continue),
            })
        })
    })?;
    match (scans, aggregates) {
        (0, _) => return Err(not("no rows of a table to read").into()),
        (1, 0) => return Err(not("no aggregate").into()),
        (1, _) => {}
        (scans, _) => return Err(not(format!("{scans} reads of it, as of a join or a subquery")).into()),
    }
    let mut path = Vec::new();
    let mut next = Some(plan);
    while let Some(node) = next {
        path.push(node);
        next = node.inputs().into_iter().find(|input| reads(input));
    }
    for node in path.into_iter().rev() {
        let below = match node {
            LogicalPlan::TableScan(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::Projection(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Unnest(_) => continue,
            LogicalPlan::Aggregate(_) => return Ok(()),
            LogicalPlan::Join(_) => "a join",
            LogicalPlan::Window(_) => "a window function",
            LogicalPlan::Sort(_) => "ORDER BY",
            LogicalPlan::Limit(_) => "LIMIT",
            LogicalPlan::Union(_) => "UNION",
            LogicalPlan::RecursiveQuery(_) => "WITH RECURSIVE",
            other => return Err(not(format!("{} below its aggregate", other.display())).into()),
        };
        return Err(not(format!("{below} below its aggregate")).into());
    }
    Err(not("no aggregate of the table's rows").into())
}

fn reads(plan: &LogicalPlan) -> bool {
    plan.exists(|node| Ok(matches!(node, LogicalPlan::TableScan(_)))).is_ok_and(|reads| reads)
}

/// Looks at the functions of an aggregate.
pub(super) fn check_aggregates(aggregate: &AggregateExec) -> Result<()> {
    for call in aggregate.aggr_expr() {
        let name = call.fun().name();
        if !COMBINE.contains(&name) {
            return Err(not(format!("`{name}`, which is not known to combine")).into());
        }
        if call.is_distinct() && !COMBINE_DISTINCT.contains(&name) {
            return Err(not(format!("`{name}` with DISTINCT, which is not known to combine")).into());
        }
        if !call.order_bys().is_empty() && call.order_sensitivity() != AggregateOrderSensitivity::Insensitive {
            return Err(not(format!("`{name}` with an order of its own")).into());
        }
    }
    Ok(())
}
