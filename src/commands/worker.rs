//! `forebay worker`: what a fleet starts.

use std::time::{Duration, UNIX_EPOCH};

use forebay_jobs::{id::WorkerId, kinds::mapreduce::native::Natives};
use forebay_worker::WorkerConfig;

use crate::{
    cli::{Global, WorkerArgs},
    error::{CliError, Exit},
};

/// A name that no other process has, of letters that a worker's may have.
fn name() -> WorkerId {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain = |char: char| if char.is_ascii_alphanumeric() || char == '-' { char } else { '-' };
    let host: String = host.chars().take(40).map(plain).collect();
    format!("at-{host}-{}", std::process::id()).parse().expect("letters, digits and hyphens are an id")
}

pub async fn execute(global: &Global, args: &WorkerArgs, natives: &Natives) -> Result<Exit, CliError> {
    let config = WorkerConfig {
        volume_root: global.volume.clone(),
        run: args.run.clone(),
        worker: args.name.clone().unwrap_or_else(name),
        slots: args.slots.map(Into::into),
        until: args.until.map(|until| UNIX_EPOCH + Duration::from_secs(until)),
        pretend: args.pretend,
    };
    forebay_worker::run(config, natives.clone()).await?;
    Ok(Exit::Done)
}
