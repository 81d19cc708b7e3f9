use std::fs;

use super::*;
use crate::fixture::{Fixture, age};

const DAY: u64 = 24 * 3600;

/// Four snapshots, 40, 30, 20 and 10 days old, that share `same`; 100 bytes and 1, 2, 3, 4 of their own.
async fn four() -> (Fixture, Vec<SnapshotId>) {
    let fixture = Fixture::new();
    let same = "x".repeat(100);
    let mut ids = Vec::new();
    for n in 1..=4 {
        let id = fixture.stage(&[("same", &same), ("own", &"y".repeat(n))]).await;
        age(&fixture.path(&format!("datasets/d/snapshots/{id}/snapshot.json")), (50 - 10 * n as u64) * DAY);
        ids.push(id);
    }
    (fixture, ids)
}

fn removed(collection: &Collection, ids: &[SnapshotId]) -> Vec<usize> {
    let at = |candidate: &Candidate| ids.iter().position(|id| *id == candidate.record.id).unwrap() + 1;
    collection.removed().map(at).collect()
}

fn rules(keep_last: Option<usize>, days: Option<u64>, max_size: Option<u64>) -> Rules {
    let older_than = days.map(|days| Duration::from_secs(days * DAY));
    Rules { names: BTreeSet::new(), keep_last, older_than, max_size }
}

#[tokio::test]
async fn each_rule_takes_what_it_says_and_rules_together_take_what_all_of_them_do() {
    let (fixture, ids) = four().await;
    for (rules, expected, frees) in [
        (rules(None, None, None), vec![], 0),
        (rules(Some(2), None, None), vec![1, 2], 3),
        (rules(Some(0), None, None), vec![1, 2, 3], 6),
        (rules(None, Some(25), None), vec![1, 2], 3),
        (rules(None, Some(35), None), vec![1], 1),
        (rules(Some(3), Some(25), None), vec![1], 1),
        (rules(None, None, Some(110)), vec![], 0),
        (rules(None, None, Some(109)), vec![1], 1),
        (rules(None, None, Some(0)), vec![1, 2, 3], 6),
        (rules(None, Some(35), Some(0)), vec![1], 1),
    ] {
        let plan = plan(&fixture.volume, &rules).unwrap();
        assert_eq!((removed(&plan, &ids), plan.frees()), (expected, frees), "{rules:?}");
        assert_eq!(plan.kept().count() + plan.removed().count(), 4);
    }
    assert!(ids.iter().all(|id| fixture.has(id)), "a plan changes nothing");
    assert_eq!(reclaimable(&fixture.volume).unwrap(), 6);
}

#[tokio::test]
async fn what_is_collected_frees_what_was_planned_and_the_rest_stays_whole() {
    let (fixture, ids) = four().await;
    hold::pin(&fixture.volume, "d", Some(&ids[1].0), "p").unwrap();
    let rules = rules(Some(1), None, None);
    let planned = plan(&fixture.volume, &rules).unwrap();
    let told =
        |id: &SnapshotId, name| fixture.path(&format!("datasets/d/snapshots/{id}/{name}")).metadata().unwrap().len();
    let told: u64 = [&ids[0], &ids[2]].iter().map(|id| told(id, "snapshot.json") + told(id, "manifest.parquet")).sum();
    let done = collect(&fixture.volume, &rules).unwrap();
    assert_eq!((removed(&planned, &ids), removed(&done, &ids)), (vec![1, 3], vec![1, 3]));
    if !fixture.volume.mount().reflink {
        assert_eq!((planned.frees(), done.frees()), (4, 4 + told));
    }
    let kept: Vec<_> = done.kept().map(|(_, kept)| kept.to_string()).collect();
    assert_eq!(kept, ["pinned as p", "latest"]);
    assert_eq!(ids.iter().map(|id| fixture.has(id)).collect::<Vec<_>>(), [false, true, false, true]);
    for id in [&ids[1], &ids[3]] {
        let snapshot = snapshot::open(&fixture.volume, "d", Some(&id.0)).unwrap();
        assert!(crate::verify::verify(&fixture.volume, &snapshot, true, &|_| ()).bad.is_empty());
    }
    assert!(collect(&fixture.volume, &rules).unwrap().removed().next().is_none());
    let absent = Rules { names: ["e".to_owned()].into(), ..rules };
    assert!(matches!(plan(&fixture.volume, &absent), Err(SnapshotError::NoDataset { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_collections_at_once_remove_each_snapshot_once() {
    let (fixture, ids) = four().await;
    let rules = rules(Some(0), None, None);
    let mut both: Vec<usize> = std::thread::scope(|scope| {
        let collect = || removed(&collect(&fixture.volume, &rules).unwrap(), &ids);
        [(); 2].map(|()| scope.spawn(collect)).into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    both.sort_unstable();
    assert_eq!(both, [1, 2, 3]);
    assert_eq!(fs::read_dir(fixture.path("trash")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_killed_processes_left_is_cleared_after_a_day() {
    let fixture = Fixture::new();
    fixture.stage(&[("a", "1")]).await;
    let run = fixture.path("runs/r/epochs/1");
    fs::create_dir_all(&run).unwrap();
    fs::write(fixture.path("runs/r/job.json"), "{}").unwrap();
    let left = [
        ".probe-1/x",
        ".tmp-1",
        "runs/.new-1/job.toml",
        "runs/r/.tmp-2",
        "runs/r/epochs/.claim-1/lease.json",
        "runs/r/epochs/1/.probe-2",
        "datasets/d/refs/.tmp-3",
        "datasets/d/leases/.probe-4",
        "datasets/d/staging/5/data/a",
    ];
    let kept = ["runs/r/job.json", "datasets/d/refs/latest", "volume.json", "runs/r/epochs/1/journal.log"];
    fs::write(run.join("journal.log"), "").unwrap();
    for path in left {
        let path = fixture.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "left").unwrap();
    }
    let cleared = |fixture: &Fixture| collect(&fixture.volume, &Rules::default()).unwrap().leftovers.len();
    assert_eq!(cleared(&fixture), 0, "what is young may be somebody's");
    for path in left.iter().chain(&kept) {
        for path in fixture.path(path).ancestors().take_while(|path| *path != fixture.volume.root()) {
            age(path, 2 * DAY);
        }
    }
    // A stager that shows that it is alive is at work.
    fs::create_dir_all(fixture.path("datasets/d/staging/6/stagers/x")).unwrap();
    fs::write(fixture.path("datasets/d/staging/6/stagers/x/alive.json"), "{}").unwrap();
    age(&fixture.path("datasets/d/staging/6"), 2 * DAY);
    assert_eq!(cleared(&fixture), left.len());
    assert!(left.iter().all(|path| !fixture.path(path).exists()));
    assert!(kept.iter().all(|path| fixture.path(path).exists()) && fixture.path("datasets/d/staging/6").exists());
}
