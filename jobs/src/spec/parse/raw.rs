//! A job file as it is typed: every key that may stand in it, and where it stands.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, Error, MapAccess, SeqAccess, Visitor},
};
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawJob {
    pub(super) name: Spanned<String>,
    pub(super) dataset: RawDataset,
    pub(super) command: Option<Spanned<RawCommand>>,
    pub(super) mapreduce: Option<Spanned<RawMapReduce>>,
    pub(super) sql: Option<Spanned<RawSql>>,
    pub(super) split: Option<Spanned<RawSplit>>,
    #[serde(default)]
    pub(super) workers: RawWorkers,
    pub(super) coordinator: Option<Spanned<RawCoordinator>>,
    pub(super) kubernetes: Option<Spanned<RawKubernetes>>,
    pub(super) slurm: Option<Spanned<RawSlurm>>,
    pub(super) ecs: Option<Spanned<RawEcs>>,
    #[serde(default)]
    pub(super) retry: RawRetry,
    #[serde(default)]
    pub(super) params: BTreeMap<String, Spanned<toml::Value>>,
    #[serde(default)]
    pub(super) output: RawOutput,
    pub(super) reuse: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDataset {
    pub(super) source: Spanned<RawSource>,
    pub(super) keys: Option<Spanned<String>>,
    pub(super) name: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) include: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) exclude: Vec<Spanned<String>>,
    pub(super) version: Option<Spanned<String>>,
    pub(super) early_start: Option<Spanned<bool>>,
    pub(super) columns: Option<Spanned<RawColumns>>,
    pub(super) on_bad_record: Option<Spanned<String>>,
    pub(super) endpoint: Option<Spanned<String>>,
    pub(super) region: Option<String>,
    #[serde(default)]
    pub(super) anonymous: bool,
    pub(super) path_style: Option<bool>,
    #[serde(default)]
    pub(super) requester_pays: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCommand {
    pub(super) argv: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) shell: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) gang: bool,
    #[serde(default)]
    pub(super) files: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) env: BTreeMap<String, Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMapReduce {
    pub(super) map: Spanned<RawMapper>,
    pub(super) reduce: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) partitions: Option<Spanned<u32>>,
    #[serde(default)]
    pub(super) files: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) env: BTreeMap<String, Spanned<String>>,
}

/// One source, or several.
pub(super) enum RawSource {
    One(String),
    Several(Vec<Spanned<String>>),
}

/// By hand, as the other one is.
impl<'de> Deserialize<'de> for RawSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Source;
        impl<'de> Visitor<'de> for Source {
            type Value = RawSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a source, or an array of sources")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RawSource, E> {
                Ok(RawSource::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<RawSource, A::Error> {
                let mut sources = Vec::new();
                while let Some(source) = array.next_element()? {
                    sources.push(source);
                }
                Ok(RawSource::Several(sources))
            }
        }
        deserializer.deserialize_any(Source)
    }
}

pub(super) enum RawMapper {
    BuiltIn(String),
    Argv(Vec<Spanned<String>>),
    Native(RawNative),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNative {
    pub(super) native: Spanned<String>,
}

impl<'de> Deserialize<'de> for RawMapper {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Mapper;
        impl<'de> Visitor<'de> for Mapper {
            type Value = RawMapper;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a built-in, an array of a program and its arguments, or { native = \"NAME\" }")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RawMapper, E> {
                Ok(RawMapper::BuiltIn(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, array: A) -> Result<RawMapper, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(array)).map(RawMapper::Argv)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawMapper, A::Error> {
                RawNative::deserialize(de::value::MapAccessDeserializer::new(map)).map(RawMapper::Native)
            }
        }
        deserializer.deserialize_any(Mapper)
    }
}

pub(super) enum RawColumns {
    Word(String),
    Names(Vec<Spanned<String>>),
}

impl<'de> Deserialize<'de> for RawColumns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read =
            WordOrList { expecting: "\"all\", \"needed\", or an array of names", word: Self::Word, list: Self::Names };
        deserializer.deserialize_any(read)
    }
}

pub(super) enum RawGlobs {
    One(String),
    Several(Vec<Spanned<String>>),
}

impl<'de> Deserialize<'de> for RawGlobs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrList {
            expecting: "a glob, or an array of globs",
            word: Self::One,
            list: Self::Several,
        })
    }
}

/// By hand: serde's untagged enums lose both the places inside and the message of what went wrong.
struct WordOrList<T> {
    expecting: &'static str,
    word: fn(String) -> T,
    list: fn(Vec<Spanned<String>>) -> T,
}

impl<'de, T> Visitor<'de> for WordOrList<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Ok((self.word)(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<T, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = array.next_element()? {
            list.push(item);
        }
        Ok((self.list)(list))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSql {
    pub(super) query: Spanned<String>,
    pub(super) engine: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) tables: BTreeMap<String, Spanned<RawTable>>,
    #[serde(default)]
    pub(super) options: BTreeMap<String, Spanned<toml::Value>>,
}

pub(super) enum RawTable {
    Glob(String),
    Keys(Box<RawTableKeys>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTableKeys {
    pub(super) include: Spanned<RawGlobs>,
    #[serde(default)]
    pub(super) exclude: Vec<Spanned<String>>,
    pub(super) format: Option<Spanned<String>>,
    pub(super) header: Option<bool>,
    #[serde(default)]
    pub(super) columns: Vec<Spanned<String>>,
    pub(super) delimiter: Option<Spanned<String>>,
    pub(super) quote: Option<Spanned<String>>,
    pub(super) escape: Option<Spanned<String>>,
    pub(super) comment: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) null: Vec<Spanned<String>>,
    pub(super) newlines: Option<bool>,
    #[serde(default)]
    pub(super) schema: BTreeMap<String, Spanned<String>>,
    pub(super) partitions: Option<bool>,
}

impl<'de> Deserialize<'de> for RawTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;
        impl<'de> Visitor<'de> for Table {
            type Value = RawTable;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a glob, or a table such as { include = \"*.csv\", delimiter = \";\" }")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RawTable, E> {
                Ok(RawTable::Glob(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawTable, A::Error> {
                let keys = RawTableKeys::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(RawTable::Keys(Box::new(keys)))
            }
        }
        deserializer.deserialize_any(Table)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSplit {
    pub(super) by: Option<Spanned<String>>,
    pub(super) size: Option<Spanned<String>>,
    pub(super) count: Option<Spanned<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWorkers {
    pub(super) fleet: Option<Spanned<String>>,
    pub(super) count: Option<Spanned<u32>>,
    pub(super) slots: Option<Spanned<u32>>,
    pub(super) cpus: Option<Spanned<u32>>,
    pub(super) memory: Option<Spanned<String>>,
    pub(super) gpus: Option<Spanned<u32>>,
    pub(super) readers: Option<Spanned<u32>>,
    pub(super) ramp: Option<Spanned<String>>,
    pub(super) time: Option<Spanned<String>>,
    pub(super) patience: Option<Spanned<String>>,
    pub(super) link: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCoordinator {
    pub(super) cpus: Option<Spanned<u32>>,
    pub(super) memory: Option<Spanned<String>>,
    pub(super) time: Option<Spanned<String>>,
    pub(super) partition: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) options: Vec<Spanned<String>>,
    pub(super) service_account: Option<Spanned<String>>,
    pub(super) task_role: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) security_groups: Vec<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSlurm {
    pub(super) partition: Option<Spanned<String>>,
    pub(super) account: Option<Spanned<String>>,
    pub(super) qos: Option<Spanned<String>>,
    pub(super) gres: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) options: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) setup: Vec<Spanned<String>>,
    pub(super) program: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRetry {
    pub(super) attempts: Option<Spanned<u32>>,
    pub(super) backoff: Option<Spanned<String>>,
    pub(super) timeout: Option<Spanned<String>>,
    pub(super) max_failures: Option<Spanned<u32>>,
    pub(super) speculate: Option<Spanned<bool>>,
    pub(super) resplit: Option<Spanned<bool>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOutput {
    pub(super) format: Option<Spanned<String>>,
    pub(super) partition_by: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) row_group_size: Option<Spanned<String>>,
    pub(super) to: Option<Spanned<String>>,
    pub(super) endpoint: Option<Spanned<String>>,
    pub(super) region: Option<String>,
    pub(super) path_style: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEcs {
    pub(super) cluster: Option<Spanned<String>>,
    pub(super) image: Spanned<String>,
    pub(super) launch_type: Option<Spanned<String>>,
    pub(super) capacity: Option<Spanned<Vec<RawProvider>>>,
    pub(super) platform_version: Option<Spanned<String>>,
    pub(super) architecture: Option<Spanned<String>>,
    pub(super) vcpus: Option<Spanned<toml::Value>>,
    pub(super) memory: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) subnets: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) security_groups: Vec<Spanned<String>>,
    pub(super) public_ip: Option<Spanned<bool>>,
    pub(super) execution_role: Option<Spanned<String>>,
    pub(super) task_role: Option<Spanned<String>>,
    pub(super) efs: Option<Spanned<RawEfs>>,
    pub(super) s3files: Option<Spanned<RawS3Files>>,
    pub(super) host_path: Option<Spanned<String>>,
    pub(super) directory: Option<Spanned<String>>,
    pub(super) log_group: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) tags: BTreeMap<String, Spanned<String>>,
    pub(super) endpoint: Option<Spanned<String>>,
    pub(super) region: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProvider {
    pub(super) provider: Spanned<String>,
    pub(super) weight: Option<Spanned<u32>>,
    pub(super) base: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEfs {
    pub(super) file_system: Spanned<String>,
    pub(super) access_point: Option<Spanned<String>>,
    pub(super) root_directory: Option<Spanned<String>>,
    pub(super) transit_encryption: Option<Spanned<bool>>,
    pub(super) iam: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawS3Files {
    pub(super) file_system: Spanned<String>,
    pub(super) access_point: Option<Spanned<String>>,
    pub(super) root_directory: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKubernetes {
    pub(super) kubeconfig: Option<String>,
    pub(super) context: Option<String>,
    pub(super) namespace: Option<Spanned<String>>,
    pub(super) image: Option<Spanned<String>>,
    pub(super) program: Option<Spanned<String>>,
    pub(super) pull_policy: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) pull_secrets: Vec<Spanned<String>>,
    pub(super) claim: Option<Spanned<String>>,
    pub(super) sub_path: Option<Spanned<String>>,
    pub(super) mount: Option<Spanned<String>>,
    pub(super) service_account: Option<Spanned<String>>,
    pub(super) user: Option<Spanned<u32>>,
    pub(super) group: Option<u32>,
    #[serde(default)]
    pub(super) node_selector: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    pub(super) tolerations: Vec<Spanned<RawToleration>>,
    pub(super) priority_class: Option<Spanned<String>>,
    pub(super) gpu_resource: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, Spanned<String>>,
    pub(super) grace: Option<Spanned<String>>,
    pub(super) ttl: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawToleration {
    pub(super) key: Option<Spanned<String>>,
    pub(super) value: Option<Spanned<String>>,
    pub(super) effect: Option<Spanned<String>>,
    pub(super) time: Option<Spanned<String>>,
}
