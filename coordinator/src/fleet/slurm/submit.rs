//! A coordinator as a job of Slurm's, by `sbatch`; and commands by `srun`.
//!
//! The job's name is the run's, and a digest of the volume's path: by it one is found that is there already. The parcel
//! is in the script, which Slurm keeps for itself and the job's user (`max_script_size`, 4 MiB unless set otherwise).

use std::{io, process::Stdio};

use forebay_jobs::spec::{SlurmSpec, coordinator::CoordinatorSpec};
use sha2::{Digest, Sha256};

use super::{command, quoted, run};
use crate::{
    fleet::engine::{Class, EngineError},
    submit::{Standing, Submission, SubmitError, Submitted, digest},
};

/// Where the parcel ends in the script: no parcel has it.
const END: &str = "END-OF-PARCEL";
/// Options that say where what is printed goes.
const FILES: [&str; 4] = ["--output", "--error", "--open-mode", "--chdir"];
/// From SIGTERM to the end of the coordinator's time: it lets go of its run in a moment.
const WARNING: u32 = 30;

pub(crate) async fn submit(submission: &Submission, parcel: &str) -> Result<Submitted, SubmitError> {
    let name = name(submission);
    let digest = digest(parcel);
    if let Some(found) = found(&name).await? {
        return submission.there(format!("Slurm's job {}", found.job), found.digest == digest);
    }
    let mut sbatch = command("sbatch");
    sbatch.args(options(submission, &name)).arg(format!("--comment={digest}"));
    let said = run("sbatch", sbatch, &script(submission, parcel)).await?;
    let id = said.lines().rev().find_map(|line| line.trim().split(';').next()?.parse::<u64>().ok());
    let unclear = || {
        let why = format!("`sbatch` did not say which job it submitted: {}", said.trim());
        EngineError::new(Class::Unknown, why)
    };
    Ok(Submitted { coordinator: format!("Slurm's job {}", id.ok_or_else(unclear)?), is_old: false })
}

/// A coordinator that has not ended.
struct Found {
    job: String,
    digest: String,
    /// What it waits for, if it does.
    waits: Option<String>,
}

async fn found(name: &str) -> Result<Option<Found>, EngineError> {
    let mut squeue = command("squeue");
    squeue.args(["--noheader", "--name", name, "--user", &rustix::process::getuid().as_raw().to_string()]);
    // Without `--states` it tells of those alone that have not ended.
    squeue.args(["--format", "%i|%T|%k|%r"]);
    let said = run("squeue", squeue, "").await?;
    Ok(said.lines().find_map(|line| {
        let mut fields = line.trim().splitn(4, '|');
        let (job, state, digest, reason) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let waits = matches!(state, "PENDING" | "CONFIGURING");
        let waits = waits.then(|| format!("Slurm's job {job} is {state}: {reason}"));
        Some(Found { job: job.to_owned(), digest: digest.to_owned(), waits })
    }))
}

pub(crate) async fn standing(submission: &Submission) -> Result<Standing, EngineError> {
    Ok(match found(&name(submission)).await? {
        Some(Found { waits: Some(why), .. }) => Standing::Waits(why),
        Some(_) => Standing::Works,
        None => Standing::Gone,
    })
}

pub(crate) async fn execute(submission: &Submission, arguments: &[String]) -> Result<i32, EngineError> {
    let mut srun = command("srun");
    let (spec, own) = specs(submission);
    srun.args(["--quiet", "--nodes=1", "--ntasks=1", "--input=none", "--chdir=/"]);
    srun.arg(format!("--job-name={}", name(submission)).replace(".coordinator-", ".command-"));
    // What a command prints is printed here.
    let is_of_files = |option: &&String| FILES.iter().any(|name| option.starts_with(name));
    srun.args(placed(&spec, &own)).args(own.options.iter().filter(|option| !is_of_files(option)));
    let script = format!("{}exec \"$@\"", setup(&spec));
    srun.args(["bash", "-c", &script, "bash"]).args(words(submission)).args(arguments);
    srun.stdin(Stdio::null()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let unable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            EngineError::new(Class::Permanent, "there is no `srun` here: ask on a host of the cluster".to_owned())
        }
        _ => EngineError::new(Class::Unknown, format!("cannot run `srun`: {error}")),
    };
    let ended = srun.status().await.map_err(unable)?;
    ended.code().ok_or_else(|| EngineError::new(Class::Unknown, format!("`srun` was killed: {ended}")))
}

fn specs(submission: &Submission) -> (SlurmSpec, CoordinatorSpec) {
    (submission.job.slurm.clone().unwrap_or_default(), submission.job.coordinator.clone().unwrap_or_default())
}

fn name(submission: &Submission) -> String {
    let digest = Sha256::digest(submission.volume.as_os_str().as_encoded_bytes());
    let digits: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{}.coordinator-{digits}", submission.run)
}

/// Where a coordinator goes.
fn placed(spec: &SlurmSpec, own: &CoordinatorSpec) -> Vec<String> {
    let partition = own.partition.as_ref().or(spec.partition.as_ref());
    let named = [("partition", partition), ("account", spec.account.as_ref()), ("qos", spec.qos.as_ref())];
    named.iter().filter_map(|(name, value)| Some(format!("--{name}={}", (*value)?))).collect()
}

fn options(submission: &Submission, name: &str) -> Vec<String> {
    let (spec, own) = specs(submission);
    let mut options = vec![
        "--parsable".to_owned(),
        format!("--job-name={name}"),
        "--nodes=1".to_owned(),
        "--ntasks=1".to_owned(),
        format!("--cpus-per-task={}", own.cpus),
        // If its node is lost it is begun again, and goes on with its run.
        "--requeue".to_owned(),
        "--open-mode=append".to_owned(),
        format!("--signal=B:TERM@{WARNING}"),
    ];
    options.extend(own.memory.map(|bytes| format!("--mem={}M", bytes.div_ceil(1 << 20))));
    options.extend(own.time.map(|time| format!("--time={}", time.as_secs().div_ceil(60))));
    options.extend(placed(&spec, &own));
    options.extend(own.options);
    options
}

fn setup(spec: &SlurmSpec) -> String {
    spec.setup.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

/// The program, and over what it works.
fn words(submission: &Submission) -> [String; 3] {
    let program = submission.job.slurm.as_ref().and_then(|spec| spec.program.as_ref());
    let program = program.unwrap_or(&submission.program).display().to_string();
    [program, "--volume".to_owned(), submission.volume.display().to_string()]
}

/// The coordinator takes the shell's place, so that it gets Slurm's signals.
fn script(submission: &Submission, parcel: &str) -> String {
    let (spec, _) = specs(submission);
    let words = words(submission).map(|word| quoted(&word)).join(" ");
    format!("#!/bin/bash\n{}exec {words} coordinate - <<'{END}'\n{parcel}\n{END}\n", setup(&spec))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use forebay_jobs::spec::parse::job_file;

    use super::*;

    fn submission(rest: &str) -> Submission {
        let text = format!(
            "name = 'j'\n[dataset]\nsource = 's3://b'\n[mapreduce]\nmap = 'word-count'\n[workers]\nfleet = 'slurm'\n{rest}"
        );
        Submission {
            run: "a.run".parse().unwrap(),
            job: job_file(&text, Path::new("/"), &[]).unwrap(),
            volume: "/shared/my volume".into(),
            program: "/opt/forebay".into(),
        }
    }

    #[test]
    fn a_coordinator_has_its_own_place_or_that_of_the_workers() {
        let plain = submission("cpus = 8\n[slurm]\npartition = 'batch'\naccount = 'lab'\noptions = ['--exclusive']\n");
        let options = options(&plain, "n");
        assert!(
            ["--partition=batch", "--account=lab", "--cpus-per-task=1"]
                .iter()
                .all(|it| options.contains(&(*it).to_owned()))
        );
        assert!(!options.iter().any(|option| option.starts_with("--mem") || option == "--exclusive"));
        let own = submission(
            "[slurm]\npartition = 'batch'\n[coordinator]\npartition = 'small'\ncpus = 2\nmemory = '4GiB'\ntime = '90m'\n\
             options = ['--output=/shared/%x.log']\n",
        );
        let options = super::options(&own, "n");
        let wanted = ["--partition=small", "--cpus-per-task=2", "--mem=4096M", "--time=90", "--output=/shared/%x.log"];
        assert!(wanted.iter().all(|it| options.contains(&(*it).to_owned())), "{options:?}");
        assert!(!options.contains(&"--partition=batch".to_owned()));
    }

    #[test]
    fn its_script_has_the_parcel_as_input_after_the_setup() {
        let all = submission("[slurm]\nsetup = ['module load x', 'export A=1']\nprogram = '/nodes/forebay'\n");
        let expected = "#!/bin/bash\nmodule load x\nexport A=1\n\
            exec '/nodes/forebay' '--volume' '/shared/my volume' coordinate - <<'END-OF-PARCEL'\neJw=\nEND-OF-PARCEL\n";
        assert_eq!(script(&all, "eJw="), expected);
    }

    #[test]
    fn runs_of_the_same_name_on_other_volumes_have_other_jobs() {
        let one = submission("");
        let other = Submission { volume: "/shared/other".into(), ..one.clone() };
        assert!(name(&one).starts_with("a.run.coordinator-"));
        assert_ne!(name(&one), name(&other));
    }
}
