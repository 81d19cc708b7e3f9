//! What tests of several modules begin with.

use forebay_datasets::volume::Volume;
use tempfile::TempDir;

use crate::rundir::{self, RunDir};

/// A run `r` that nobody has coordinated yet, on a volume of its own.
pub(crate) fn run() -> (TempDir, Volume, RunDir) {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::open_or_create(dir.path()).unwrap();
    let text = "name = 'n'\n[dataset]\nsource = 'file:///x'\n[command]\nargv = ['true']\n";
    let job = forebay_jobs::spec::parse::job_file(text, dir.path(), &[]).unwrap();
    let run = rundir::create(&volume, &"r".parse().unwrap(), text, &job).unwrap().into_run();
    (dir, volume, run)
}
