//! Who is given what, what is taken back, and what is begun twice.

use super::*;

#[test]
fn tasks_spread_over_workers_and_wait_for_the_phase_before() {
    let mut run = planned(config(), &[3, 1]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 1), Millis(1));
    run.handle(&joined(&b, 1), Millis(1));
    let indices = |run: &Run, by| held(run, by).iter().map(|at| (at.task.phase, at.task.index)).collect::<Vec<_>>();
    assert_eq!((indices(&run, &a), indices(&run, &b)), (vec![(0, 0), (0, 1)], vec![(0, 2)]));
    for by in [&a, &a, &b] {
        run.handle(&done(by, held(&run, by)[0]), Millis(2));
    }
    assert_eq!((indices(&run, &a), indices(&run, &b)), (vec![(1, 0)], vec![]));
    run.handle(&done(&a, held(&run, &a)[0]), Millis(3));
    let wanted = run.wanted(Millis(3));
    assert!(wanted.publish && wanted.workers == 0);
    run.handle(&Input::Published { files: 1, bytes: 1, rows: None }, Millis(4));
    assert_eq!(run.ended(), Some(EndState::Succeeded));
}

/// Four tasks of which three took a second, and one is still on the first of two workers. Its attempt.
pub(super) fn straggling(run: &mut Run) -> AttemptId {
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 1), Millis(0));
    run.handle(&joined(&b, 1), Millis(0));
    let slow = held(run, &a)[0];
    run.handle(&Input::Started { worker: a.clone(), attempts: vec![slow] }, Millis(0));
    let mut now = 0;
    while run.tasks.open() > 1 {
        now += 1000;
        for (by, attempt) in [&a, &b].map(|by| (by, held(run, by).into_iter().find(|attempt| *attempt != slow))) {
            if let Some(attempt) = attempt.filter(|_| by == &b) {
                run.handle(&Input::Started { worker: b.clone(), attempts: vec![attempt] }, Millis(now));
                run.handle(&done(by, attempt), Millis(now));
            }
        }
        run.handle(&TICK, Millis(now));
    }
    assert!(now < 5000, "what waited behind it was taken back");
    slow
}

#[test]
fn a_task_that_takes_much_longer_than_its_peers_gets_a_second_attempt_and_the_first_to_be_done_counts() {
    for first_wins in [true, false] {
        let mut run = planned(RunConfig { speculate: true, ..config() }, &[4]);
        let (a, b) = (worker(1), worker(2));
        let slow = straggling(&mut run);
        // Longer than twice a second, and a second more.
        let at = Millis(3000);
        run.handle(&TICK, at);
        let second = held(&run, &b);
        assert_eq!(second.iter().map(|attempt| (attempt.task, attempt.number)).collect::<Vec<_>>(), [(slow.task, 2)]);
        assert_eq!(held(&run, &a), [slow]);
        assert!(run.is_second(second[0]) && !run.is_second(slow));
        let (winner, by) = if first_wins { (slow, &a) } else { (second[0], &b) };
        run.handle(&done(by, winner), at);
        assert!(held(&run, &a).is_empty() && held(&run, &b).is_empty(), "the other is to be ended");
        let state = &run.task(slow.task).unwrap().state;
        assert!(matches!(state, TaskState::Committed { attempt, .. } if *attempt == winner));
        let (loser, by) = if first_wins { (second[0], &b) } else { (slow, &a) };
        assert!(run.handle(&done(by, loser), at).is_empty());
        assert!(run.wanted(at).publish);
    }
}

#[test]
fn what_becomes_of_one_of_two_attempts_decides_nothing_while_the_other_goes_on() {
    let mut run = planned(RunConfig { speculate: true, attempts: 1, ..config() }, &[4]);
    let (a, b) = (worker(1), worker(2));
    let slow = straggling(&mut run);
    run.handle(&TICK, Millis(10_000));
    let second = held(&run, &b)[0];
    run.handle(&failed(&b, second), Millis(10_000));
    assert_eq!((held(&run, &a), held(&run, &b), run.ended()), (vec![slow], vec![], None));
    run.handle(&TICK, Millis(50_000));
    assert!(held(&run, &b).is_empty(), "it had its chance");
    run.handle(&Input::Gone { worker: a }, Millis(50_000));
    assert_eq!(held(&run, &b).len(), 1);
    run.handle(&failed(&b, held(&run, &b)[0]), Millis(50_000));
    assert_eq!(run.ended(), Some(EndState::Failed));
}

#[test]
fn what_waits_is_taken_back_and_not_what_has_begun_be_it_the_later_task() {
    let mut run = planned(RunConfig { workers: 1, ..config() }, &[2]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 1), Millis(0));
    let [first, second] = held(&run, &a)[..] else { panic!() };
    run.handle(&failed(&a, first), Millis(0));
    run.handle(&Input::Started { worker: a.clone(), attempts: vec![second] }, Millis(0));
    run.handle(&TICK, Millis(2000));
    assert_eq!(held(&run, &a).iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [2, 1], "it waits behind");
    run.handle(&joined(&b, 1), Millis(3000));
    assert_eq!(held(&run, &a), [second]);
    assert_eq!(held(&run, &b).iter().map(|attempt| attempt.task).collect::<Vec<_>>(), [first.task]);
}

#[test]
fn what_has_a_slot_of_its_own_is_not_taken_back_though_nobody_heard_that_it_was_begun() {
    let mut run = planned(config(), &[4]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 2), Millis(0));
    run.handle(&joined(&b, 4), Millis(0));
    let at_a = held(&run, &a);
    assert_eq!((at_a.len(), held(&run, &b).len()), (2, 2));
    run.handle(&TICK, Millis(20_000));
    assert_eq!(held(&run, &a), at_a);
}

#[test]
fn a_second_attempt_never_goes_to_the_worker_of_the_first() {
    let mut run = planned(RunConfig { speculate: true, ..config() }, &[2]);
    let a = worker(1);
    run.handle(&joined(&a, 2), Millis(0));
    let attempts = held(&run, &a);
    run.handle(&Input::Started { worker: a.clone(), attempts: attempts.clone() }, Millis(0));
    run.handle(&done(&a, attempts[1]), Millis(1000));
    run.handle(&TICK, Millis(20_000));
    assert_eq!(held(&run, &a), attempts[..1]);
}

#[test]
fn a_worker_with_little_time_left_is_given_only_what_fits() {
    let with_time = |worker: &WorkerId, left| match joined(worker, 1) {
        Input::Joined { worker, slots, holds, process, .. } => {
            Input::Joined { worker, slots, holds, process, left: Some(left) }
        }
        other => other,
    };
    let mut run = planned(RunConfig { timeout: None, workers: 1, ..config() }, &[20]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&with_time(&a, 200_000), Millis(0));
    // Its tasks take 30 s each, and it needs time to end.
    let mut now = 0;
    while let Some(attempt) = held(&run, &a).first().copied() {
        run.handle(&Input::Started { worker: a.clone(), attempts: vec![attempt] }, Millis(now));
        now += 30_000;
        run.handle(&done_in(&a, attempt, 30_000_000), Millis(now));
    }
    assert!((170_000..=210_000).contains(&now), "{now}");
    run.handle(&joined(&b, 1), Millis(now));
    assert!(!held(&run, &b).is_empty());
    // Where no worker ever has enough, those that have most of their time before them begin.
    let mut run = planned(RunConfig { timeout: None, workers: 1, ..config() }, &[20]);
    run.handle(&joined(&b, 1), Millis(0));
    run.handle(&done_in(&b, held(&run, &b)[0], 500_000_000), Millis(500_000));
    run.handle(&Input::Gone { worker: b }, Millis(500_000));
    run.handle(&with_time(&a, 200_000), Millis(500_000));
    assert!(!held(&run, &a).is_empty());
    run.handle(&with_time(&worker(3), 14_000), Millis(500_000));
    assert!(held(&run, &worker(3)).is_empty());
}

#[test]
fn no_more_attempts_are_held_at_once_than_may_read_and_they_begin_one_after_the_other() {
    let mut run = planned(RunConfig { timeout: None, readers: Some(5), ramp: 10_000, ..config() }, &[100]);
    let workers = [1, 2, 3, 4].map(worker);
    workers.iter().for_each(|id| drop(run.handle(&joined(id, 2), Millis(0))));
    let all = |run: &Run| workers.iter().map(|id| held(run, id).len()).sum::<usize>();
    assert_eq!(all(&run), 1);
    let mut begun = Vec::new();
    let mut now = Millis(0);
    while let Some(at) = run.wanted(now).wake_at {
        now = at;
        run.handle(&TICK, now);
        begun.push((now.0, all(&run)));
    }
    assert_eq!(begun, [(4000, 2), (6000, 3), (8000, 4), (10_000, 5)]);
    // Whoever is done makes room for one.
    for _ in 0..20 {
        let (by, attempt) = workers.iter().find_map(|id| Some((id, *held(&run, id).first()?))).unwrap();
        run.handle(&done_in(by, attempt, 200), now);
        assert_eq!(all(&run), 5);
    }
    // The next coordinator begins as carefully.
    run.handle(&Input::Opened { epoch: Epoch(2) }, now);
    workers.iter().for_each(|id| drop(run.handle(&joined(id, 2), now)));
    assert_eq!(all(&run), 1);
}

#[test]
fn what_waits_on_one_worker_is_begun_by_another_that_has_nothing_to_do() {
    let mut run = planned(config(), &[4]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 1), Millis(0));
    let first = held(&run, &a)[0];
    run.handle(&Input::Started { worker: a.clone(), attempts: vec![first] }, Millis(0));
    run.handle(&done(&a, first), Millis(10));
    run.handle(&joined(&b, 1), Millis(20));
    let attempts = held(&run, &a);
    assert_eq!((attempts.len(), held(&run, &b).len()), (2, 1), "one of them waits");
    run.handle(&Input::Started { worker: a.clone(), attempts: vec![attempts[0]] }, Millis(20));
    run.handle(&done(&b, held(&run, &b)[0]), Millis(30));
    assert!(held(&run, &b).is_empty(), "its worker may be about to begin it");
    // A worker that comes back has yet to tell what it has begun meanwhile.
    run.handle(&Input::Silent { worker: a.clone() }, Millis(500));
    run.handle(&comes_back(&a, 1, attempts.clone()), Millis(600));
    run.handle(&TICK, Millis(1599));
    assert!(held(&run, &b).is_empty());
    assert_eq!(run.wanted(Millis(1599)).wake_at, Some(Millis(1600)));
    run.handle(&TICK, Millis(1600));
    assert_eq!(held(&run, &b).iter().map(|attempt| attempt.task).collect::<Vec<_>>(), [attempts[1].task]);
    assert_eq!(held(&run, &a), attempts[..1]);
}

#[test]
fn without_speculation_nothing_is_begun_twice() {
    let mut run = planned(config(), &[4]);
    let slow = straggling(&mut run);
    run.handle(&Input::Silent { worker: worker(1) }, Millis(4000));
    run.handle(&TICK, Millis(3999 + ABSENT));
    assert!(held(&run, &worker(2)).is_empty());
    run.handle(&TICK, Millis(4000 + ABSENT));
    assert_eq!(held(&run, &worker(2)).iter().map(|attempt| attempt.task).collect::<Vec<_>>(), [slow.task]);
}

#[test]
fn what_an_absent_worker_holds_is_begun_by_who_has_nothing_else_to_do() {
    let mut run = planned(RunConfig { speculate: true, ..config() }, &[2]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 2), Millis(0));
    let attempts = held(&run, &a);
    run.handle(&Input::Started { worker: a.clone(), attempts: attempts.clone() }, Millis(0));
    run.handle(&Input::Silent { worker: a.clone() }, Millis(1000));
    run.handle(&joined(&b, 1), Millis(1000));
    assert!(held(&run, &b).is_empty());
    let at = run.wanted(Millis(1000)).wake_at.unwrap();
    run.handle(&TICK, at);
    assert_eq!(held(&run, &b).iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [2]);
    run.handle(&comes_back(&a, 2, attempts.clone()), Millis(7000));
    assert_eq!(held(&run, &a), attempts);
    run.handle_all(&[done(&a, attempts[0]), done(&a, attempts[1])], Millis(8000));
    assert!(held(&run, &b).is_empty() && run.wanted(Millis(8000)).publish);
}

#[test]
fn the_first_worker_leaves_to_the_next_what_it_could_only_keep_waiting() {
    let mut run = planned(config(), &[4]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 2), Millis(0));
    assert_eq!(held(&run, &a).len(), 2);
    run.handle(&joined(&b, 2), Millis(0));
    assert_eq!((held(&run, &a).len(), held(&run, &b).len()), (2, 2));
}

#[test]
fn short_attempts_are_given_out_many_at_a_time_and_none_that_another_would_have_time_for() {
    let mut run = planned(config(), &[10_000]);
    let workers = [worker(1), worker(2)];
    workers.iter().for_each(|id| drop(run.handle(&joined(id, 1), Millis(0))));
    assert_eq!(workers.each_ref().map(|id| held(&run, id).len()), [2, 2], "nobody knows yet how short they are");
    let short = |worker: &WorkerId, attempt| done_in(worker, attempt, 200);
    run.handle(&short(&workers[0], held(&run, &workers[0])[0]), Millis(1));
    assert_eq!(workers.each_ref().map(|id| held(&run, id).len()), [1000, 1000], "as last for 0.2 s");
    let mut turn = 0;
    while run.tasks.open() > 0 {
        let id = &workers[turn % 2];
        let all: Vec<_> = held(&run, id).into_iter().map(|attempt| short(id, attempt)).collect();
        let events = run.handle_all(&all, Millis(2));
        let assigned = events.iter().filter(|event| matches!(event, Event::Assigned { .. })).count();
        assert!(assigned <= 2, "one event a worker");
        let left = run.tasks.open() as usize;
        let most = workers.iter().map(|id| held(&run, id).len()).max().unwrap();
        assert!(most <= (left / 2).max(2) || most <= 1000 && left >= 2000, "{most} of {left} are held by one");
        turn += 1;
    }
    assert!(run.wanted(Millis(3)).publish);
}
