use super::*;
use crate::{stage::large, volume::Placing};

fn row(key: &str, size: u64) -> Row {
    let object = Listed { key: key.to_owned(), size, etag: None, version_id: None };
    Row { path: key.to_owned(), object, shared: None }
}

#[test]
fn every_row_is_handed_out_once_and_the_end_is_seen() {
    let rows: Vec<_> = (0..30).map(|n| row(&n.to_string(), if n % 7 == 3 { SMALL + 1 } else { 5 })).collect();
    let board = Board::new(Instant::now());
    let mut seen = Vec::new();
    while let Some(job) = board.next(0) {
        match job {
            Job::Claim if seen.is_empty() => {
                board.claimed(Some(Arc::new(Chunk::new(0, rows.clone(), Before::Nobody))));
            }
            Job::Claim => board.claimed(None),
            Job::Small(chunk, rows) => {
                for row in rows {
                    seen.push(row);
                    board.finished(&Item { chunk: Arc::clone(&chunk), row, tries: 0, now: None });
                }
            }
            Job::Whole(item, buffer) => {
                seen.push(item.row);
                board.finished(&item);
                board.done(Some(buffer));
                continue;
            }
            Job::Open(_) | Job::Part(..) => panic!("none is that large"),
        }
        board.done(None);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..30).collect::<Vec<_>>());
    assert_eq!(board.complete_chunks(), [0]);
    assert!(board.complete_chunks().is_empty());
}

#[test]
fn short_parts_wait_for_no_buffer_and_long_ones_do() {
    let dir = tempfile::tempdir().unwrap();
    let many = BUFFERS as u64 + 10;
    for (length, at_once) in [(SMALL, many as usize), (SMALL + 1, 0)] {
        let board = Board::new(Instant::now());
        assert!(matches!(board.next(0), Some(Job::Claim)));
        board.claimed(Some(Arc::new(Chunk::new(0, vec![row("k", 1 << 30)], Before::Nobody))));
        assert!(matches!(board.next(0), Some(Job::Claim)));
        board.claimed(None);
        let Some(Job::Open(item)) = board.next(0) else { panic!("it is large") };
        let taken: Vec<_> = (0..many).map(|n| n * 2 * SMALL..n * 2 * SMALL + length).collect();
        let ranges = large::ranges_of_columns(&taken, 1 << 30);
        let placing = Placing::create(dir.path(), "k", 0, false).unwrap();
        let large = Arc::new(Large::of_columns(item.clone(), item.object().clone(), ranges, placing, &[], None));
        board.opened(Arc::clone(&large), large.numbers());
        let mut state = board.state();
        // All are taken.
        state.made = BUFFERS;
        let jobs: Vec<_> = std::iter::from_fn(|| state.take(0)).collect();
        assert_eq!(jobs.iter().filter(|job| matches!(job, Job::Part(..))).count(), at_once);
    }
}

#[test]
fn who_found_nothing_to_claim_may_look_again() {
    let board = Board::new(Instant::now());
    for _ in 0..3 {
        assert!(board.wants_lane(), "for the claim");
        assert!(matches!(board.next(0), Some(Job::Claim)));
        board.claimed(None);
        board.done(None);
        assert!(board.next(0).is_none() && !board.wants_lane());
        board.reopen();
    }
}

#[test]
fn a_chunk_with_a_failure_is_not_complete_and_the_others_are() {
    let board = Board::new(Instant::now());
    let chunks = [0, 1].map(|index| Arc::new(Chunk::new(index, vec![row("k", 1)], Before::Nobody)));
    let item = |at: usize| Item { chunk: Arc::clone(&chunks[at]), row: 0, tries: 0, now: None };
    board.failed(&item(0), SourceError::Gone { key: "k".to_owned() });
    board.finished(&item(1));
    assert_eq!(board.complete_chunks(), [1]);
    assert_eq!(board.take_failures().count, 1);
}

#[test]
fn what_fails_again_and_again_ends_the_lanes() {
    let board = Board::new(Instant::now());
    let rows = (0..HOPELESS).map(|n| row(&n.to_string(), 1)).collect();
    let chunk = Arc::new(Chunk::new(0, rows, Before::Nobody));
    for row in 0..HOPELESS as usize {
        assert!(!board.is_stopped());
        board.failed(
            &Item { chunk: Arc::clone(&chunk), row, tries: 0, now: None },
            SourceError::Gone { key: "k".to_owned() },
        );
    }
    assert!(board.next(0).is_none());
}
