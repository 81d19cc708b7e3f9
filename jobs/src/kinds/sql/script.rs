//! The statements of a job's query: views, and at the end the query itself.

use std::collections::VecDeque;

use arrow::datatypes::DataType;
use datafusion::{
    dataframe::DataFrame,
    error::DataFusionError,
    execution::context::SQLOptions,
    prelude::SessionContext,
    sql::{
        parser::{DFParser, Statement},
        sqlparser::{ast, dialect::GenericDialect, parser::Parser, tokenizer::Token},
    },
};
use futures::FutureExt;

use super::{config, readable};

/// What a job's query is made of.
#[derive(Clone)]
pub(super) struct Script {
    views: Vec<Statement>,
    query: Statement,
}

impl Script {
    /// Takes a text apart.
    ///
    /// # Errors
    /// What is wrong, for people; with its place at the end, as the parser says it, where it is a word that is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut statements: VecDeque<_> = DFParser::parse_sql(text).map_err(|error| readable(&error))?;
        let Some(query) = statements.pop_back() else { return Err("the query is empty".to_owned()) };
        let views: Vec<_> = statements.into();
        if let Some(other) = views.iter().find(|statement| !is_view(statement)) {
            return Err(match is_query(other) {
                true => "there are several queries: all but the last are to be CREATE VIEW … AS".to_owned(),
                false => ONLY.to_owned(),
            });
        }
        match is_query(&query) {
            true => Ok(Self { views, query }),
            false if is_view(&query) => Err("there is no query after the views".to_owned()),
            false => Err(ONLY.to_owned()),
        }
    }

    /// The query over the session's tables, in which the views are made.
    pub(super) async fn frame(&self, context: &SessionContext) -> Result<DataFrame, DataFusionError> {
        let nothing_else = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let with_views = nothing_else.with_allow_ddl(true);
        for view in &self.views {
            let plan = context.state().statement_to_plan(view.clone()).await?;
            with_views.verify_plan(&plan)?;
            context.execute_logical_plan(plan).await?;
        }
        let plan = context.state().statement_to_plan(self.query.clone()).await?;
        nothing_else.verify_plan(&plan)?;
        context.execute_logical_plan(plan).await
    }
}

const ONLY: &str = "only views and a query can be run: CREATE VIEW … AS, then SELECT, WITH or VALUES";

fn is_query(statement: &Statement) -> bool {
    matches!(statement, Statement::Statement(inner) if matches!(**inner, ast::Statement::Query(_)))
}

fn is_view(statement: &Statement) -> bool {
    matches!(statement, Statement::Statement(inner) if matches!(**inner, ast::Statement::CreateView(_)))
}

/// The type that an SQL type is.
///
/// # Errors
/// Why it is none, for people.
pub fn type_of(text: &str) -> Result<DataType, String> {
    let mut parser = Parser::new(&GenericDialect {}).try_with_sql(text).map_err(|error| error.to_string())?;
    let alone = parser.parse_data_type().and_then(|_| parser.expect_token(&Token::EOF));
    alone.map_err(|error| error.to_string())?;
    let planned = async {
        let context = SessionContext::new_with_config(config(1));
        let frame = context.sql(&format!("SELECT CAST(NULL AS {text})")).await?;
        Ok::<_, DataFusionError>(frame.schema().field(0).data_type().clone())
    };
    // A plan without tables waits for nothing.
    let planned = planned.now_or_never().ok_or_else(|| "it cannot be told alone".to_owned())?;
    planned.map_err(|error| readable(&error))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::*;

    #[test]
    fn views_come_before_one_query_and_nothing_else_comes() {
        for query in ["with a as (select 1) select * from a", "create view v as select 1; select * from v;"] {
            Script::parse(query).unwrap();
        }
        for (query, part) in [
            ("selct 1", "selct"),
            ("", "empty"),
            ("drop table x", "only views and a query"),
            ("copy x to 'y'", "only views and a query"),
            ("set datafusion.execution.batch_size = 1; select 1", "only views and a query"),
            ("create table t as select 1; select * from t", "only views and a query"),
            ("explain select 1", "only views and a query"),
            ("select 1; select 2", "several queries"),
            ("create view v as select 1", "no query after"),
        ] {
            let message = Script::parse(query).err().unwrap();
            assert!(message.contains(part), "{query}: {message}");
        }
    }

    #[test]
    fn a_type_is_what_sql_takes_it_for() {
        for (text, data_type) in [
            ("bigint", DataType::Int64),
            ("VARCHAR", DataType::Utf8),
            ("decimal(10, 2)", DataType::Decimal128(10, 2)),
            ("timestamp", DataType::Timestamp(TimeUnit::Nanosecond, None)),
            ("date", DataType::Date32),
        ] {
            assert_eq!(type_of(text), Ok(data_type), "{text}");
        }
        for text in ["nothing", "", "int), (select 1", "int; drop table x"] {
            type_of(text).unwrap_err();
        }
    }
}
