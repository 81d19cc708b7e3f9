//! The machine, step by step.

mod absence;
mod assignment;
mod gang;
mod histories;
mod rests;
mod reuse;

use std::collections::BTreeSet;

use forebay_datasets::volume::Holder;
use forebay_jobs::{id::TaskId, task::Failure};

use super::{decide::ABSENT, *};

fn config() -> RunConfig {
    let (backoff_first, backoff_last) = (1000, 8000);
    RunConfig {
        attempts: 3,
        backoff_first,
        backoff_last,
        timeout: Some(60_000),
        max_failures: 0,
        gang: false,
        reuse: false,
        resplit: false,
        speculate: false,
        workers: 2,
        readers: None,
        ramp: 0,
        export: false,
    }
}

/// A worker that comes with nothing in its hands.
fn joined(worker: &WorkerId, slots: u32) -> Input {
    comes_back(worker, slots, [])
}

fn comes_back(worker: &WorkerId, slots: u32, holds: impl IntoIterator<Item = AttemptId>) -> Input {
    Input::Joined { worker: worker.clone(), slots, holds: holds.into_iter().collect(), process: None, left: None }
}

const TICK: Input = Input::Tick { reported: BTreeSet::new() };

fn worker(n: u32) -> WorkerId {
    format!("w{n}").parse().unwrap()
}

/// A run of these phases in its first epoch.
fn planned(config: RunConfig, phases: &[u32]) -> Run {
    let mut run = Run::new(config);
    run.handle(&Input::Opened { epoch: Epoch(1) }, Millis(0));
    run.handle(&Input::Planned { snapshot: Some("s".into()), phases: phases.to_vec() }, Millis(0));
    run
}

fn held(run: &Run, by: &WorkerId) -> Vec<AttemptId> {
    run.share(by).map(|share| share.held.iter().copied().collect()).unwrap_or_default()
}

fn done(worker: &WorkerId, attempt: AttemptId) -> Input {
    done_in(worker, attempt, 1_000_000)
}

fn done_in(worker: &WorkerId, attempt: AttemptId, micros: u64) -> Input {
    Input::Done(Done {
        worker: worker.clone(),
        attempt,
        outputs: vec![],
        metrics: BTreeMap::new(),
        micros,
        rest: vec![],
    })
}

fn failed(worker: &WorkerId, attempt: AttemptId) -> Input {
    let failure = Failure::ExitCode { code: 1, stderr: String::new() };
    Input::Failed { worker: worker.clone(), attempt, failure }
}

#[test]
fn a_task_waits_for_its_inputs_and_the_output_for_all_of_the_dataset() {
    let mut run = Run::new(config());
    run.handle(&Input::Opened { epoch: Epoch(1) }, Millis(0));
    run.handle(&Input::Planned { snapshot: None, phases: vec![3] }, Millis(0));
    let a = worker(1);
    run.handle(&joined(&a, 4), Millis(0));
    let indices = |run: &Run| held(run, &worker(1)).iter().map(|at| at.task.index).collect::<Vec<_>>();
    assert!(indices(&run).is_empty() && run.wants_staging());
    run.handle(&Input::InputsStaged { tasks: vec![1, 7] }, Millis(1));
    assert_eq!(indices(&run), [1]);
    assert!(run.handle(&Input::InputsStaged { tasks: vec![1, 7] }, Millis(1)).is_empty(), "that is known");
    // A new coordinator has to find out anew what is there; what is committed stays.
    run.handle(&done(&a, held(&run, &a)[0]), Millis(2));
    run.handle(&Input::InputsStaged { tasks: vec![0] }, Millis(2));
    run.handle(&Input::Opened { epoch: Epoch(2) }, Millis(3));
    run.handle(&joined(&a, 4), Millis(3));
    assert!(indices(&run).is_empty());
    run.handle(&Input::InputsStaged { tasks: vec![0, 1, 2] }, Millis(4));
    assert_eq!(indices(&run), [0, 2]);
    for attempt in held(&run, &a) {
        run.handle(&done(&a, attempt), Millis(5));
    }
    assert!(!run.wanted(Millis(5)).publish, "the snapshot is not published yet");
    run.handle(&Input::Staged { snapshot: "s".into() }, Millis(6));
    assert!(run.wanted(Millis(6)).publish && !run.wants_staging());
}

#[test]
fn a_failure_is_tried_again_after_a_wait_and_the_last_one_ends_the_run() {
    let mut run = planned(config(), &[1]);
    let a = worker(1);
    run.handle(&joined(&a, 1), Millis(0));
    let mut now = 0;
    for failures in 1..=3 {
        let attempt = held(&run, &a)[0];
        assert_eq!(attempt.number, failures);
        run.handle(&failed(&a, attempt), Millis(now));
        // The same report once more is stale.
        assert!(run.handle(&failed(&a, attempt), Millis(now)).is_empty());
        if failures < 3 {
            assert!(held(&run, &a).is_empty(), "it waits");
            now = run.wanted(Millis(now)).wake_at.unwrap().0;
            assert!((750..=2500).contains(&(now / u64::from(failures))), "{now}");
            run.handle(&TICK, Millis(now));
        }
    }
    assert_eq!(run.ended(), Some(EndState::Failed));
}

#[test]
fn giving_back_uses_up_no_try() {
    let mut run = planned(config(), &[1]);
    let a = worker(1);
    run.handle(&joined(&a, 1), Millis(0));
    for n in 0..20 {
        let attempt = held(&run, &a)[0];
        run.handle(&Input::Started { worker: a.clone(), attempts: vec![attempt] }, Millis(n * 10_000));
        run.handle(&Input::GivenBack { worker: a.clone(), attempt }, Millis(n * 10_000));
        run.handle(&TICK, Millis((n + 1) * 10_000));
    }
    let task = run.task(TaskId { phase: 0, index: 0 }).unwrap();
    assert_eq!((task.failures, task.losses), (0, 0));
    assert_eq!(held(&run, &a).len(), 1);
}

#[test]
fn what_is_said_of_an_attempt_that_is_not_held_changes_nothing() {
    let mut run = planned(RunConfig { attempts: 1, max_failures: 1, ..config() }, &[2]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 2), Millis(0));
    run.handle(&joined(&b, 2), Millis(0));
    let [first, second] = held(&run, &a)[..] else { panic!() };
    let said = |by: &WorkerId, attempt| {
        let (worker, started) = (by.clone(), vec![attempt]);
        [
            done(by, attempt),
            failed(by, attempt),
            Input::GivenBack { worker: worker.clone(), attempt },
            Input::Started { worker, attempts: started },
        ]
    };
    // Another one's, one of another number, of another epoch, and of no task.
    let mut strange = said(&b, first).to_vec();
    strange.extend(said(&a, AttemptId { number: 2, ..first }));
    strange.extend(said(&a, AttemptId { epoch: Epoch(2), ..first }));
    strange.extend(said(&a, AttemptId { task: TaskId { phase: 0, index: 7 }, ..first }));
    for input in &strange {
        assert!(run.handle(input, Millis(1)).is_empty(), "{input:?}");
    }
    run.handle_all(&[done(&a, first), failed(&a, second)], Millis(2));
    for input in strange.iter().chain(&said(&a, first)).chain(&said(&a, second)) {
        assert!(run.handle(input, Millis(3)).is_empty(), "{input:?}");
    }
}

#[test]
fn cancelling_kills_what_is_held_and_then_ends() {
    let mut run = planned(config(), &[1]);
    let a = worker(1);
    run.handle(&joined(&a, 1), Millis(0));
    let attempt = held(&run, &a)[0];
    run.handle(&Input::Cancel, Millis(1));
    assert!(held(&run, &a).is_empty() && run.ended().is_none());
    // Whoever drives it learns what may never have reached the worker, and would never be reported.
    assert!(run.is_stopping() && run.held(&a).eq([attempt]));
    run.handle(&Input::Failed { worker: a, attempt, failure: Failure::Cancelled }, Millis(2));
    assert_eq!(run.ended(), Some(EndState::Cancelled));
}

#[test]
fn what_is_being_published_is_not_cancelled() {
    let mut run = planned(config(), &[1]);
    let a = worker(1);
    run.handle(&joined(&a, 1), Millis(0));
    run.handle(&done(&a, held(&run, &a)[0]), Millis(1));
    assert!(run.wanted(Millis(1)).publish);
    assert!(run.handle(&Input::Cancel, Millis(2)).is_empty());
    run.handle(&Input::Published { files: 1, bytes: 1, rows: None }, Millis(3));
    assert_eq!(run.ended(), Some(EndState::Succeeded));
}

#[test]
fn a_share_has_another_version_when_it_is_another_one() {
    let mut run = planned(config(), &[9]);
    let a = worker(1);
    run.handle(&joined(&a, 1), Millis(0));
    let version = |run: &Run| run.share(&worker(1)).unwrap().version;
    let (before, attempt) = (version(&run), held(&run, &a)[0]);
    run.handle(&Input::Started { worker: a.clone(), attempts: vec![attempt] }, Millis(0));
    assert_eq!(version(&run), before);
    run.handle(&done(&a, attempt), Millis(1));
    let after = version(&run);
    assert_ne!(after, before);
    run.handle(&Input::Cancel, Millis(2));
    assert!(version(&run) != after && held(&run, &a).is_empty());
}

#[test]
fn a_time_that_has_passed_wakes_nobody() {
    let mut run = planned(RunConfig { timeout: None, ..config() }, &[2]);
    let a = worker(1);
    run.handle(&joined(&a, 2), Millis(0));
    let attempts = held(&run, &a);
    run.handle(&Input::Started { worker: a.clone(), attempts: vec![attempts[1]] }, Millis(0));
    run.handle(&failed(&a, attempts[0]), Millis(0));
    run.handle(&Input::Gone { worker: a }, Millis(0));
    let at = run.wanted(Millis(0)).wake_at.unwrap();
    assert_eq!(run.wanted(at).wake_at, None);
}

#[test]
fn a_journal_that_cannot_be_is_refused_and_panics_nowhere() {
    let attempt = |index| AttemptId { task: TaskId { phase: 0, index }, number: 1, epoch: Epoch(1) };
    let planned = |phases| Event::Planned { snapshot: Some("s".into()), phases, at: Millis(0) };
    let committed = |index| Event::Committed {
        rest: vec![],
        attempt: attempt(index),
        outputs: vec![],
        metrics: BTreeMap::new(),
        micros: 0,
        at: Millis(0),
    };
    assert!(Run::replay(config(), &[planned(vec![u32::MAX, u32::MAX])]).is_err());
    // Committed before it was planned, twice, and withdrawn.
    let returned = Event::AttemptReturned { attempt: attempt(0), retry_at: Millis(0), lost: true };
    let strange = [committed(0), planned(vec![1]), committed(0), committed(0), committed(7), returned];
    let run = Run::replay(config(), &strange).unwrap();
    assert!(matches!(run.task(TaskId { phase: 0, index: 0 }).unwrap().state, TaskState::Committed { .. }));
    let assigned = Event::Assigned { attempts: vec![attempt(0)], worker: worker(1), at: Millis(0) };
    Run::replay(config(), &[planned(vec![1]), assigned]).unwrap();
}
