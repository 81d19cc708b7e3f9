//! The statements of a job's query: views, and at the end the query itself.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use arrow::datatypes::DataType;
use datafusion::{
    dataframe::DataFrame,
    error::DataFusionError,
    execution::{SessionStateDefaults, context::SQLOptions},
    logical_expr::{ScalarUDF, Volatility},
    prelude::SessionContext,
    sql::{
        parser::{DFParser, Statement},
        sqlparser::{
            ast,
            dialect::GenericDialect,
            parser::Parser,
            tokenizer::{Token, Tokenizer},
        },
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

/// A function in a query whose value is another one each time, such as `now` or `random`.
pub fn changes_each_time(query: &str) -> Option<String> {
    let words = Tokenizer::new(&GenericDialect {}, query).tokenize().unwrap_or_default();
    let word = |token| match token {
        Token::Word(word) => Some(word.value.to_ascii_lowercase()),
        _ => None,
    };
    let words: BTreeSet<_> = words.into_iter().filter_map(word).collect();
    let varies = |function: &Arc<ScalarUDF>| function.signature().volatility != Volatility::Immutable;
    let functions = SessionStateDefaults::default_scalar_functions().into_iter().filter(varies);
    let names = functions.flat_map(|function| {
        let names = std::iter::once(function.name()).chain(function.aliases().iter().map(String::as_str));
        names.map(str::to_owned).collect::<Vec<_>>()
    });
    // A column of such a name is taken for the function: then something is done again that need not be.
    names.chain(["current_timestamp".to_owned()]).find(|name| words.contains(name))
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
    fn time_and_chance_are_told_from_what_stays() {
        for (query, function) in [
            ("select NOW()", "now"),
            ("select a from t where d > current_date", "current_date"),
            ("select current_timestamp", "current_timestamp"),
            ("create view v as select random() as r; select * from v", "random"),
            ("select uuid()", "uuid"),
        ] {
            assert_eq!(changes_each_time(query).as_deref(), Some(function), "{query}");
        }
        for query in ["select 'now', abs(a), date_trunc('day', d) from t -- random", "select 1"] {
            assert_eq!(changes_each_time(query), None, "{query}");
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
