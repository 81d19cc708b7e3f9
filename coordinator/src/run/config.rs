//! What of a job concerns scheduling.

use forebay_jobs::spec::JobSpec;

/// What of a job concerns scheduling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunConfig {
    /// Failures of a task that end it.
    pub attempts: u32,
    /// Milliseconds before the second try; doubles with each.
    pub backoff_first: u64,
    /// The longest wait in milliseconds.
    pub backoff_last: u64,
    /// Milliseconds that an attempt may take.
    pub timeout: Option<u64>,
    /// Failed tasks that the run survives.
    pub max_failures: u32,
    /// Whether a task that takes long is begun a second time elsewhere.
    pub speculate: bool,
    /// Whether what such a task has not read becomes other tasks.
    pub resplit: bool,
    /// Whether the tasks only work together.
    pub gang: bool,
    /// Whether what earlier runs have done is looked for.
    pub reuse: bool,
    /// Workers at most.
    pub workers: u32,
    /// Attempts at once, of all workers; none: as many as there are slots.
    pub readers: Option<u32>,
    /// Milliseconds over which the number of attempts at once grows to all.
    pub ramp: u64,
    /// Whether the output is copied elsewhere in the end.
    pub export: bool,
}

impl From<&JobSpec> for RunConfig {
    fn from(job: &JobSpec) -> Self {
        let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            attempts: job.retry.attempts,
            backoff_first: millis(job.retry.backoff_first),
            backoff_last: millis(job.retry.backoff_last),
            timeout: job.retry.timeout.map(millis),
            max_failures: job.retry.max_failures,
            speculate: job.retry.speculate,
            resplit: job.can_yield(),
            gang: job.is_gang(),
            reuse: job.may_reuse(),
            workers: job.workers.count,
            readers: job.workers.readers,
            ramp: millis(job.workers.ramp),
            export: job.output.to.is_some(),
        }
    }
}
