//! Staged files, as DataFusion may read them.
//!
//! DataFusion reads a table's files through the object store of its session, which is [`HeldFiles`]. It names them by
//! their place on the volume, so that a plan is good wherever a host mounts that. Where some files are held in part, it
//! asks the snapshot's manifest before each read, and refuses one that touches a byte which is not held. Without that a
//! hole would be read as zeros, and zeros can be values.

use std::{collections::BTreeMap, fmt, ops::Range, path::PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::{
    execution::object_store::ObjectStoreUrl,
    object_store::{
        CopyOptions, Error, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
        PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, local::LocalFileSystem, path::Path,
    },
};
use forebay_datasets::{
    columns::{self, Columns, ColumnsError},
    snapshot::{self, Object, SnapshotError},
    split::Piece,
    volume::{Volume, VolumeError},
};
use futures::stream::BoxStream;

use crate::kinds::TaskError;

/// What is not held, and is to be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{what} of `{key}` are not staged: the snapshot {snapshot} holds only the columns {columns} of its Parquet objects. \
Stage the dataset whole, or with the columns that are read"
)]
pub struct NotHeld {
    what: String,
    key: String,
    snapshot: String,
    columns: Columns,
}

/// Where DataFusion finds a volume's files.
pub(super) fn volume_url() -> ObjectStoreUrl {
    ObjectStoreUrl::parse("forebay://volume").expect("a constant URL")
}

/// Where a file is, to DataFusion, by its path on the volume.
pub(super) fn location(path: &str) -> std::result::Result<Path, VolumeError> {
    Path::parse(path).map_err(|_| VolumeError::Escapes { path: path.to_owned() })
}

/// A volume's files, those that are held in part only as far as they are.
#[derive(Debug)]
pub(super) struct HeldFiles {
    files: LocalFileSystem,
    /// Where no file is held in part, of nothing.
    snapshot: String,
    columns: Columns,
    partial: BTreeMap<Path, (Object, PathBuf)>,
}

impl HeldFiles {
    /// The files of a volume, of which the pieces tell what is held.
    pub(super) fn of(volume: &Volume, pieces: &[Piece]) -> std::result::Result<Self, TaskError> {
        let files = LocalFileSystem::new_with_prefix(volume.root())
            .map_err(|error| TaskError::Io { path: volume.root().to_owned(), source: std::io::Error::other(error) })?;
        let Some(first) = pieces.iter().find(|piece| piece.partial) else {
            let (snapshot, columns, partial) = Default::default();
            return Ok(Self { files, snapshot, columns, partial });
        };
        let snapshot = snapshot::of_volume_path(volume, &first.path).map_err(|error| match error {
            SnapshotError::Volume(error) => TaskError::Volume(error),
            error => TaskError::BadInput(error.to_string()),
        })?;
        let objects = &snapshot.manifest.objects;
        let mut partial = BTreeMap::new();
        for piece in pieces.iter().filter(|piece| piece.partial) {
            let object = objects.binary_search_by(|object| object.key.cmp(&piece.key)).ok().map(|at| &objects[at]);
            let object = object.filter(|object| snapshot.volume_path(object) == piece.path);
            let escapes = || VolumeError::Escapes { path: piece.path.clone() };
            let (object, path) = (object.ok_or_else(escapes)?, volume.resolve(&piece.path)?);
            partial.insert(location(&piece.path)?, (object.clone(), path));
        }
        let columns = snapshot.record.columns.unwrap_or_default();
        Ok(Self { files, snapshot: snapshot.record.id.to_string(), columns, partial })
    }

    /// Whether no file is held in part.
    pub(super) fn is_whole(&self) -> bool {
        self.partial.is_empty()
    }

    /// Whether the objects of these keys hold the columns, as far as they have them, by their own footers.
    pub(super) fn check(&self, keys: &[&str], needed: &Columns) -> std::result::Result<(), TaskError> {
        for (object, path) in self.partial.values().filter(|(object, _)| keys.contains(&object.key.as_str())) {
            let lacking = columns::lacking(path, object, needed).map_err(|error| match error {
                ColumnsError::Read(source) => TaskError::Io { path: path.clone(), source },
                ColumnsError::Footer(error) => TaskError::BadInput(format!("`{}`: {error}", object.key)),
            })?;
            if !lacking.is_empty() {
                return Err(self.not_held(object, format!("the columns {lacking}")).into());
            }
        }
        Ok(())
    }

    fn not_held(&self, object: &Object, what: String) -> NotHeld {
        NotHeld { what, key: object.key.clone(), snapshot: self.snapshot.clone(), columns: self.columns.clone() }
    }

    fn may_read(&self, location: &Path, range: &Range<u64>) -> Result<()> {
        match self.partial.get(location) {
            Some((object, _)) if !object.holds(range) => {
                let what = format!("the bytes {}..{}", range.start, range.end);
                Err(Error::Generic { store: "snapshot", source: Box::new(self.not_held(object, what)) })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for HeldFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the volume's files, and what is held of snapshot {:?}", self.snapshot)
    }
}

fn refused(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: "a snapshot, which is only read".to_owned() }
}

#[async_trait]
impl ObjectStore for HeldFiles {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if let (Some((object, _)), false) = (self.partial.get(location), options.head) {
            let range = match &options.range {
                Some(GetRange::Bounded(range)) => range.start..range.end.min(object.size),
                Some(GetRange::Offset(offset)) => *offset..object.size,
                Some(GetRange::Suffix(length)) => object.size.saturating_sub(*length)..object.size,
                None => 0..object.size,
            };
            self.may_read(location, &range)?;
        }
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        ranges.iter().try_for_each(|range| self.may_read(location, range))?;
        self.files.get_ranges(location, ranges).await
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(refused("put"))
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(refused("put"))
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        Box::pin(futures::stream::once(async { Err(refused("delete")) }))
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        Box::pin(futures::stream::once(async { Err(refused("list")) }))
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(refused("list"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(refused("copy"))
    }
}
