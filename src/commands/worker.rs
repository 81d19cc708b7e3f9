//! `forebay worker`: what a fleet starts.

use std::time::{Duration, UNIX_EPOCH};

use forebay_worker::WorkerConfig;

use crate::{
    cli::{Global, WorkerArgs},
    error::{CliError, Exit},
};

pub async fn execute(global: &Global, args: &WorkerArgs) -> Result<Exit, CliError> {
    forebay_worker::run(WorkerConfig {
        volume_root: global.volume.clone(),
        run: args.run.clone(),
        worker: args.name.clone(),
        slots: args.slots.map(Into::into),
        until: args.until.map(|until| UNIX_EPOCH + Duration::from_secs(until)),
        pretend: args.pretend,
    })
    .await?;
    Ok(Exit::Done)
}
