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
    /// Attempts at once; none: as many as it finds cores.
    pub slots: Option<u32>,
    /// Whether nothing is done, and said to be.
    pub pretend: bool,
}

impl WorkerCommand {
    /// Its arguments. Without a name a worker finds its own, by what its engine runs it as.
    pub fn arguments(&self) -> Vec<String> {
        let volume = self.volume.display().to_string();
        let fixed = ["worker", "--volume", &volume, "--run", self.run.as_str()].map(str::to_owned);
        let slots = self.slots.map(|slots| ["--slots".to_owned(), slots.to_string()]);
        fixed
            .into_iter()
            .chain(slots.into_iter().flatten())
            .chain(self.pretend.then(|| "--pretend".to_owned()))
            .collect()
    }
}
