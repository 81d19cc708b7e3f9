//! Who starts a run's workers.

use std::path::Path;

use forebay_datasets::volume::{Volume, VolumeError};
use forebay_jobs::{host::Host, id::Epoch, spec::FleetKind};

use super::{CoordinateError, CoordinateOptions};
use crate::{
    fleet::{
        Fleet,
        command::WorkerCommand,
        ecs::Ecs,
        engine::{Engine, Tag},
        external::External,
        kubernetes::{Kubernetes, PodConfig},
        local::{Local, LocalConfig},
        managed::Managed,
        slurm::Slurm,
    },
    rundir::RunDir,
};

/// The fleet that the job names, over what an earlier coordinator of it has left. This host holds so many workers.
pub(super) async fn open(
    volume: &Volume,
    run: &RunDir,
    (epoch, epoch_dir): (Epoch, &Path),
    (host, fit): (&Host, u32),
    options: &CoordinateOptions,
) -> Result<Box<dyn Fleet>, CoordinateError> {
    let (job, wanted) = (run.job(), &run.job().workers);
    let command = WorkerCommand {
        program: options.worker_program.clone(),
        volume: volume.root().to_owned(),
        run: run.id().clone(),
        slots: job.slots(host.cores),
        pretend: options.pretend,
    };
    let tag = Tag::of(volume.id(), run.id());
    match wanted.fleet {
        FleetKind::External => Ok(Box::new(External)),
        FleetKind::Local => Ok(Box::new(Local::new(LocalConfig {
            command,
            epoch,
            fit,
            gpus: (host.gpus.clone(), wanted.gpus),
            time: wanted.time,
            logs: run.logs_dir(),
        }))),
        FleetKind::Slurm => {
            let spec = job.slurm.clone().unwrap_or_default();
            let program = spec.program.clone().unwrap_or_else(|| command.program.clone());
            let command = WorkerCommand { program, ..command };
            let engine = Slurm::new(command, tag.clone(), wanted.clone(), spec, run.logs_dir());
            managed(engine, tag, epoch, epoch_dir)
        }
        FleetKind::Ecs => {
            let spec = job.ecs.as_ref().ok_or_else(|| CoordinateError::Fleet("the job has no [ecs]".to_owned()))?;
            let engine = Ecs::new(spec, wanted, command, tag.clone()).await;
            managed(engine.map_err(|error| CoordinateError::Fleet(error.why))?, tag, epoch, epoch_dir)
        }
        FleetKind::Kubernetes => {
            let pods = PodConfig::new(job, &tag, command).map_err(CoordinateError::Fleet)?;
            let engine = Kubernetes::open(pods).await.map_err(CoordinateError::Fleet)?;
            managed(engine, tag, epoch, epoch_dir)
        }
    }
}

fn managed<E: Engine>(engine: E, tag: Tag, epoch: Epoch, dir: &Path) -> Result<Box<dyn Fleet>, CoordinateError> {
    let unreadable = |error| VolumeError::io("read", dir, error);
    Ok(Box::new(Managed::open(engine, tag, epoch, dir).map_err(unreadable)?))
}
