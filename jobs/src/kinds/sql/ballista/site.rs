//! What the tasks of a run's stages run in.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use datafusion::{
    error::{DataFusionError, Result},
    execution::runtime_env::RuntimeEnv,
};
use forebay_datasets::volume::Volume;

use super::super::{
    held::{HeldFiles, volume_url},
    memory,
};
use crate::plan::Plan;

/// A worker as a place for tasks of stages: all of them share its memory, and spill to one directory.
#[derive(Debug)]
pub struct Site {
    volume: Volume,
    run_dir: PathBuf,
    scratch: PathBuf,
    memory: Option<u64>,
    /// Once the first task has asked.
    runtime: Mutex<Option<Arc<RuntimeEnv>>>,
}

impl Site {
    /// Of a worker with so much memory, whose tasks spill to this directory.
    pub fn new(volume: &Volume, run_dir: PathBuf, scratch: PathBuf, memory: Option<u64>) -> Self {
        Self { volume: volume.clone(), run_dir, scratch, memory, runtime: Mutex::default() }
    }

    /// What all tasks run in: files as far as the run's plan says that they are held.
    ///
    /// # Errors
    /// If the plan cannot be read, or there is no scratch directory.
    pub fn runtime(&self) -> Result<Arc<RuntimeEnv>> {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*runtime {
            return Ok(Arc::clone(runtime));
        }
        // Another try may find it.
        let passing =
            |error: &dyn std::fmt::Display| DataFusionError::IoError(std::io::Error::other(error.to_string()));
        let plan = Plan::read(&self.run_dir.join("plan.ndjson")).map_err(|error| passing(&error))?;
        let pieces: Vec<_> = plan.splits.into_iter().flat_map(|split| split.pieces).collect();
        let held = HeldFiles::of(&self.volume, &pieces).map_err(|error| passing(&error))?;
        std::fs::create_dir_all(&self.scratch)?;
        let made = memory::runtime(self.memory, &self.scratch)?;
        made.register_object_store(volume_url().as_ref(), Arc::new(held));
        Ok(Arc::clone(runtime.insert(made)))
    }
}
