use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::{fixture::Fixture, lease::Reader};

fn reader(key: &str) -> Reader {
    Reader { key: key.into(), name: key.into(), kept_for: Default::default(), ends_with: None }
}

#[tokio::test]
async fn whatever_holds_a_snapshot_keeps_it() {
    let fixture = Fixture::new();
    let old = fixture.stage(&[("a", "1")]).await;
    let new = fixture.stage(&[("a", "2")]).await;
    let volume = &fixture.volume;
    assert_eq!(remove(volume, "d", &new).unwrap(), Removal::Held(vec![Hold::Latest]));
    assert_eq!(pin(volume, "d", Some(&old.0[..8]), "first").unwrap(), old);
    assert_eq!(pins(volume, "d").unwrap(), [Pin { label: "first".into(), snapshot: old.clone() }]);
    let held = Removal::Held(vec![Hold::Pin { label: "first".into() }]);
    assert_eq!(remove(volume, "d", &old).unwrap(), held);
    assert_eq!(unpin(volume, "d", "first").unwrap(), Some(old.clone()));
    assert_eq!(unpin(volume, "d", "first").unwrap(), None);
    let lease = lease::take(volume, "d", &old, &reader("r")).unwrap();
    let held = Removal::Held(vec![Hold::Reader { reader: "r".into() }]);
    assert_eq!(remove(volume, "d", &old).unwrap(), held);
    assert!(fixture.has(&old) && fixture.has(&new));
    lease.release().unwrap();
    assert!(matches!(remove(volume, "d", &old).unwrap(), Removal::Done(Removed { files: 3, left: false, .. })));
    assert!(!fixture.has(&old));
    assert_eq!(remove(volume, "d", &old).unwrap(), Removal::Gone);
}

#[tokio::test]
async fn what_is_not_there_cannot_be_held_and_leaves_no_hold() {
    let fixture = Fixture::new();
    let old = fixture.stage(&[("a", "1")]).await;
    let new = fixture.stage(&[("a", "2")]).await;
    let (volume, dataset) = (&fixture.volume, fixture.path("datasets/d"));
    pin(volume, "d", None, "p").unwrap();
    remove(volume, "d", &old).unwrap();
    let missing = |error| assert!(matches!(error, SnapshotError::NoSnapshot { .. }), "{error}");
    missing(lease::take(volume, "d", &old, &reader("r")).unwrap_err());
    missing(lease::take(volume, "e", &old, &reader("r")).unwrap_err());
    missing(pin(volume, "d", Some(&old.0), "p").unwrap_err());
    missing(snapshot::set_latest(&dataset, &old).unwrap_err());
    let kept = [(new.clone(), Hold::Latest), (new, Hold::Pin { label: "p".into() })];
    assert_eq!(holds(volume, "d").unwrap(), kept);
    assert!(matches!(pin(volume, "d", None, "../x"), Err(SnapshotError::BadLabel { .. })));
    assert!(!fixture.path("datasets/e").exists());
}

#[tokio::test]
async fn a_reader_that_comes_between_the_two_renames_gets_its_snapshot_back() {
    let fixture = Fixture::new();
    let old = fixture.stage(&[("a", "1")]).await;
    fixture.stage(&[("a", "2")]).await;
    let volume = &fixture.volume;
    let snapshots = fixture.path("datasets/d/snapshots");
    let gone = snapshots.join(format!("{GONE}{old}-0"));
    // The remover has moved it, and has not looked again.
    fs::rename(snapshots.join(&old.0), &gone).unwrap();
    let lease = lease::take(volume, "d", &old, &reader("r")).unwrap();
    assert!(fixture.has(&old) && !gone.exists());
    let held = Removal::Held(vec![Hold::Reader { reader: "r".into() }]);
    assert_eq!(finish(volume, "d", &old, &gone, None).unwrap(), held);
    // The remover was killed before it looked, and the reader has shown itself and not looked yet.
    fs::rename(snapshots.join(&old.0), &gone).unwrap();
    assert_eq!(finish_removals(volume, "d").unwrap(), Removed::default());
    assert!(fixture.has(&old) && !gone.exists());
    lease.release().unwrap();
    // Killed, and nobody holds it.
    fs::rename(snapshots.join(&old.0), &gone).unwrap();
    assert_eq!(finish_removals(volume, "d").unwrap().files, 3, "the object, the manifest, the record");
    assert!(!fixture.has(&old) && !gone.exists());
}

#[tokio::test]
async fn a_reader_waits_for_a_remover_that_may_have_looked_before_and_for_no_dead_one() {
    let fixture = Fixture::new();
    let id = fixture.stage(&[("a", "1")]).await;
    let (volume, snapshots) = (&fixture.volume, fixture.path("datasets/d/snapshots"));
    let going = Going::announce(&snapshots, &id).unwrap();
    assert!(!await_removers(&snapshots, &id, 2 * LOOK).unwrap(), "it has not decided yet");
    assert!(await_removers(&snapshots, &SnapshotId("another".into()), Duration::ZERO).unwrap());
    std::thread::scope(|scope| {
        let taken = scope.spawn(|| lease::take(volume, "d", &id, &reader("r")).unwrap());
        while !fixture.path(&format!("datasets/d/leases/{id}.r.json")).exists() {
            std::thread::yield_now();
        }
        let gone = snapshots.join(format!("{GONE}{id}-0"));
        fs::rename(snapshots.join(&id.0), &gone).unwrap();
        // The remover decides, and gives it back.
        assert!(matches!(finish(volume, "d", &id, &gone, Some(going)), Ok(Removal::Held(_))));
        taken.join().unwrap();
    });
    assert!(fixture.has(&id));
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    child.wait().unwrap();
    let dead = Holder { pid, ..Holder::this_process() };
    fs::write(snapshots.join(format!("{GOING}{id}-1")), serde_json::to_vec(&dead).unwrap()).unwrap();
    assert!(await_removers(&snapshots, &id, Duration::ZERO).unwrap());
}

/// Readers and removers at once, over and over: who holds a lease finds every byte.
#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_is_removed_under_a_reader() {
    let fixture = Fixture::in_memory();
    let (one, two) = ([("a", "one")], [("a", "two")]);
    let mut read = 0;
    for round in 0..100 {
        // The one that was staged before the last is nobody's, as soon as no reader holds it.
        let old = fixture.stage(if round % 2 == 0 { &one } else { &two }).await;
        fixture.stage(if round % 2 == 0 { &two } else { &one }).await;
        let (volume, done) = (&fixture.volume, AtomicBool::new(false));
        let readers = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|n| {
                    let (old, done, fixture) = (&old, &done, &fixture);
                    scope.spawn(move || {
                        let mut read = 0;
                        while !done.load(Ordering::Relaxed) && read < 8 {
                            let Ok(lease) = lease::take(volume, "d", old, &reader(&n.to_string())) else { break };
                            let data = fixture.path(&format!("datasets/d/snapshots/{old}/data/a"));
                            for _ in 0..10 {
                                assert!(data.exists(), "removed under a reader in round {round}");
                            }
                            lease.release().unwrap();
                            read += 1;
                        }
                        read
                    })
                })
                .collect();
            let removers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        // A reader that failed holds its lease for ever.
                        let begun = Instant::now();
                        while fixture.has(&old) && begun.elapsed().as_secs() < 30 {
                            remove(volume, "d", &old).unwrap();
                            finish_removals(volume, "d").unwrap();
                        }
                    })
                })
                .collect();
            removers.into_iter().for_each(|remover| remover.join().unwrap());
            done.store(true, Ordering::Relaxed);
            readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u32>()
        });
        read += readers;
    }
    assert!(read > 0, "readers and removers met");
}
