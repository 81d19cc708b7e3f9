//! Random histories.

use proptest::prelude::*;

use super::*;

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
