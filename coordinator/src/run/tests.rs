use proptest::prelude::*;

use super::*;

fn config() -> RunConfig {
    let (backoff_first, backoff_last) = (1000, 8000);
    RunConfig {
        attempts: 3,
        backoff_first,
        backoff_last,
        timeout: Some(60_000),
        max_failures: 0,
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
    Input::Done(Done { worker: worker.clone(), attempt, outputs: vec![], metrics: BTreeMap::new(), micros })
}

fn failed(worker: &WorkerId, attempt: AttemptId) -> Input {
    let failure = Failure::ExitCode { code: 1, stderr: String::new() };
    Input::Failed { worker: worker.clone(), attempt, failure }
}

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

/// Four tasks of which three took a second, and one is still on the first of two workers. Its attempt.
fn straggling(run: &mut Run) -> AttemptId {
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

/// A step of a random history; numbers pick among what is there when it is taken.
#[derive(Clone, Debug)]
enum Step {
    Join(u32, u32),
    /// With all that it holds, or half of it.
    ComeBack(u32, bool),
    Silence(u32),
    Leave(u32),
    Start(usize),
    Done(usize),
    Fail(usize),
    GiveBack(usize),
    Stale(usize),
    Wait(u64),
    Inputs(u32),
    Staged,
    Cancel,
    Publish,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0u32..4, 1u32..4).prop_map(|(w, s)| Step::Join(w, s)),
        1 => (0u32..4).prop_map(Step::Leave),
        1 => (0u32..4).prop_map(Step::Silence),
        2 => (0u32..4, any::<bool>()).prop_map(|(w, all)| Step::ComeBack(w, all)),
        4 => any::<usize>().prop_map(Step::Start),
        4 => any::<usize>().prop_map(Step::Done),
        2 => any::<usize>().prop_map(Step::Fail),
        1 => any::<usize>().prop_map(Step::GiveBack),
        2 => any::<usize>().prop_map(Step::Stale),
        3 => (0u64..5000).prop_map(Step::Wait),
        3 => (0u32..12).prop_map(Step::Inputs),
        1 => Just(Step::Staged),
        1 => Just(Step::Publish),
        1 => Just(Step::Restart),
        // Most histories go on to their end.
        1 => (0u32..10).prop_map(|n| if n == 0 { Step::Cancel } else { Step::Publish }),
    ];
    prop::collection::vec(step, 0..150)
}

proptest! {
    #[test]
    fn random_histories_keep_the_invariants_replay_and_end(steps in steps(), tasks in 1u32..12, reduces in 0u32..4, early in any::<bool>()) {
        let config = RunConfig { max_failures: 2, speculate: true, ..config() };
        let mut run = Run::new(config.clone());
        let (mut journal, mut now, mut epoch) = (Vec::new(), 0, 1);
        let mut past: Vec<Input> = Vec::new();
        let phases = if reduces > 0 { vec![tasks, reduces] } else { vec![tasks] };
        journal.extend(run.handle(&Input::Opened { epoch: Epoch(1) }, Millis(0)));
        journal.extend(run.handle(&Input::Planned { snapshot: (!early).then(|| "s".into()), phases }, Millis(0)));
        let staged = Input::Staged { snapshot: "s".into() };
        let pick = |run: &Run, n: usize| {
            let all: Vec<_> = run.workers().flat_map(|w| held(run, w).into_iter().map(|a| (w.clone(), a))).collect();
            (!all.is_empty()).then(|| all[n % all.len()].clone())
        };
        for step in steps {
            let input = match step {
                Step::Join(w, slots) => Some(joined(&worker(w), slots)),
                Step::ComeBack(w, all) => {
                    let holds = held(&run, &worker(w));
                    let kept = if all { holds.len() } else { holds.len() / 2 };
                    Some(comes_back(&worker(w), 2, holds.into_iter().take(kept)))
                }
                Step::Silence(w) => Some(Input::Silent { worker: worker(w) }),
                Step::Leave(w) => Some(Input::Gone { worker: worker(w) }),
                Step::Start(n) => pick(&run, n).map(|(worker, attempt)| Input::Started { worker, attempts: vec![attempt] }),
                Step::Done(n) => pick(&run, n).map(|(worker, attempt)| done(&worker, attempt)),
                Step::Fail(n) => pick(&run, n).map(|(worker, attempt)| failed(&worker, attempt)),
                Step::GiveBack(n) => pick(&run, n).map(|(worker, attempt)| Input::GivenBack { worker, attempt }),
                Step::Stale(n) => (!past.is_empty()).then(|| past[n % past.len()].clone()),
                Step::Inputs(task) => Some(Input::InputsStaged { tasks: vec![task] }),
                Step::Staged => Some(staged.clone()),
                Step::Wait(millis) => { now += millis; Some(TICK) }
                Step::Cancel => Some(Input::Cancel),
                Step::Publish => {
                    // Only what is wanted is done; it may take until after the next input.
                    let publish = run.wanted(Millis(now)).publish;
                    publish.then_some(Input::Published { files: 1, bytes: 1, rows: None })
                }
                Step::Restart => {
                    // A new coordinator knows the journal and nothing else.
                    let replayed = Run::replay(config.clone(), &journal).map_err(TestCaseError::fail)?;
                    prop_assert!(replayed == run, "replay gives the live state");
                    epoch += 1;
                    Some(Input::Opened { epoch: Epoch(epoch) })
                }
            };
            let Some(input) = input else { continue };
            let publishing = run.wanted(Millis(now)).publish;
            let committed: Vec<_> = run.tasks().filter(|(_, t)| matches!(t.state, TaskState::Committed { .. })).map(|(id, t)| (id, t.clone())).collect();
            let had_ended = run.ended().is_some();
            let events = run.handle(&input, Millis(now));
            prop_assert!(!had_ended || events.is_empty(), "it has ended: {events:?}");
            journal.extend(events);
            invariants::check(&run).map_err(TestCaseError::fail)?;
            for (id, task) in committed {
                prop_assert_eq!(run.task(id), Some(&task), "a commit is never withdrawn");
            }
            // Nothing but a failure of publishing itself ends a run whose output may appear any moment.
            prop_assert!(!publishing || run.ended() != Some(EndState::Cancelled), "cancelled while publishing");
            past.push(input);
        }
        // All faults heal: the dataset is staged, and one good worker brings every run to its end.
        run.handle(&staged, Millis(now));
        run.handle(&joined(&worker(9), 4), Millis(now));
        for w in 0..4 {
            run.handle(&Input::Gone { worker: worker(w) }, Millis(now));
        }
        for _ in 0..200 {
            if let Some((worker, attempt)) = pick(&run, 0) {
                run.handle(&done(&worker, attempt), Millis(now));
            } else if run.wanted(Millis(now)).publish {
                run.handle(&Input::Published { files: 0, bytes: 0, rows: None }, Millis(now));
            } else if let Some(at) = run.wanted(Millis(now)).wake_at {
                now = now.max(at.0);
                run.handle(&TICK, Millis(now));
            }
        }
        prop_assert!(run.ended().is_some(), "{:?}", run.wanted(Millis(now)));
    }
}
