//! The directory of a run: what was asked for, what came of it, and where everything between is.
//!
//! A run's directory appears by one rename, complete with its job and the files that it ships, so that two who create
//! the same run at the same moment agree on one. What a coordinator adds later goes through its epoch's directory,
//! and does not arrive once that is sealed.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Component, Path, PathBuf},
    time::SystemTime,
};

use forebay_datasets::{
    checksum::file_checksum,
    volume::{self, NewFile, Volume, VolumeError},
};
use forebay_jobs::{
    id::RunId,
    kept::{REPORTS, RESULT},
    spec::{JobSpec, Work},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    driver::{RunResult, StagedFigures},
    lease,
};

/// Where attempts write.
pub(crate) const ATTEMPTS: &str = "attempts";
/// Where attempts write what goes with them.
pub(crate) const SLOTS: &str = "slots";
/// Where tasks find their inputs that start before all of them are staged.
pub(crate) const INPUTS: &str = "inputs";
/// What the job ships.
const FILES: &str = "files";
const JOB_TEXT: &str = "job.toml";
const JOB: &str = "job.json";
const STAGED: &str = "staged.json";

/// Why a run's directory could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// There is no such run.
    #[error("there is no run `{run}` on this volume")]
    NotFound {
        /// Its id.
        run: RunId,
    },
    /// A run of this id is there, and it is another one.
    #[error("there is a run `{run}` already, and it is another one: {what}")]
    Conflict {
        /// Its id.
        run: RunId,
        /// What differs.
        what: String,
    },
    /// A file that the job ships cannot be read.
    #[error("the job ships {}, which cannot be read", path.display())]
    Ship {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A shipped file's name leads out of the run.
    #[error("no shipped file can be named `{name}`")]
    BadName {
        /// The name.
        name: String,
    },
    /// A file of the run cannot be understood.
    #[error("{} is not what forebay writes", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// A run on its volume.
#[derive(Clone, Debug)]
pub struct RunDir {
    id: RunId,
    dir: PathBuf,
    job: JobSpec,
}

/// What creating a run came to.
#[derive(Clone, Debug)]
pub enum Created {
    /// It is new.
    New(RunDir),
    /// The same run was there already.
    Exists(RunDir),
}

impl Created {
    /// The run, new or not.
    pub fn into_run(self) -> RunDir {
        let (Self::New(run) | Self::Exists(run)) = self;
        run
    }
}

impl RunDir {
    /// The plan's name.
    pub(crate) const PLAN: &str = "plan.ndjson";

    /// The run's id.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// The directory itself, on this host.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The job, every default resolved.
    pub fn job(&self) -> &JobSpec {
        &self.job
    }

    /// Where the output appears, in one step.
    pub fn output_dir(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// Where workers write their logs.
    pub fn logs_dir(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Where the files are that the job ships.
    pub fn files_dir(&self) -> PathBuf {
        self.dir.join(FILES)
    }

    /// The plan; there once the run is planned.
    pub fn plan_path(&self) -> PathBuf {
        self.dir.join(Self::PLAN)
    }

    /// When the run was created, by the file server's clock.
    pub fn created(&self) -> Option<SystemTime> {
        fs::metadata(self.dir.join(JOB)).and_then(|meta| meta.modified()).ok()
    }

    /// The result, once the run has ended.
    pub fn result(&self) -> Result<Option<RunResult>, RunDirError> {
        // Opening the directory makes a network file system look for new names in it.
        fs::read_dir(&self.dir).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => RunDirError::NotFound { run: self.id.clone() },
            _ => VolumeError::io("open", &self.dir, error).into(),
        })?;
        let mut result: Option<RunResult> = read_json(&self.dir.join(RESULT))?;
        // Hosts mount the volume at different places.
        if let Some(output) = result.as_mut().and_then(|result| result.output.as_mut()) {
            output.path = self.output_dir().display().to_string();
        }
        Ok(result)
    }

    /// What staging took, once the run is planned.
    pub fn staged(&self) -> Result<Option<StagedFigures>, RunDirError> {
        read_json(&self.dir.join(STAGED))
    }

    pub(crate) fn write_result(&self, epoch_dir: &Path, result: &RunResult) -> Result<(), RunDirError> {
        self.write_json(epoch_dir, RESULT, result)
    }

    pub(crate) fn write_staged(&self, epoch_dir: &Path, staged: &StagedFigures) -> Result<(), RunDirError> {
        self.write_json(epoch_dir, STAGED, staged)
    }

    fn write_json(&self, epoch_dir: &Path, name: &str, value: &impl Serialize) -> Result<(), RunDirError> {
        let path = epoch_dir.join(name);
        let text = serde_json::to_vec_pretty(value).map_err(|source| RunDirError::Malformed { path, source })?;
        self.install(epoch_dir, name, |path| volume::replace(path, &text))?;
        Ok(())
    }

    /// Gives a file its place in the run, through the epoch's directory.
    ///
    /// The file is written there and renamed from there. Whoever takes the run over renames that directory first, so
    /// that a coordinator that was deposed without knowing it finds neither its directory nor its file.
    pub(crate) fn install<E: From<VolumeError>>(
        &self,
        epoch_dir: &Path,
        name: &str,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let prepared = epoch_dir.join(name);
        write(&prepared)?;
        lease::fence(epoch_dir)?;
        // It renames files as well as directories, and tolerates a lost reply in the same way.
        volume::publish_dir(&prepared, &self.dir.join(name))?;
        Ok(())
    }
}

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
    match volume::publish_dir(&new.dir, &dir) {
        Ok(()) => Ok(Created::New(RunDir { id: run.clone(), dir, job: job.clone() })),
        Err(VolumeError::AlreadyExists { .. }) => same_run(volume, run, job).map(Created::Exists),
        Err(error) => Err(error.into()),
    }
}

/// Opens a run that is there.
pub fn open(volume: &Volume, run: &RunId) -> Result<RunDir, RunDirError> {
    let dir = volume.run_dir(run.as_str());
    let job = read_json(&dir.join(JOB))?.ok_or_else(|| RunDirError::NotFound { run: run.clone() })?;
    Ok(RunDir { id: run.clone(), dir, job })
}

/// All runs of a volume, newest first.
pub fn list(volume: &Volume) -> Result<Vec<RunDir>, RunDirError> {
    let runs = volume.runs_dir();
    let entries = match fs::read_dir(&runs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(VolumeError::io("list", &runs, error).into()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| VolumeError::io("list", &runs, error))?;
        // Runs being created begin with a dot, which no id does.
        let Some(Ok(id)) = entry.file_name().to_str().map(str::parse::<RunId>) else { continue };
        match open(volume, &id) {
            Ok(run) => found.push((run.created(), run)),
            Err(RunDirError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_by(|(a_time, a), (b_time, b)| (b_time, &b.id).cmp(&(a_time, &a.id)));
    Ok(found.into_iter().map(|(_, run)| run).collect())
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
            let path = self.dir.join(name);
            let mut file = NewFile::create(&path)?;
            file.write_all(text).map_err(|error| VolumeError::io("write", &path, error))?;
            file.finish_in_tree()?;
        }
        Ok(volume::sync_tree(&self.dir)?)
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
    let files = match &job.work {
        Work::Command(command) => Some(&command.files),
        Work::Mapreduce(mapreduce) => Some(&mapreduce.files),
        Work::Sql(_) => None,
    };
    files.into_iter().flatten().map(|(name, source)| (name.as_str(), source.as_str()))
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
    file.finish()?;
    Ok(())
}

/// Opens the run that is there, if it is the same job with the same shipped files.
fn same_run(volume: &Volume, run: &RunId, job: &JobSpec) -> Result<RunDir, RunDirError> {
    let found = open(volume, run)?;
    let conflict = |what: String| Err(RunDirError::Conflict { run: run.clone(), what });
    if found.job != *job {
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

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RunDirError> {
    match volume::looking_again(path, |path| fs::read(path)) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(value) => Ok(Some(value)),
            Err(source) => Err(RunDirError::Malformed { path: path.to_owned(), source }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(VolumeError::io("read", path, error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB_FILE: &str = r#"
        name = "hello"
        [dataset]
        source = "file:///nowhere"
        [command]
        argv = ["./run.sh"]
        files = ["run.sh"]
    "#;

    struct Fixture {
        dir: tempfile::TempDir,
        volume: Volume,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let volume = Volume::open_or_create(&dir.path().join("v")).unwrap();
            fs::write(dir.path().join("run.sh"), "#!/bin/sh\n").unwrap();
            fs::set_permissions(dir.path().join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
            Self { dir, volume }
        }

        fn create(&self, id: &str, text: &str) -> Result<Created, RunDirError> {
            let job = forebay_jobs::spec::parse::job_file(text, self.dir.path(), &[]).unwrap();
            create(&self.volume, &id.parse().unwrap(), text, &job)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.volume.runs_dir()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    #[test]
    fn the_same_run_is_found_and_another_one_is_refused() {
        let fixture = Fixture::new();
        assert!(matches!(fixture.create("a", JOB_FILE), Ok(Created::New(_))));
        assert!(matches!(fixture.create("a", JOB_FILE), Ok(Created::Exists(_))));
        let other = JOB_FILE.replace("hello", "good-bye");
        assert!(matches!(fixture.create("a", &other), Err(RunDirError::Conflict { .. })));
        fs::write(fixture.dir.path().join("run.sh"), "changed").unwrap();
        assert!(matches!(fixture.create("a", JOB_FILE), Err(RunDirError::Conflict { .. })));
        assert_eq!(fixture.names(), ["a"]);
    }

    #[test]
    fn a_run_keeps_its_job_and_executable_files_and_hides_its_epochs() {
        let fixture = Fixture::new();
        let made = fixture.create("a", JOB_FILE).unwrap().into_run();
        let opened = open(&fixture.volume, made.id()).unwrap();
        assert_eq!(opened.job(), made.job());
        let mode = |name: &str| fs::metadata(made.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("files/run.sh"), mode("epochs")), (0o755, 0o700));
        assert!(opened.result().unwrap().is_none());
    }

    #[test]
    fn a_missing_shipped_file_leaves_nothing_behind() {
        let fixture = Fixture::new();
        fs::remove_file(fixture.dir.path().join("run.sh")).unwrap();
        let text = JOB_FILE;
        let job = forebay_jobs::spec::parse::job_file(text, fixture.dir.path(), &[]);
        if let Ok(job) = job {
            let made = create(&fixture.volume, &"a".parse().unwrap(), text, &job);
            assert!(matches!(made, Err(RunDirError::Ship { .. })));
            assert!(fixture.names().is_empty());
        }
    }

    #[test]
    fn runs_are_listed_newest_first_and_unfinished_ones_are_not() {
        let fixture = Fixture::new();
        for id in ["a", "b"] {
            let run = fixture.create(id, JOB_FILE).unwrap().into_run();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(id.as_bytes()[0]));
            let job = fs::File::options().append(true).open(run.path().join(JOB)).unwrap();
            job.set_modified(time).unwrap();
        }
        fs::create_dir(fixture.volume.runs_dir().join(".new-x")).unwrap();
        let ids: Vec<_> = list(&fixture.volume).unwrap().iter().map(|run| run.id().to_string()).collect();
        assert_eq!(ids, ["b", "a"]);
        let none = open(&fixture.volume, &"none".parse().unwrap());
        assert!(matches!(none, Err(RunDirError::NotFound { .. })));
    }

    #[test]
    fn what_a_sealed_epoch_installs_does_not_arrive() {
        let fixture = Fixture::new();
        let run = fixture.create("a", JOB_FILE).unwrap().into_run();
        let epoch = lease::claim(run.path()).unwrap().dir;
        let figures = StagedFigures { objects: 1, ..StagedFigures::default() };
        run.write_staged(&epoch, &figures).unwrap();
        assert_eq!(run.staged().unwrap(), Some(figures.clone()));
        fs::rename(&epoch, run.path().join("epochs/1.sealed")).unwrap();
        run.write_staged(&epoch, &StagedFigures::default()).unwrap_err();
        assert_eq!(run.staged().unwrap(), Some(figures.clone()));
        assert!(!epoch.exists());
        // A network client may still reach the directory by its old name.
        std::os::unix::fs::symlink("1.sealed", &epoch).unwrap();
        fs::remove_file(epoch.join("lease.json")).unwrap();
        run.write_staged(&epoch, &StagedFigures::default()).unwrap_err();
        assert_eq!(run.staged().unwrap(), Some(figures));
    }

    #[test]
    fn a_fresh_id_is_an_id() {
        let fixture = Fixture::new();
        let mut job = fixture.create("a", JOB_FILE).unwrap().into_run().job().clone();
        job.name = format!("--{}", "ö".repeat(90));
        assert!(fresh_id(&job).as_str().starts_with("run-"));
        job.name = "n".repeat(90);
        assert!(fresh_id(&job).as_str().len() <= 64);
    }
}
