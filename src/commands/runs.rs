//! `forebay runs list|show|tasks|logs`: looks at runs, and changes nothing.

use std::{
    io::{self, Write},
    time::Duration,
};

use forebay_coordinator::{
    driver::{self, Observed},
    lease::LeaseState,
    run::{EndState, Task, TaskState},
    rundir,
};
use forebay_datasets::volume::Volume;
use forebay_jobs::{
    id::{RunId, TaskId},
    task::Failure,
};
use forebay_worker::logs::{Content, LogError, Reader, Stream};
use serde_json::{Value, json};

use super::open_run;
use crate::{
    cli::{Global, RunsCommand, TaskStateArg},
    error::{CliError, Exit},
    render::{self, Table},
};

/// How often new output is looked for: another host writes it, and no file server tells of it.
const LOOK: Duration = Duration::from_millis(250);

pub async fn execute(global: &Global, command: &RunsCommand) -> Result<Exit, CliError> {
    match command {
        RunsCommand::List => list(global).await,
        RunsCommand::Show { run } => show(global, run).await,
        RunsCommand::Tasks { run, state, from, limit } => {
            tasks(global, run, Page { state: *state, from: *from, limit: limit.get() }).await
        }
        RunsCommand::Logs { run, task, follow } => logs(global, run, *task, *follow).await,
    }
}

async fn list(global: &Global) -> Result<Exit, CliError> {
    let mut observed = Vec::new();
    for run in rundir::list(&Volume::open(&global.volume)?)? {
        let created = run.created().and_then(|time| jiff::Timestamp::try_from(time).ok());
        observed.push((run.id().clone(), run.job().name.clone(), created, driver::observe(&run).await?));
    }
    if global.json {
        let run = |(id, job, created, run): &(RunId, String, Option<jiff::Timestamp>, Observed)| {
            json!({ "run": id, "job": job, "created": created, "state": state(run), "tasks": run.figures.tasks(),
                    "seconds": run.figures.seconds() })
        };
        println!("{}", json!({ "version": 1, "runs": observed.iter().map(run).collect::<Vec<_>>() }));
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["run", "state", "tasks", "seconds", "created"]);
    for (id, _, created, run) in &observed {
        let tasks = run.figures.tasks();
        table.row([
            id.to_string(),
            state(run).to_owned(),
            format!("{} of {}", tasks.succeeded, tasks.total),
            format!("{:.1}", run.figures.seconds()),
            created.map(|time| render::time(&time.to_string())).unwrap_or_default(),
        ]);
    }
    table.print();
    Ok(Exit::Done)
}

async fn show(global: &Global, id: &RunId) -> Result<Exit, CliError> {
    let (_, run) = open_run(global, id)?;
    let observed = driver::observe(&run).await?;
    let (figures, result) = (&observed.figures, observed.result.as_ref());
    let staged = run.staged()?;
    let coordinator = match &observed.lease {
        LeaseState::Live { holder, .. } => Some(holder.to_string()),
        LeaseState::None | LeaseState::Dead { .. } => None,
    };
    let workers = result.map_or(figures.workers(), |result| result.workers);
    let seconds = result.map_or_else(|| figures.seconds(), |result| result.seconds);
    if global.json {
        let object = json!({
            "version": 1, "run": id, "state": state(&observed), "snapshot": figures.snapshot, "staged": staged,
            "tasks": figures.tasks(), "workers": workers, "seconds": seconds,
            "output": result.and_then(|result| result.output.as_ref()),
            "error": result.and_then(|result| result.error.as_ref()),
            "failure": result.and_then(|result| result.failure),
            "coordinator": coordinator, "path": run.path(), "job": run.job(),
        });
        println!("{object}");
        return Ok(Exit::Done);
    }
    let tasks = figures.tasks();
    let mut lines = vec![("run", id.to_string()), ("state", state(&observed).to_owned())];
    if let Some(error) = result.and_then(|result| result.error.clone()) {
        lines.push(("error", error));
    }
    lines.push(("job", run.job().name.clone()));
    lines.push(("source", run.job().dataset.source.clone()));
    if let Some(snapshot) = &figures.snapshot {
        lines.push(("snapshot", snapshot.clone()));
    }
    if let Some(staged) = staged {
        let fetched = format!("{} fetched in {:.1} s", render::bytes(staged.fetched_bytes), staged.seconds);
        let objects = render::count(staged.objects, "object");
        lines.push(("staged", format!("{objects}, {}, {fetched}", render::bytes(staged.bytes))));
    }
    let failed = if tasks.failed > 0 { format!(", {} failed", tasks.failed) } else { String::new() };
    let attempts = render::count(tasks.attempts, "attempt");
    let reused = if tasks.reused > 0 { format!(", {} reused", tasks.reused) } else { String::new() };
    lines.push(("tasks", format!("{} of {} succeeded{reused}{failed}, {attempts}", tasks.succeeded, tasks.total)));
    lines.push(("workers", workers.to_string()));
    lines.push(("seconds", format!("{seconds:.1}")));
    if let Some(coordinator) = coordinator {
        lines.push(("coordinator", coordinator));
    }
    if let Some(output) = result.and_then(|result| result.output.as_ref()) {
        lines.push(("output", output.path.clone()));
    }
    for (name, value) in lines {
        println!("{name:12} {value}");
    }
    Ok(Exit::Done)
}

fn state(run: &Observed) -> &'static str {
    match (&run.result, &run.lease) {
        (Some(result), _) => match result.state {
            EndState::Succeeded => "succeeded",
            EndState::Failed => "failed",
            EndState::Cancelled => "cancelled",
        },
        (None, LeaseState::Live { .. }) => "running",
        // Nobody coordinates it: it can be resumed.
        (None, LeaseState::None | LeaseState::Dead { .. }) => "interrupted",
    }
}

/// Which tasks are shown.
struct Page {
    state: Option<TaskStateArg>,
    from: Option<TaskId>,
    limit: u32,
}

async fn tasks(global: &Global, id: &RunId, page: Page) -> Result<Exit, CliError> {
    let (_, run) = open_run(global, id)?;
    let observed = driver::observe(&run).await?;
    // Without a coordinator nobody knows who is still at work.
    let live = matches!(observed.lease, LeaseState::Live { .. });
    let shown = |(id, task): &(TaskId, &Task)| {
        page.from.is_none_or(|from| *id >= from) && page.state.is_none_or(|state| task_state(task, live).0 == state)
    };
    let mut rest = observed.machine.tasks().filter(shown);
    let tasks: Vec<_> = rest.by_ref().take(page.limit as usize).collect();
    let next = rest.next().map(|(id, _)| id.to_string());
    if global.json {
        let tasks: Vec<Value> = tasks.into_iter().map(|(id, task)| task_object(id, task, live)).collect();
        println!("{}", json!({ "version": 1, "run": id, "tasks": tasks, "next": next }));
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["task", "state", "attempts", "worker", "what"]);
    for (id, task) in tasks {
        let (_, state) = task_state(task, live);
        let what = match &task.state {
            TaskState::Committed { outputs, .. } => render::bytes(outputs.iter().map(|file| file.size).sum::<u64>()),
            TaskState::Failed(failure) => failure.to_string(),
            TaskState::Finished(finished) => render::bytes(finished.outputs.iter().map(|file| file.size).sum::<u64>()),
            TaskState::Awaiting | TaskState::Ready(_) | TaskState::Held { .. } => String::new(),
        };
        table.row([id.to_string(), state.to_owned(), task.attempts.to_string(), worker(task, live), what]);
    }
    table.print();
    if let Some(next) = next {
        render::note(global.quiet, &format!("there are more: --from {next}"));
    }
    Ok(Exit::Done)
}

pub(super) fn task_state(task: &Task, live: bool) -> (TaskStateArg, &'static str) {
    match &task.state {
        held @ TaskState::Held { .. } if live && held.holdings().any(|holding| holding.started.is_some()) => {
            (TaskStateArg::Running, "running")
        }
        TaskState::Awaiting => (TaskStateArg::Awaiting, "awaiting"),
        TaskState::Ready(_) | TaskState::Held { .. } => (TaskStateArg::Ready, "ready"),
        TaskState::Finished(_) => (TaskStateArg::Finished, "finished"),
        TaskState::Committed { .. } => (TaskStateArg::Succeeded, "succeeded"),
        TaskState::Failed(_) => (TaskStateArg::Failed, "failed"),
    }
}

fn worker(task: &Task, live: bool) -> String {
    match &task.state {
        held @ TaskState::Held { .. } if live => {
            let workers: Vec<_> = held.holdings().map(|holding| holding.worker.as_str()).collect();
            workers.join(", ")
        }
        _ => String::new(),
    }
}

fn task_object(id: TaskId, task: &Task, live: bool) -> Value {
    let (_, state) = task_state(task, live);
    let (outputs, failure): (&[_], Option<&Failure>) = match &task.state {
        TaskState::Committed { outputs, .. } => (outputs, None),
        TaskState::Failed(failure) => (&[], Some(failure)),
        TaskState::Finished(finished) => (&finished.outputs, None),
        TaskState::Awaiting | TaskState::Ready(_) | TaskState::Held { .. } => (&[], None),
    };
    let worker = Some(worker(task, live)).filter(|worker| !worker.is_empty());
    json!({
        "task": id.to_string(), "state": state, "attempts": task.attempts, "failures": task.failures,
        "worker": worker, "bytes": outputs.iter().map(|file| file.size).sum::<u64>(),
        "error": failure.map(ToString::to_string),
    })
}

async fn logs(global: &Global, id: &RunId, task: Option<TaskId>, follow: bool) -> Result<Exit, CliError> {
    let (_, run) = open_run(global, id)?;
    if let Some(task) = task {
        let known = driver::observe(&run).await?.machine.task(task).is_some();
        if !known {
            let help = format!("`forebay runs tasks {id}` lists them");
            return Err(CliError::new(Exit::NotFound, format!("run `{id}` has no task {task}")).help(help));
        }
    }
    let mut reader = Reader::new(run.path(), task);
    let mut printer = Printer { json: global.json, named: task.is_none(), last: None };
    loop {
        // What was printed before the end is there once the end is.
        let ended = !follow || run.result()?.is_some();
        match reader.next(|entry| printer.print(entry)) {
            Ok(_) => {}
            Err(LogError::Taker(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
            Err(error) => return Err(error.into()),
        }
        if ended {
            return Ok(Exit::Done);
        }
        // Logs are written by other hosts, which give no event.
        tokio::time::sleep(LOOK).await;
    }
}

/// Prints entries: what went to standard output as it is, with a heading where another attempt begins.
struct Printer {
    json: bool,
    named: bool,
    last: Option<String>,
}

impl Printer {
    fn print(&mut self, entry: forebay_worker::logs::Entry<'_>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            let stream = match entry.stream {
                Stream::Stdout => "stdout",
                Stream::Stderr => "stderr",
            };
            let (text, dropped) = match entry.content {
                Content::Bytes(bytes) => (Some(String::from_utf8_lossy(bytes)), None),
                Content::Dropped(bytes) => (None, Some(bytes)),
            };
            let object = json!({ "attempt": entry.attempt.to_string(), "worker": entry.worker, "stream": stream,
                                 "text": text, "dropped_bytes": dropped });
            return writeln!(out, "{object}");
        }
        let attempt = entry.attempt.to_string();
        if self.named && self.last.as_ref() != Some(&attempt) {
            writeln!(out, "==> {attempt} on {} <==", entry.worker)?;
            self.last = Some(attempt);
        }
        match entry.content {
            Content::Bytes(bytes) => out.write_all(bytes),
            Content::Dropped(bytes) => writeln!(out, "\n[{} were not kept]", render::bytes(bytes)),
        }?;
        out.flush()
    }
}
