//! From a job file's text to a [`JobSpec`], or to an error that points at the line.

use std::{collections::BTreeMap, ops::Range, path::Path, time::Duration};

use forebay_datasets::source::{self, SourceError, SourceUrl};
use serde::Deserialize;
use toml::Spanned;

use super::{
    CommandSpec, DatasetSpec, FleetKind, JobSpec, MapReduceSpec, Mapper, OutputFormat, OutputSpec, Program, RetrySpec,
    S3Spec, SplitBy, SplitSize, SplitSpec, SqlSpec, Work, WorkersSpec, size,
};

/// What is wrong with a job file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SpecError {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// Bytes of the text that are wrong.
    pub span: Option<Range<usize>>,
}

impl SpecError {
    fn at<T>(place: &Spanned<T>, message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, span: Some(place.span()) }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJob {
    name: Spanned<String>,
    dataset: RawDataset,
    command: Option<Spanned<RawCommand>>,
    mapreduce: Option<Spanned<RawMapReduce>>,
    sql: Option<Spanned<RawSql>>,
    #[serde(default)]
    split: Option<Spanned<RawSplit>>,
    #[serde(default)]
    workers: RawWorkers,
    #[serde(default)]
    retry: RawRetry,
    #[serde(default)]
    params: BTreeMap<String, Spanned<toml::Value>>,
    #[serde(default)]
    output: RawOutput,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDataset {
    source: Spanned<String>,
    name: Option<Spanned<String>>,
    #[serde(default)]
    include: Vec<Spanned<String>>,
    #[serde(default)]
    exclude: Vec<Spanned<String>>,
    version: Option<String>,
    endpoint: Option<String>,
    region: Option<String>,
    #[serde(default)]
    anonymous: bool,
    path_style: Option<bool>,
    #[serde(default)]
    requester_pays: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCommand {
    argv: Option<Spanned<Vec<String>>>,
    shell: Option<Spanned<String>>,
    #[serde(default)]
    files: Vec<Spanned<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMapReduce {
    map: Spanned<RawProgram>,
    reduce: Option<Spanned<Vec<String>>>,
    partitions: Option<Spanned<u32>>,
    #[serde(default)]
    files: Vec<Spanned<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawProgram {
    BuiltIn(String),
    Argv(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSql {
    query: Spanned<String>,
    #[serde(default)]
    tables: BTreeMap<String, Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSplit {
    by: Option<Spanned<String>>,
    size: Option<Spanned<String>>,
    count: Option<Spanned<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWorkers {
    fleet: Option<Spanned<String>>,
    count: Option<Spanned<u32>>,
    slots: Option<Spanned<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRetry {
    attempts: Option<Spanned<u32>>,
    backoff: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
    max_failures: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOutput {
    format: Option<Spanned<String>>,
    to: Option<Spanned<String>>,
    endpoint: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
}

/// Reads a job file. Relative paths in it are relative to `base`; `overrides` replace `[params]`.
pub fn job_file(text: &str, base: &Path, overrides: &[(String, String)]) -> Result<JobSpec, SpecError> {
    let raw: RawJob = toml::from_str(text).map_err(|error| syntax(&error))?;
    let params = params(raw.params, overrides)?;
    let dataset = dataset(raw.dataset, base)?;
    let work = match (raw.command, raw.mapreduce, raw.sql) {
        (Some(command), None, None) => Work::Command(self::command(command, base, &params)?),
        (None, Some(mapreduce), None) => Work::Mapreduce(self::mapreduce(mapreduce.into_inner(), base, &params)?),
        (None, None, Some(sql)) => Work::Sql(self::sql(sql.into_inner(), &dataset, &params)?),
        (None, None, None) => {
            let error = SpecError::at(&raw.name, "the job does nothing: it has no kind of work");
            return Err(error.help("add one of [sql], [command], [mapreduce]"));
        }
        (command, mapreduce, sql) => {
            let spans = [command.map(|c| c.span()), mapreduce.map(|m| m.span()), sql.map(|s| s.span())];
            let last = spans.into_iter().flatten().max_by_key(|span| span.start);
            let message = "the job has two kinds of work".to_owned();
            return Err(SpecError { message, help: Some("a job does one: make two jobs of it".into()), span: last });
        }
    };
    let split = split(raw.split, &work)?;
    Ok(JobSpec {
        name: name(&raw.name, 40)?,
        dataset,
        work,
        split,
        workers: workers(raw.workers)?,
        retry: retry(raw.retry)?,
        params,
        output: output(raw.output, base)?,
    })
}

/// toml's own error, with what serde knows of the keys there are.
fn syntax(error: &toml::de::Error) -> SpecError {
    let message = error.message().to_owned();
    let span = error.span();
    let Some((unknown, known)) =
        message.strip_prefix("unknown field `").and_then(|rest| rest.split_once("`, expected "))
    else {
        return SpecError { message, help: None, span };
    };
    if ["sweep", "schedule", "train", "infer", "gang", "speculate", "partition_by"].contains(&unknown) {
        let message = format!("`{unknown}` is not supported by this version");
        return SpecError { message, help: Some("remove it".to_owned()), span };
    }
    let known: Vec<_> = known.split('`').skip(1).step_by(2).collect();
    let near = known.iter().filter(|known| distance(known, unknown) <= 2).min_by_key(|known| distance(known, unknown));
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the keys here are {}", known.join(", ")),
    };
    SpecError { message: format!("unknown key `{unknown}`"), help: Some(help), span }
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn name(text: &Spanned<String>, longest: usize) -> Result<String, SpecError> {
    let name = text.get_ref();
    let fits = (1..=longest).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    match fits {
        true => Ok(name.clone()),
        false => Err(SpecError::at(text, format!("`{name}` is no name")).help(format!(
            "a name takes 1 to {longest} letters, digits, `.`, `_` or `-`, and begins with a letter or a digit"
        ))),
    }
}

fn params(
    raw: BTreeMap<String, Spanned<toml::Value>>,
    overrides: &[(String, String)],
) -> Result<BTreeMap<String, String>, SpecError> {
    let mut params = BTreeMap::new();
    for (name, value) in raw {
        let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.is_empty();
        if !fits {
            let error = SpecError::at(&value, format!("the parameter `{name}` is no name of an environment variable"));
            return Err(error.help("use letters, digits and _"));
        }
        let text = match value.get_ref() {
            toml::Value::String(text) => text.clone(),
            toml::Value::Array(_) | toml::Value::Table(_) => {
                return Err(SpecError::at(&value, format!("the parameter `{name}` is neither text nor number")));
            }
            plain => plain.to_string(),
        };
        params.insert(name, text);
    }
    for (name, value) in overrides {
        match params.get_mut(name) {
            Some(held) => held.clone_from(value),
            None => {
                let message = format!("--set {name}: the job has no such parameter");
                let known: Vec<_> = params.keys().map(String::as_str).collect();
                let help = match known.is_empty() {
                    true => "it has no [params]".to_owned(),
                    false => format!("it has {}", known.join(", ")),
                };
                return Err(SpecError { message, help: Some(help), span: None });
            }
        }
    }
    Ok(params)
}

/// Replaces `${params.name}`.
fn filled(text: &str, place: &Range<usize>, params: &BTreeMap<String, String>) -> Result<String, SpecError> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${params.") {
        let Some((name, after)) = after.split_once('}') else { break };
        let Some(value) = params.get(name) else {
            let message = format!("there is no parameter `{name}`");
            return Err(SpecError {
                message,
                help: Some(format!("add `{name} = …` to [params]")),
                span: Some(place.clone()),
            });
        };
        out.push_str(before);
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn url(text: &Spanned<String>, base: &Path) -> Result<SourceUrl, SpecError> {
    let given = text.get_ref();
    let relative = given.starts_with("./") || given.starts_with("../");
    let whole = match relative {
        true => {
            let dir = base.join(given);
            // As `dataset stage` would be given it, so that both name the same source.
            let dir = dir.canonicalize().unwrap_or_else(|_| dir.components().collect());
            format!("file://{}", dir.display())
        }
        false => given.clone(),
    };
    whole.parse().map_err(|error: SourceError| {
        SpecError::at(text, error.to_string())
            .help("write s3://bucket/prefix, file:///dir, or ./dir beside the job file")
    })
}

fn globs(raw: &[Spanned<String>]) -> Result<Vec<String>, SpecError> {
    for glob in raw {
        source::globs(&[glob.get_ref().clone()]).map_err(|error| {
            let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            SpecError::at(glob, error.to_string()).help(why)
        })?;
    }
    Ok(raw.iter().map(|glob| glob.get_ref().clone()).collect())
}

fn dataset(raw: RawDataset, base: &Path) -> Result<DatasetSpec, SpecError> {
    let source = url(&raw.source, base)?;
    let name = raw.name.as_ref().map(|text| name(text, 100)).transpose()?;
    Ok(DatasetSpec {
        name: name.unwrap_or_else(|| source.default_name()),
        source: source.to_string(),
        include: globs(&raw.include)?,
        exclude: globs(&raw.exclude)?,
        version: raw.version.filter(|version| version != "latest"),
        s3: S3Spec {
            endpoint: raw.endpoint,
            region: raw.region,
            anonymous: raw.anonymous,
            path_style: raw.path_style,
            requester_pays: raw.requester_pays,
        },
    })
}

fn files(raw: &[Spanned<String>], base: &Path) -> Result<BTreeMap<String, String>, SpecError> {
    let mut files = BTreeMap::new();
    for file in raw {
        let path = base.join(file.get_ref());
        if !path.is_file() {
            let error = SpecError::at(file, format!("there is no file {}", path.display()));
            return Err(error.help("shipped files are relative to the job file's folder"));
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let path = path.to_str().map(str::to_owned).ok_or_else(|| SpecError::at(file, "the path is not UTF-8"))?;
        if files.insert(name.clone(), path).is_some() {
            return Err(SpecError::at(file, format!("two shipped files are named `{name}`")));
        }
    }
    Ok(files)
}

fn argv(argv: &Spanned<Vec<String>>, params: &BTreeMap<String, String>) -> Result<Program, SpecError> {
    if argv.get_ref().first().is_none_or(String::is_empty) {
        return Err(SpecError::at(argv, "the program is missing").help("write [\"program\", \"argument\", …]"));
    }
    let place = argv.span();
    Ok(Program::Argv(argv.get_ref().iter().map(|arg| filled(arg, &place, params)).collect::<Result<_, _>>()?))
}

fn command(raw: Spanned<RawCommand>, base: &Path, params: &BTreeMap<String, String>) -> Result<CommandSpec, SpecError> {
    let program = match (&raw.get_ref().argv, &raw.get_ref().shell) {
        (Some(argv), None) => self::argv(argv, params)?,
        (None, Some(shell)) => Program::Shell(filled(shell.get_ref(), &shell.span(), params)?),
        (Some(_), Some(shell)) => {
            return Err(SpecError::at(shell, "[command] has both argv and shell").help("keep one"));
        }
        (None, None) => return Err(SpecError::at(&raw, "[command] has neither argv nor shell")),
    };
    let raw = raw.into_inner();
    Ok(CommandSpec { program, files: files(&raw.files, base)?, env: raw.env })
}

fn mapreduce(raw: RawMapReduce, base: &Path, params: &BTreeMap<String, String>) -> Result<MapReduceSpec, SpecError> {
    let map = match raw.map.get_ref() {
        RawProgram::Argv(args) => Mapper::Program(argv(&Spanned::new(raw.map.span(), args.clone()), params)?),
        RawProgram::BuiltIn(text) => match &*filled(text, &raw.map.span(), params)? {
            "word-count" => Mapper::WordCount,
            "line-count" => Mapper::LineCount,
            "column-stats" => Mapper::ColumnStats,
            text if text.starts_with("grep ") => {
                let pattern = &text["grep ".len()..];
                regex::bytes::Regex::new(pattern).map_err(|error| {
                    SpecError::at(&raw.map, format!("`{pattern}` is no regular expression")).help(error.to_string())
                })?;
                Mapper::Grep(pattern.to_owned())
            }
            other => {
                return Err(SpecError::at(&raw.map, format!("there is no built-in `{other}`")).help(
                    "built in are word-count, line-count, grep PATTERN and column-stats; a program is an array",
                ));
            }
        },
    };
    let reduce = raw.reduce.as_ref().map(|reduce| argv(reduce, params)).transpose()?;
    match (&map, &raw.reduce) {
        (Mapper::Program(_), None) => {
            return Err(SpecError::at(&raw.map, "a map program needs a reduce program").help("add reduce = [\"…\"]"));
        }
        (Mapper::Program(_), Some(_)) | (_, None) => {}
        (_, Some(reduce)) => return Err(SpecError::at(reduce, "a built-in brings its own reduce").help("remove it")),
    }
    let partitions = positive(raw.partitions.as_ref(), 1, 100_000)?;
    Ok(MapReduceSpec { map, reduce, partitions, files: files(&raw.files, base)?, env: raw.env })
}

fn sql(raw: RawSql, dataset: &DatasetSpec, params: &BTreeMap<String, String>) -> Result<SqlSpec, SpecError> {
    let query = filled(raw.query.get_ref(), &raw.query.span(), params)?;
    crate::kinds::sql::check_syntax(&query).map_err(|message| SpecError::at(&raw.query, message))?;
    let mut tables = BTreeMap::new();
    for (table, glob) in raw.tables {
        globs(std::slice::from_ref(&glob))?;
        tables.insert(table, glob.into_inner());
    }
    if tables.is_empty() {
        tables.insert(dataset.name.replace(['-', '.'], "_"), "**".to_owned());
    }
    Ok(SqlSpec { query, tables })
}

fn split(raw: Option<Spanned<RawSplit>>, work: &Work) -> Result<SplitSpec, SpecError> {
    let default = match work {
        Work::Command(_) => SplitSpec { by: SplitBy::File, size: SplitSize::Each },
        Work::Mapreduce(_) => SplitSpec { by: SplitBy::Bytes, size: SplitSize::Bytes(128 << 20) },
        Work::Sql(_) => SplitSpec { by: SplitBy::Whole, size: SplitSize::Each },
    };
    let Some(raw) = raw else { return Ok(default) };
    if matches!(work, Work::Sql(_)) {
        return Err(SpecError::at(&raw, "a query is one task, and takes no [split]").help("remove it"));
    }
    let raw = raw.into_inner();
    let by = match &raw.by {
        None => default.by,
        Some(by) => match by.get_ref().as_str() {
            "file" => SplitBy::File,
            "bytes" | "lines" => SplitBy::Bytes,
            "row-groups" => SplitBy::RowGroups,
            "whole" => SplitBy::Whole,
            other => {
                let error = SpecError::at(by, format!("`{other}` is no way to split"));
                return Err(error.help("use file, bytes, lines, row-groups or whole"));
            }
        },
    };
    let size = match (&raw.size, &raw.count) {
        (Some(_), Some(count)) => return Err(SpecError::at(count, "[split] has both size and count").help("keep one")),
        (Some(size), None) => SplitSize::Bytes(sized(size, size::bytes)?),
        (None, Some(_)) => SplitSize::Count(positive(raw.count.as_ref(), 1, 10_000_000)?),
        (None, None) if by == SplitBy::Bytes => SplitSize::Bytes(128 << 20),
        (None, None) => SplitSize::Each,
    };
    Ok(SplitSpec { by, size })
}

fn workers(raw: RawWorkers) -> Result<WorkersSpec, SpecError> {
    if let Some(fleet) = &raw.fleet
        && fleet.get_ref() != "local"
    {
        let error = SpecError::at(fleet, format!("there is no fleet `{}` in this version", fleet.get_ref()));
        return Err(error.help("use local"));
    }
    let slots = raw.slots.as_ref().map(|_| positive(raw.slots.as_ref(), 1, 1024)).transpose()?;
    Ok(WorkersSpec { fleet: FleetKind::Local, count: positive(raw.count.as_ref(), 1, 10_000)?, slots })
}

fn retry(raw: RawRetry) -> Result<RetrySpec, SpecError> {
    let (backoff_first, backoff_last) = match &raw.backoff {
        None => (Duration::from_secs(1), Duration::from_secs(60)),
        Some(text) => {
            let (first, last) = text.get_ref().split_once("..").unwrap_or((text.get_ref(), text.get_ref()));
            let part = |part: &str| size::duration(part).map_err(|message| SpecError::at(text, message));
            let (first, last) = (part(first)?, part(last)?);
            if first > last {
                return Err(SpecError::at(text, "the first wait is longer than the last").help("write \"1s..60s\""));
            }
            (first, last)
        }
    };
    Ok(RetrySpec {
        attempts: positive(raw.attempts.as_ref(), 3, 1000)?,
        backoff_first,
        backoff_last,
        timeout: raw.timeout.as_ref().map(|text| sized(text, size::duration)).transpose()?,
        max_failures: raw.max_failures.unwrap_or(0),
    })
}

fn output(raw: RawOutput, base: &Path) -> Result<OutputSpec, SpecError> {
    let format = match &raw.format {
        None => OutputFormat::default(),
        Some(format) => match format.get_ref().as_str() {
            "parquet" => OutputFormat::Parquet,
            "csv" => OutputFormat::Csv,
            "ndjson" => OutputFormat::Ndjson,
            other => {
                return Err(
                    SpecError::at(format, format!("`{other}` is no output format")).help("use parquet, csv or ndjson")
                );
            }
        },
    };
    let to = raw.to.as_ref().map(|to| url(to, base)).transpose()?.map(|to| to.to_string());
    let s3 = S3Spec { endpoint: raw.endpoint, region: raw.region, path_style: raw.path_style, ..S3Spec::default() };
    Ok(OutputSpec { format, to, s3 })
}

fn sized<T>(text: &Spanned<String>, parse: fn(&str) -> Result<T, String>) -> Result<T, SpecError> {
    parse(text.get_ref()).map_err(|message| SpecError::at(text, message))
}

fn positive(number: Option<&Spanned<u32>>, default: u32, most: u32) -> Result<u32, SpecError> {
    match number {
        None => Ok(default),
        Some(number) if (1..=most).contains(number.get_ref()) => Ok(*number.get_ref()),
        Some(number) => Err(SpecError::at(number, format!("{} is out of range", number.get_ref()))
            .help(format!("it is from 1 to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "name = \"j\"\n[dataset]\nsource = \"s3://b/flights\"\n";

    fn parse(rest: &str) -> Result<JobSpec, SpecError> {
        job_file(&format!("{HEAD}{rest}"), Path::new("/base"), &[])
    }

    fn problem(rest: &str) -> (String, String) {
        let text = format!("{HEAD}{rest}");
        let error = job_file(&text, Path::new("/base"), &[]).unwrap_err();
        (error.message, error.span.map(|span| text[span].to_owned()).unwrap_or_default())
    }

    #[test]
    fn the_shortest_job_has_every_default() {
        let job = parse("[sql]\nquery = \"select 1\"").unwrap();
        assert_eq!(job.dataset.name, "flights");
        assert_eq!(job.split, SplitSpec { by: SplitBy::Whole, size: SplitSize::Each });
        assert_eq!((job.retry.attempts, job.workers.count), (3, 1));
        let Work::Sql(sql) = job.work else { panic!("{:?}", job.work) };
        assert_eq!(sql.tables, BTreeMap::from([("flights".to_owned(), "**".to_owned())]));
    }

    #[test]
    fn errors_point_at_what_is_wrong() {
        for (rest, message, place) in [
            ("[sql]\nquery = \"select 1\"\nquerry = 1", "unknown key `querry`", "querry"),
            ("[sql]\nquery = \"select 1\"\n[command]\nargv = [\"x\"]", "the job has two kinds of work", ""),
            ("include = [\"a{\"]\n[sql]\nquery = \"select 1\"", "`a{` is no glob", "\"a{\""),
            (
                "[command]\nargv = [\"x\"]\n[split]\nsize = \"4XB\"",
                "`4XB` is no size: write 64KiB, 128MiB, 1GB",
                "\"4XB\"",
            ),
            ("[sql]\nquery = \"select 1\"\n[sweep]\nx = [1]", "`sweep` is not supported by this version", "sweep"),
            ("[command]\nargv = []", "the program is missing", "[]"),
            ("[command]\nargv = [\"${params.x}\"]", "there is no parameter `x`", "[\"${params.x}\"]"),
            ("[mapreduce]\nmap = \"word-cont\"", "there is no built-in `word-cont`", "\"word-cont\""),
            ("[mapreduce]\nmap = [\"m\"]", "a map program needs a reduce program", "[\"m\"]"),
            ("[command]\nargv = [\"x\"]\n[workers]\ncount = 0", "0 is out of range", "0"),
            ("", "the job does nothing: it has no kind of work", "\"j\""),
        ] {
            let (found, at) = problem(rest);
            assert_eq!(found, message, "{rest}");
            assert!(place.is_empty() || at == place, "{rest}: {at}");
        }
        let (message, _) = problem("[sql]\nquery = \"selct 1\"");
        assert!(message.contains("selct"), "{message}");
    }

    #[test]
    fn params_are_filled_in_and_overridden() {
        let text = format!("{HEAD}[command]\nargv = [\"p\", \"--lr=${{params.lr}}\"]\n[params]\nlr = 0.1");
        let job = job_file(&text, Path::new("/"), &[("lr".into(), "0.2".into())]).unwrap();
        let Work::Command(command) = job.work else { panic!() };
        assert_eq!(command.program, Program::Argv(vec!["p".into(), "--lr=0.2".into()]));
        assert!(job_file(&text, Path::new("/"), &[("nope".into(), "1".into())]).is_err());
    }

    #[test]
    fn a_resolved_job_survives_its_own_json() {
        let job = parse("[mapreduce]\nmap = \"grep a+\"\n[retry]\ntimeout = \"90s\"").unwrap();
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), job);
    }
}
