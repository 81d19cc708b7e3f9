use std::{sync::Barrier, thread};

use super::*;

fn epochs(run: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(run.join("epochs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn age(claim: &Claim, age: Duration) {
    let file = File::open(claim.dir.join(LEASE)).unwrap();
    file.set_modified(file.metadata().unwrap().modified().unwrap() - age).unwrap();
}

/// Makes a lease one of another host, of which only time tells.
fn move_away(claim: &Claim) {
    let holder = Holder { host: "elsewhere".into(), boot: Some("another".into()), ..Holder::this_process() };
    let lease = Lease { version: VERSION, nonce: claim.nonce.clone(), holder };
    fs::write(claim.dir.join(LEASE), serde_json::to_vec(&lease).unwrap()).unwrap();
}

#[test]
fn a_run_has_one_coordinator() {
    let run = tempfile::tempdir().unwrap();
    assert_eq!(observe(run.path()).unwrap(), LeaseState::None);
    let claim = claim(run.path()).unwrap();
    assert_eq!(claim.epoch, Epoch(1));
    claim.renew().unwrap();
    let holder = Holder::this_process();
    assert_eq!(observe(run.path()).unwrap(), LeaseState::Live { epoch: Epoch(1), holder: holder.clone() });
    match super::claim(run.path()) {
        Err(LeaseError::Held { holder: by }) => assert_eq!(by, holder),
        other => panic!("{other:?}"),
    }
    assert_eq!(epochs(run.path()), ["1"]);
    assert_eq!(fs::read_dir(&claim.dir).unwrap().count(), 1, "observers leave nothing behind");
}

#[test]
fn a_lease_that_was_given_back_is_free_at_once() {
    let run = tempfile::tempdir().unwrap();
    let first = claim(run.path()).unwrap();
    first.release().unwrap();
    assert_eq!(observe(run.path()).unwrap(), LeaseState::Dead { epoch: Epoch(1) });
    assert!(matches!(first.renew(), Err(LeaseError::Lost { epoch: Epoch(1) })));
    first.release().unwrap();
    assert_eq!(claim(run.path()).unwrap().epoch, Epoch(2));
    assert_eq!(epochs(run.path()), ["1.sealed", "2"]);
}

#[test]
fn of_many_claimers_at_once_one_wins() {
    let run = tempfile::tempdir().unwrap();
    for round in 1..=20 {
        let start = Barrier::new(8);
        let claimed = || {
            start.wait();
            claim(run.path())
        };
        let claims: Vec<_> = thread::scope(|scope| {
            let claimers: Vec<_> = (0..8).map(|_| scope.spawn(claimed)).collect();
            claimers.into_iter().map(|claimer| claimer.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = claims.into_iter().partition(Result::is_ok);
        let won: Vec<_> = won.into_iter().map(Result::unwrap).collect();
        assert_eq!(won.iter().map(|claim| claim.epoch).collect::<Vec<_>>(), [Epoch(round)], "{lost:?}");
        assert!(lost.iter().all(|lost| matches!(lost, Err(LeaseError::Held { .. }))), "{lost:?}");
        let expected = (1..round).map(|n| format!("{n}.sealed")).chain([round.to_string()]);
        let mut expected: Vec<_> = expected.collect();
        expected.sort();
        assert_eq!(epochs(run.path()), expected, "no claimer leaves anything behind");
        won[0].release().unwrap();
    }
}

#[test]
fn a_lease_of_another_host_dies_by_its_age_alone() {
    let run = tempfile::tempdir().unwrap();
    let held = claim(run.path()).unwrap();
    move_away(&held);
    age(&held, EXPIRES_AFTER - Duration::from_secs(5));
    assert!(matches!(observe(run.path()).unwrap(), LeaseState::Live { .. }));
    age(&held, Duration::from_secs(6));
    assert_eq!(observe(run.path()).unwrap(), LeaseState::Dead { epoch: Epoch(1) });
    held.renew().unwrap();
    assert!(matches!(observe(run.path()).unwrap(), LeaseState::Live { .. }), "renewed in the last moment");
}

#[test]
fn who_stalls_is_taken_over_and_can_do_no_harm() {
    let run = tempfile::tempdir().unwrap();
    let old = claim(run.path()).unwrap();
    let publish = old.dir.join("publish");
    fs::create_dir(&publish).unwrap();
    age(&old, EXPIRES_AFTER + Duration::from_secs(1));
    let new = claim(run.path()).unwrap();
    assert_eq!(new.epoch, Epoch(2));
    assert!(matches!(old.renew(), Err(LeaseError::Lost { epoch: Epoch(1) })));
    let published = fs::rename(&publish, run.path().join("output"));
    assert_eq!(published.unwrap_err().kind(), io::ErrorKind::NotFound);
    old.release().unwrap();
    new.renew().unwrap();
    assert_eq!(epochs(run.path()), ["1.sealed", "2"]);
}

#[test]
fn a_process_that_is_gone_is_not_waited_for() {
    let run = tempfile::tempdir().unwrap();
    let held = claim(run.path()).unwrap();
    let holder = Holder { pid_started: Some(0), ..Holder::this_process() };
    let lease = Lease { version: VERSION, nonce: held.nonce.clone(), holder };
    fs::write(held.dir.join(LEASE), serde_json::to_vec(&lease).unwrap()).unwrap();
    assert_eq!(observe(run.path()).unwrap(), LeaseState::Dead { epoch: Epoch(1) });
}

#[test]
fn a_claim_that_comes_late_gives_way() {
    let run = tempfile::tempdir().unwrap();
    let dir = run.path().join("epochs");
    for _ in 1..=2 {
        claim(run.path()).unwrap().release().unwrap();
    }
    let newest = claim(run.path()).unwrap();
    // It saw no epoch before it prepared, and epoch 1 is free again, since it is sealed.
    assert!(Prepared::new(&dir).unwrap().take(&dir, Epoch(1)).unwrap().is_none());
    assert_eq!(epochs(run.path()), ["1.sealed", "2.sealed", "3"]);
    // One that died in between is cleared away by the next.
    let late = Prepared::new(&dir).unwrap();
    fs::rename(&late.dir, dir.join("2")).unwrap();
    newest.release().unwrap();
    assert_eq!(claim(run.path()).unwrap().epoch, Epoch(4));
    assert_eq!(epochs(run.path()), ["1.sealed", "2.sealed", "3.sealed", "4"]);
}

#[test]
fn nobody_else_can_read_what_an_epoch_holds() {
    use std::os::unix::fs::PermissionsExt;
    let run = tempfile::tempdir().unwrap();
    let held = claim(run.path()).unwrap();
    for dir in [&held.dir, &run.path().join("epochs")] {
        assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
    }
}

#[test]
fn a_lease_that_is_not_understood_is_nobodys_to_take() {
    let run = tempfile::tempdir().unwrap();
    let held = claim(run.path()).unwrap();
    let path = held.dir.join(LEASE);
    fs::write(&path, r#"{"version":2}"#).unwrap();
    assert!(matches!(claim(run.path()), Err(LeaseError::TooNew { found: 2, .. })));
    fs::write(&path, "{").unwrap();
    assert!(matches!(claim(run.path()), Err(LeaseError::Malformed { .. })));
}
