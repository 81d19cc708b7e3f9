use super::*;
use crate::checksum::Crc64;

fn commit(volume: &Volume, name: &str, checksum: u64, created: &str) -> SnapshotId {
    let (key, path) = ("k".to_owned(), "k".to_owned());
    let object = Object { key, path, size: 3, etag: None, version_id: None, checksum: Crc64(checksum), held: None };
    let manifest = Manifest { objects: vec![object] };
    let id = manifest.id();
    let dataset = dataset_dir(volume, name).unwrap();
    let dir = dataset.join("snapshots").join(&id.0);
    volume::create_dirs(&dir).unwrap();
    manifest.write(&dir.join("manifest.parquet")).unwrap();
    let record = SnapshotRecord {
        version: FORMAT_OF_WHOLES,
        id: id.clone(),
        name: name.to_owned(),
        source: "file:///x".to_owned(),
        listing: String::new(),
        objects: 1,
        bytes: 3,
        created: created.to_owned(),
        columns: None,
        held_bytes: None,
        fetched: None,
    };
    volume::write_new(&dir.join("snapshot.json"), &serde_json::to_vec(&record).unwrap()).unwrap();
    set_latest(&dataset, &id).unwrap();
    id
}

fn volume() -> (tempfile::TempDir, Volume) {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::open_or_create(dir.path()).unwrap();
    (dir, volume)
}

#[test]
fn snapshots_are_found_by_name_and_by_the_beginning_of_the_id() {
    let (_dir, volume) = volume();
    let (old, new) = (commit(&volume, "a", 1, "1"), commit(&volume, "a", 2, "2"));
    let id = |wanted: Option<&str>| open(&volume, "a", wanted).map(|snapshot| snapshot.record.id);
    assert_eq!(id(None).unwrap(), new);
    assert_eq!(id(Some(&old.0[..8])).unwrap(), old);
    assert!(matches!(id(Some("x")), Err(SnapshotError::NoSnapshot { .. })));
    assert!(matches!(id(Some("")), Err(SnapshotError::NoSnapshot { .. })));
    assert!(matches!(open(&volume, "b", None), Err(SnapshotError::NoDataset { .. })));
    assert!(matches!(open(&volume, "../a", None), Err(SnapshotError::BadName { .. })));
    assert_eq!(list(&volume).unwrap().into_iter().map(|record| record.id).collect::<Vec<_>>(), [new]);
}

#[test]
fn an_object_s_path_leads_back_to_its_snapshot() {
    let (_dir, volume) = volume();
    let (old, _new) = (commit(&volume, "a", 1, "1"), commit(&volume, "a", 2, "2"));
    let snapshot = open(&volume, "a", Some(&old.0)).unwrap();
    let path = snapshot.volume_path(&snapshot.manifest.objects[0]);
    assert_eq!(of_volume_path(&volume, &path).unwrap().record.id, old);
    for path in ["runs/r/job.toml", "datasets/a/snapshots/x", "datasets/../snapshots/x/data/y"] {
        assert!(of_volume_path(&volume, path).is_err(), "{path}");
    }
}

#[test]
fn a_whole_serves_its_parts_and_a_part_serves_less_of_itself_alone() {
    let (_dir, volume) = volume();
    commit(&volume, "a", 1, "1");
    let whole = SnapshotRecord { listing: "l".into(), ..records(&volume, "a").unwrap().remove(0) };
    let columns = |names: &[&str]| names.iter().copied().collect::<Columns>();
    let (one, two, other) = (columns(&["x"]), columns(&["x", "y"]), columns(&["x", "z"]));
    assert!(whole.serves("l", None) && whole.serves("l", Some(&one)) && !whole.serves("m", Some(&one)));
    let part = SnapshotRecord { listing: two.listing("l"), columns: Some(two.clone()), ..whole };
    assert!(part.serves("l", Some(&two)) && part.serves("l", Some(&one)));
    assert!(!part.serves("l", None) && !part.serves("l", Some(&other)) && !part.serves("m", Some(&two)));
    // Nor does it by the digest that it was staged with.
    assert!(!part.serves(&part.listing, None));
}

#[test]
fn a_directory_without_a_record_is_no_snapshot() {
    let (_dir, volume) = volume();
    let id = commit(&volume, "a", 1, "1");
    fs::remove_file(volume.root().join(format!("datasets/a/snapshots/{id}/snapshot.json"))).unwrap();
    assert!(matches!(open(&volume, "a", None), Err(SnapshotError::NoSnapshot { .. })));
}

#[test]
fn a_record_that_names_another_place_is_not_followed() {
    let (_dir, volume) = volume();
    let id = commit(&volume, "a", 1, "1");
    let path = volume.root().join(format!("datasets/a/snapshots/{id}/snapshot.json"));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&id.0, "../../../elsewhere")).unwrap();
    assert!(matches!(open(&volume, "a", None), Err(SnapshotError::Inconsistent { .. })));
    fs::write(&path, text.replace("\"version\":1", "\"version\":9")).unwrap();
    assert!(matches!(open(&volume, "a", None), Err(SnapshotError::TooNew { found: 9, .. })));
}

#[test]
fn a_manifest_of_another_snapshot_is_noticed() {
    let (_dir, volume) = volume();
    let (old, new) = (commit(&volume, "a", 1, "1"), commit(&volume, "a", 2, "2"));
    let manifest = |id| volume.root().join(format!("datasets/a/snapshots/{id}/manifest.parquet"));
    fs::copy(manifest(old), manifest(new)).unwrap();
    assert!(matches!(open(&volume, "a", None), Err(SnapshotError::Inconsistent { .. })));
}
