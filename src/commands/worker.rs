//! `forebay worker`: what a fleet starts.

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
        pretend: args.pretend,
    })
    .await?;
    Ok(Exit::Done)
}
