//! The two halves of a query's physical plan: all up to the partial aggregate, and all from the final one on.
//!
//! DataFusion plans an aggregate as a partial one, whose input may be in any number of parts, below a final one of all
//! states. The plan is cut between them before the optimizer of physical plans sees it, which would look at both, and
//! could answer from one what only the other one knows. Each half is optimized for itself.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::tree_node::{Transformed, TransformedResult, TreeNode},
    dataframe::DataFrame,
    error::Result,
    execution::{TaskContext, session_state::SessionState, session_state::SessionStateBuilder},
    physical_plan::{
        ExecutionPlan,
        aggregates::{AggregateExec, AggregateMode},
        displayable,
    },
    physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner},
};

use super::{combines, states::reader};

pub(in crate::kinds::sql) struct Halves {
    state: SessionState,
    /// Not optimized.
    whole: Arc<dyn ExecutionPlan>,
    /// The part of the whole below the cut.
    partial: Arc<dyn ExecutionPlan>,
}

impl Halves {
    /// # Errors
    /// [`super::NotBySplit`] behind DataFusion's, if there are no such halves.
    pub(in crate::kinds::sql) async fn of(frame: DataFrame) -> Result<Self> {
        let (state, query) = frame.into_parts();
        combines::check_functions(&query)?;
        let optimized = state.optimize(&query)?;
        combines::check_shape(&optimized)?;
        let bare = SessionStateBuilder::new_from_existing(state.clone()).with_physical_optimizer_rules(vec![]).build();
        let whole = DefaultPhysicalPlanner::default().create_physical_plan(&optimized, &bare).await?;
        let partial = partial_of(&whole)?;
        Ok(Self { state, whole, partial })
    }

    /// The columns of the states.
    pub(super) fn states(&self) -> SchemaRef {
        self.partial.schema()
    }

    /// From the rows of a split to their states.
    pub(super) fn first(&self) -> Result<Arc<dyn ExecutionPlan>> {
        self.optimized(Arc::clone(&self.partial))
    }

    /// From the states of all splits to the result.
    pub(super) fn last(&self, states: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let replaced = Arc::clone(&self.whole).transform_down(|node| {
            let is_cut = Arc::ptr_eq(&node, &self.partial);
            Ok(if is_cut { Transformed::yes(Arc::clone(&states)) } else { Transformed::no(node) })
        });
        self.optimized(replaced.data()?)
    }

    /// What the plans are executed in.
    pub(super) fn context(&self) -> Arc<TaskContext> {
        self.state.task_ctx()
    }

    /// Both, for people.
    pub(in crate::kinds::sql) fn explain(&self) -> Result<String> {
        let shown = |plan: Arc<dyn ExecutionPlan>| displayable(plan.as_ref()).indent(false).to_string();
        let (first, last) = (self.first()?, self.last(reader(&self.states(), Vec::new())?)?);
        Ok(format!("each split:\n{}then, over the states of all splits:\n{}", shown(first), shown(last)))
    }

    fn optimized(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::default().optimize_physical_plan(plan, &self.state, |_, _| {})
    }
}

/// The lowest aggregate, if it is a partial one right below its final one.
fn partial_of(whole: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let (mut found, mut open) = (None, vec![(None, Arc::clone(whole))]);
    while let Some((above, plan)) = open.pop() {
        let mode = plan.downcast_ref::<AggregateExec>().map(|aggregate| *aggregate.mode());
        if mode.is_some() {
            found = Some((above, Arc::clone(&plan)));
        }
        open.extend(plan.children().into_iter().map(|child| (mode, Arc::clone(child))));
    }
    let Some((Some(AggregateMode::Final | AggregateMode::FinalPartitioned), partial)) = found else {
        return Err(combines::not("an aggregate that DataFusion makes in one step").into());
    };
    match partial.downcast_ref::<AggregateExec>() {
        Some(aggregate) if *aggregate.mode() == AggregateMode::Partial => combines::check_aggregates(aggregate)?,
        _ => return Err(combines::not("an aggregate that DataFusion makes in one step").into()),
    }
    Ok(partial)
}
