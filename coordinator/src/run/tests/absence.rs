//! Workers that are silent, that come back, that end, and that are lost.

use super::*;

#[test]
fn a_task_that_loses_its_workers_is_given_up() {
    let mut run = planned(config(), &[1]);
    for n in 0..MAX_WORKER_LOSSES {
        assert_eq!(run.ended(), None);
        let by = worker(n);
        run.handle(&joined(&by, 1), Millis(0));
        let attempt = held(&run, &by)[0];
        run.handle(&Input::Started { worker: by.clone(), attempts: vec![attempt] }, Millis(0));
        run.handle(&Input::Gone { worker: by }, Millis(0));
    }
    assert_eq!(run.ended(), Some(EndState::Failed));
}

#[test]
fn what_a_worker_holds_stays_its_own_under_the_next_coordinator() {
    let mut run = planned(config(), &[3]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 2), Millis(0));
    run.handle(&joined(&b, 1), Millis(0));
    let (old, at_b) = (held(&run, &a), held(&run, &b)[0]);
    assert_eq!(old.len(), 2);
    run.handle(&Input::Opened { epoch: Epoch(2) }, Millis(1));
    // What it did meanwhile stands on the volume, and counts before it is there again.
    assert_eq!(run.handle(&done(&a, old[0]), Millis(2)).len(), 1);
    // What it does not know of, it was never given.
    run.handle(&comes_back(&a, 2, [old[0]]), Millis(3));
    let new = held(&run, &a);
    assert_eq!((new.len(), new[0].task, new[0].number, new[0].epoch), (1, old[1].task, 2, Epoch(2)));
    assert!(run.handle(&done(&a, old[1]), Millis(4)).is_empty(), "that is stale");
    run.handle(&comes_back(&b, 1, [at_b]), Millis(4));
    run.handle_all(&[done(&b, at_b), done(&a, new[0])], Millis(5));
    assert!(run.wanted(Millis(5)).publish);
}

#[test]
fn an_absent_worker_keeps_what_it_holds_for_a_time_and_no_longer() {
    let mut run = planned(config(), &[3]);
    let a = worker(1);
    run.handle(&joined(&a, 3), Millis(0));
    let attempts = held(&run, &a);
    run.handle(&Input::Started { worker: a.clone(), attempts: attempts.clone() }, Millis(0));
    run.handle(&Input::Silent { worker: a.clone() }, Millis(1000));
    assert!(run.handle(&Input::Silent { worker: a.clone() }, Millis(2000)).is_empty(), "that is known");
    assert_eq!(run.handle(&done(&a, attempts[0]), Millis(3000)).len(), 1, "its results count");
    assert_eq!(run.wanted(Millis(3000)).wake_at, Some(Millis(1000 + ABSENT)));
    assert!(run.handle(&TICK, Millis(999 + ABSENT)).is_empty());
    run.handle(&TICK, Millis(1000 + ABSENT));
    assert!(run.workers().next().is_none());
    assert!(run.handle(&done(&a, attempts[1]), Millis(1001 + ABSENT)).is_empty(), "no longer");
    assert_eq!(run.task(attempts[1].task).unwrap().losses, 1);
    // Back after that, it is given work like anybody else.
    run.handle(&comes_back(&a, 3, attempts), Millis(1002 + ABSENT));
    assert_eq!(held(&run, &a).iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn who_is_absent_and_holds_nothing_is_not_waited_for() {
    let mut run = planned(config(), &[1]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 1), Millis(0));
    run.handle(&joined(&b, 1), Millis(0));
    run.handle(&Input::Silent { worker: b }, Millis(1));
    assert!(run.workers().eq([&a]));
    let attempt = held(&run, &a)[0];
    run.handle(&Input::Silent { worker: a.clone() }, Millis(1));
    assert!(run.workers().eq([&a]));
    run.handle(&done(&a, attempt), Millis(2));
    assert!(run.workers().next().is_none());
}

#[test]
fn who_comes_back_may_first_tell_what_it_has_ended_meanwhile() {
    let mut run = planned(RunConfig { speculate: true, ..config() }, &[2]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 1), Millis(0));
    run.handle(&joined(&b, 1), Millis(0));
    let attempt = held(&run, &a)[0];
    run.handle(&Input::Started { worker: a.clone(), attempts: vec![attempt] }, Millis(0));
    run.handle(&Input::Silent { worker: a.clone() }, Millis(0));
    run.handle(&done_in(&b, held(&run, &b)[0], 1000), Millis(100));
    run.handle(&comes_back(&a, 1, [attempt]), Millis(4000));
    assert!(held(&run, &b).is_empty());
    let at = run.wanted(Millis(4000)).wake_at.unwrap();
    assert_eq!(at, Millis(5000));
    run.handle(&TICK, at);
    assert_eq!(held(&run, &b).len(), 1);
}

#[test]
fn a_worker_that_drains_is_given_nothing_more_and_what_it_still_does_counts() {
    let mut run = planned(config(), &[6]);
    let (a, b) = (worker(1), worker(2));
    run.handle(&joined(&a, 1), Millis(0));
    run.handle(&joined(&b, 1), Millis(0));
    let at_a = held(&run, &a);
    run.handle(&Input::Draining { worker: a.clone() }, Millis(1));
    assert!(run.handle(&Input::Draining { worker: a.clone() }, Millis(1)).is_empty(), "that is known");
    run.handle(&done(&a, at_a[0]), Millis(2));
    let given_back = at_a[1..].iter().map(|attempt| Input::GivenBack { worker: a.clone(), attempt: *attempt });
    run.handle_all(&given_back.collect::<Vec<_>>(), Millis(2));
    run.handle(&TICK, Millis(5000));
    assert!(held(&run, &a).is_empty());
    run.handle(&Input::Silent { worker: a.clone() }, Millis(5000));
    assert!(run.workers().eq([&b]));
    while let Some(attempt) = held(&run, &b).first() {
        run.handle(&done(&b, *attempt), Millis(5000));
    }
    assert!(run.wanted(Millis(5000)).publish);
}

#[test]
fn what_waits_on_a_worker_that_has_done_something_is_not_why_it_is_lost() {
    let mut run = planned(config(), &[9]);
    let a = worker(1);
    run.handle(&joined(&a, 1), Millis(0));
    run.handle(&done(&a, held(&run, &a)[0]), Millis(1));
    let waiting = held(&run, &a);
    run.handle(&Input::Gone { worker: a }, Millis(2));
    assert!(waiting.iter().all(|attempt| run.task(attempt.task).unwrap().losses == 0) && !waiting.is_empty());
}

#[test]
fn an_attempt_that_its_worker_does_not_end_is_given_up() {
    let mut run = planned(config(), &[1]);
    let a = worker(1);
    run.handle(&joined(&a, 1), Millis(0));
    let attempt = held(&run, &a)[0];
    run.handle(&Input::Started { worker: a.clone(), attempts: vec![attempt] }, Millis(0));
    assert!(run.handle(&TICK, Millis(60_000)).is_empty());
    let late = run.wanted(Millis(60_000)).wake_at.unwrap();
    assert!(run.handle(&Input::Tick { reported: [attempt].into() }, late).is_empty(), "it was reported in time");
    run.handle(&TICK, late);
    assert_eq!(run.task(attempt.task).unwrap().failures, 1);
    // The slot never came free: nothing more is given to it.
    assert!(run.workers().next().is_none());
}

#[test]
fn a_task_that_no_worker_can_even_take_is_given_up() {
    let mut run = planned(RunConfig { timeout: None, ..config() }, &[1]);
    let mut now = Millis(0);
    for n in 0..MAX_WORKER_LOSSES {
        assert_eq!(run.ended(), None);
        run.handle(&joined(&worker(n), 1), now);
        run.handle(&Input::Gone { worker: worker(n) }, now);
        now = run.wanted(now).wake_at.unwrap_or(now);
        run.handle(&TICK, now);
    }
    assert_eq!(run.ended(), Some(EndState::Failed));
}

#[test]
fn another_process_of_the_name_of_one_that_drained_is_given_work() {
    let mut run = planned(config(), &[2]);
    let a = worker(1);
    let of_process = |pid| match joined(&a, 1) {
        Input::Joined { worker, slots, holds, left, .. } => {
            let process = Holder { host: "h".into(), pid, pid_started: None, pid_namespace: None, boot: None };
            Input::Joined { worker, slots, holds, process: Some(process), left }
        }
        other => other,
    };
    run.handle(&of_process(1), Millis(0));
    run.handle(&Input::Draining { worker: a.clone() }, Millis(1));
    run.handle(&of_process(1), Millis(2));
    assert!(held(&run, &a).is_empty(), "it came back, and still drains");
    run.handle(&of_process(2), Millis(5000));
    assert!(!held(&run, &a).is_empty());
}
