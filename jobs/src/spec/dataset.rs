//! What a job reads.

use std::path::Path;

use forebay_datasets::{
    columns::Columns,
    source::{Keys, S3Options, SourceError, SourceOptions},
    stage::StageRequest,
};
use serde::{Deserialize, Serialize};

/// `[dataset]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetSpec {
    /// `s3://bucket/prefix` or `file:///dir` (absolute); of several what they have in common.
    pub source: String,
    /// Of several sources, what each has below the common one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// Only the keys of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeysSpec>,
    /// Name on the volume.
    pub name: String,
    /// Globs over the keys below the prefix; empty takes all.
    pub include: Vec<String>,
    /// Globs over the keys below the prefix.
    pub exclude: Vec<String>,
    /// A snapshot id, or none for what the source holds now.
    pub version: Option<String>,
    /// Whether tasks start once their own inputs are staged; none: where what is built in is known to read nothing else.
    #[serde(default)]
    pub early_start: Option<bool>,
    /// What is staged of its Parquet objects.
    #[serde(default)]
    pub columns: ColumnsSpec,
    /// What becomes of records that cannot be read.
    #[serde(default)]
    pub on_bad_record: OnBadRecord,
    /// How S3 is reached, where the environment does not say.
    pub s3: S3Spec,
}

/// A file of keys, as it was when the job was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysSpec {
    /// Absolute, on the submitting host.
    pub file: String,
    /// Of the keys, without regard to their order.
    pub digest: String,
}

impl KeysSpec {
    fn read(&self) -> Result<Keys, SourceError> {
        let path = Path::new(&self.file);
        let keys = Keys::read(path)?;
        match keys.digest() == self.digest {
            true => Ok(keys),
            false => {
                let why = "it names other keys than when the job was submitted".to_owned();
                Err(SourceError::BadKeys { path: path.to_owned(), why })
            }
        }
    }
}

impl DatasetSpec {
    /// What is to be staged; the columns that a query needs are not known here, and left open.
    ///
    /// # Errors
    /// None for a spec that was parsed, whose source has been understood once; but a file of keys may have changed.
    pub fn stage_request(&self) -> Result<StageRequest, SourceError> {
        let options = SourceOptions {
            prefixes: self.prefixes.clone(),
            keys: self.keys.as_ref().map(KeysSpec::read).transpose()?,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            s3: self.s3.options(),
        };
        let columns = match &self.columns {
            ColumnsSpec::Only(columns) => Some(columns.clone()),
            ColumnsSpec::All | ColumnsSpec::Needed => None,
        };
        Ok(StageRequest { name: self.name.clone(), url: self.source.parse()?, options, columns, durable: true })
    }
}

/// The columns of Parquet objects that are staged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColumnsSpec {
    /// Whole objects, which any other job can read as well.
    #[default]
    All,
    /// Those that the query reads.
    Needed,
    /// These.
    Only(Columns),
}

/// What a query does with a record that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadRecord {
    /// It fails, and names the record.
    #[default]
    Fail,
    /// It goes on without; the output lists the record.
    Skip,
}

/// The keys of `[dataset]` and `[output]` that say how S3 is reached; all else is found as the AWS SDK finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3Spec {
    /// Base URL of an S3-compatible server.
    pub endpoint: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Sign nothing.
    pub anonymous: bool,
    /// Bucket in the path; none: in the path exactly when there is a custom endpoint.
    pub path_style: Option<bool>,
    /// Pay for the requests.
    pub requester_pays: bool,
}

impl S3Spec {
    /// As [`forebay_datasets`] takes it.
    pub fn options(&self) -> S3Options {
        S3Options {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            anonymous: self.anonymous,
            path_style: self.path_style,
            requester_pays: self.requester_pays,
        }
    }
}
