//! How a run's directory comes to be, or is found to be there.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Component, Path, PathBuf},
};

use forebay_datasets::{
    checksum::file_checksum,
    volume::{self, NewFile, Volume, VolumeError},
};
use forebay_jobs::{id::RunId, kept::REPORTS, spec::JobSpec};

use super::{ATTEMPTS, Created, FILES, JOB, JOB_TEXT, RunDir, RunDirError, SLOTS, open};

/// A new id for a run of a job: its name, the time, and something random.
pub fn fresh_id(job: &JobSpec) -> RunId {
    let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let name: String = job
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(40)
        .collect();
    let name = if name.is_empty() { "run" } else { &name };
    format!("{name}-{time}-{:04x}", rand::random::<u16>()).parse().expect("40 + 21 permitted characters are an id")
}

/// Creates a run, or finds that the very same one is there.
pub fn create(volume: &Volume, run: &RunId, job_text: &str, job: &JobSpec) -> Result<Created, RunDirError> {
    let dir = volume.run_dir(run.as_str());
    if dir.exists() {
        return same_run(volume, run, job).map(Created::Exists);
    }
    let runs = volume.runs_dir();
    fs::create_dir_all(&runs).map_err(|error| VolumeError::io("create", &runs, error))?;
    let new = New { volume, dir: runs.join(format!(".new-{}", volume::nonce())) };
    new.fill(job_text, job)?;
    match volume::publish_tree(&new.dir, &dir) {
        Ok(()) => Ok(Created::New(RunDir { id: run.clone(), dir, job: job.clone() })),
        Err(VolumeError::AlreadyExists { .. }) => same_run(volume, run, job).map(Created::Exists),
        Err(error) => Err(error.into()),
    }
}

/// A run's directory on its way; trashed unless it got its name.
struct New<'a> {
    volume: &'a Volume,
    dir: PathBuf,
}

impl New<'_> {
    fn fill(&self, job_text: &str, job: &JobSpec) -> Result<(), RunDirError> {
        let create = |path: &Path, mode| {
            let mut builder = fs::DirBuilder::new();
            builder.mode(mode).create(path).map_err(|error| VolumeError::io("create", path, error))
        };
        create(&self.dir, 0o777)?;
        for name in [FILES, ATTEMPTS, SLOTS, REPORTS, "checkpoints", "logs"] {
            create(&self.dir.join(name), 0o777)?;
        }
        // Who can read this directory can join the run.
        create(&self.dir.join("epochs"), 0o700)?;
        for (name, source) in shipped(job) {
            ship(Path::new(source), &self.dir.join(FILES), name)?;
        }
        let path = self.dir.join(JOB);
        let job = serde_json::to_vec_pretty(job).map_err(|source| RunDirError::Malformed { path, source })?;
        for (name, text) in [(JOB_TEXT, job_text.as_bytes()), (JOB, &job)] {
            volume::hand_over(&self.dir.join(name), text)?;
        }
        Ok(())
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.volume.trash(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "could not be removed");
        }
    }
}

/// Names and sources of the files that a job ships.
fn shipped(job: &JobSpec) -> impl Iterator<Item = (&str, &str)> {
    job.work.files().into_iter().flatten().map(|(name, source)| (name.as_str(), source.as_str()))
}

fn ship(source: &Path, files: &Path, name: &str) -> Result<(), RunDirError> {
    let plain = !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.contains('\0') {
        return Err(RunDirError::BadName { name: name.to_owned() });
    }
    let unreadable = |error| RunDirError::Ship { path: source.to_owned(), source: error };
    let mut from = fs::File::open(source).map_err(unreadable)?;
    let meta = from.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(unreadable(io::Error::other("it is no regular file")));
    }
    let target = files.join(name);
    let parent = target.parent().unwrap_or(files);
    fs::create_dir_all(parent).map_err(|error| VolumeError::io("create", parent, error))?;
    let mut file = NewFile::create(&target)?;
    io::copy(&mut from, &mut file).map_err(|error| VolumeError::io("write", &target, error))?;
    // A script stays executable.
    let mode = fs::Permissions::from_mode(meta.permissions().mode() & 0o777 | 0o400);
    file.file().set_permissions(mode).map_err(|error| VolumeError::io("write", &target, error))?;
    file.finish_in_tree()?;
    Ok(())
}

/// Opens the run that is there, if it is the same job with the same shipped files.
fn same_run(volume: &Volume, run: &RunId, job: &JobSpec) -> Result<RunDir, RunDirError> {
    let found = open(volume, run)?;
    let conflict = |what: String| Err(RunDirError::Conflict { run: run.clone(), what });
    if !found.job.is_same_as(job) {
        return conflict("its job differs".to_owned());
    }
    for (name, source) in shipped(job) {
        let source = Path::new(source);
        let ours =
            file_checksum(source).map_err(|error| RunDirError::Ship { path: source.to_owned(), source: error })?;
        let theirs = found.dir.join("files").join(name);
        if ours != file_checksum(&theirs).map_err(|error| VolumeError::io("read", &theirs, error))? {
            return conflict(format!("its file `{name}` differs"));
        }
    }
    Ok(found)
}
