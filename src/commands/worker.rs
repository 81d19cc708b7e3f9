//! `forebay worker`: what a fleet starts.

mod ecs;

use std::{
    env,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use forebay_jobs::{
    id::{MemberId, WorkerId},
    kinds::mapreduce::native::Natives,
};
use forebay_worker::WorkerConfig;

use crate::{
    cli::{Global, WorkerArgs},
    error::{CliError, Exit},
};

/// A name that no other process has. One that an engine runs tells as what.
async fn name() -> Result<WorkerId, CliError> {
    let of_member = match env::var(ecs::METADATA) {
        Ok(base) => Some(ecs::member(&base).await.map_err(|error| {
            let message = format!("ECS does not say which task this is, at {base}: {error}");
            CliError::new(Exit::OutOfReach, message)
        })?),
        Err(_) => member(|name| env::var(name).ok()),
    };
    if let Some(worker) = of_member.and_then(|member| WorkerId::of_member(&member, rand::random()).ok()) {
        return Ok(worker);
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain = |char: char| if char.is_ascii_alphanumeric() || char == '-' { char } else { '-' };
    let host: String = host.chars().take(40).map(plain).collect();
    Ok(format!("at-{host}-{}", std::process::id()).parse().expect("letters, digits and hyphens are an id"))
}

/// What an engine runs this process as, by what it has put into the environment: of an Indexed Job of Kubernetes each index, of an array of Slurm's
/// each task.
fn member(var: impl Fn(&str) -> Option<String>) -> Option<MemberId> {
    let kubernetes = || Some(format!("{}-{}", var("FOREBAY_KUBERNETES_JOB")?, var("JOB_COMPLETION_INDEX")?));
    let slurm = || Some(format!("slurm-{}_{}", var("SLURM_ARRAY_JOB_ID")?, var("SLURM_ARRAY_TASK_ID")?));
    kubernetes().or_else(slurm)?.parse().ok()
}

/// When this worker is taken away, if that is known.
fn until(args: &WorkerArgs) -> Option<SystemTime> {
    let time = args.time.and_then(|time| SystemTime::now().checked_add(time));
    time.or_else(|| args.until.map(|until| UNIX_EPOCH + Duration::from_secs(until)))
}

pub async fn execute(global: &Global, args: &WorkerArgs, natives: &Natives) -> Result<Exit, CliError> {
    let worker = match &args.name {
        Some(name) => name.clone(),
        None => name().await?,
    };
    let config = WorkerConfig {
        volume_root: global.volume.clone(),
        run: args.run.clone(),
        worker,
        slots: args.slots.map(Into::into),
        until: until(args),
        pretend: args.pretend,
    };
    forebay_worker::run(config, natives.clone()).await?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_task_of_slurm_and_an_index_of_a_job_are_members_and_other_processes_are_none() {
        let of = |vars: &[(&str, &str)]| {
            let vars: Vec<_> = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            member(move |name| vars.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()))
        };
        let task = [("SLURM_JOB_ID", "19"), ("SLURM_ARRAY_JOB_ID", "17"), ("SLURM_ARRAY_TASK_ID", "3")];
        assert_eq!(of(&task), Some("slurm-17_3".parse().unwrap()));
        assert_eq!(of(&task[..1]), None);
        let index = [("FOREBAY_KUBERNETES_JOB", "forebay-0-1-a"), ("JOB_COMPLETION_INDEX", "3")];
        assert_eq!(of(&index), Some("forebay-0-1-a-3".parse().unwrap()));
        assert_eq!(of(&index[1..]), None);
        assert_eq!(of(&[]), None);
    }
}
