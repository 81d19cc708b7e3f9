use super::*;
use crate::fixture::{Fixture, age};

fn run(kept_for: Duration) -> Reader {
    Reader { key: "run-r.1".into(), name: "run r.1".into(), kept_for, ends_with: Some("runs/r.1/result.json".into()) }
}

fn found(fixture: &Fixture) -> FoundLease {
    leases(&fixture.volume, "d").unwrap().remove(0)
}

/// Whether the lease is live after so long without a renewal.
fn lives(fixture: &Fixture, lease: &Lease, after: Duration) -> bool {
    lease.renew().unwrap();
    age(&lease.path, after.as_secs());
    found(fixture).is_live()
}

/// A process that has ended.
fn ended(lease: &Lease) {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    child.wait().unwrap();
    let mut content: Content = serde_json::from_slice(&lease.text).unwrap();
    content.holder.pid = pid;
    fs::write(&lease.path, serde_json::to_vec(&content).unwrap()).unwrap();
}

#[tokio::test]
async fn a_reader_that_does_not_renew_reads_no_longer() {
    let fixture = Fixture::new();
    let id = fixture.stage(&[("a", "1")]).await;
    let reader = Reader { ends_with: None, ..run(Duration::ZERO) };
    let lease = take(&fixture.volume, "d", &id, &reader).unwrap();
    assert!(lives(&fixture, &lease, Duration::ZERO) && lives(&fixture, &lease, EXPIRES_AFTER - RENEWAL));
    assert!(!lives(&fixture, &lease, EXPIRES_AFTER + RENEWAL));
    // On its own host it is seen at once.
    lease.renew().unwrap();
    assert!(found(&fixture).is_live());
    ended(&lease);
    assert!(!found(&fixture).is_live());
    lease.release().unwrap();
    assert!(leases(&fixture.volume, "d").unwrap().is_empty());
}

#[tokio::test]
async fn a_reader_that_can_go_on_keeps_its_snapshot_for_its_time() {
    let fixture = Fixture::new();
    let id = fixture.stage(&[("a", "1")]).await;
    fs::create_dir_all(fixture.path("runs/r.1")).unwrap();
    let lease = take(&fixture.volume, "d", &id, &run(KEPT_FOR)).unwrap();
    ended(&lease);
    assert!(lives(&fixture, &lease, KEPT_FOR - RENEWAL) && !lives(&fixture, &lease, KEPT_FOR + RENEWAL));
    // Whoever comes back takes the same lease.
    take(&fixture.volume, "d", &id, &run(KEPT_FOR)).unwrap();
    assert_eq!(leases(&fixture.volume, "d").unwrap().len(), 1);
    assert!(found(&fixture).is_live());
    end(&fixture.volume, "d", "run-r").unwrap();
    assert!(found(&fixture).is_live(), "of another run");
    end(&fixture.volume, "d", "run-r.1").unwrap();
    assert!(leases(&fixture.volume, "d").unwrap().is_empty());
    // What was taken away while the reader slept is taken again.
    lease.renew().unwrap();
    assert!(found(&fixture).is_live());
}

#[tokio::test]
async fn a_lease_ends_with_its_run_whoever_removes_it() {
    let fixture = Fixture::new();
    let id = fixture.stage(&[("a", "1")]).await;
    fs::create_dir_all(fixture.path("runs/r.1")).unwrap();
    let _lease = take(&fixture.volume, "d", &id, &run(KEPT_FOR)).unwrap();
    assert!(found(&fixture).is_live());
    fs::write(fixture.path("runs/r.1/result.json"), "{}").unwrap();
    assert!(!found(&fixture).is_live());
    fs::remove_file(fixture.path("runs/r.1/result.json")).unwrap();
    assert!(found(&fixture).is_live());
    fs::remove_dir(fixture.path("runs/r.1")).unwrap();
    assert!(!found(&fixture).is_live(), "it never began");
}

#[tokio::test]
async fn a_lease_of_a_later_version_is_believed() {
    let fixture = Fixture::new();
    let id = fixture.stage(&[("a", "1")]).await;
    let path = fixture.path(&format!("datasets/d/leases/{id}.x.json"));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, r#"{"version":2}"#).unwrap();
    assert!(found(&fixture).is_live());
    age(&path, KEPT_FOR.as_secs() + 60);
    assert!(!found(&fixture).is_live());
}
