//! Many faults at once over thousands of objects: nothing wrong is ever published, and all that can succeed does.

use std::time::Duration;

use forebay::s3_server::{Chance, Fault, Faults};

use crate::{
    crowd::{self, HEAVY, SMALL},
    support::{Cluster, eventually, seed},
};

pub fn chance(per_mille: &[(Fault, u64)]) -> Faults {
    let chance = Chance { seed: seed(), per_mille: per_mille.to_vec(), ..Chance::default() };
    Faults { chance, ..Faults::default() }
}

/// Stages the crowd under faults that a retry gets past: all of it arrives, as it is.
async fn is_outlasted(faults: Faults) {
    let _turn = HEAVY.lock().await;
    let cluster = Cluster::start().await;
    let crowd = crowd::put(&cluster.s3, "data");
    let per_mille = faults.chance.per_mille.clone();
    cluster.s3.set_faults(faults);
    let staged = cluster.forebay(["dataset", "stage", "s3://data", "--json"]).json(0);
    assert_eq!(staged["objects"], SMALL + 3);
    let happened = cluster.s3.happened();
    println!("{happened:?}");
    for (fault, _) in per_mille {
        assert!(happened.contains_key(&format!("{fault:?}")), "{fault:?} never happened: {happened:?}");
    }
    let replaced = happened.contains_key("Replace");
    let inverted =
        |held: &[u8], should: &[u8]| held.len() == should.len() && held.iter().zip(should).all(|(a, b)| *a == !b);
    crowd::check(&cluster.data("data"), &crowd.content, |held, should| replaced && inverted(held, should));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_is_outlasted() {
    is_outlasted(chance(&[(Fault::Busy, 100), (Fault::BusyRetryAfter, 3), (Fault::Error, 50)])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_in_the_middle_are_outlasted() {
    is_outlasted(chance(&[(Fault::Reset, 100), (Fault::Cut, 100)])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bits_that_flip_are_noticed_and_fetched_anew() {
    is_outlasted(chance(&[(Fault::Flip, 100)])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_and_slowness_are_outlasted() {
    is_outlasted(chance(&[(Fault::Hang, 5), (Fault::Stop, 5), (Fault::Trickle, 20)])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_now_and_then_is_outlasted() {
    is_outlasted(chance(&[(Fault::Skewed, 20)])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_change_are_the_old_or_the_new_ones() {
    let mut faults = chance(&[(Fault::Replace, 100)]);
    faults.chance.at_most = 1;
    is_outlasted(faults).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_at_once_is_outlasted() {
    let all = [Fault::Busy, Fault::Error, Fault::Reset, Fault::Cut, Fault::Flip, Fault::Trickle];
    is_outlasted(chance(&all.map(|fault| (fault, 30)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_repeat_and_omit_keys_are_outlasted() {
    let cluster = Cluster::start().await;
    let crowd = crowd::put(&cluster.s3, "data");
    let mut content = crowd.content.clone();
    content.retain(|key, _| key.starts_with("small/0"));
    for fault in [Fault::PageRepeats, Fault::PageOverlaps, Fault::PageOmits] {
        // Each page goes wrong twice, and is right from then on.
        let chance = Chance { per_mille: vec![(fault, 1000)], at_most: 2, ..Chance::default() };
        cluster.s3.set_faults(Faults { chance, ..Faults::default() });
        let name = format!("{fault:?}");
        cluster.forebay(["dataset", "stage", "s3://data", "--name", &name, "--include", "small/0*/*"]).code(0);
        crowd::check(&cluster.data(&name), &content, |_, _| false);
        assert!(cluster.s3.happened()[&name] >= 3, "{:?}", cluster.s3.happened());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_never_holds_what_it_counts_is_an_error() {
    let cluster = Cluster::start().await;
    crowd::put(&cluster.s3, "data");
    let chance = Chance { per_mille: vec![(Fault::PageOmits, 1000)], at_most: u32::MAX, ..Chance::default() };
    cluster.s3.set_faults(Faults { chance, ..Faults::default() });
    let error = cluster.forebay(["dataset", "stage", "s3://data"]).code(4);
    assert!(error.words().contains("a page of the listing has 999 of 1000 keys"), "{}", error.stderr);
    cluster.forebay(["dataset", "show", "data"]).code(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_goes_in_circles_is_an_error() {
    let cluster = Cluster::start().await;
    crowd::put(&cluster.s3, "data");
    cluster.s3.set_faults(Faults { list_in_circles: true, ..Faults::default() });
    let mut staging = cluster.terminal().start(["dataset", "stage", "s3://data"]);
    eventually("the staging ends by itself", || staging.has_ended());
    let error = staging.outcome().code(4);
    assert!(error.words().contains("a listing is said to go on, and not where"), "{}", error.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_object_that_cannot_be_had_is_named_and_the_others_are_kept() {
    let _turn = HEAVY.lock().await;
    let cluster = Cluster::start().await;
    let crowd = crowd::put(&cluster.s3, "data");
    let key = "small/17/1017.bin".to_owned();
    let only = || [key.clone()].into();
    for (name, faults) in [
        ("failing", Faults { failing: only(), ..Faults::default() }),
        ("cut", Faults { cut_short: only(), ..Faults::default() }),
        ("flipped", Faults { flipped: only(), ..Faults::default() }),
    ] {
        cluster.s3.set_faults(faults);
        let error = cluster.forebay(["dataset", "stage", "s3://data", "--name", name]).code(4);
        assert!(error.stderr.contains(&format!("`{key}`")), "{name}: {}", error.stderr);
        cluster.forebay(["dataset", "show", name]).code(3);

        cluster.s3.set_faults(Faults::default());
        let before = cluster.s3.counts().gets();
        cluster.forebay(["dataset", "stage", "s3://data", "--name", name]).code(0);
        assert_eq!(cluster.s3.counts().gets() - before, 1, "{name}: only the one that was not to be had is fetched");
        crowd::check(&cluster.data(name), &crowd.content, |_, _| false);
        assert!(cluster.left_behind(name).is_empty(), "{:?}", cluster.left_behind(name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_an_hour_off_is_put_right() {
    for ahead in [3600, -3600] {
        let cluster = Cluster::start().await;
        cluster.s3.put("data", "x", "1");
        cluster.s3.set_faults(Faults { clock_ahead: ahead, ..Faults::default() });
        cluster.forebay(["dataset", "stage", "s3://data"]).code(0);
    }
}

/// Stages, lets the server fall silent in the middle for so long, and sees that all of it arrives.
async fn silence_is_outlasted(seconds: u64) {
    let _turn = HEAVY.lock().await;
    let cluster = Cluster::start().await;
    let crowd = crowd::put(&cluster.s3, "data");
    cluster.s3.set_faults(Faults { pace: Some(16 << 20), ..Faults::default() });
    let staging = cluster.terminal().start(["dataset", "stage", "s3://data"]);
    eventually("the staging is in the middle", || cluster.s3.counts().gets() > SMALL / 3);
    cluster.s3.fall_silent();
    // The silence that is to be outlasted.
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let before = cluster.s3.counts().gets();
    cluster.s3.speak_again();
    staging.outcome().code(0);
    assert!(cluster.s3.counts().gets() > before, "it was in the middle");
    crowd::check(&cluster.data("data"), &crowd.content, |_, _| false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stalls_for_seconds_is_outlasted() {
    silence_is_outlasted(3).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute of silence; .ci/run has it"]
async fn a_server_that_stalls_for_a_minute_is_outlasted() {
    silence_is_outlasted(60).await;
}
