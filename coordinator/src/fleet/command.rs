//! What is started as a worker, whoever starts it.

use std::path::PathBuf;

use forebay_jobs::id::RunId;

/// `forebay worker`, for one run.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// The program, as its host knows it.
    pub program: PathBuf,
    /// The volume's root, as its host mounts it.
    pub volume: PathBuf,
    /// The run to work for.
    pub run: RunId,
    /// Attempts at once.
    pub slots: u32,
    /// Whether nothing is done, and said to be.
    pub pretend: bool,
}

impl WorkerCommand {
    /// Its arguments. Without a name a worker finds its own, by what its engine runs it as.
    pub fn arguments(&self) -> Vec<String> {
        let volume = self.volume.display().to_string();
        let fixed = ["worker", "--volume", &volume, "--run", self.run.as_str()].map(str::to_owned);
        let slots = ["--slots".to_owned(), self.slots.to_string()];
        fixed.into_iter().chain(slots).chain(self.pretend.then(|| "--pretend".to_owned())).collect()
    }
}
