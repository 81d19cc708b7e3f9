//! What a program is told, and what it leaves.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use forebay_datasets::{output, read::whole_path, volume::VolumeError};

use super::{TaskContext, TaskError, TaskOutput, Written};
use crate::{
    id::{AttemptId, RunId},
    spec::WorkersSpec,
    task::{TaskInput, TaskSpec},
    wire::Rendezvous,
};

/// What a program's environment needs beyond its task.
#[derive(Debug)]
pub struct ProgramContext<'a> {
    /// The run.
    pub run: &'a RunId,
    /// The attempt.
    pub attempt: AttemptId,
    /// Where the dataset lies, relative to the volume's root.
    pub data: &'a str,
    /// Survives from one attempt of the task to the next.
    pub checkpoint_dir: &'a Path,
    /// When the attempt will be ended, since the Unix epoch.
    pub deadline: Option<Duration>,
    /// What its slot has.
    pub slot: &'a SlotShare,
    /// Where it meets the rest of its gang.
    pub rendezvous: Option<&'a Rendezvous>,
    /// Variables that the job gives.
    pub env: &'a BTreeMap<String, String>,
}

/// What one slot of a worker has of what the job asks for a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotShare {
    /// Cores, at least one.
    pub cpus: Option<u32>,
    /// Bytes.
    pub memory: Option<u64>,
    /// As `CUDA_VISIBLE_DEVICES` names them.
    pub gpus: Vec<String>,
}

impl SlotShare {
    /// The share of the `slot`th of so many slots; `gpus` are the worker's.
    pub fn of(workers: &WorkersSpec, gpus: &[String], (slot, slots): (u32, u32)) -> Self {
        let each = (gpus.len() / slots as usize).max(1);
        Self {
            cpus: workers.cpus.map(|cpus| (cpus / slots).max(1)),
            memory: workers.memory.map(|bytes| bytes / u64::from(slots)),
            gpus: gpus.chunks(each).nth(slot as usize).unwrap_or_default().to_vec(),
        }
    }

    fn environment(&self) -> Vec<(String, String)> {
        let mut env = Vec::new();
        if let Some(cpus) = self.cpus {
            // What libraries would otherwise take is the whole host.
            env.extend(["FOREBAY_CPUS", "OMP_NUM_THREADS"].map(|name| (name.to_owned(), cpus.to_string())));
        }
        env.extend(self.memory.map(|bytes| ("FOREBAY_MEMORY".to_owned(), bytes.to_string())));
        if !self.gpus.is_empty() {
            env.extend(["FOREBAY_GPUS", "CUDA_VISIBLE_DEVICES"].map(|name| (name.to_owned(), self.gpus.join(","))));
        }
        env
    }
}

/// The environment of a task's program, on top of the worker's own. Writes the files that it names into the scratch
/// directory.
pub fn environment(ctx: &TaskContext<'_>, program: &ProgramContext<'_>) -> Result<Vec<(String, String)>, TaskError> {
    let (inputs, split) = (ctx.scratch_dir.join("inputs.txt"), ctx.scratch_dir.join("split.json"));
    let mut paths = String::new();
    let mut pieces = Vec::new();
    if let TaskInput::Split(input) = &ctx.spec.input {
        let mut last: Option<PathBuf> = None;
        for piece in &input.pieces {
            let path = whole_path(ctx.volume, piece)?;
            if last.as_ref() != Some(&path) {
                let _ = writeln!(paths, "{}", path.display());
            }
            pieces.push(serde_json::json!({ "path": path, "key": piece.key, "size": piece.size, "part": piece.part }));
            last = Some(path);
        }
    }
    write(&inputs, paths.as_bytes())?;
    write(&split, serde_json::json!({ "version": 1, "pieces": pieces }).to_string().as_bytes())?;
    let dataset = ctx.volume.resolve(program.data)?;
    let (index, count) = (ctx.spec.task.index.to_string(), ctx.spec.count.to_string());
    let shown = |path: &Path| path.display().to_string();
    let mut env = vec![
        ("FOREBAY_RUN_ID".to_owned(), program.run.to_string()),
        ("FOREBAY_TASK_INDEX".to_owned(), index.clone()),
        ("FOREBAY_TASK_COUNT".to_owned(), count.clone()),
        ("FOREBAY_ATTEMPT".to_owned(), program.attempt.number.to_string()),
        ("FOREBAY_DATASET_DIR".to_owned(), shown(&dataset)),
        ("FOREBAY_INPUTS".to_owned(), shown(&inputs)),
        ("FOREBAY_SPLIT".to_owned(), shown(&split)),
        ("FOREBAY_OUTPUT_DIR".to_owned(), shown(ctx.out_dir)),
        ("FOREBAY_CHECKPOINT_DIR".to_owned(), shown(program.checkpoint_dir)),
        ("FOREBAY_SCRATCH_DIR".to_owned(), shown(ctx.scratch_dir)),
        // AWS Batch sets these only for arrays, which have two tasks or more; here a task always knows its place.
        ("AWS_BATCH_JOB_ARRAY_INDEX".to_owned(), index.clone()),
        ("AWS_BATCH_JOB_ARRAY_SIZE".to_owned(), count),
        ("JOB_COMPLETION_INDEX".to_owned(), index),
    ];
    env.extend(program.deadline.map(|at| ("FOREBAY_DEADLINE".to_owned(), at.as_secs().to_string())));
    env.extend(program.slot.environment());
    env.extend(program.rendezvous.into_iter().flat_map(|rendezvous| ranks(rendezvous, ctx.spec)));
    let params = ctx.job.params.iter();
    env.extend(params.map(|(name, value)| (format!("FOREBAY_PARAM_{}", name.to_ascii_uppercase()), value.clone())));
    env.extend(program.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    Ok(env)
}

/// What a member of a gang is told, by the names that `torch.distributed` reads (`env://`) and others have taken over. A
/// slot counts as a node of its own: it sees its own GPUs only, the first of which is the member's.
fn ranks(rendezvous: &Rendezvous, spec: &TaskSpec) -> [(String, String); 7] {
    let (rank, size) = (spec.task.index.to_string(), spec.count.to_string());
    [
        ("RANK", rank.clone()),
        ("WORLD_SIZE", size),
        ("LOCAL_RANK", "0".to_owned()),
        ("LOCAL_WORLD_SIZE", "1".to_owned()),
        ("NODE_RANK", rank),
        ("MASTER_ADDR", rendezvous.address.clone()),
        ("MASTER_PORT", rendezvous.port.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
}

/// Writes over what an attempt before has left, in place: of a file that was cut to nothing ext4 writes the new content to
/// the disk when it is closed (`auto_da_alloc` in ext4(5)).
fn write(path: &Path, bytes: &[u8]) -> Result<(), TaskError> {
    let written = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.write_all(bytes)?;
        let length = bytes.len() as u64;
        if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
    };
    written().map_err(|error| VolumeError::io("write", path, error).into())
}

/// Everything a program left in its output directory, to be published as `task-<index>/<path>`, and the figures of
/// its `metrics.json`, which is not published.
pub fn collect(ctx: &TaskContext<'_>) -> Result<TaskOutput, TaskError> {
    let metrics_path = ctx.out_dir.join("metrics.json");
    let metrics = match fs::read(&metrics_path) {
        Ok(text) => {
            let bad = |error| TaskError::BadInput(format!("its metrics.json is no object of numbers: {error}"));
            let metrics = serde_json::from_slice(&text).map_err(bad)?;
            fs::remove_file(&metrics_path).map_err(|error| VolumeError::io("remove", &metrics_path, error))?;
            metrics
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => return Err(VolumeError::io("read", &metrics_path, error).into()),
    };
    let written = |file: output::Finished| Written {
        publish_as: Some(format!("task-{:05}/{}", ctx.spec.task.index, file.name)),
        path: file.path,
        partition: None,
        size: file.size,
        checksum: file.checksum,
        rows: None,
    };
    let files = output::collect(ctx.out_dir)?.into_iter().map(written).collect();
    Ok(TaskOutput { files, metrics, rest: None })
}
