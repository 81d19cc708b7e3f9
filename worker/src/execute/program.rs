//! Programs of an attempt: their environment, their files, their streams.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    path::{Component, Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
};

use forebay_datasets::volume::{self, VolumeError};
use forebay_jobs::{
    kinds::{
        TaskContext, TaskError, TaskOutput,
        command::{self, ProgramContext},
        mapreduce,
    },
    spec::Program,
};
use rustix::fs::Access;
use tokio_util::sync::CancellationToken;

use super::{
    Attempt, ExecuteError, Left,
    checkpoint::{self, Of},
    scratch::WORK,
};
use crate::{
    logs::Stream,
    memory::Limit,
    process::{self, Ended, Output, Streams},
};

/// Shipped files up to this size are copied for each attempt; larger ones are linked, and must not be written to.
const COPIED: u64 = 1 << 20;

/// Runs a program that reads and writes files.
pub(super) fn run_command(
    this: &Arc<Attempt>,
    program: &Program,
    files: &BTreeMap<String, String>,
    env: &BTreeMap<String, String>,
) -> Result<Left, ExecuteError> {
    let prepared = prepare(this, program, files, env)?;
    let nothing = None::<fn(io::PipeWriter, CancellationToken)>;
    let (ended, left) = run_program(this, prepared, nothing, None::<fn(Output)>)?;
    check(ended.status, ended.stderr)?;
    Ok(left)
}

/// Runs a program that reads its task's input and writes its task's output as lines.
pub(super) fn run_filter(
    this: &Arc<Attempt>,
    program: &Program,
    files: &BTreeMap<String, String>,
    env: &BTreeMap<String, String>,
) -> Result<(TaskOutput, Left), ExecuteError> {
    let prepared = prepare(this, program, files, env)?;
    let (feeder, taker) = (Arc::clone(this), Arc::clone(this));
    let feed = move |pipe: io::PipeWriter, in_vain: CancellationToken| {
        let fed = mapreduce::program::feed(&TaskContext { cancel: &in_vain, ..feeder.context(1) }, pipe);
        match fed {
            // The program has ended without it; its exit code tells what that means.
            Err(TaskError::Cancelled) if feeder.stop.why().is_none() => Ok(()),
            fed => fed,
        }
    };
    let take = move |output: Output| mapreduce::program::take(&taker.context(1), output);
    let (ended, left) = run_program(this, prepared, Some(feed), Some(take))?;
    // Without its whole input, or with nobody to take its output, what the program itself says means nothing.
    let output = ended.taken.transpose()?.unwrap_or_default();
    ended.fed.transpose()?;
    check(ended.status, ended.stderr)?;
    Ok((output, left))
}

fn run_program<F: Send + 'static, T: Send + 'static>(
    this: &Attempt,
    Prepared { command, limit, checkpoint_dir }: Prepared,
    feed: Option<impl FnOnce(io::PipeWriter, CancellationToken) -> F + Send + 'static>,
    take: Option<impl FnOnce(Output) -> T + Send + 'static>,
) -> Result<(Ended<F, T>, Left), ExecuteError> {
    let sink = |stream| this.bench.logs.sink(this.id, stream);
    let fed_in_vain = this.stop.token().child_token();
    let in_vain = fed_in_vain.clone();
    let feed = feed.map(|feed| move |pipe| feed(pipe, in_vain));
    let (stdout, stderr) = (sink(Stream::Stdout), sink(Stream::Stderr));
    let streams = Streams { slots: this.bench.slots, feed, fed_in_vain, take, stdout, stderr };
    // As `command::environment` writes it.
    let mark = format!("FOREBAY_SCRATCH_DIR={}", this.scratch_dir.display());
    let ended = process::run(command, &mark, streams, &this.stop, this.bench.guard.as_ref())?;
    if let Some(limit) = limit.filter(|limit| !ended.stopped && limit.was_exceeded()) {
        return Err(ExecuteError::OutOfMemory { limit: limit.bytes });
    }
    // A program that was told to end has not done its work, whatever it says.
    if ended.stopped {
        return Err(ExecuteError::Stopped);
    }
    // That of a gang is the others' too.
    let checkpoint_dir = Some(checkpoint_dir).filter(|_| this.rendezvous.is_none());
    let left = Left { checkpoint_dir, whole: ended.whole };
    Ok((ended, left))
}

fn check(status: ExitStatus, stderr: String) -> Result<(), ExecuteError> {
    if status.success() { Ok(()) } else { Err(ExecuteError::Status { status, stderr }) }
}

/// A program that can be started.
struct Prepared {
    command: Command,
    limit: Option<Limit>,
    checkpoint_dir: PathBuf,
}

/// A program with its environment, in a directory of its own that holds the files shipped with the run.
fn prepare(
    this: &Attempt,
    program: &Program,
    files: &BTreeMap<String, String>,
    env: &BTreeMap<String, String>,
) -> Result<Prepared, ExecuteError> {
    this.prepare()?;
    let bench = &this.bench;
    let limit = this.share.memory.map(|bytes| bench.groups.limit(this.id, bytes));
    let limit = limit.transpose().map_err(ExecuteError::Limit)?;
    let mut command = command_of(program, env, limit.as_ref())?;
    let run_dir = bench.volume.run_dir(bench.run.as_str());
    let work_dir = this.scratch_dir.join(WORK);
    let (checkpoints, spares) = (run_dir.join("checkpoints"), &bench.spare_checkpoints);
    let of = match (&this.rendezvous, this.beside) {
        (Some(_), _) => Of::Gang,
        (None, true) => Of::TaskBeside,
        (None, false) => Of::Task,
    };
    let checkpoint_dir = checkpoint::dir(&checkpoints, this.id, of, spares)?;
    if let Some(rendezvous) = this.rendezvous.as_ref().filter(|_| this.id.task.index == 0) {
        // It is the first member's to listen there, and may have been taken by anybody.
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, rendezvous.port)).map_err(ExecuteError::PortTaken)?;
    }
    for name in files.keys() {
        ship(&run_dir.join("files"), &work_dir, name)?;
    }
    let plan = bench.plan()?;
    let context = ProgramContext {
        run: &bench.run,
        attempt: this.id,
        data: &plan.data,
        checkpoint_dir: &checkpoint_dir,
        deadline: this.deadline,
        slot: &this.share,
        rendezvous: this.rendezvous.as_ref(),
        env,
    };
    command.envs(command::environment(&this.context(1), &context)?).current_dir(work_dir);
    Ok(Prepared { command, limit, checkpoint_dir })
}

fn command_of(
    program: &Program,
    env: &BTreeMap<String, String>,
    limit: Option<&Limit>,
) -> Result<Command, ExecuteError> {
    let mut command;
    match program {
        Program::Shell(text) => {
            let shell = Path::new("/bin/sh");
            command = limit.map_or_else(|| Command::new(shell), |limit| limit.command(shell));
            command.args(["-c", text]);
        }
        Program::Argv(argv) => {
            let (program, args) = argv.split_first().ok_or(ExecuteError::NoProgram)?;
            let found = found(program, env);
            // What is not there only the system can tell of.
            command = match limit.filter(|_| found.is_absolute()) {
                Some(limit) => limit.command(&found),
                None => {
                    let mut command = Command::new(found);
                    command.arg0(program);
                    command
                }
            };
            command.args(args);
        }
    }
    Ok(command)
}

/// Where a program lies that is named without its directory, so that the kernel is not asked to execute it in one
/// directory after the other. Where it is in none of them, its name alone, for the system to say why not.
fn found(program: &str, env: &BTreeMap<String, String>) -> PathBuf {
    let path = env.get("PATH").map(OsString::from).or_else(|| std::env::var_os("PATH"));
    let named = !program.is_empty() && !program.contains('/');
    let is_program = |file: &PathBuf| rustix::fs::access(file, Access::EXEC_OK).is_ok() && file.is_file();
    let dirs = path.iter().filter(|_| named).flat_map(std::env::split_paths);
    // From one that is meant below the program's own directory on, only the program can look.
    let mut places = dirs.take_while(|dir| dir.is_absolute()).map(|dir| dir.join(program));
    places.find(is_program).unwrap_or_else(|| PathBuf::from(program))
}

/// Gives an attempt its own copy of a shipped file.
fn ship(from: &Path, to: &Path, name: &str) -> Result<(), ExecuteError> {
    if name.is_empty() || !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(ExecuteError::BadName(name.to_owned()));
    }
    volume::create_dirs_below(to, Path::new(name))?;
    let (from, to) = (from.join(name), to.join(name));
    let size = fs::metadata(&from).map_err(|error| VolumeError::io("open", &from, error))?.len();
    if size > COPIED && fs::hard_link(&from, &to).is_ok() {
        return Ok(());
    }
    let copied = process::while_nothing_is_spawned(|| fs::copy(&from, &to));
    copied.map_err(|error| VolumeError::io("copy", &to, error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_up_as_the_system_would() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
        for (place, mode) in [(&first, 0o644), (&second, 0o755)] {
            fs::create_dir(place).unwrap();
            fs::write(place.join("tool"), "").unwrap();
            fs::set_permissions(place.join("tool"), fs::Permissions::from_mode(mode)).unwrap();
        }
        let look = |program: &str, path: &[&Path]| {
            let path = std::env::join_paths(path).unwrap().into_string().unwrap();
            found(program, &BTreeMap::from([("PATH".to_owned(), path)]))
        };
        assert_eq!(look("tool", &[&first, &second]), second.join("tool"), "what cannot be executed is passed over");
        for (program, path) in [("tool", &[&*first][..]), ("./tool", &[&second]), ("", &[&second])] {
            assert_eq!(look(program, path), Path::new(program), "{path:?}");
        }
        assert_eq!(
            look("tool", &[Path::new("bin"), &second]),
            Path::new("tool"),
            "only the program knows that directory"
        );
    }
}
