//! What a task that takes long has not read becomes other tasks.

use forebay_datasets::split::{Part, Piece, Split};

use super::{assignment::straggling, *};

fn split(offset: u64, length: u64) -> Split {
    let part = Part::Bytes { offset, length };
    Split { pieces: vec![Piece { key: "k".into(), path: "k".into(), size: 100, partial: false, part }] }
}

fn in_part(worker: &WorkerId, attempt: AttemptId, rest: &[Split]) -> Input {
    Input::Done(Done {
        worker: worker.clone(),
        attempt,
        outputs: vec![],
        metrics: BTreeMap::new(),
        micros: 60_000_000,
        rest: rest.to_vec(),
    })
}

fn resplitting() -> Run {
    planned(RunConfig { resplit: true, speculate: true, ..config() }, &[4])
}

#[test]
fn what_a_slow_task_has_not_read_is_read_by_others_in_its_place() {
    let mut run = resplitting();
    let (a, b) = (worker(1), worker(2));
    let slow = straggling(&mut run);
    assert!(run.yields(slow) && held(&run, &b).is_empty(), "it is asked to make way, and nothing is done twice");
    let rest = [split(40, 30), split(70, 30)];
    run.handle(&in_part(&a, slow, &rest), Millis(3500));
    let task = |index| TaskId { phase: 0, index };
    assert_eq!([4, 5].map(|index| run.rest(task(index))), [Some(&rest[0]), Some(&rest[1])]);
    assert!(held(&run, &a).is_empty(), "a slow worker is given nothing while there is another");
    assert_eq!(held(&run, &b)[0].task, task(4));
    assert!(!run.wanted(Millis(3500)).publish, "there is more to do than was planned");
    let order: Vec<_> = run.in_order_of_input(0).into_iter().map(|task| task.index).collect();
    let slow = slow.task.index as usize;
    assert_eq!(order[slow..slow + 3], [u32::try_from(slow).unwrap(), 4, 5]);
    // A rest may have a rest in its turn, which comes before its sibling.
    run.handle(&in_part(&b, held(&run, &b)[0], &[split(60, 10)]), Millis(4000));
    let order: Vec<_> = run.in_order_of_input(0).into_iter().map(|task| task.index).collect();
    assert_eq!(order[slow..slow + 4], [u32::try_from(slow).unwrap(), 4, 6, 5]);
    run.handle(&Input::Gone { worker: b }, Millis(4500));
    while let Some(attempt) = held(&run, &a).first().copied() {
        run.handle(&done(&a, attempt), Millis(5000));
    }
    assert!(run.wanted(Millis(5000)).publish);
}

#[test]
fn a_slow_task_that_does_not_make_way_gets_a_second_attempt_and_whoever_is_first_counts_whole() {
    let mut run = resplitting();
    let (a, b) = (worker(1), worker(2));
    let slow = straggling(&mut run);
    // As long as such a task usually takes, and a second.
    let then = run.wanted(Millis(3000)).wake_at.unwrap();
    assert_eq!(then, Millis(5000));
    run.handle(&TICK, then);
    let second = held(&run, &b)[0];
    run.handle(&done(&b, second), Millis(6000));
    assert!(run.wanted(Millis(6000)).publish);
    assert!(run.handle(&in_part(&a, slow, &[split(1, 2)]), Millis(7000)).is_empty());
    assert_eq!(run.tasks().count(), 4, "what it left the other one has read");
}

#[test]
fn nothing_makes_way_where_nobody_would_do_it() {
    let mut run = resplitting();
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 1), Millis(0));
    run.handle(&joined(&b, 1), Millis(0));
    let slow = held(&run, &a)[0];
    run.handle(&Input::Started { worker: a.clone(), attempts: vec![slow] }, Millis(0));
    // What waits behind the slow one is taken back after a second.
    for now in [10, 20, 1100, 1200] {
        held(&run, &b).into_iter().for_each(|attempt| drop(run.handle(&done(&b, attempt), Millis(now))));
        run.handle(&TICK, Millis(now));
    }
    assert_eq!(run.tasks.open(), 1);
    run.handle(&Input::Draining { worker: b }, Millis(1300));
    run.handle(&TICK, Millis(30_000));
    assert!(!run.yields(slow));
    run.handle(&joined(&worker(3), 1), Millis(30_001));
    assert!(run.yields(slow));
}

#[test]
fn what_leaves_something_and_must_not_has_failed() {
    let mut run = planned(config(), &[1]);
    let a = worker(1);
    run.handle(&joined(&a, 1), Millis(0));
    let attempt = held(&run, &a)[0];
    run.handle(&in_part(&a, attempt, &[split(1, 2)]), Millis(1));
    let task = run.task(attempt.task).unwrap();
    assert!(task.failures == 1 && matches!(task.state, TaskState::Ready(_)), "{task:?}");
}

#[test]
fn what_was_left_by_whom_nobody_gave_the_task_is_no_task() {
    let attempt = AttemptId { task: TaskId { phase: 0, index: 0 }, number: 1, epoch: Epoch(1) };
    let (outputs, metrics, rest, at) = (vec![], BTreeMap::new(), vec![split(1, 2)], Millis(0));
    let planned = Event::Planned { snapshot: Some("s".into()), phases: vec![1], at };
    let committed = Event::Committed { attempt, outputs, metrics, micros: 0, rest, at };
    let run = Run::replay(config(), &[planned, committed.clone(), committed]).unwrap();
    assert_eq!(run.tasks().count(), 1);
}
