//! Publishing: finished files become a run's output in one step.
//!
//! They are linked into a directory that no reader knows, the manifest and `_SUCCESS` are added, everything is synced,
//! and one rename makes it the output. A reader sees no output, or all of it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    checksum::{Crc64, file_checksum},
    snapshot::{Manifest, Object, SnapshotError},
    source::{S3Options, SourceError, SourceUrl, s3::Bucket},
    volume::{self, Volume, VolumeError},
};

/// The manifest's name in an output.
pub const MANIFEST: &str = "_manifest.parquet";
/// The name of the file that says that an output is complete.
pub const SUCCESS: &str = "_SUCCESS";
/// Files that are uploaded at once.
const UPLOADS: usize = 8;
/// How long another host's new file may stay invisible: the longest attribute cache time of NFS's defaults.
const INVISIBLE: Duration = Duration::from_secs(60);

/// Why an output could not be checked, published or copied.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The manifest failed.
    #[error(transparent)]
    Manifest(#[from] SnapshotError),
    /// The target failed.
    #[error(transparent)]
    Target(#[from] SourceError),
    /// A reported file is not there.
    #[error("the output {} is not there", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// What looking for it gave.
        #[source]
        source: io::Error,
    },
    /// A file is not what was reported.
    #[error("the output {} is not what was reported: {what}", path.display())]
    Differs {
        /// Where it is.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// Two files are to have one name, or a name is reserved or leads elsewhere.
    #[error("no output can be named `{name}`: {why}")]
    BadName {
        /// The name.
        name: String,
        /// Why not.
        why: &'static str,
    },
}

/// A finished file, and its name in the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Path below the output.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Of all its bytes.
    pub checksum: Crc64,
}

/// Opens a file by the exact name that was reported, and compares size and checksum.
///
/// Another host's new file can stay invisible while this one has the directory's old state cached; opening the
/// directory shows it.
pub fn check(path: &Path, size: u64, checksum: Crc64) -> Result<(), OutputError> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(10);
    let found = loop {
        match file_checksum(path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                // A listed name is no promise: a dangling link is listed, and never opens.
                if started.elapsed() > INVISIBLE || !on_network(path) {
                    return Err(OutputError::Missing { path: path.to_owned(), source });
                }
                // Listing the directory is what makes NFS look anew; no server tells its clients of a new name.
                let _ = path.parent().map(fs::read_dir).map(|listing| listing.into_iter().flatten().count());
                // Nor is there an event to wait for.
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(2));
            }
            Err(source) => return Err(VolumeError::io("read", path, source).into()),
            Ok(found) => break found,
        }
    };
    let differs = |what| Err(OutputError::Differs { path: path.to_owned(), what });
    match found {
        (length, _) if length != size => differs(format!("it has {length} bytes in place of {size}")),
        (_, crc) if crc != checksum => differs(format!("its checksum is {crc} in place of {checksum}")),
        _ => Ok(()),
    }
}

fn on_network(path: &Path) -> bool {
    const NFS: u64 = 0x6969;
    let dir = path.ancestors().skip(1).find(|dir| dir.is_dir());
    dir.and_then(|dir| rustix::fs::statfs(dir).ok()).is_some_and(|stat| u64::try_from(stat.f_type).unwrap_or(0) == NFS)
}

/// Makes `output` out of finished files, through the directory `publish`, in one step. Doing it again is harmless.
///
/// `summary` becomes the content of `_SUCCESS`. Returns the bytes of all files.
pub fn publish(
    publish: &Path,
    output: &Path,
    files: &[Finished],
    summary: &serde_json::Value,
) -> Result<u64, OutputError> {
    if output.join(SUCCESS).exists() {
        return Ok(Manifest::read(&output.join(MANIFEST))?.bytes());
    }
    check_names(files)?;
    if publish.exists() {
        // A crash before the rename; what was linked is linked anew.
        fs::remove_dir_all(publish).map_err(|error| VolumeError::io("clear", publish, error))?;
    }
    // Whoever took the run over may have taken away the place where it is.
    volume::create_dir(publish)?;
    let mut objects = Vec::with_capacity(files.len());
    for file in files {
        volume::create_dirs_below(publish, Path::new(&file.name))?;
        volume::link_or_copy(&file.path, &publish.join(&file.name))?;
        objects.push(Object {
            key: file.name.clone(),
            path: file.name.clone(),
            size: file.size,
            etag: None,
            version_id: None,
            checksum: file.checksum,
            held: None,
        });
    }
    objects.sort_by(|a, b| a.key.cmp(&b.key));
    let manifest = Manifest { objects };
    manifest.write(&publish.join(MANIFEST))?;
    let summary = serde_json::to_vec_pretty(summary).expect("a JSON value serialises");
    volume::hand_over(&publish.join(SUCCESS), &summary)?;
    volume::publish_tree(publish, output)?;
    Ok(manifest.bytes())
}

fn check_names(files: &[Finished]) -> Result<(), OutputError> {
    let mut names = BTreeSet::new();
    for file in files {
        let bad = |why| Err(OutputError::BadName { name: file.name.clone(), why });
        let parts = || file.name.split('/');
        if file.name.starts_with(MANIFEST) || file.name.starts_with(SUCCESS) {
            return bad("the name is forebay's own");
        }
        if parts().any(|part| matches!(part, "" | "." | "..")) || file.name.contains('\0') {
            return bad("it is no path below the output");
        }
        if !names.insert(&file.name) {
            return bad("two files have it");
        }
    }
    Ok(())
}

/// What a published output holds, by its own manifest.
///
/// # Errors
/// [`OutputError::Missing`] if it is not complete, which is to say not there.
pub fn read_published(output: &Path) -> Result<Manifest, OutputError> {
    let success = output.join(SUCCESS);
    fs::metadata(&success).map_err(|source| OutputError::Missing { path: success, source })?;
    Ok(Manifest::read(&output.join(MANIFEST))?)
}

/// Copies a published output to `s3://bucket/prefix` or `file:///dir`: the files, then the manifest, then `_SUCCESS`,
/// of which one from before is removed first. Doing it again is harmless.
pub async fn export(output: &Path, to: &SourceUrl, options: &S3Options) -> Result<(), OutputError> {
    let manifest = read_published(output)?;
    match to {
        SourceUrl::S3 { bucket, prefix } => {
            upload(output, &manifest, &Bucket::connect(bucket, prefix, options).await?).await
        }
        SourceUrl::File { dir } => {
            let (output, dir) = (output.to_owned(), dir.clone());
            // It returns every error, indexes nothing, and is not cancelled while it is awaited.
            tokio::task::spawn_blocking(move || copy(&output, &manifest, &dir)).await.expect("copying does not panic")
        }
    }
}

async fn upload(output: &Path, manifest: &Manifest, bucket: &Bucket) -> Result<(), OutputError> {
    bucket.delete(SUCCESS).await?;
    let put = |object: &Object| {
        let (path, key, size, checksum) = (output.join(&object.path), object.key.clone(), object.size, object.checksum);
        async move { bucket.put_file(&key, &path, size, checksum).await }
    };
    stream::iter(manifest.objects.iter().map(put)).buffer_unordered(UPLOADS).try_collect::<()>().await?;
    for name in [MANIFEST, SUCCESS] {
        let path = output.join(name);
        let bytes = tokio::fs::read(&path).await.map_err(|error| VolumeError::io("read", &path, error))?;
        bucket.put_bytes(name, Bytes::from(bytes), None).await?;
    }
    Ok(())
}

fn copy(output: &Path, manifest: &Manifest, dir: &Path) -> Result<(), OutputError> {
    let success = dir.join(SUCCESS);
    match fs::remove_file(&success) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(VolumeError::io("remove", &success, error).into());
        }
        _ => {}
    }
    let names = manifest.objects.iter().map(|object| object.path.as_str());
    names.chain([MANIFEST, SUCCESS]).try_for_each(|name| copy_file(&output.join(name), &dir.join(name)))
}

fn copy_file(from: &Path, to: &Path) -> Result<(), OutputError> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).map_err(|error| VolumeError::io("create", parent, error))?;
    let mut source = fs::File::open(from).map_err(|error| VolumeError::io("open", from, error))?;
    let mut file = volume::NewFile::create(to)?;
    io::copy(&mut source, &mut file).map_err(|error| VolumeError::io("write", to, error))?;
    file.finish()?;
    Ok(())
}

/// The files of a directory tree that are to be published, with sizes and checksums, each synced; ordered by name.
///
/// # Errors
/// Symbolic links and special files are refused: what they point at is nobody's to publish.
pub fn collect(dir: &Path) -> Result<Vec<Finished>, OutputError> {
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).map_err(|error| VolumeError::io("list", &next, error))? {
            let entry = entry.map_err(|error| VolumeError::io("list", &next, error))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(|error| VolumeError::io("inspect", &path, error))?;
            let name = path.strip_prefix(dir).ok().and_then(Path::to_str).map(str::to_owned);
            let bad = |why| OutputError::BadName { name: path.display().to_string(), why };
            let name = name.ok_or_else(|| bad("its name is not UTF-8"))?;
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                let synced = fs::File::open(&path).and_then(|file| file.sync_all());
                synced.map_err(|error| VolumeError::io("sync", &path, error))?;
                let (size, checksum) = file_checksum(&path).map_err(|error| VolumeError::io("read", &path, error))?;
                found.push(Finished { name, path, size, checksum });
            } else {
                return Err(bad("it is neither a file nor a directory"));
            }
        }
    }
    // Directories without files are nothing that anybody is told of.
    if !found.is_empty() {
        volume::sync_tree(dir)?;
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Removes what an attempt wrote, into the volume's trash.
pub fn discard(volume: &Volume, dir: &Path) {
    if let Err(error) = volume.trash(dir) {
        tracing::debug!(path = %dir.display(), %error, "could not be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(dir: &Path, name: &str, text: &str) -> Finished {
        let path = dir.join(format!("made-{}", name.replace('/', "-")));
        fs::write(&path, text).unwrap();
        let (size, checksum) = file_checksum(&path).unwrap();
        Finished { name: name.into(), path, size, checksum }
    }

    #[tokio::test]
    async fn an_output_appears_whole_and_is_copied_whole() {
        let dir = tempfile::tempdir().unwrap();
        let files = [finished(dir.path(), "b/x", "one"), finished(dir.path(), "a", "three")];
        let (tmp, output) = (dir.path().join("publish"), dir.path().join("output"));
        for _ in 0..2 {
            assert_eq!(publish(&tmp, &output, &files, &serde_json::json!({"rows": 1})).unwrap(), 8);
        }
        assert!(!tmp.exists());
        let keys: Vec<_> = read_published(&output).unwrap().objects.into_iter().map(|object| object.key).collect();
        assert_eq!(keys, ["a", "b/x"]);
        let to = dir.path().join("copy");
        export(&output, &SourceUrl::File { dir: to.clone() }, &S3Options::default()).await.unwrap();
        assert_eq!(fs::read_to_string(to.join("b/x")).unwrap(), "one");
        assert_eq!(read_published(&to).unwrap().objects.len(), 2);
    }

    #[test]
    fn names_that_would_mislead_a_reader_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["_SUCCESS", "_manifest.parquet", "../x", "a//b"] {
            let files = [finished(dir.path(), name, "x")];
            let published = publish(&dir.path().join("p"), &dir.path().join("o"), &files, &serde_json::Value::Null);
            assert!(matches!(published, Err(OutputError::BadName { .. })), "{name}");
        }
        let twice = [finished(dir.path(), "x", "1"), finished(dir.path(), "x", "2")];
        assert!(publish(&dir.path().join("p"), &dir.path().join("o"), &twice, &serde_json::Value::Null).is_err());
        assert!(!dir.path().join("o").exists());
    }

    #[test]
    fn a_file_is_believed_only_after_reading_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = finished(dir.path(), "x", "abc");
        check(&file.path, 3, file.checksum).unwrap();
        assert!(matches!(check(&file.path, 4, file.checksum), Err(OutputError::Differs { .. })));
        assert!(matches!(check(&file.path, 3, Crc64(1)), Err(OutputError::Differs { .. })));
        assert!(matches!(check(&dir.path().join("none"), 3, Crc64(1)), Err(OutputError::Missing { .. })));
        // A name that is listed and can never be opened must not be waited for.
        let dangling = dir.path().join("dangling");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert!(matches!(check(&dangling, 3, Crc64(1)), Err(OutputError::Missing { .. })));
    }

    #[test]
    fn links_are_not_collected() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "x").unwrap();
        assert_eq!(collect(dir.path()).unwrap()[0].name, "d/f");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("l")).unwrap();
        assert!(matches!(collect(dir.path()), Err(OutputError::BadName { .. })));
    }
}
