//! One attempt: its directory, its work, its report.
//!
//! An attempt writes what is to stay into `attempts/<id>/`, what goes with it into its slot's directory, and nothing
//! elsewhere. When it has succeeded, the first is synced, and each of its files is reported with size and checksum; else,
//! and where there is none, it goes.

mod checkpoint;
mod program;
mod scratch;
mod spares;

use std::{
    error::Error,
    io,
    os::unix::process::ExitStatusExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitStatus,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use forebay_datasets::{
    output,
    volume::{self, Volume, VolumeError},
};
use forebay_jobs::{
    id::{AttemptId, RunId, WorkerId},
    kinds::{
        TaskContext, TaskError, TaskOutput, command, command::SlotShare, mapreduce, mapreduce::native::Natives, sql,
    },
    plan::{PlanError, PlanHead},
    spec::{JobSpec, MapReduceSpec, Mapper, Work},
    task::{AttemptReport, Failure, Outcome, OutputFile, TaskInput, TaskSpec},
    wire::{Assignment, Cluster, Rendezvous},
};
use tokio::{runtime::Handle, sync::watch};

use self::{
    program::{run_command, run_filter},
    scratch::clear,
};
pub(crate) use self::{scratch::Scratch, spares::Spares};
use crate::{
    guard::Guard,
    logs::Logs,
    memory::Groups,
    process::{DRAIN_GRACE, ProcessError, held},
    stop::{Stop, Why},
};

/// A report of so many files is well below the largest message of the link, with names of 200 bytes.
const MOST_FILES: usize = 100_000;
/// The plan's name in a run's directory.
const PLAN: &str = "plan.ndjson";
/// A program that asks to be run again (`EX_TEMPFAIL`).
const AGAIN: i32 = 75;

/// What all attempts of a worker share.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The volume as this host mounts it.
    pub(crate) volume: Volume,
    /// The run.
    pub(crate) run: RunId,
    /// Its job.
    pub(crate) job: JobSpec,
    /// What is compiled into the worker's program beside what is built in.
    pub(crate) natives: Natives,
    /// How many attempts the worker executes at once.
    pub(crate) slots: u32,
    /// The worker's GPUs.
    pub(crate) gpus: Vec<String>,
    /// Where attempts get their limits of memory.
    pub(crate) groups: Groups,
    /// When its host takes the worker away.
    pub(crate) until: Option<SystemTime>,
    /// The name of the worker.
    pub(crate) worker: WorkerId,
    /// The slots' directories.
    pub(crate) scratch: Scratch,
    /// Attempts' directories for what is to stay, and for checkpoints, that were left empty.
    pub(crate) spare_outputs: Spares,
    pub(crate) spare_checkpoints: Spares,
    /// Where programs print.
    pub(crate) logs: Arc<Logs>,
    /// Ends programs when the worker is killed.
    pub(crate) guard: Option<Guard>,
    /// What the run's plan says of all of its tasks, once an attempt needed to know it.
    pub(crate) plan: Mutex<Option<Arc<PlanHead>>>,
    /// The scheduler of the run's query, of the newest coordinator.
    pub(crate) cluster: watch::Receiver<Option<Cluster>>,
    /// The run's directory.
    pub(crate) run_dir: PathBuf,
    /// What tells the time to attempts that have a limit.
    pub(crate) runtime: Handle,
}

impl Bench {
    /// What the run's plan says of all of its tasks, which is read once.
    fn plan(&self) -> Result<Arc<PlanHead>, PlanError> {
        let mut known = held(&self.plan);
        if let Some(plan) = &*known {
            return Ok(Arc::clone(plan));
        }
        let plan = PlanHead::read(&self.volume.run_dir(self.run.as_str()).join(PLAN))?;
        Ok(Arc::clone(known.insert(Arc::new(plan))))
    }
}

/// Why an attempt did not do its work.
#[derive(Debug, thiserror::Error)]
enum ExecuteError {
    /// The kind of work failed.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The program could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// What the run reads is not known.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The program ended in another way than with exit code 0.
    #[error("its program ended with {status}")]
    Status {
        /// How.
        status: ExitStatus,
        /// Its last words.
        stderr: String,
    },
    /// The kernel ended the program for its memory.
    #[error("its program used too much memory")]
    OutOfMemory {
        /// Bytes.
        limit: u64,
    },
    /// The system does not limit its memory.
    #[error("its memory cannot be limited")]
    Limit(#[source] io::Error),
    /// Somebody else listens where the first member of a gang is to.
    #[error("the port at which its gang meets is taken")]
    PortTaken(#[source] io::Error),
    /// The program's end was ordered.
    #[error("its program was stopped")]
    Stopped,
    /// A bug.
    #[error("its work panicked")]
    Panicked,
    /// No thread, or no runtime.
    #[error("the system gives no thread")]
    Thread(#[source] io::Error),
    /// A shipped file's name leads out of its directory.
    #[error("no shipped file can be named `{0}`")]
    BadName(String),
    /// It left more files than one report can name.
    #[error("it left {0} files, and {MOST_FILES} at most can be reported: put them together into archives")]
    TooManyFiles(usize),
    /// The job and the task do not fit together.
    #[error("the job has no program for this task")]
    NoProgram,
}

impl ExecuteError {
    fn is_retryable(&self) -> bool {
        match self {
            Self::Task(error) => error.is_retryable(),
            Self::Process(error) => error.is_retryable(),
            Self::Volume(error) => !matches!(error, VolumeError::Escapes { .. }),
            Self::OutOfMemory { .. } | Self::Limit(_) | Self::PortTaken(_) => true,
            Self::Plan(_) | Self::Status { .. } | Self::Stopped | Self::Panicked | Self::Thread(_) => true,
            Self::BadName(_) | Self::NoProgram | Self::TooManyFiles(_) => false,
        }
    }
}

/// Executes an attempt to its end, or to the end that `stop` orders. Always gives a report.
pub(crate) fn execute(bench: &Arc<Bench>, assignment: Assignment, slot: u32, stop: &Stop) -> AttemptReport {
    let started = Instant::now();
    let this = Arc::new(Attempt::new(Arc::clone(bench), assignment, slot, stop.clone()));
    let time_is_up = bench.job.retry.timeout.map(|timeout| {
        let stop = stop.clone();
        bench.runtime.spawn(async move {
            // The limit that the job itself sets; without one there is none.
            tokio::time::sleep(timeout).await;
            stop.order(Why::TimedOut);
        })
    });
    // A panic is a bug of this kind of work; the other attempts go on.
    let done = catch_unwind(AssertUnwindSafe(|| work(&this))).unwrap_or(Err(ExecuteError::Panicked));
    if let Some(timer) = time_is_up {
        timer.abort();
    }
    let outcome = match done {
        // What is done counts, even if its end was ordered meanwhile.
        Ok(done) => done,
        Err(error) => {
            this.discard();
            this.stopped(error)
        }
    };
    AttemptReport { attempt: this.id, outcome, seconds: started.elapsed().as_secs_f64() }
}

/// What an attempt is reported as for which there is no thread.
pub(crate) fn without_thread(attempt: AttemptId, error: io::Error) -> AttemptReport {
    AttemptReport { attempt, outcome: outcome(ExecuteError::Thread(error)), seconds: 0.0 }
}

/// What the failure of an attempt that nobody stopped is reported as.
fn outcome(error: ExecuteError) -> Outcome {
    let retryable = error.is_retryable();
    match error {
        ExecuteError::Status { status, stderr } => match (status.code(), status.signal()) {
            (Some(AGAIN), _) => Outcome::GivenBack,
            (Some(code), _) => Outcome::Failed(Failure::ExitCode { code, stderr }),
            (None, signal) => Outcome::Failed(Failure::Signal { signal: signal.unwrap_or_default(), stderr }),
        },
        // The gang's next try has another one.
        ExecuteError::PortTaken(_) => Outcome::GivenBack,
        ExecuteError::OutOfMemory { limit } => Outcome::Failed(Failure::OutOfMemory { limit }),
        error => Outcome::Failed(Failure::Error { message: chain(&error), retryable }),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// What a program has left.
#[derive(Debug, Default)]
struct Left {
    checkpoint_dir: Option<PathBuf>,
    /// Nothing of it is at work any more, in whatever directory.
    whole: bool,
}

/// An attempt under way.
struct Attempt {
    bench: Arc<Bench>,
    id: AttemptId,
    spec: TaskSpec,
    /// Another attempt at its task goes on.
    beside: bool,
    /// Where it meets the rest of its gang.
    rendezvous: Option<Rendezvous>,
    /// What its slot has.
    share: SlotShare,
    out_dir: PathBuf,
    scratch_dir: PathBuf,
    /// When its time is up, since the Unix epoch.
    deadline: Option<Duration>,
    stop: Stop,
}

impl Attempt {
    fn new(bench: Arc<Bench>, assignment: Assignment, slot: u32, stop: Stop) -> Self {
        let Assignment { attempt: id, spec, beside, rendezvous } = assignment;
        let run_dir = bench.volume.run_dir(bench.run.as_str());
        let out_dir = run_dir.join("attempts").join(id.to_string());
        let scratch_dir = run_dir.join("slots").join(format!("{}.{slot}", bench.worker));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timed_out = bench.job.retry.timeout.and_then(|timeout| now.checked_add(timeout));
        let taken_away = bench.until.and_then(|until| until.duration_since(UNIX_EPOCH).ok());
        let deadline = timed_out.into_iter().chain(taken_away).min();
        let share = SlotShare::of(&bench.job.workers, &bench.gpus, (slot, bench.slots));
        Self { bench, id, spec, beside, rendezvous, share, out_dir, scratch_dir, deadline, stop }
    }

    /// Whether it is done early when it is told to make way, and reports what it has not read.
    fn can_yield(&self) -> bool {
        matches!(self.spec.input, TaskInput::Split(_)) && self.bench.job.can_yield()
    }

    fn context(&self, threads: usize) -> TaskContext<'_> {
        let (yields, ends) = self.stop.yielding();
        TaskContext {
            volume: &self.bench.volume,
            job: &self.bench.job,
            spec: &self.spec,
            out_dir: &self.out_dir,
            scratch_dir: &self.scratch_dir,
            threads,
            table: None,
            memory: None,
            run_dir: &self.bench.run_dir,
            cluster: self.bench.cluster.clone(),
            cancel: if self.can_yield() { ends } else { self.stop.token() },
            yields,
        }
    }

    /// Makes its directories. A run that has ended without this worker's knowledge has no place for them any more.
    fn prepare(&self) -> Result<(), ExecuteError> {
        self.bench.spare_outputs.give(&self.out_dir)?;
        Ok(self.bench.scratch.prepare(&self.scratch_dir)?)
    }

    /// What an attempt without success is reported as.
    fn stopped(&self, error: ExecuteError) -> Outcome {
        match self.stop.why() {
            Some(Why::Drain | Why::Abort) => Outcome::GivenBack,
            Some(Why::Cancelled) => Outcome::Failed(Failure::Cancelled),
            Some(Why::TimedOut) => {
                let seconds = self.bench.job.retry.timeout.unwrap_or_default().as_secs();
                Outcome::Failed(Failure::TimedOut { seconds })
            }
            Some(Why::Yield) | None => outcome(error),
        }
    }

    fn discard(&self) {
        output::discard(&self.bench.volume, &self.out_dir);
        clear(&self.scratch_dir);
    }

    /// Makes its files durable up to the run's own directory, lists them as they are reported, and removes the rest.
    fn finish(&self, output: TaskOutput, left: Left) -> Result<Outcome, ExecuteError> {
        if output.files.len() > MOST_FILES {
            return Err(ExecuteError::TooManyFiles(output.files.len()));
        }
        if !output.files.is_empty() {
            let dirs = [Some(self.out_dir.as_path()), self.out_dir.parent()];
            dirs.into_iter().flatten().try_for_each(volume::sync_dir)?;
        }
        let mut outputs = Vec::with_capacity(output.files.len());
        for file in output.files {
            let path = self.bench.volume.relative(&file.path);
            let path = path.ok_or_else(|| VolumeError::Escapes { path: file.path.display().to_string() })?;
            outputs.push(OutputFile {
                path,
                publish_as: file.publish_as,
                partition: file.partition,
                size: file.size,
                checksum: file.checksum,
                rows: file.rows,
            });
        }
        if let Left { checkpoint_dir: Some(dir), whole: true } = &left {
            // Nothing in it to go on from, for whichever attempt.
            self.bench.spare_checkpoints.take(dir);
        }
        if outputs.is_empty() && !(left.whole && self.bench.spare_outputs.take(&self.out_dir)) {
            output::discard(&self.bench.volume, &self.out_dir);
        }
        clear(&self.scratch_dir);
        Ok(Outcome::Done { outputs, metrics: output.metrics, rest: output.rest })
    }
}

fn work(this: &Arc<Attempt>) -> Result<Outcome, ExecuteError> {
    match &this.bench.job.work {
        Work::Command(spec) => {
            let left = run_command(this, &spec.program, &spec.files, &spec.env)?;
            this.finish(command::collect(&this.context(1))?, left)
        }
        Work::Mapreduce(MapReduceSpec { map: Mapper::Program(map), reduce, files, env, .. }) => {
            let program = match this.spec.input {
                TaskInput::Split(_) => map,
                TaskInput::Shuffle(_) => reduce.as_ref().ok_or(ExecuteError::NoProgram)?,
            };
            let (output, left) = run_filter(this, program, files, env)?;
            this.finish(output, left)
        }
        Work::Mapreduce(_) => {
            this.prepare()?;
            let stop = this.stop.clone();
            let drained = this.bench.runtime.spawn(async move {
                stop.token().cancelled().await;
                // A worker that goes has little time, also for what could be done early.
                tokio::time::sleep(DRAIN_GRACE).await;
                stop.order(Why::Abort);
            });
            let done = mapreduce::execute(&this.context(1), &this.bench.natives);
            drained.abort();
            this.finish(done?, Left::default())
        }
        Work::Sql(_) => {
            this.prepare()?;
            this.finish(run_sql(this)?, Left::default())
        }
    }
}

/// Runs the query on a runtime of its own. One that is one task has the whole worker: a thread a slot, and all memory.
/// So has the last task of one by splits, but for the threads; the others have their slot's part.
fn run_sql(attempt: &Attempt) -> Result<TaskOutput, ExecuteError> {
    let bench = &attempt.bench;
    let (slots, is_by_splits) = (bench.slots.max(1), bench.job.is_by_splits());
    let threads = if is_by_splits { 1 } else { slots as usize };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).thread_name("sql").enable_all().build();
    let all = query_memory(&bench.job);
    let memory = match &attempt.spec.input {
        TaskInput::Split(_) if is_by_splits => all.map(|bytes| bytes / u64::from(slots)),
        _ => all,
    };
    let plan = is_by_splits.then(|| bench.plan()).transpose()?;
    let table = plan.as_ref().and_then(|plan| plan.table.as_ref());
    let context = TaskContext { memory, table, ..attempt.context(threads) };
    Ok(runtime.map_err(ExecuteError::Thread)?.block_on(sql::execute(&context))?)
}

/// The memory that a query has in each worker.
pub(crate) fn query_memory(job: &JobSpec) -> Option<u64> {
    job.workers.memory.or_else(|| sql::default_memory(job.workers.count))
}
