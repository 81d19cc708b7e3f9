//! Whole runs: a real link, a real journal, and a worker that this test plays itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    sync::Mutex,
};

use forebay_datasets::{checksum::file_checksum, volume::Holder};
use forebay_jobs::{
    id::AttemptId,
    link::LinkClient,
    task::{AttemptReport, Failure, Outcome, OutputFile},
    wire::{Assignment, FromWorker, LinkFile, ToWorker},
};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::rundir;

/// What the played worker makes of an attempt; none keeps it for ever.
type Play = fn(&AttemptId) -> Option<Result<&'static str, Failure>>;

struct Fixture {
    dir: tempfile::TempDir,
    volume: Volume,
    run: RunDir,
}

impl Fixture {
    fn new(work: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        for name in ["a.csv", "b.csv", "c.csv"] {
            fs::write(source.join(name), "x\n1\n").unwrap();
        }
        let program = dir.path().join("program");
        fs::write(&program, "#!/bin/sh\nexec sleep 60\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let volume = Volume::open_or_create(&dir.path().join("v")).unwrap();
        let text = format!(
            "name = 'n'\n[dataset]\nsource = 'file://{}'\nname = 'data'\n{work}\n[retry]\nattempts = 2\nbackoff = '1ms..1ms'\n",
            source.display()
        );
        let job = forebay_jobs::spec::parse::job_file(&text, dir.path(), &[]).unwrap();
        let run = rundir::create(&volume, &"r".parse().unwrap(), &text, &job).unwrap().into_run();
        Self { dir, volume, run }
    }

    /// Coordinates while a worker is played; `until` interrupts.
    async fn coordinate(
        &self,
        play: Play,
        until: impl Fn(&RunProgress) -> bool + Send + Sync + 'static,
    ) -> (Result<RunResult, CoordinateError>, Vec<AttemptId>) {
        let interrupt = CancellationToken::new();
        let (told, mut telling) = mpsc::unbounded_channel();
        let stop = interrupt.clone();
        let tell: Tell = Arc::new(move |progress| {
            if until(&progress) {
                stop.cancel();
            }
            let _ = told.send(progress);
        });
        let options = CoordinateOptions {
            worker_program: self.dir.path().join("program"),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: Vec::new(),
            tell,
            interrupt,
            pretend: false,
        };
        let started = Mutex::new(Vec::new());
        let worker = async {
            let mut epoch = None;
            // The link is announced before the first task is known.
            while let Some(progress) = telling.recv().await {
                match progress {
                    RunProgress::Coordinating { epoch: number } => epoch = Some(number),
                    RunProgress::Tasks { phases, .. } if !phases.is_empty() => break,
                    _ => {}
                }
            }
            let Some(epoch) = epoch else { return std::future::pending().await };
            self.play(epoch, play, &started).await;
            std::future::pending().await
        };
        let ended = tokio::select! {
            ended = coordinate(&self.volume, &self.run, &options) => ended,
            never = worker => never,
        };
        (ended, started.into_inner().unwrap())
    }

    async fn play(&self, epoch: Epoch, play: Play, started: &Mutex<Vec<AttemptId>>) {
        let path = self.run.path().join(format!("epochs/{epoch}/link.json"));
        let link: LinkFile = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let client = LinkClient::connect(&link).await.unwrap();
        let (say, said) = mpsc::unbounded_channel();
        say.send(FromWorker::Hello {
            run: self.run.id().clone(),
            worker: "played".parse().unwrap(),
            slots: 4,
            process: Holder::this_process(),
            holds: BTreeSet::new(),
            left: None,
            version: env!("CARGO_PKG_VERSION").into(),
            volume: self.volume.id().into(),
            root: String::new(),
            natives: BTreeSet::new(),
        })
        .unwrap();
        let mut orders = client.work(UnboundedReceiverStream::new(said)).await.unwrap();
        let mut kept = BTreeSet::new();
        while let Ok(Some(order)) = orders.message().await {
            match order {
                ToWorker::Noted(_) | ToWorker::Yield(_) => {}
                ToWorker::Assign(assigned) => {
                    for Assignment { attempt, spec, .. } in assigned {
                        assert_eq!(spec.task, attempt.task);
                        started.lock().unwrap().push(attempt);
                        say.send(FromWorker::Started(vec![attempt])).unwrap();
                        let outcome = match play(&attempt) {
                            Some(Ok(text)) => self.done(&attempt, text),
                            Some(Err(failure)) => Outcome::Failed(failure),
                            None => {
                                kept.insert(attempt);
                                continue;
                            }
                        };
                        let report = AttemptReport { attempt, outcome, seconds: 0.1 };
                        say.send(FromWorker::Reports(vec![report])).unwrap();
                    }
                }
                ToWorker::Kill(attempts) => {
                    for attempt in attempts.into_iter().filter(|attempt| kept.remove(attempt)) {
                        let outcome = Outcome::Failed(Failure::Cancelled);
                        let report = AttemptReport { attempt, outcome, seconds: 0.1 };
                        say.send(FromWorker::Reports(vec![report])).unwrap();
                    }
                }
                ToWorker::Shutdown => return,
                ToWorker::Look { canary } => {
                    let seen = fs::read_to_string(self.volume.root().join(canary)).ok();
                    say.send(FromWorker::Seen(seen)).unwrap();
                }
                ToWorker::Welcome { job, .. } => assert_eq!(&*job, self.run.job()),
            }
        }
    }

    /// Writes an output and reports it: truly, except for the text `torn`.
    fn done(&self, attempt: &AttemptId, text: &str) -> Outcome {
        let relative = format!("runs/r/attempts/{attempt}/x");
        let path = self.volume.root().join(&relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let (size, checksum) = file_checksum(&path).unwrap();
        if text == "torn" {
            fs::write(&path, "to").unwrap();
        }
        let publish_as = Some(format!("task-{:05}/x", attempt.task.index));
        let output = OutputFile { path: relative, publish_as, partition: None, size, checksum, rows: None };
        Outcome::Done { outputs: vec![output], metrics: BTreeMap::new(), rest: None }
    }
}

/// How many workers there are to be after each piece of news of preparing a run, while nothing else wants any.
async fn wanted_while_preparing(volume: &Volume, run: &RunDir) -> Vec<u32> {
    let claim = lease::claim(run.path()).unwrap();
    let (tell, reading): (Tell, _) = (Arc::new(|_| {}), Reading::default());
    let (news, mut told) = mpsc::unbounded_channel();
    let preparing = (Arc::clone(&tell), news);
    prepare::prepare(volume.clone(), run.clone(), claim.dir.clone(), preparing, &reading, None).await.unwrap();
    let session = Session::open(run, claim.epoch, &claim.dir).unwrap();
    let (_sender, inbox) = mpsc::channel(1);
    let mut work = Work::new((volume, run), (claim.epoch, claim.dir), (session, None), inbox, tell, reading);
    let mut wanted = Vec::new();
    while let Some(news) = told.recv().await {
        work.hear_of_data(news).unwrap();
        wanted.push(work.workers_for(0));
    }
    wanted
}

const COMMAND: &str = "[command]\nargv = ['true']\n";

fn exit_1() -> Failure {
    Failure::ExitCode { code: 1, stderr: "no".into() }
}

#[tokio::test]
async fn a_run_retries_publishes_once_and_keeps_its_result() {
    let fixture = Fixture::new(COMMAND);
    let play: Play = |attempt| match (attempt.task.index, attempt.number) {
        (0, 1) => Some(Err(exit_1())),
        (1, 1) => Some(Ok("torn")),
        _ => Some(Ok("good")),
    };
    let (ended, _) = fixture.coordinate(play, |_| false).await;
    let result = ended.unwrap();
    assert_eq!(result.state, EndState::Succeeded);
    let tasks = TaskFigures { total: 3, succeeded: 3, failed: 0, reused: 0, attempts: 5 };
    assert_eq!((result.tasks, result.workers), (tasks, 1));
    let output = result.output.clone().unwrap();
    assert_eq!(output.files, ["task-00000/x", "task-00001/x", "task-00002/x"]);
    assert_eq!(fs::read_to_string(fixture.run.output_dir().join("task-00001/x")).unwrap(), "good");
    assert_eq!(result.staged.as_ref().unwrap().fetched_objects, 3);
    // As if it had been killed right after it wrote the result.
    fs::create_dir(fixture.run.path().join("attempts")).unwrap();
    let (again, attempts) = fixture.coordinate(play, |_| false).await;
    assert!(!fixture.run.path().join("attempts").exists());
    assert_eq!((again.unwrap(), attempts.len()), (result, 0));
}

#[tokio::test]
async fn a_worker_is_there_by_the_time_there_is_a_plan_unless_all_may_be_done_already() {
    let fixture = Fixture::new(COMMAND);
    let run = |id: &str| {
        let text = fs::read_to_string(fixture.run.path().join("job.toml")).unwrap();
        rundir::create(&fixture.volume, &id.parse().unwrap(), &text, fixture.run.job()).unwrap().into_run()
    };
    assert_eq!(wanted_while_preparing(&fixture.volume, &run("first")).await, [1, 0]);
    fixture.coordinate(|_| Some(Ok("good")), |_| false).await.0.unwrap();
    assert_eq!(wanted_while_preparing(&fixture.volume, &run("again")).await, [0, 0]);
}

#[tokio::test]
async fn an_interrupted_run_is_resumed_at_once_and_does_nothing_twice() {
    let fixture = Fixture::new(COMMAND);
    let one_is_done = |progress: &RunProgress| matches!(progress, RunProgress::Tasks { phases, .. } if phases.iter().any(|phase| phase.succeeded == 1));
    let only_first: Play = |attempt| (attempt.task.index == 0).then_some(Ok("first"));
    let (ended, _) = fixture.coordinate(only_first, one_is_done).await;
    assert!(matches!(ended, Err(CoordinateError::Interrupted)), "{ended:?}");
    assert_eq!(observe(&fixture.run).await.unwrap().figures.tasks().succeeded, 1);
    let (ended, attempts) = fixture.coordinate(|_| Some(Ok("later")), |_| false).await;
    let result = ended.unwrap();
    assert_eq!((result.state, result.tasks.succeeded), (EndState::Succeeded, 3));
    assert!(attempts.iter().all(|attempt| attempt.task.index != 0 && attempt.epoch == Epoch(2)), "{attempts:?}");
    assert_eq!(fs::read_to_string(fixture.run.output_dir().join("task-00000/x")).unwrap(), "first");
}

#[tokio::test]
async fn tasks_that_fail_for_good_end_the_run_without_output() {
    let fixture = Fixture::new(COMMAND);
    let (ended, _) = fixture.coordinate(|_| Some(Err(exit_1())), |_| false).await;
    let result = ended.unwrap();
    assert_eq!((result.state, result.failure), (EndState::Failed, Some(FailureKind::Tasks)));
    assert!(result.output.is_none() && !fixture.run.output_dir().exists());
    assert!(result.error.unwrap().contains("its program ended with exit code 1"));
}

#[tokio::test]
async fn a_run_is_cancelled_through_its_coordinator() {
    let fixture = Fixture::new(COMMAND);
    let (ready, mut is_ready) = mpsc::unbounded_channel();
    let running = move |progress: &RunProgress| {
        if matches!(progress, RunProgress::Tasks { phases, .. } if phases.iter().any(|phase| phase.running == 3)) {
            let _ = ready.send(());
        }
        false
    };
    let cancelled = async {
        is_ready.recv().await;
        cancel(&fixture.volume, &fixture.run).await
    };
    let ((ended, _), cancelled) = tokio::join!(fixture.coordinate(|_| None, running), cancelled);
    assert_eq!((ended.unwrap().state, cancelled.unwrap()), (EndState::Cancelled, Cancelled::Noted));
    assert!(matches!(cancel(&fixture.volume, &fixture.run).await.unwrap(), Cancelled::Ended(_)));
}

#[tokio::test]
async fn a_run_without_coordinator_is_cancelled_on_the_spot() {
    let fixture = Fixture::new(COMMAND);
    let Cancelled::Ended(result) = cancel(&fixture.volume, &fixture.run).await.unwrap() else { panic!() };
    assert_eq!(result.state, EndState::Cancelled);
    let attached = attach(&fixture.run, &CancellationToken::new()).await.unwrap();
    assert_eq!(attached, Attached::Ended(result));
}

#[tokio::test]
async fn a_query_that_cannot_be_planned_leaves_no_run_behind() {
    let fixture = Fixture::new("[sql]\nquery = 'SELECT nothing FROM data'\n");
    let (ended, attempts) = fixture.coordinate(|_| None, |_| false).await;
    let Err(CoordinateError::NeverBegan(error)) = ended else { panic!("{ended:?}") };
    assert!(matches!(&*error, CoordinateError::NoPlan(error) if error.contains("nothing")), "{error}");
    assert!(attempts.is_empty() && !fixture.run.path().exists());
}

#[tokio::test]
async fn a_resumed_run_that_cannot_be_planned_has_failed() {
    let fixture = Fixture::new("[sql]\nquery = 'SELECT nothing FROM data'\n");
    let (ended, _) = fixture.coordinate(|_| None, |progress| matches!(progress, RunProgress::Staging(_))).await;
    assert!(matches!(ended, Err(CoordinateError::Interrupted)), "{ended:?}");
    let (ended, attempts) = fixture.coordinate(|_| None, |_| false).await;
    let result = ended.unwrap();
    assert_eq!((result.state, result.failure, attempts.len()), (EndState::Failed, Some(FailureKind::Plan), 0));
    assert!(result.error.unwrap().contains("nothing"));
}

#[tokio::test]
async fn a_source_that_is_not_there_leaves_no_run_behind() {
    let fixture = Fixture::new(COMMAND);
    fs::remove_dir_all(fixture.dir.path().join("source")).unwrap();
    let (ended, _) = fixture.coordinate(|_| Some(Ok("x")), |_| false).await;
    assert!(
        matches!(&ended, Err(CoordinateError::NeverBegan(error)) if matches!(**error, CoordinateError::Stage(_))),
        "{ended:?}"
    );
    assert!(!fixture.run.path().exists());
}

#[tokio::test]
async fn a_source_that_is_gone_when_a_run_is_resumed_costs_nothing() {
    let fixture = Fixture::new(COMMAND);
    let (source, aside) = (fixture.dir.path().join("source"), fixture.dir.path().join("aside"));
    let (ended, _) = fixture.coordinate(|_| None, |progress| matches!(progress, RunProgress::Staging(_))).await;
    assert!(matches!(ended, Err(CoordinateError::Interrupted)), "{ended:?}");
    fs::rename(&source, &aside).unwrap();
    let (ended, _) = fixture.coordinate(|_| None, |_| false).await;
    assert!(matches!(ended, Err(CoordinateError::Stage(_))), "{ended:?}");
    fs::rename(&aside, &source).unwrap();
    let (ended, _) = fixture.coordinate(|_| Some(Ok("x")), |_| false).await;
    assert_eq!(ended.unwrap().state, EndState::Succeeded);
}
