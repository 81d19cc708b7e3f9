//! Tasks that only work together.

use super::*;

fn gang(members: u32) -> Run {
    planned(RunConfig { gang: true, ..config() }, &[members])
}

/// The members that a worker holds, by rank, and the number of their try.
fn ranks(run: &Run, by: &WorkerId) -> Vec<(u32, u32)> {
    held(run, by).into_iter().map(|attempt| (attempt.task.index, attempt.number)).collect()
}

fn failed(worker: &WorkerId, attempt: AttemptId) -> Input {
    let failure = Failure::ExitCode { code: 1, stderr: String::new() };
    Input::Failed { worker: worker.clone(), attempt, failure }
}

fn cancelled(worker: &WorkerId, attempt: AttemptId) -> Input {
    Input::Failed { worker: worker.clone(), attempt, failure: Failure::Cancelled }
}

fn committed(run: &Run) -> usize {
    run.tasks().filter(|(_, task)| matches!(task.state, TaskState::Committed { .. })).count()
}

/// A gang of three on two workers.
fn at_work() -> (Run, [WorkerId; 2]) {
    let (mut run, [a, b]) = (gang(3), [worker(0), worker(1)]);
    run.handle(&joined(&a, 2), Millis(1));
    run.handle(&joined(&b, 2), Millis(2));
    (run, [a, b])
}

#[test]
fn all_members_begin_or_none_does_and_neighbours_are_side_by_side() {
    let (mut run, [a, b]) = (gang(3), [worker(0), worker(1)]);
    run.handle(&joined(&a, 2), Millis(1));
    assert!(held(&run, &a).is_empty(), "there are two slots, and three members");
    run.handle(&joined(&b, 2), Millis(2));
    assert_eq!((ranks(&run, &a), ranks(&run, &b)), (vec![(0, 1)], vec![(1, 1), (2, 1)]));
}

#[test]
fn what_members_make_counts_once_all_have_made_it() {
    let (mut run, [a, b]) = at_work();
    let members: Vec<_> = [&a, &b].iter().flat_map(|worker| held(&run, worker).into_iter().zip([*worker; 2])).collect();
    for (attempt, worker) in &members[..2] {
        run.handle(&done(worker, *attempt), Millis(10));
    }
    assert_eq!((committed(&run), run.wanted(Millis(10)).publish), (0, false));
    assert!(held(&run, &a).is_empty(), "what is done is its worker's no more");
    let (last, worker) = members[2];
    run.handle(&done(worker, last), Millis(20));
    assert_eq!((committed(&run), run.wanted(Millis(20)).publish), (3, true));
}

#[test]
fn when_one_fails_all_end_and_begin_again_and_one_try_is_used_up() {
    let (mut run, [a, b]) = at_work();
    let (first, others) = (held(&run, &a)[0], held(&run, &b));
    run.handle(&done(&a, first), Millis(10));
    run.handle(&failed(&b, others[0]), Millis(20));
    assert!(run.recalls_all() && held(&run, &b).is_empty(), "the other one is to end");
    // It fails because the first one did, and that is no fault of its own.
    run.handle(&failed(&b, others[1]), Millis(30));
    assert_eq!(run.tasks().map(|(_, task)| task.failures).collect::<Vec<_>>(), [0, 1, 0]);
    assert!(!run.recalls_all() && held(&run, &a).is_empty(), "the failed one waits");
    let again = run.wanted(Millis(30)).wake_at.unwrap();
    run.handle(&TICK, again);
    let later = run.wanted(again).wake_at.unwrap_or(again);
    run.handle(&TICK, later);
    assert_eq!((ranks(&run, &a), ranks(&run, &b)), (vec![(0, 2)], vec![(1, 2), (2, 2)]), "also the one that was done");
}

#[test]
fn a_gang_has_as_many_tries_as_a_task_whichever_member_fails() {
    let (mut run, [a, b]) = at_work();
    let mut now = 100;
    for round in 0..3 {
        let (first, second) = (held(&run, &a)[0], held(&run, &b)[0]);
        let (by, fails) = if round == 1 { (&b, second) } else { (&a, first) };
        run.handle(&failed(by, fails), Millis(now));
        for worker in [&a, &b] {
            for attempt in run.held(worker).collect::<Vec<_>>() {
                run.handle(&cancelled(worker, attempt), Millis(now));
            }
        }
        now += 20_000;
        run.handle(&TICK, Millis(now));
    }
    assert_eq!(run.ended(), Some(EndState::Failed));
}

#[test]
fn a_member_that_is_lost_with_its_worker_takes_the_others_with_it_and_uses_up_no_try() {
    let (mut run, [a, b]) = at_work();
    let first = held(&run, &a)[0];
    run.handle(&Input::Gone { worker: b.clone() }, Millis(10));
    assert!(run.recalls_all());
    run.handle(&cancelled(&a, first), Millis(20));
    assert!(held(&run, &a).is_empty(), "two slots are too few");
    run.handle(&joined(&worker(2), 2), Millis(3000));
    assert_eq!(run.tasks().map(|(_, task)| (task.failures, task.attempts)).collect::<Vec<_>>(), [(0, 2); 3]);
}

#[test]
fn a_worker_whose_link_is_cut_for_a_while_breaks_no_gang() {
    let (mut run, [a, b]) = at_work();
    run.handle(&Input::Silent { worker: b.clone() }, Millis(10));
    run.handle(&TICK, Millis(20_000));
    assert!(!run.recalls_all());
    let holds = run.held(&b).collect::<Vec<_>>();
    run.handle(&comes_back(&b, 2, holds), Millis(20_001));
    assert_eq!((ranks(&run, &a), ranks(&run, &b)), (vec![(0, 1)], vec![(1, 1), (2, 1)]));
}

#[test]
fn a_gang_that_will_never_have_a_slot_for_each_is_an_error_once_all_workers_are_there() {
    let (mut run, [a, b]) = (gang(4), [worker(0), worker(1)]);
    run.handle(&joined(&a, 1), Millis(1));
    assert_eq!(run.ended(), None);
    let events = run.handle(&joined(&b, 2), Millis(2));
    let told = |event: &Event| matches!(event, Event::Aborted { error, .. } if error.contains("4 tasks are a gang"));
    assert!(events.iter().any(told), "{events:?}");
    assert_eq!(run.ended(), Some(EndState::Failed));
}
