//! Runs that are made, found and refused.

use std::os::unix::fs::PermissionsExt;

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
