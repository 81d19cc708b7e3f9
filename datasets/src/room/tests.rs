use super::*;
use crate::fixture::Fixture;

const SPACE: Space =
    Space { bytes: 1_000_000, free_bytes: 500_000, inodes: Some(1000), free_inodes: Some(100), block: 1 << 20 };

#[test]
fn bytes_and_inodes_are_counted_before_the_first_one_is_written() {
    SPACE.fits(480_000, 0).unwrap();
    // A hundredth stays free, and each file wastes half of a block.
    assert!(matches!(
        SPACE.fits(490_001, 0),
        Err(RoomError::Bytes { needed: 490_001, free: 500_000, reserve: 10_000 })
    ));
    assert!(matches!(SPACE.fits(480_000, 5), Err(RoomError::Bytes { needed: 490_240, .. })));
    SPACE.fits(0, 90).unwrap();
    assert!(matches!(SPACE.fits(0, 91), Err(RoomError::Inodes { needed: 91, free: 100, reserve: 10 })));
    let unlimited = Space { inodes: None, free_inodes: None, ..SPACE };
    unlimited.fits(0, 200).unwrap();
}

#[tokio::test]
async fn what_snapshots_share_counts_once_and_the_quota_holds() {
    let mut fixture = Fixture::new();
    assert_eq!(used(&fixture.volume).unwrap(), Used::default());
    fixture.stage(&[("a", "12345"), ("b", "123")]).await;
    fixture.stage(&[("a", "12345"), ("b", "1234567")]).await;
    assert_eq!(used(&fixture.volume).unwrap(), Used { datasets: 1, snapshots: 2, objects: 3, bytes: 15 });
    check(&fixture.volume, 1 << 20, 1).unwrap();
    fixture.volume.set_quota(Some(20)).unwrap();
    check(&fixture.volume, 5, 1).unwrap();
    let full = check(&fixture.volume, 6, 1).unwrap_err();
    // The first snapshot alone has `b` of three bytes.
    assert!(matches!(full, RoomError::Quota { needed: 6, used: 15, quota: 20, reclaimable: 3 }), "{full}");
    fixture.volume.set_quota(None).unwrap();
    check(&fixture.volume, 6, 1).unwrap();
}
