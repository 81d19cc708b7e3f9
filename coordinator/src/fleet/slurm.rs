//! Workers as array tasks of Slurm, by its own commands: one `sbatch` a batch, `squeue` to list, `scancel` to stop.
//!
//! No accounting is needed. `squeue` is asked for fixed columns, since its JSON is another one in each version. Jobs are
//! told by their name, which ends with the token of the call that submitted them.
//!
//! Slurm begins a job anew while its old worker may still run: after a node is lost, after its own restart, after a
//! worker's `slurmstepd` was killed. Then the new worker has another nonce in its name than the old one, which ends
//! when its link says so, or when it finds that the run has ended; `scancel` does not reach it.

pub(crate) mod submit;

use std::{
    collections::BTreeSet,
    env, io,
    path::PathBuf,
    process::{Output, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use forebay_jobs::{
    id::MemberId,
    spec::{SlurmSpec, WorkersSpec},
};
use tokio::{io::AsyncWriteExt, process::Command};

use super::{
    command::{SECRETS, WorkerCommand, last_words},
    engine::{Call, Class, Engine, EngineError, Limits, Sighting, Started, State, Tag, Token},
};

/// Tasks of one array. Without `MaxArraySize` in its configuration Slurm takes 1,001.
const BATCH: u32 = 500;
/// Slurm tells a worker so many seconds before its time is up, or up to a minute earlier. A worker that knows its time
/// has begun to end by then; this is for one whose time was cut.
const WARNING: u32 = 12;
/// Jobs in one call of `scancel`.
const STOPPED_AT_ONCE: usize = 500;
/// Why a job waits that will wait for ever, unless somebody changes something.
const NEVER: [&str; 9] = [
    "AccountNotAllowed",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "JobHeldAdmin",
    "PartitionConfig",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSNotAllowed",
];

/// Slurm, for the workers of one run.
#[derive(Debug)]
pub struct Slurm {
    command: WorkerCommand,
    tag: Tag,
    workers: WorkersSpec,
    spec: SlurmSpec,
    /// Where what they say goes, on the volume.
    logs: PathBuf,
    /// Reasons for which workers wait, and that were told.
    told: Mutex<BTreeSet<String>>,
}

impl Slurm {
    /// Workers of a run, as its job file wants them.
    pub fn new(command: WorkerCommand, tag: Tag, workers: WorkersSpec, spec: SlurmSpec, logs: PathBuf) -> Self {
        Self { command, tag, workers, spec, logs, told: Mutex::default() }
    }

    /// The options of `sbatch`. The user's own come last, so that they win.
    fn options(&self, call: &Call) -> Vec<String> {
        let workers = &self.workers;
        let (volume, logs) = (self.command.volume.display(), self.logs.display());
        let mut options = vec![
            "--parsable".to_owned(),
            format!("--job-name={}.{}", self.command.run, call.token),
            format!("--array=0-{}", call.count - 1),
            "--requeue".to_owned(),
            format!("--signal=B:TERM@{WARNING}"),
            "--nodes=1".to_owned(),
            "--ntasks=1".to_owned(),
            format!("--cpus-per-task={}", workers.cpus.unwrap_or(self.command.slots)),
            format!("--chdir={volume}"),
            format!("--output={logs}/slurm-%A_%a.stderr"),
            "--open-mode=append".to_owned(),
        ];
        options.extend(workers.memory.map(|bytes| format!("--mem={}M", bytes.div_ceil(1 << 20))));
        options.extend(workers.time.map(|time| format!("--time={}", time.as_secs().div_ceil(60))));
        let spec = &self.spec;
        let named = [("partition", &spec.partition), ("account", &spec.account), ("qos", &spec.qos)];
        options.extend(named.iter().filter_map(|(name, value)| Some(format!("--{name}={}", value.as_ref()?))));
        let gpus = Some(workers.gpus).filter(|gpus| *gpus > 0).map(|gpus| format!("gpu:{gpus}"));
        let gres: Vec<_> = gpus.into_iter().chain(spec.gres.clone()).collect();
        options.extend((!gres.is_empty()).then(|| format!("--gres={}", gres.join(","))));
        options.extend(spec.options.iter().cloned());
        options
    }

    /// What each task executes. The worker takes the shell's place, so that it gets Slurm's signals.
    fn script(&self) -> String {
        let mut script = String::from("#!/bin/bash\n");
        for line in &self.spec.setup {
            script.push_str(line);
            script.push('\n');
        }
        if let Some(time) = self.workers.time {
            // Slurm before 22.05 does not say when a job ends.
            let seconds = time.as_secs().div_ceil(60) * 60;
            script.push_str(&format!(
                "export SLURM_JOB_END_TIME=${{SLURM_JOB_END_TIME:-$(($(date +%s) + {seconds}))}}\n"
            ));
        }
        let program = self.command.program.display().to_string();
        let words = std::iter::once(program).chain(self.command.arguments()).map(|word| quoted(&word));
        script.push_str(&format!("exec {}\n", words.collect::<Vec<_>>().join(" ")));
        script
    }

    async fn submit(&self, call: &Call) -> Result<Started, EngineError> {
        let mut sbatch = command("sbatch");
        SECRETS.iter().for_each(|name| {
            sbatch.env_remove(name);
        });
        sbatch.args(self.options(call));
        let said = run("sbatch", sbatch, &self.script()).await?;
        let id = said.lines().rev().find_map(|line| line.trim().split(';').next()?.parse::<u64>().ok());
        let Some(id) = id else {
            let why = format!("`sbatch` did not say which job it submitted: {}", said.trim());
            return Err(EngineError::new(Class::Unknown, why));
        };
        let member =
            |index| format!("slurm-{id}_{index}").parse().expect("letters, digits and an underscore are an id");
        Ok(Started { members: (0..call.count).map(member).collect(), refused: None })
    }

    /// Says once, for each reason, that workers will wait for ever.
    fn tell_why(&self, reasons: impl Iterator<Item = String>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for reason in reasons.filter(|reason| NEVER.contains(&reason.as_str())) {
            if told.insert(reason.clone()) {
                let advice = "they wait until the job file's [workers] and [slurm] fit the cluster: see `scontrol show partition`";
                tracing::warn!("Slurm cannot start workers, and gives `{reason}` as its reason: {advice}");
            }
        }
    }
}

impl Engine for Slurm {
    fn limits(&self) -> Limits {
        Limits {
            batch: BATCH,
            pause: Duration::from_millis(200),
            settle: Duration::from_secs(2),
            poll: (Duration::from_secs(1), Duration::from_secs(15)),
            call: Duration::from_secs(60),
        }
    }

    async fn start(&self, call: &Call) -> Result<Started, EngineError> {
        if call.again {
            // A job is all of its array, or nothing.
            let listed = self.list(&[]).await?;
            let members = listed.into_iter().filter(|sighting| sighting.token == call.token);
            let members: Vec<_> = members.map(|sighting| sighting.member).collect();
            if !members.is_empty() {
                return Ok(Started { members, refused: None });
            }
        }
        self.submit(call).await
    }

    async fn list(&self, _: &[MemberId]) -> Result<Vec<Sighting>, EngineError> {
        let mut squeue = command("squeue");
        squeue.args(["--noheader", "--array", "--states=all", "--user"]);
        squeue.arg(rustix::process::getuid().as_raw().to_string());
        squeue.args(["--Format", "ArrayJobID:24,ArrayTaskID:24,RestartCnt:12,State:24,Name:200,Reason:100"]);
        let said = run("squeue", squeue, "").await?;
        let (sightings, reasons): (Vec<_>, Vec<_>) = said.lines().filter_map(|line| sighting(&self.tag, line)).unzip();
        self.tell_why(reasons.into_iter().flatten());
        Ok(sightings)
    }

    async fn stop(&self, members: &[MemberId]) -> Result<(), EngineError> {
        let jobs: Vec<_> = members.iter().filter_map(|member| member.as_str().strip_prefix("slurm-")).collect();
        for jobs in jobs.chunks(STOPPED_AT_ONCE) {
            let mut scancel = command("scancel");
            // It has nothing to say of jobs that have ended.
            scancel.arg("--quiet").args(jobs);
            run("scancel", scancel, "").await?;
        }
        Ok(())
    }

    async fn explain(&self, member: &MemberId) -> Option<String> {
        let job = member.as_str().strip_prefix("slurm-")?;
        let mut scontrol = command("scontrol");
        scontrol.args(["show", "job", "--oneliner", job]);
        let said = run("scontrol", scontrol, "").await.unwrap_or_default();
        let told = said
            .split_whitespace()
            .filter(|word| ["JobState=", "Reason=", "ExitCode=", "NodeList="].iter().any(|key| word.starts_with(key)));
        let words = last_words(&self.logs.join(format!("{member}.stderr"))).unwrap_or_default();
        let told: Vec<_> = told.map(str::to_owned).chain(Some(words).filter(|words| !words.is_empty())).collect();
        Some(told.join(" ")).filter(|told| !told.is_empty())
    }
}

/// One of Slurm's commands. `sbatch` and `srun` hand its environment on to what they start.
fn command(name: &str) -> Command {
    let mut command = Command::new(name);
    // Who calls may be a job of Slurm's itself, of which what is started is no part.
    let of_job = |name: &String| name.starts_with("SLURM_") && !name.starts_with("SLURM_CONF");
    env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(of_job).for_each(|name| {
        command.env_remove(name);
    });
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What a command prints.
async fn run(name: &str, mut command: Command, input: &str) -> Result<String, EngineError> {
    let unable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => EngineError::new(
            Class::Permanent,
            format!("there is no `{name}` here: coordinate the run on a host of the cluster that has Slurm's commands"),
        ),
        _ => EngineError::new(Class::Unknown, format!("cannot run `{name}`: {error}")),
    };
    let mut child = command.spawn().map_err(unable)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that fails early does not read it, and says why.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let Output { status, stdout, stderr } = child.wait_with_output().await.map_err(unable)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&stderr);
    let said: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let why = if said.is_empty() { format!("`{name}` failed: {status}") } else { said.join("; ") };
    Err(refusal(&why))
}

/// What a refusal of Slurm's means, by its words: its exit codes say nothing.
fn refusal(why: &str) -> EngineError {
    let says = |any: &[&str]| any.iter().any(|words| why.contains(words));
    if says(&[
        "Unable to contact slurm controller",
        "Socket timed out",
        "Zero Bytes were transmitted",
        "Connection refused",
    ]) {
        return EngineError::new(Class::Unknown, why);
    }
    if says(&["temporarily unable", "temporarily unavailable", "Rate limit"]) {
        return EngineError::new(Class::Throttled, why);
    }
    // Slurm says the same of jobs that are too large, and of jobs that are too many.
    if says(&["violates accounting/QOS policy", "MaxSubmitJob"]) {
        return EngineError::new(Class::Capacity, why);
    }
    let advice = [
        ("partition", "`sinfo -s` lists the partitions; [slurm] partition names one"),
        ("account", "`sacctmgr show associations user=$USER` lists your accounts; [slurm] account names one"),
        ("qos", "`sacctmgr show qos` lists them; [slurm] qos names one"),
        ("gres", "`sinfo -o '%P %G'` lists what nodes have; [slurm] gres and [workers] gpus ask for it"),
        ("array specification", "the cluster's MaxArraySize is too small: ask for fewer [workers] count"),
        (
            "node configuration",
            "[workers] cpus, memory and gpus ask for more than a node has: `sinfo -o '%P %c %m %G'`",
        ),
        ("option", "correct [slurm] options: `sbatch --help` lists them"),
    ];
    let words = why.to_lowercase();
    let help = advice.iter().find(|(word, _)| words.contains(word)).map_or("", |(_, help)| help);
    EngineError::new(Class::Permanent, if help.is_empty() { why.to_owned() } else { format!("{why}; {help}") })
}

/// A line of `squeue`, if it tells of a job of the run's; with the reason for which it waits.
fn sighting(tag: &Tag, line: &str) -> Option<(Sighting, Option<String>)> {
    let mut words = line.split_whitespace();
    let (job, task, life, state) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let token: Token = tag.token(words.next()?.rsplit_once('.')?.1)?;
    let reason = words.collect::<Vec<_>>().join(" ");
    let (job, task): (u64, u32) = (job.parse().ok()?, task.parse().ok()?);
    let member = format!("slurm-{job}_{task}").parse().ok()?;
    let state = match state {
        // Of a node that is being started for it, it is said to be configuring.
        "PENDING" | "CONFIGURING" | "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "RESV_DEL_HOLD" | "SPECIAL_EXIT" => {
            State::Queued
        }
        "COMPLETING" => State::Ending,
        "BOOT_FAIL" | "CANCELLED" | "COMPLETED" | "DEADLINE" | "FAILED" | "LAUNCH_FAILED" | "NODE_FAIL"
        | "OUT_OF_MEMORY" | "PREEMPTED" | "RECONFIG_FAIL" | "REVOKED" | "TIMEOUT" => {
            State::Ended { why: format!("Slurm says {state}, {reason}") }
        }
        // It has its node, and may have its worker, whatever else is done with it.
        _ => State::Running,
    };
    let waits_for = Some(reason).filter(|_| state == State::Queued);
    Some((Sighting { member, token, state, life: life.parse().unwrap_or(0) }, waits_for))
}

/// A word of a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
