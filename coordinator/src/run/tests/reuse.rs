//! What earlier runs have made is not made again.

use forebay_jobs::task::OutputFile;

use super::*;

fn reused(run: &Run, task: TaskId) -> Reused {
    Reused { attempt: run.next_attempt(task), outputs: Vec::<OutputFile>::new(), from: "earlier".parse().unwrap() }
}

fn sought(phase: u32) -> Input {
    Input::Sought { phase, work: None, among: vec!["earlier".parse().unwrap()] }
}

fn task(phase: u32, index: u32) -> TaskId {
    TaskId { phase, index }
}

#[test]
fn each_phase_begins_after_a_search_and_with_what_was_not_found() {
    let mut run = planned(RunConfig { reuse: true, ..config() }, &[3, 2]);
    let a = worker(1);
    let wanted = run.wanted(Millis(0));
    assert_eq!((wanted.seek, wanted.workers), (Some(0), 0), "there may be nothing to do");
    run.handle(&joined(&a, 4), Millis(0));
    assert!(held(&run, &a).is_empty());
    let tasks = vec![reused(&run, task(0, 0)), reused(&run, task(0, 2))];
    run.handle(&Input::Reused { tasks }, Millis(1));
    assert!(held(&run, &a).is_empty(), "more may be found");
    run.handle(&sought(0), Millis(1));
    let wanted = run.wanted(Millis(1));
    assert_eq!((wanted.seek, wanted.workers), (None, 2));
    assert_eq!(held(&run, &a).iter().map(|attempt| attempt.task).collect::<Vec<_>>(), [task(0, 1)]);
    // What was searched for once is begun, whatever else is found.
    let late = reused(&run, task(0, 1));
    assert!(run.handle(&Input::Reused { tasks: vec![late] }, Millis(2)).is_empty());
    assert!(run.handle(&sought(0), Millis(2)).is_empty());
    run.handle(&done(&a, held(&run, &a)[0]), Millis(3));
    assert_eq!(run.wanted(Millis(3)).seek, Some(1));
    assert!(held(&run, &a).is_empty());
    // All of the last phase: there is nothing more to do than to publish.
    let tasks = vec![reused(&run, task(1, 0)), reused(&run, task(1, 1))];
    run.handle(&Input::Reused { tasks }, Millis(4));
    run.handle(&sought(1), Millis(4));
    assert!(run.wanted(Millis(4)).publish);
}

#[test]
fn tasks_that_begin_before_their_dataset_is_staged_are_not_searched_for() {
    let mut run = Run::new(RunConfig { reuse: true, ..config() });
    run.handle(&Input::Opened { epoch: Epoch(1) }, Millis(0));
    run.handle(&Input::Planned { snapshot: None, phases: vec![1, 1] }, Millis(0));
    let a = worker(1);
    run.handle(&joined(&a, 1), Millis(0));
    run.handle(&Input::Staged { snapshot: "s".into() }, Millis(0));
    assert_eq!(run.wanted(Millis(0)).seek, None);
    run.handle(&done(&a, held(&run, &a)[0]), Millis(1));
    assert_eq!(run.wanted(Millis(1)).seek, Some(1));
}

#[test]
fn a_coordinator_that_comes_next_searches_only_for_what_the_one_before_had_not() {
    let mut run = planned(RunConfig { reuse: true, ..config() }, &[2]);
    let stale = reused(&run, task(0, 0));
    run.handle(&Input::Opened { epoch: Epoch(2) }, Millis(1));
    assert_eq!(run.wanted(Millis(1)).seek, Some(0));
    assert!(run.handle(&Input::Reused { tasks: vec![stale] }, Millis(1)).is_empty(), "it lies where nobody looks");
    run.handle(&sought(0), Millis(2));
    run.handle(&Input::Opened { epoch: Epoch(3) }, Millis(3));
    assert_eq!(run.wanted(Millis(3)).seek, None);
}
