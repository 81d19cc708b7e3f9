//! Random histories of faults against real processes: kill, stop and continue, drain, interrupt, fill the disk, cut the
//! network. However often a run is struck, in the end it is resumed to the output of an undisturbed one.
//!
//! `cargo test --test soak -- --ignored --nocapture`, with `FOREBAY_SOAK=500` for so many histories. Each has a network
//! and a mount of its own. What it does follows from `FOREBAY_TEST_SEED` and its number; when exactly that strikes does
//! not.

#![allow(clippy::unwrap_used, reason = "clippy knows tests only by their attribute")]

#[path = "../support/mod.rs"]
mod support;

mod history;
mod place;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use self::{
    history::{Fault, Figures, History},
    place::Place,
};
use crate::support::seed;

/// Histories, unless `FOREBAY_SOAK` says otherwise.
const HISTORIES: u32 = 20;
/// Histories at once: they mostly wait.
const AT_ONCE: u32 = 3;

#[test]
#[ignore = "random faults for as long as one likes; .ci/run has some"]
fn however_often_a_run_is_struck_it_ends_with_the_output_of_an_undisturbed_one() {
    let histories = std::env::var("FOREBAY_SOAK").map_or(HISTORIES, |text| text.parse().unwrap());
    if !Place::can_be_made() {
        println!("skipped: no network can be made here");
        return;
    }
    let (seed, begun) = (seed(), Instant::now());
    let expected = [0, 1].map(|job| {
        let place = Place::new();
        place.run(job, "r").code(0);
        place.output("r")
    });
    let (next, all) = (AtomicU32::new(0), Mutex::new(Vec::<Figures>::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= histories {
                        return;
                    }
                    let mut history = History::new(seed, number);
                    println!("history {number}: {:?}", history.faults());
                    let figures = history.play(&expected[history.job()]);
                    all.lock().unwrap().push(figures);
                }
            });
        }
    });
    let all = all.into_inner().unwrap();
    let mut faults: BTreeMap<&str, u32> = BTreeMap::new();
    for fault in all.iter().flat_map(|figures| &figures.faults) {
        *faults.entry(Fault::name(fault)).or_default() += 1;
    }
    let sum = |figure: fn(&Figures) -> u64| all.iter().map(figure).sum::<u64>();
    println!(
        "| histories | seed | s | coordinators | tasks | attempts begun | {} |",
        faults.keys().copied().collect::<Vec<_>>().join(" | ")
    );
    println!(
        "| {histories} | {seed} | {:.0} | {} | {} | {} | {} |",
        begun.elapsed().as_secs_f64(),
        sum(|figures| figures.coordinators),
        sum(|figures| figures.tasks),
        sum(|figures| figures.attempts),
        faults.values().map(u32::to_string).collect::<Vec<_>>().join(" | ")
    );
}
