//! What makes an attempt's files count: checked one by one before the attempt is committed, published together at
//! the run's end.
//!
//! A worker's report is a claim. Each file is opened here by the exact name reported, inside the attempt's own
//! directory, and read whole; only then is the attempt committed. Nothing is inferred from listings or times.

use std::{
    collections::BTreeSet,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use forebay_datasets::{
    output::{self, Finished, OutputError},
    volume::{self, Volume, VolumeError},
};
use forebay_jobs::{
    id::{AttemptId, Epoch},
    task::OutputFile,
};

use crate::{lease, rundir::RunDir};

/// Why an attempt's outputs do not count, or cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A path is not in the attempt's own directory.
    #[error("the output `{path}` is not in the directory of attempt {attempt}")]
    Elsewhere {
        /// The path as reported.
        path: String,
        /// The attempt that reported it.
        attempt: AttemptId,
    },
    /// The name is there, and leads elsewhere.
    #[error("the output `{path}` is reached through a symbolic link")]
    Link {
        /// The path as reported.
        path: String,
    },
    /// A path is reported twice.
    #[error("the output `{path}` is reported twice")]
    Twice {
        /// The path as reported.
        path: String,
    },
    /// The file is not there, not what was reported, or cannot be published.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl CommitError {
    /// Whether publishing the same files again will fail in the same way.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::Volume(_) | Self::Output(OutputError::Volume(_) | OutputError::Manifest(_)))
    }
}

/// What was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Files, without forebay's own two.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their records, where all of them are known.
    pub rows: Option<u64>,
}

/// Checks what an attempt says that it wrote.
pub fn check(volume: &Volume, run: &RunDir, attempt: AttemptId, outputs: &[OutputFile]) -> Result<(), CommitError> {
    let own = format!("runs/{}/attempts/{attempt}/", run.id());
    let mut seen = BTreeSet::new();
    for file in outputs {
        let path = volume.resolve(&file.path)?;
        if !file.path.starts_with(&own) {
            return Err(CommitError::Elsewhere { path: file.path.clone(), attempt });
        }
        if !seen.insert(&file.path) {
            return Err(CommitError::Twice { path: file.path.clone() });
        }
        output::check(&path, file.size, file.checksum)?;
        // The volume's root has no links in it, so that a path without links is its own canonical form.
        if fs::canonicalize(&path).map_err(|error| VolumeError::io("resolve", &path, error))? != path {
            return Err(CommitError::Link { path: file.path.clone() });
        }
    }
    Ok(())
}

/// Publishes committed files as the run's output, in one step. Doing it again is harmless.
///
/// The output is built beside the epochs, moved into the epoch's directory, and renamed to its place from there. A
/// coordinator whose epoch was sealed in the meantime has lost that directory, and its output arrives nowhere.
pub fn publish(
    volume: &Volume,
    run: &RunDir,
    epoch: Epoch,
    epoch_dir: &Path,
    outputs: &[OutputFile],
    summary: &serde_json::Value,
) -> Result<Published, CommitError> {
    let mut files = Vec::new();
    for file in outputs {
        if let Some(name) = &file.publish_as {
            let path = volume.resolve(&file.path)?;
            files.push(Finished { name: name.clone(), path, size: file.size, checksum: file.checksum });
        }
    }
    let rows = outputs.iter().filter(|file| file.publish_as.is_some()).map(|file| file.rows).sum::<Option<u64>>();
    let published = Published { files: files.len() as u64, bytes: files.iter().map(|file| file.size).sum(), rows };
    let target = run.output_dir();
    if target.join(output::SUCCESS).exists() {
        return Ok(published);
    }
    clear_unfinished(volume, run, epoch);
    let build = |what: &str| -> PathBuf { run.path().join(format!(".publishing-{epoch}-{what}")) };
    let whole = build("whole");
    let built = output::publish(&build("parts"), &whole, &files, summary).map_err(CommitError::from).and_then(|_| {
        let prepared = epoch_dir.join("publish");
        volume::publish_dir(&whole, &prepared)?;
        lease::fence(epoch_dir)?;
        Ok(volume::publish_dir(&prepared, &target)?)
    });
    match built {
        Ok(()) => Ok(published),
        // An earlier epoch's rename came first; what it published was made of the same commits.
        Err(CommitError::Volume(VolumeError::AlreadyExists { .. })) if target.join(output::SUCCESS).exists() => {
            Ok(published)
        }
        Err(error) => {
            clear_unfinished(volume, run, epoch);
            Err(error)
        }
    }
}

/// Trashes what coordinators up to this epoch left in the run when they died while publishing. What a later one is
/// building is none of ours.
fn clear_unfinished(volume: &Volume, run: &RunDir, epoch: Epoch) {
    for entry in fs::read_dir(run.path().join("epochs")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.split('.').next()?.parse().ok());
        if number.is_some_and(|number: u32| number <= epoch.0) {
            output::discard(volume, &entry.path().join("publish"));
        }
    }
    for entry in fs::read_dir(run.path()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(".publishing-")?.split('-').next()?.parse().ok());
        if number.is_some_and(|number: u32| number <= epoch.0) {
            output::discard(volume, &entry.path());
        }
    }
}

/// An error and its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use forebay_datasets::{checksum::file_checksum, output::read_published};
    use forebay_jobs::id::TaskId;

    use super::*;
    use crate::fixture;

    struct Fixture {
        _dir: tempfile::TempDir,
        volume: Volume,
        run: RunDir,
        epoch_dir: PathBuf,
    }

    const ATTEMPT: AttemptId = AttemptId { task: TaskId { phase: 0, index: 3 }, number: 1, epoch: Epoch(1) };

    impl Fixture {
        fn new() -> Self {
            let (dir, volume, run) = fixture::run();
            let epoch_dir = lease::claim(run.path()).unwrap().dir;
            Self { _dir: dir, volume, run, epoch_dir }
        }

        fn wrote(&self, name: &str, text: &str) -> OutputFile {
            let relative = format!("runs/r/attempts/{ATTEMPT}/{name}");
            let path = self.volume.root().join(&relative);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let (size, checksum) = file_checksum(&path).unwrap();
            let publish_as = Some(name.to_owned());
            OutputFile { path: relative, publish_as, partition: None, size, checksum, rows: Some(1) }
        }

        fn publish(&self, outputs: &[OutputFile]) -> Result<Published, CommitError> {
            let summary = serde_json::Value::Null;
            publish(&self.volume, &self.run, Epoch(1), &self.epoch_dir, outputs, &summary)
        }

        fn left_over(&self) -> bool {
            let mut entries = fs::read_dir(self.run.path()).unwrap().flatten();
            entries.any(|entry| entry.file_name().to_str().unwrap().starts_with(".publishing"))
        }
    }

    #[test]
    fn only_an_attempts_own_files_as_reported_count() {
        let fixture = Fixture::new();
        let good = fixture.wrote("a", "text");
        let check = |file: &OutputFile| check(&fixture.volume, &fixture.run, ATTEMPT, std::slice::from_ref(file));
        check(&good).unwrap();
        let short = OutputFile { size: 3, ..good.clone() };
        assert!(matches!(check(&short), Err(CommitError::Output(OutputError::Differs { .. }))));
        let elsewhere = OutputFile { path: "volume.json".into(), ..good.clone() };
        assert!(matches!(check(&elsewhere), Err(CommitError::Elsewhere { .. })));
        let out = OutputFile { path: format!("runs/r/attempts/{ATTEMPT}/../../../volume.json"), ..good.clone() };
        assert!(matches!(check(&out), Err(CommitError::Volume(VolumeError::Escapes { .. }))));
        let link = fixture.volume.root().join(&good.path).with_file_name("l");
        std::os::unix::fs::symlink(fixture.volume.root().join(&good.path), &link).unwrap();
        let linked = OutputFile { path: fixture.volume.relative(&link).unwrap(), ..good.clone() };
        assert!(matches!(check(&linked), Err(CommitError::Link { .. })));
    }

    #[test]
    fn an_output_is_published_once_and_again_harmlessly() {
        let fixture = Fixture::new();
        let inner = OutputFile { publish_as: None, ..fixture.wrote("shuffle", "x") };
        let outputs = [fixture.wrote("a", "text"), inner];
        let expected = Published { files: 1, bytes: 4, rows: Some(1) };
        assert_eq!(fixture.publish(&outputs).unwrap(), expected);
        assert_eq!(fixture.publish(&outputs).unwrap(), expected);
        assert_eq!(read_published(&fixture.run.output_dir()).unwrap().objects.len(), 1);
        assert!(!fixture.left_over());
    }

    #[test]
    fn a_sealed_epoch_publishes_nothing() {
        let fixture = Fixture::new();
        fs::rename(&fixture.epoch_dir, fixture.run.path().join("epochs/1.sealed")).unwrap();
        assert!(!fixture.publish(&[fixture.wrote("a", "text")]).unwrap_err().is_permanent());
        assert!(!fixture.run.output_dir().exists() && !fixture.epoch_dir.exists() && !fixture.left_over());
    }

    #[test]
    fn two_files_of_one_name_can_never_be_published() {
        let fixture = Fixture::new();
        let file = fixture.wrote("a", "text");
        assert!(fixture.publish(&[file.clone(), file]).unwrap_err().is_permanent());
        assert!(!fixture.left_over());
    }
}
