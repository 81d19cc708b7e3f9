//! How a plan travels.
//!
//! DataFusion's and Ballista's own nodes are written by their own codecs. What is forebay's is the reader of text: it
//! travels as its table's name, the columns of its files, and the scan; how the text is to be understood, the job says
//! on either side. Files are named by their place on the volume throughout, so that no plan depends on a mount.

use std::sync::Arc;

use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::{
    arrow::datatypes::Schema,
    datasource::{
        physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder},
        source::DataSourceExec,
    },
    error::{DataFusionError, Result},
    execution::TaskContext,
    physical_plan::ExecutionPlan,
};
use datafusion_proto::{
    physical_plan::{
        PhysicalExtensionCodec, PhysicalPlanDecodeContext, PhysicalProtoConverterExtension,
        from_proto::{parse_protobuf_file_scan_config, parse_table_schema_from_proto},
        to_proto::serialize_file_scan_config,
    },
    protobuf,
};
use forebay_datasets::volume::Volume;
use prost::Message;

use super::super::{
    bad::BadRecords,
    text::{TextFormat, TextPlace, TextSource, TextTable},
};
use crate::spec::{JobSpec, OnBadRecord, SqlSpec, Work, table::TableFormat};

/// What begins a node that is forebay's.
const MARK: &[u8] = b"forebay text 1\0";

/// A scan of text.
#[derive(Clone, PartialEq, Message)]
struct TextScan {
    /// The table, as a query names it without quotes.
    #[prost(string, tag = "1")]
    table: String,
    #[prost(bool, tag = "2")]
    csv: bool,
    /// All columns of a file, in its order.
    #[prost(message, optional, tag = "3")]
    columns: Option<protobuf::Schema>,
    #[prost(message, optional, tag = "4")]
    scan: Option<protobuf::FileScanExecConf>,
    /// The files' keys, in the order of the scan.
    #[prost(string, repeated, tag = "5")]
    keys: Vec<String>,
}

/// Writes and reads plans of one job's query.
#[derive(Debug)]
pub struct Codec {
    volume: Volume,
    sql: Option<SqlSpec>,
    on_bad_record: OnBadRecord,
    ballista: BallistaPhysicalExtensionCodec,
}

impl Codec {
    /// Of a job, on a volume as this host mounts it.
    pub fn new(volume: &Volume, job: &JobSpec) -> Self {
        let sql = match &job.work {
            Work::Sql(sql) => Some(sql.clone()),
            _ => None,
        };
        let (volume, on_bad_record) = (volume.clone(), job.dataset.on_bad_record);
        Self { volume, sql, on_bad_record, ballista: BallistaPhysicalExtensionCodec::default() }
    }

    fn format_of(&self, table: &str, csv: bool) -> Option<TextFormat> {
        let tables = self.sql.as_ref()?.tables.iter();
        let (_, spec) = tables.into_iter().find(|(name, _)| name.to_ascii_lowercase() == table)?;
        TextFormat::of(spec, if csv { TableFormat::Csv } else { TableFormat::Ndjson })
    }

    fn scan(
        &self,
        text: &TextScan,
        ctx: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<FileScanConfig> {
        let torn = || DataFusionError::Internal(format!("the scan of `{}` came without its parts", text.table));
        let unknown = || DataFusionError::Internal(format!("the job has no table `{}` of text", text.table));
        let (scan, columns) = (text.scan.as_ref().ok_or_else(torn)?, text.columns.as_ref().ok_or_else(torn)?);
        let format = Arc::new(self.format_of(&text.table, text.csv).ok_or_else(unknown)?);
        let columns: Schema = columns.try_into()?;
        let of = TextTable { name: text.table.clone(), format };
        let bad = Arc::new(BadRecords::new(self.on_bad_record));
        let source = TextSource::new(of, Arc::new(columns), parse_table_schema_from_proto(scan)?, bad);
        let decode = PhysicalPlanDecodeContext::new(ctx, self);
        let config = parse_protobuf_file_scan_config(scan, &decode, converter, Arc::new(source))?;
        let (mut keys, mut groups) = (text.keys.iter(), Vec::new());
        for group in &config.file_groups {
            let mut files = Vec::new();
            for file in group.files() {
                let key = keys.next().ok_or_else(torn)?.clone();
                let path = self.volume.resolve(file.object_meta.location.as_ref());
                let path = path.map_err(|error| DataFusionError::External(Box::new(error)))?;
                files.push(file.clone().with_extension(TextPlace { key, path }));
            }
            groups.push(FileGroup::new(files));
        }
        Ok(FileScanConfigBuilder::from(config).with_file_groups(groups).build())
    }
}

/// The scan of text that a node is.
fn text_of(node: &dyn ExecutionPlan) -> Option<(&FileScanConfig, &TextSource)> {
    let scan = node.downcast_ref::<DataSourceExec>()?.data_source().downcast_ref::<FileScanConfig>()?;
    Some((scan, scan.file_source().downcast_ref::<TextSource>()?))
}

impl PhysicalExtensionCodec for Codec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(bytes) = bytes.strip_prefix(MARK) else {
            return self.ballista.try_decode(bytes, inputs, ctx, converter);
        };
        let text = TextScan::decode(bytes).map_err(|error| DataFusionError::Internal(error.to_string()))?;
        Ok(DataSourceExec::from_data_source(self.scan(&text, ctx, converter)?))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let Some((scan, source)) = text_of(node.as_ref()) else {
            return self.ballista.try_encode(node, bytes, converter);
        };
        let files = scan.file_groups.iter().flat_map(|group| group.files());
        let key = |place: Option<&TextPlace>| place.map(|place| place.key.clone()).unwrap_or_default();
        let text = TextScan {
            table: source.of.name.clone(),
            csv: matches!(*source.of.format, TextFormat::Csv { .. }),
            columns: Some(source.columns.as_ref().try_into()?),
            scan: Some(serialize_file_scan_config(scan, self, converter)?),
            keys: files.map(|file| key(file.extension::<TextPlace>())).collect(),
        };
        bytes.extend_from_slice(MARK);
        text.encode(bytes).map_err(|error| DataFusionError::Internal(error.to_string()))
    }
}
