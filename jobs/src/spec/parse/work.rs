//! `[command]`, `[mapreduce]` and `[sql]`.

use std::{collections::BTreeMap, ops::Range, path::Path};

use toml::Spanned;

use super::{
    SpecError, name,
    params::filled,
    positive,
    raw::{RawCommand, RawMapReduce, RawMapper, RawNative, RawSql},
    tables::{options, tables},
};
use crate::{
    kinds,
    spec::{CommandSpec, DatasetSpec, Engine, MapReduceSpec, Mapper, Program, SqlSpec, table::TableSpec},
};

/// What the kinds of work read their job files with.
pub(super) struct Context<'a> {
    /// The job file.
    pub(super) text: &'a str,
    /// What its relative paths are relative to.
    pub(super) base: &'a Path,
    pub(super) params: &'a BTreeMap<String, String>,
}

impl Context<'_> {
    pub(super) fn command(&self, raw: Spanned<RawCommand>) -> Result<CommandSpec, SpecError> {
        let program = match (&raw.get_ref().argv, &raw.get_ref().shell) {
            (Some(argv), None) => self.argv(argv.get_ref(), argv.span())?,
            (None, Some(shell)) => Program::Shell(self.argument(shell)?),
            (Some(_), Some(shell)) => {
                return Err(SpecError::at(shell, "[command] has both argv and shell").help("keep one"));
            }
            (None, None) => {
                let error = SpecError::at(&raw, "[command] has neither argv nor shell");
                return Err(error.help("add argv = [\"program\", \"argument\", …]"));
            }
        };
        let raw = raw.into_inner();
        Ok(CommandSpec { program, gang: raw.gang, files: self.files(&raw.files)?, env: env(raw.env)? })
    }

    pub(super) fn mapreduce(&self, raw: RawMapReduce) -> Result<MapReduceSpec, SpecError> {
        let map = match raw.map.get_ref() {
            RawMapper::Argv(argv) => Mapper::Program(self.argv(argv, raw.map.span())?),
            RawMapper::Native(RawNative { native }) => Mapper::Native(name(native, 100)?),
            RawMapper::BuiltIn(text) => built_in(&filled(text, &raw.map.span(), self.params)?, &raw.map)?,
        };
        match (&map, &raw.reduce) {
            (Mapper::Program(_), None) => {
                return Err(
                    SpecError::at(&raw.map, "a map program needs a reduce program").help("add reduce = [\"…\"]")
                );
            }
            (Mapper::Program(_), Some(_)) | (_, None) => {}
            (map, Some(reduce)) => {
                let what = if let Mapper::Native(name) = map { format!("`{name}`") } else { "a built-in".to_owned() };
                return Err(SpecError::at(reduce, format!("{what} brings its own reduce")).help("remove it"));
            }
        }
        if raw.reduce.is_none()
            && let Some(unused) = raw.files.first().or(raw.env.values().next())
        {
            let what = if let Mapper::Native(name) = &map { format!("`{name}`") } else { "a built-in".to_owned() };
            return Err(SpecError::at(unused, format!("{what} takes neither files nor env")).help("remove it"));
        }
        let reduce = raw.reduce.as_ref().map(|argv| self.argv(argv.get_ref(), argv.span())).transpose()?;
        let partitions = positive(raw.partitions.as_ref(), 1, 100_000)?;
        Ok(MapReduceSpec { map, reduce, partitions, files: self.files(&raw.files)?, env: env(raw.env)? })
    }

    pub(super) fn sql(&self, raw: RawSql, dataset: &DatasetSpec) -> Result<SqlSpec, SpecError> {
        let query = filled(raw.query.get_ref(), &raw.query.span(), self.params)?;
        kinds::sql::check_syntax(&query).map_err(|message| self.bad_query(&raw.query, &query, message))?;
        let engine = raw.engine.as_ref().map(engine).transpose()?;
        let (mut tables, options) = (tables(raw.tables)?, options(raw.options)?);
        if let (Some(Engine::Splits), Some(place)) = (engine, &raw.engine) {
            check_splits(place, &tables, &options)?;
        }
        if tables.is_empty() {
            tables.insert(dataset.name.replace(['-', '.'], "_"), TableSpec::of_glob("**"));
        }
        let sql = SqlSpec { query, tables, engine, options };
        match (&raw.engine, kinds::sql::refused_by(&sql, dataset)) {
            (Some(place), Some(why)) => {
                let error = SpecError::at(place, why);
                Err(error.help("leave engine out, or write engine = \"datafusion\""))
            }
            _ => Ok(sql),
        }
    }

    /// Points at the word that the parser stumbled over, where the file holds the query as it is.
    fn bad_query(&self, place: &Spanned<String>, query: &str, message: String) -> SpecError {
        let pointed = || {
            let (what, position) = message.rsplit_once(" at Line: ")?;
            let (line, column) = position.split_once(", Column: ")?;
            let offset = offset_of(query, line.parse().ok()?, column.parse().ok()?)?;
            let start = place.span().start + self.text.get(place.span())?.find(query)? + offset;
            let word = query[offset..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(query.len() - offset);
            Some((what.to_owned(), start..start + word.max(1)))
        };
        match pointed() {
            Some((message, span)) => SpecError { message, help: None, span: Some(span) },
            None => SpecError::at(place, message),
        }
    }

    fn argv(&self, argv: &[Spanned<String>], place: Range<usize>) -> Result<Program, SpecError> {
        if argv.first().is_none_or(|program| program.get_ref().is_empty()) {
            let error = SpecError::at(&Spanned::new(place, ()), "the program is missing");
            return Err(error.help("write [\"program\", \"argument\", …]"));
        }
        Ok(Program::Argv(argv.iter().map(|argument| self.argument(argument)).collect::<Result<_, _>>()?))
    }

    fn argument(&self, text: &Spanned<String>) -> Result<String, SpecError> {
        without_nul(text)?;
        filled(text.get_ref(), &text.span(), self.params)
    }

    fn files(&self, raw: &[Spanned<String>]) -> Result<BTreeMap<String, String>, SpecError> {
        let mut files = BTreeMap::new();
        for file in raw {
            let path = self.base.join(file.get_ref());
            if !path.is_file() {
                let error = SpecError::at(file, format!("there is no file {}", path.display()));
                return Err(error.help("shipped files are relative to the job file's folder"));
            }
            let text = path.to_str().ok_or_else(|| SpecError::at(file, "the path is not UTF-8"))?.to_owned();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                return Err(SpecError::at(file, format!("{text} has no name to be shipped under")));
            };
            if files.insert(name.to_owned(), text).is_some() {
                return Err(SpecError::at(file, format!("two shipped files are named `{name}`")));
            }
        }
        Ok(files)
    }
}

fn engine(text: &Spanned<String>) -> Result<Engine, SpecError> {
    match text.get_ref().as_str() {
        "datafusion" => Ok(Engine::Datafusion),
        "ballista" => Ok(Engine::Ballista),
        "splits" => Ok(Engine::Splits),
        other => Err(SpecError::at(text, format!("there is no engine `{other}`")).help(
            "engines are \"datafusion\", in one worker, \"ballista\", in all of them, and \"splits\", a task a split; \
             without the key forebay chooses one of the first two",
        )),
    }
}

/// What can be told of a query by splits before it is planned.
fn check_splits(
    place: &Spanned<String>,
    tables: &BTreeMap<String, TableSpec>,
    options: &BTreeMap<String, String>,
) -> Result<(), SpecError> {
    const PARTITIONS: &str = "datafusion.execution.target_partitions";
    if tables.len() > 1 {
        let error = SpecError::at(place, format!("by splits a query reads one table, and there are {}", tables.len()));
        return Err(error.help("keep one table, or use engine = \"datafusion\""));
    }
    match options.contains_key(PARTITIONS) {
        true => Err(SpecError::at(place, format!("`{PARTITIONS}` has no effect by splits: one thread reads each"))
            .help("remove it; [split] says how many there are")),
        false => Ok(()),
    }
}

fn built_in(text: &str, place: &Spanned<RawMapper>) -> Result<Mapper, SpecError> {
    match text {
        "word-count" => Ok(Mapper::WordCount),
        "line-count" => Ok(Mapper::LineCount),
        "column-stats" => Ok(Mapper::ColumnStats),
        "grep" => Err(SpecError::at(place, "grep has no pattern").help("write \"grep PATTERN\"")),
        text => match text.strip_prefix("grep ") {
            Some(pattern) => match regex::bytes::Regex::new(pattern) {
                Ok(_) => Ok(Mapper::Grep(pattern.to_owned())),
                Err(error) => {
                    let message = format!("`{pattern}` is no regular expression");
                    Err(SpecError::at(place, message).help(error.to_string()))
                }
            },
            None => Err(SpecError::at(place, format!("there is no built-in `{text}`")).help(
                "built in are word-count, line-count, grep PATTERN and column-stats; a program is an array, and \
                       what is compiled into the workers { native = \"NAME\" }",
            )),
        },
    }
}

fn env(raw: BTreeMap<String, Spanned<String>>) -> Result<BTreeMap<String, String>, SpecError> {
    for (name, value) in &raw {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(SpecError::at(value, format!("`{name}` is no name of an environment variable")));
        }
        if name.starts_with("FOREBAY_") {
            let error = SpecError::at(value, format!("`{name}` is forebay's own"));
            return Err(error.help("use [params] for FOREBAY_PARAM_…, or another name"));
        }
        without_nul(value)?;
    }
    Ok(raw.into_iter().map(|(name, value)| (name, value.into_inner())).collect())
}

/// No operating system hands a NUL to a program.
fn without_nul(text: &Spanned<String>) -> Result<(), SpecError> {
    if text.get_ref().contains('\0') { Err(SpecError::at(text, "the text holds a NUL")) } else { Ok(()) }
}

/// The byte at a line and column, both from 1, columns counted in characters.
fn offset_of(text: &str, line: usize, column: usize) -> Option<usize> {
    let start: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    text[start..].char_indices().nth(column.checked_sub(1)?).map(|(offset, _)| start + offset)
}
