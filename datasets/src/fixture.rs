//! What the tests of this crate share: a volume with snapshots of few bytes.

use std::fs;

use crate::{
    snapshot::SnapshotId,
    source::SourceOptions,
    stage::{StageRequest, stage},
    volume::Volume,
};

pub struct Fixture {
    _dir: tempfile::TempDir,
    pub volume: Volume,
    source: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap())
    }

    /// In memory, where that is possible: without a disk's waits, more happens at the same moment.
    pub fn in_memory() -> Self {
        Self::on(tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap()))
    }

    fn on(dir: tempfile::TempDir) -> Self {
        let volume = Volume::open_or_create(dir.path()).unwrap();
        Self { _dir: dir, volume, source: tempfile::tempdir().unwrap() }
    }

    /// Stages these files, and no others, as the dataset `d`. A file that is as it was is shared with the snapshot before.
    pub async fn stage(&self, files: &[(&str, &str)]) -> SnapshotId {
        for entry in fs::read_dir(self.source.path()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let kept = files.iter().find(|(key, _)| *key == name);
            if kept.is_none_or(|(_, content)| fs::read_to_string(&path).unwrap() != *content) {
                fs::remove_file(path).unwrap();
            }
        }
        for (key, content) in files {
            let path = self.source.path().join(key);
            if !path.exists() {
                fs::write(path, content).unwrap();
            }
        }
        let url = format!("file://{}", self.source.path().display()).parse().unwrap();
        let options = SourceOptions::default();
        let request = StageRequest { name: "d".into(), url, options, columns: None, durable: true };
        stage(&self.volume, &request, &|_| ()).await.unwrap().record.id
    }

    pub fn path(&self, relative: &str) -> std::path::PathBuf {
        self.volume.root().join(relative)
    }

    pub fn has(&self, id: &SnapshotId) -> bool {
        self.path(&format!("datasets/d/snapshots/{id}/snapshot.json")).exists()
    }
}

/// Makes a file older, as the file server sees it.
pub fn age(path: &std::path::Path, seconds: u64) {
    let file = fs::File::open(path).unwrap();
    let then = file.metadata().unwrap().modified().unwrap() - std::time::Duration::from_secs(seconds);
    file.set_modified(then).unwrap();
}
