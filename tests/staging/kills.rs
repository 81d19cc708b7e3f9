//! `kill -9` of the stager, stagers that meet, and stagers that stall.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use forebay::s3_server::Faults;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    crowd::HEAVY,
    support::{Cluster, Terminal, bytes, eventually, processes::Running, seed, since},
};

const SMALL: u64 = 400;
const LARGE: u64 = 6;
/// What may be fetched again after a kill, besides what the server had not sent to its end: what was in the sockets,
/// and what was written and not yet durable.
const SMALL_IN_FLIGHT: usize = 64;
const PARTS_IN_FLIGHT: usize = 16;
const STAGE: [&str; 4] = ["dataset", "stage", "s3://data", "--json"];

/// From a server that takes its time: a part of 16 MiB takes half a second.
async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    for n in 0..SMALL {
        cluster.s3.put("data", &format!("small/{n:03}"), bytes(n, 20_000));
    }
    for n in 0..LARGE {
        cluster.s3.put("data", &format!("large/{n}"), bytes(n, 40 << 20));
    }
    cluster.s3.set_faults(Faults { latency: Duration::from_millis(20), pace: Some(32 << 20), ..Faults::default() });
    cluster
}

struct Undisturbed {
    snapshot: serde_json::Value,
    answers: BTreeMap<String, u64>,
    time: Duration,
}

/// What a staging comes to that nobody disturbs, on a volume of its own.
fn undisturbed(cluster: &Cluster) -> Undisturbed {
    let (volume, begun) = (TempDir::new().unwrap(), Instant::now());
    let before = cluster.s3.counts().sent_whole();
    let staged = cluster.terminal().on_volume(volume.path()).forebay(STAGE).json(0);
    let time = begun.elapsed();
    let answers = since(&before, cluster.s3.counts().sent_whole());
    assert!(answers.len() as u64 >= SMALL + LARGE, "{} answers", answers.len());
    Undisturbed { snapshot: staged["snapshot"].clone(), answers, time }
}

/// What was answered once more on the same volume: small objects, and parts of large ones.
fn again(done: &BTreeSet<String>, answers: &BTreeMap<String, u64>) -> (usize, usize) {
    let (small, parts): (Vec<_>, Vec<_>) =
        answers.keys().filter(|what| done.contains(*what)).partition(|what| what.starts_with("small/"));
    (small.len(), parts.len())
}

/// One volume, from the first stager to the one that publishes.
struct Ordeal<'a> {
    cluster: &'a Cluster,
    volume: TempDir,
    done: BTreeSet<String>,
    before: BTreeMap<String, u64>,
    kills: usize,
}

impl<'a> Ordeal<'a> {
    fn begin(cluster: &'a Cluster) -> Self {
        let before = cluster.s3.counts().sent_whole();
        Self { cluster, volume: TempDir::new().unwrap(), done: BTreeSet::new(), before, kills: 0 }
    }

    fn terminal(&self) -> Terminal {
        self.cluster.terminal().on_volume(self.volume.path())
    }

    /// A stager has come to its end, or to its kill: what it fetched that was there already is little.
    fn account(&mut self) -> (usize, usize) {
        eventually("the server sees that the stager is gone", || self.cluster.s3.counts().under_way().is_empty());
        let after = self.cluster.s3.counts().sent_whole();
        let answers = since(&self.before, after.clone());
        let (small, parts) = again(&self.done, &answers);
        assert!(small <= SMALL_IN_FLIGHT && parts <= PARTS_IN_FLIGHT, "fetched again: {small} objects, {parts} parts");
        self.done.extend(answers.into_keys());
        self.before = after;
        (small, parts)
    }

    /// It was published: what nobody disturbs comes to the same.
    fn check(&self, staged: &serde_json::Value, undisturbed: &Undisturbed) {
        assert_eq!(staged["snapshot"], undisturbed.snapshot);
        self.terminal().forebay(["dataset", "verify", "data", "--full"]).code(0);
    }

    /// Nobody is at work any more, and nothing is left of the work.
    fn is_clean(&self) {
        let staging = self.volume.path().join("datasets/data/staging");
        let left: Vec<_> = std::fs::read_dir(staging).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

async fn survives_kills(kills: usize) {
    let _turn = HEAVY.lock().await;
    let cluster = cluster().await;
    let undisturbed = undisturbed(&cluster);
    let mut random = fastrand::Rng::with_seed(seed());
    let latest = undisturbed.time.min(Duration::from_millis(1500)).as_millis() as u64;
    let (mut killed, mut published, mut most) = (0, 0, (0, 0));
    let mut ordeal = Ordeal::begin(&cluster);
    loop {
        let mut staging = ordeal.terminal().start(STAGE);
        if killed < kills {
            // Not a wait for anything: the moment of the kill.
            tokio::time::sleep(Duration::from_millis(random.u64(..latest))).await;
        }
        if killed < kills && !staging.has_ended() {
            staging.signal(Signal::KILL);
            let outcome = staging.outcome();
            killed += usize::from(outcome.code.is_none());
            ordeal.kills += 1;
            let (small, parts) = ordeal.account();
            most = (most.0.max(small), most.1.max(parts));
            continue;
        }
        let staged = staging.outcome().json(0);
        ordeal.account();
        ordeal.check(&staged, &undisturbed);
        ordeal.is_clean();
        published += 1;
        println!("published after {} kills; {killed} in all", ordeal.kills);
        if killed >= kills {
            break;
        }
        ordeal = Ordeal::begin(&cluster);
    }
    println!("{killed} kills, {published} snapshots; fetched again at most {} objects and {} parts", most.0, most.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_stager_costs_what_was_in_flight() {
    survives_kills(20).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "many minutes of kills: `cargo test --test staging -- --ignored two_hundred`"]
async fn two_hundred_kills_cost_what_was_in_flight() {
    survives_kills(200).await;
}

/// Two stagers on one volume, once both are in the middle.
async fn two(ordeal: &Ordeal<'_>) -> [Running; 2] {
    let both = [ordeal.terminal().start(STAGE), ordeal.terminal().start(STAGE)];
    let answers = || since(&ordeal.before, ordeal.cluster.s3.counts().sent_whole()).len() as u64;
    eventually("both are in the middle", || answers() > SMALL / 4);
    both
}

/// All that was sent, however often.
fn sent(ordeal: &Ordeal<'_>) -> u64 {
    since(&ordeal.before, ordeal.cluster.s3.counts().sent_whole()).values().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stagers_share_the_work() {
    let _turn = HEAVY.lock().await;
    let cluster = cluster().await;
    let undisturbed = undisturbed(&cluster);
    let ordeal = Ordeal::begin(&cluster);
    for staging in two(&ordeal).await {
        ordeal.check(&staging.outcome().json(0), &undisturbed);
    }
    ordeal.is_clean();
    let (sent, once) = (sent(&ordeal), undisturbed.answers.len() as u64);
    println!("{sent} answers for {once}");
    assert!(sent <= once + once / 5, "{sent} answers where {once} would do");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_stagers_one_may_be_killed() {
    let _turn = HEAVY.lock().await;
    let cluster = cluster().await;
    let undisturbed = undisturbed(&cluster);
    let ordeal = Ordeal::begin(&cluster);
    let [first, second] = two(&ordeal).await;
    first.signal(Signal::KILL);
    first.outcome();
    ordeal.check(&second.outcome().json(0), &undisturbed);
    ordeal.is_clean();
    let (sent, once) = (sent(&ordeal), undisturbed.answers.len());
    println!("{sent} answers for {once}");
    assert!(sent as usize <= once + SMALL_IN_FLIGHT + PARTS_IN_FLIGHT, "{sent} answers where {once} would do");
}

/// One of two stagers stops for longer than a lease, and goes on when the other has published, or has been killed.
async fn may_stall(is_killed: bool) {
    let _turn = HEAVY.lock().await;
    let cluster = cluster().await;
    let undisturbed = undisturbed(&cluster);
    let ordeal = Ordeal::begin(&cluster);
    let [stalled, other] = two(&ordeal).await;
    stalled.signal(Signal::STOP);
    if is_killed {
        other.signal(Signal::KILL);
        other.outcome();
        // Longer than a lease, which is a time and no event.
        tokio::time::sleep(Duration::from_secs(20)).await;
        // A third one finds both gone, and does what is left.
        ordeal.check(&ordeal.terminal().forebay(STAGE).json(0), &undisturbed);
    } else {
        let begun = Instant::now();
        ordeal.check(&other.outcome().json(0), &undisturbed);
        // Longer than a lease, which is a time and no event.
        tokio::time::sleep(Duration::from_secs(20).saturating_sub(begun.elapsed())).await;
    }
    stalled.signal(Signal::CONT);
    ordeal.check(&stalled.outcome().json(0), &undisturbed);
    // It has spoiled nothing for those who come after it.
    let before = cluster.s3.counts().gets();
    ordeal.check(&ordeal.terminal().forebay(STAGE).json(0), &undisturbed);
    assert_eq!(cluster.s3.counts().gets(), before);
    ordeal.is_clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "stalls for longer than a lease; .ci/run has it"]
async fn a_stager_may_stall_for_longer_than_its_lease() {
    may_stall(false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "stalls for longer than a lease; .ci/run has it"]
async fn a_stager_may_stall_while_the_other_is_killed() {
    may_stall(true).await;
}
