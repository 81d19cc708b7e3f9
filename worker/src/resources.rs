//! What this process may use of its host.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that a worker asks for: its slots merge many at once. More would slow down programs that close them all.
const OPEN_FILES: u64 = 16_384;

/// Raises the soft limit of open files as far as it may and needs be.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!(%error, "the limit of open files stays as it is");
        }
    }
}
