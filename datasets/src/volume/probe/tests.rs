use super::*;

fn found(dir: &Path, depth: Depth) -> Mount {
    probe(dir, MountKind::of(dir), depth).unwrap()
}

#[test]
fn a_local_disk_does_what_the_guarantees_need_and_keeps_nothing_of_the_probe() {
    let dir = tempfile::tempdir().unwrap();
    let mount = found(dir.path(), Depth::FirstUse);
    assert!(mount.lacks().is_empty() && mount.is_probed(), "{mount:?}");
    assert_eq!((mount.longest_name, mount.odd_names, mount.folds_case, mount.folds_unicode), (255, true, false, false));
    assert!(mount.flock && mount.record_locks, "another process is kept out: {mount:?}");
    assert!(mount.latency_us > 0 && mount.clock_skew_ms.abs() < 1000, "{mount:?}");
    assert_eq!(mount.syncfs, found(dir.path(), Depth::Check).syncfs);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_is_written_directly_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mount = found(dir.path(), Depth::FirstUse);
    let Some(unit) = mount.direct_io else { panic!("disks and tmpfs take direct writes: {mount:?}") };
    assert!(unit.is_power_of_two() && (512..=65_536).contains(&unit), "{unit}");
}

#[test]
fn nothing_is_found_where_nothing_can_be_written() {
    let absent = probe(Path::new("/proc/self"), MountKind::default(), Depth::FirstUse);
    assert!(absent.is_err());
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path()).unwrap();
    let full = place.works("write", Err(io::ErrorKind::StorageFull.into()));
    assert!(matches!(full, Err(VolumeError::Full { .. })));
    assert!(!place.works("link", Err(io::ErrorKind::Unsupported.into())).unwrap());
    drop(place);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_clock_is_ahead_or_behind_only_beyond_the_time_of_the_asking() {
    let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    assert_eq!(skew(at(1000), at(1002), at(1004)), 0);
    assert_eq!(skew(at(1000), at(996), at(1004)), 0, "kernels stamp files with a clock that ticks now and then");
    assert_eq!(skew(at(1000), at(1504), at(1004)), 500);
    assert_eq!(skew(at(1000), at(0), at(1004)), -1000);
}
