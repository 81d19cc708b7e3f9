//! `[dataset]` and `[output]`: where bytes come from and go to.

use std::{collections::BTreeSet, ops::Range, path::Path};

use forebay_datasets::source::{self, Keys, SourceError, SourceUrl};
use toml::Spanned;

use super::{
    SpecError, name,
    raw::{RawColumns, RawDataset, RawOutput, RawSource},
};
use crate::spec::{
    ColumnsSpec, DatasetSpec, KeysSpec, Mapper, OnBadRecord, OutputFormat, OutputSpec, S3Spec, Work, size,
};

pub(super) fn dataset(raw: RawDataset, base: &Path) -> Result<DatasetSpec, SpecError> {
    let (source, prefixes) = sources(&raw.source, base)?;
    let keys = raw.keys.as_ref().map(|file| keys(file, base)).transpose()?;
    if let (Some(file), false) = (&raw.keys, prefixes.is_empty()) {
        let error = SpecError::at(file, "keys are those below one source, and there are several");
        return Err(error.help("name the common source, and the keys below it"));
    }
    let name = raw.name.as_ref().map(|text| name(text, 100)).transpose()?;
    let version = raw.version.as_ref().map(version).transpose()?.flatten();
    if let (Some(_), Some(columns)) = (&version, &raw.columns) {
        let error = SpecError::at(columns, "columns has no effect beside version: a snapshot is read as it is");
        return Err(error.help("remove one of them"));
    }
    Ok(DatasetSpec {
        name: name.unwrap_or_else(|| source.default_name()),
        source: source.to_string(),
        prefixes,
        keys,
        include: globs(&raw.include)?,
        exclude: globs(&raw.exclude)?,
        version,
        early_start: raw.early_start.as_ref().map(|early| *early.get_ref()),
        columns: raw.columns.as_ref().map(columns).transpose()?.unwrap_or_default(),
        on_bad_record: raw.on_bad_record.as_ref().map(on_bad_record).transpose()?.unwrap_or_default(),
        s3: S3Spec {
            endpoint: raw.endpoint.as_ref().map(endpoint).transpose()?,
            region: raw.region,
            anonymous: raw.anonymous,
            path_style: raw.path_style,
            requester_pays: raw.requester_pays,
        },
    })
}

fn columns(raw: &Spanned<RawColumns>) -> Result<ColumnsSpec, SpecError> {
    let names = match raw.get_ref() {
        RawColumns::Word(word) => {
            return match word.as_str() {
                "all" => Ok(ColumnsSpec::All),
                "needed" => Ok(ColumnsSpec::Needed),
                other => Err(SpecError::at(raw, format!("`{other}` is no choice of columns"))
                    .help("write \"all\", \"needed\", or an array of names")),
            };
        }
        RawColumns::Names(names) => names,
    };
    let mut seen = BTreeSet::new();
    for name in names {
        match name.get_ref().as_str() {
            "" => return Err(SpecError::at(name, "a column has no name")),
            text if !seen.insert(text) => {
                return Err(SpecError::at(name, format!("the column `{text}` is named twice")));
            }
            _ => {}
        }
    }
    match seen.is_empty() {
        true => Err(SpecError::at(raw, "no column is named").help("name some, or write \"all\" or \"needed\"")),
        false => Ok(ColumnsSpec::Only(seen.into_iter().collect())),
    }
}

fn on_bad_record(text: &Spanned<String>) -> Result<OnBadRecord, SpecError> {
    match text.get_ref().as_str() {
        "fail" => Ok(OnBadRecord::Fail),
        "skip" => Ok(OnBadRecord::Skip),
        other => Err(SpecError::at(text, format!("`{other}` is nothing that can be done with a bad record"))
            .help("write \"fail\" or \"skip\"")),
    }
}

/// Only a query knows records that cannot be read.
pub(super) fn check_bad_records(work: &Work, place: Option<Range<usize>>) -> Result<(), SpecError> {
    match (work, place) {
        (Work::Command(_) | Work::Mapreduce(_), Some(place)) => {
            let error = SpecError::at(&Spanned::new(place, ()), "on_bad_record is for queries alone");
            Err(error.help("remove it: programs and built-ins see every record as it is"))
        }
        _ => Ok(()),
    }
}

/// What is not staged whole can be read by a query alone.
pub(super) fn check_columns(dataset: &DatasetSpec, work: &Work, place: Option<Range<usize>>) -> Result<(), SpecError> {
    match (&dataset.columns, work, place) {
        (ColumnsSpec::Needed | ColumnsSpec::Only(_), Work::Command(_) | Work::Mapreduce(_), Some(place)) => {
            let error = SpecError::at(&Spanned::new(place, ()), "only a query reads some columns of an object");
            Err(error.help("remove columns: this job reads whole objects"))
        }
        _ => Ok(()),
    }
}

pub(super) fn output(raw: RawOutput, base: &Path, dataset: &DatasetSpec, work: &Work) -> Result<OutputSpec, SpecError> {
    let by_program = match work {
        Work::Command(_) => true,
        Work::Mapreduce(spec) => matches!(spec.map, Mapper::Program(_)),
        Work::Sql(_) => false,
    };
    if let (Some(format), true) = (&raw.format, by_program) {
        let error = SpecError::at(format, "a program's output is published as the program wrote it");
        return Err(error.help("remove format"));
    }
    let format = match &raw.format {
        None => OutputFormat::default(),
        Some(format) => match format.get_ref().as_str() {
            "parquet" => OutputFormat::Parquet,
            "csv" => OutputFormat::Csv,
            "ndjson" => OutputFormat::Ndjson,
            "arrow" => OutputFormat::Arrow,
            other => {
                let error = SpecError::at(format, format!("`{other}` is no output format"));
                return Err(error.help("use parquet, csv, ndjson or arrow"));
            }
        },
    };
    let (partition_by, row_group_size) = layout(&raw, format, work)?;
    let to = raw.to.as_ref().map(|to| url(to, base).map(|url| (url.to_string(), to))).transpose()?;
    if let Some((url, to)) = &to
        && is_taken(dataset, url)
    {
        let error = SpecError::at(to, "the output would be copied into its own source");
        return Err(error.help("the next run would read it as data: name another place, or exclude this one"));
    }
    Ok(OutputSpec {
        format,
        partition_by,
        row_group_size,
        to: to.map(|(url, _)| url),
        s3: S3Spec {
            endpoint: raw.endpoint.as_ref().map(endpoint).transpose()?,
            region: raw.region,
            path_style: raw.path_style,
            ..S3Spec::default()
        },
    })
}

/// How a query's output lies in directories and row groups.
fn layout(raw: &RawOutput, format: OutputFormat, work: &Work) -> Result<(Vec<String>, Option<u64>), SpecError> {
    let mut columns: Vec<String> = Vec::new();
    if let Some(raw) = &raw.partition_by {
        if !matches!(work, Work::Sql(_)) {
            let error = SpecError::at(raw, "only a query's output is partitioned by columns");
            return Err(error.help("remove partition_by"));
        }
        if raw.get_ref().is_empty() {
            return Err(SpecError::at(raw, "partition_by names no column").help("name some, or remove it"));
        }
        for column in raw.get_ref() {
            match column.get_ref().as_str() {
                "" => return Err(SpecError::at(column, "a column has no name")),
                name if columns.iter().any(|other| other == name) => {
                    return Err(SpecError::at(column, format!("the column `{name}` is named twice")));
                }
                name => columns.push(name.to_owned()),
            }
        }
    }
    let Some(text) = &raw.row_group_size else { return Ok((columns, None)) };
    if format != OutputFormat::Parquet || !matches!(work, Work::Sql(_)) {
        let error = SpecError::at(text, "row groups are of a query's Parquet output");
        return Err(error.help("remove row_group_size"));
    }
    match size::bytes(text.get_ref()).map_err(|message| SpecError::at(text, message))? {
        bytes if (LEAST_ROW_GROUP..=MOST_ROW_GROUP).contains(&bytes) => Ok((columns, Some(bytes))),
        _ => Err(SpecError::at(text, "a row group is of 64 KiB to 4 GiB").help("128MiB is a good size")),
    }
}

/// Below it the footer outgrows the data.
const LEAST_ROW_GROUP: u64 = 64 << 10;
/// A writer holds a row group in memory.
const MOST_ROW_GROUP: u64 = 4 << 30;

/// One source; or what several have in common, and what each has below it.
fn sources(raw: &Spanned<RawSource>, base: &Path) -> Result<(SourceUrl, Vec<String>), SpecError> {
    let several = match raw.get_ref() {
        RawSource::One(one) => vec![Spanned::new(raw.span(), one.clone())],
        RawSource::Several(several) if several.is_empty() => {
            return Err(SpecError::at(raw, "a dataset has at least one source"));
        }
        RawSource::Several(several) => several.clone(),
    };
    let urls = several.iter().map(|one| url(one, base)).collect::<Result<Vec<_>, _>>()?;
    source::several(&urls).map_err(|error| SpecError::at(raw, error.to_string()))
}

/// The file beside the job, and what it says now.
fn keys(file: &Spanned<String>, base: &Path) -> Result<KeysSpec, SpecError> {
    let path = base.join(file.get_ref());
    let path = std::path::absolute(&path).unwrap_or(path);
    let bad = |why: String| SpecError::at(file, why).help("a file of keys below the source, one a line");
    let keys = Keys::read(&path).map_err(|error| bad(error.to_string()))?;
    let name = path.to_str().ok_or_else(|| bad("the file's path is not UTF-8".to_owned()))?;
    Ok(KeysSpec { file: name.to_owned(), digest: keys.digest() })
}

/// Whether files that are copied there would be part of the dataset.
fn is_taken(dataset: &DatasetSpec, to: &str) -> bool {
    let folder = |url: &str| format!("{}/", url.trim_end_matches('/'));
    let Some(below) = folder(to).strip_prefix(&folder(&dataset.source)).map(str::to_owned) else { return false };
    if dataset.keys.is_some() {
        return false;
    }
    let is_below =
        |key: &String| dataset.prefixes.is_empty() || dataset.prefixes.iter().any(|prefix| key.starts_with(prefix));
    let matches = |list: &[String], key: &str| source::globs(list).is_ok_and(|globs| globs.is_match(key));
    let names = [
        "_SUCCESS",
        "_manifest.parquet",
        "part-00000.parquet",
        "part-00000.csv",
        "part-00000.ndjson",
        "part-00000.arrow",
        "task-00000/x",
    ];
    names
        .iter()
        .map(|name| format!("{below}{name}"))
        .filter(is_below)
        .any(|key| (dataset.include.is_empty() || matches(&dataset.include, &key)) && !matches(&dataset.exclude, &key))
}

fn url(text: &Spanned<String>, base: &Path) -> Result<SourceUrl, SpecError> {
    let given = text.get_ref();
    let relative = given.starts_with("./") || given.starts_with("../") || given == "." || given == "..";
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

/// Checks globs and returns them as they are written.
pub(super) fn globs(raw: &[Spanned<String>]) -> Result<Vec<String>, SpecError> {
    for glob in raw {
        source::globs(std::slice::from_ref(glob.get_ref())).map_err(|error| {
            let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            SpecError::at(glob, error.to_string()).help(why)
        })?;
    }
    Ok(raw.iter().map(|glob| glob.get_ref().clone()).collect())
}

/// A snapshot's id or the beginning of one; none for `latest`.
fn version(text: &Spanned<String>) -> Result<Option<String>, SpecError> {
    match text.get_ref().as_str() {
        "latest" => Ok(None),
        id if (1..=32).contains(&id.len()) && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
            Ok(Some(id.to_owned()))
        }
        other => Err(SpecError::at(text, format!("`{other}` is no snapshot id"))
            .help("write \"latest\", or an id that `forebay dataset show` prints")),
    }
}

pub(super) fn endpoint(text: &Spanned<String>) -> Result<String, SpecError> {
    let given = text.get_ref();
    let fits = url::Url::parse(given).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    match fits {
        true => Ok(given.clone()),
        false => Err(SpecError::at(text, format!("`{given}` is no endpoint")).help("write https://host:port")),
    }
}
