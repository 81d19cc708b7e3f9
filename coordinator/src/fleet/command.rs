//! What is started as a worker, whoever starts it.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use forebay_jobs::id::RunId;

/// The credentials that the AWS SDK finds in the environment. They are the coordinator's: workers need none, and what
/// a job's program is to have, its job file says.
pub(super) const SECRETS: [&str; 9] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
];

/// As much of a worker's last words is shown.
const LAST_WORDS: u64 = 2048;

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

/// The end of what a worker wrote to its standard error.
pub(super) fn last_words(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
