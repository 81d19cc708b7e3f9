//! Tasks that only work together: the training of `examples/training`, whose ranks exchange gradients over sockets.

use std::{fs, path::Path};

use rustix::process::{Pid, Signal};

use crate::support::{
    Cluster, Outcome, eventually, failure, link,
    processes::{kill, signal},
    published,
};

const MODEL: &str = "task-00000/model.json";

fn example() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/training/least-squares.toml").display().to_string()
}

/// The process of a rank.
fn member(run_dir: &Path, rank: u32) -> Option<Pid> {
    let (run, rank) = (format!("FOREBAY_CHECKPOINT_DIR={}/", run_dir.display()), format!("RANK={rank}"));
    let is_member = |environ: Vec<u8>| {
        let has = |wanted: &str, whole: bool| {
            let mut all = environ.split(|byte| *byte == 0);
            all.any(|one| if whole { one == wanted.as_bytes() } else { one.starts_with(wanted.as_bytes()) })
        };
        has(&run, false) && has(&rank, true)
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.find(|pid| fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).is_ok_and(is_member))
}

/// At which step the ranks began, try after try.
fn beginnings(cluster: &Cluster, run: &str) -> Vec<u32> {
    // There are none before the first worker is there.
    let logs = Outcome::of(cluster.terminal().command().args(["runs", "logs", run]).output().unwrap()).stdout;
    let mut steps: Vec<u32> = logs
        .lines()
        .filter(|line| line.contains("rank 0 of 4 begins"))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    steps.sort_unstable();
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_on_four_ranks_begins_again_from_its_checkpoint_whatever_dies_and_comes_to_the_same_model() {
    let cluster = Cluster::start().await;
    let train = |id: &str| cluster.terminal().start(["run", &example(), "--id", id, "--json", "--set", "steps=6000"]);
    let result = train("undisturbed").outcome().json(0);
    assert_eq!((&result["tasks"]["succeeded"], &result["tasks"]["attempts"]), (&4.into(), &4.into()), "{result}");
    let undisturbed = published(&cluster.run_dir("undisturbed").join("output"));
    assert_eq!(undisturbed.keys().collect::<Vec<_>>(), [MODEL]);
    assert_eq!(beginnings(&cluster, "undisturbed"), [0]);

    let running = train("disturbed");
    let run_dir = cluster.run_dir("disturbed");
    // The directories of the tries before are renamed, so that there is one.
    let saved = || {
        let mut tries = fs::read_dir(run_dir.join("checkpoints")).into_iter().flatten().flatten();
        let text = tries.find_map(|entry| fs::read(entry.path().join("state.json")).ok());
        text.map_or(0, |text| serde_json::from_slice::<serde_json::Value>(&text).unwrap()["step"].as_u64().unwrap())
    };
    let goes_on = |tries: usize| {
        eventually("the try has begun, and come further", || {
            let steps = beginnings(&cluster, "disturbed");
            steps.len() == tries && saved() > u64::from(steps[tries - 1])
        });
    };
    // The second time it is the first rank, where all others meet.
    for (tries, rank) in [(1, 1), (2, 0)] {
        goes_on(tries);
        kill(&[member(&run_dir, rank).unwrap()]);
    }
    goes_on(3);
    let workers = running.children();
    signal(&workers[1..2], Signal::KILL);
    let result = running.outcome().json(0);
    assert_eq!(result["tasks"]["succeeded"], 4, "{result}");
    assert_eq!(published(&run_dir.join("output")), undisturbed);
    let steps = beginnings(&cluster, "disturbed");
    assert!(steps.len() == 4 && steps[0] == 0 && steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gang_needs_and_cannot_have_is_said() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x", "x");
    let job = |gang: &str| {
        format!("name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\nargv = ['env']\ngang = true\n{gang}")
    };
    let few = cluster.file("few.toml", &job("[split]\ncount = 5\n[workers]\ncount = 2\nslots = 2\n"));
    let error =
        Outcome::of(cluster.terminal().command().args(["run", &few, "--id", "r"]).output().unwrap()).code(2).stderr;
    assert!(error.contains("5 tasks are a gang and run at once, and all workers together have 4"), "{error}");
    // What others have is known once they are there.
    let others = cluster.file("others.toml", &job("[split]\ncount = 3\n[workers]\nfleet = 'external'\n"));
    let running = cluster.terminal().start(["--listen", "127.0.0.1", "run", &others, "--id", "others", "--json"]);
    link(&cluster.run_dir("others"), 1);
    let worker = cluster.terminal().start(["worker", "--run", "others", "--slots", "2", "--name", "w"]);
    let result = running.outcome().json(4);
    let error = failure(&result);
    assert!(error.contains("3 tasks are a gang and run at once, and its 1 workers have 2 slots"), "{error}");
    worker.outcome().code(0);
    // A rank without input is a rank all the same, and a gang of one is a gang.
    let enough = cluster.file("enough.toml", &job("[split]\ncount = 3\n[workers]\ncount = 3\nslots = 1\n"));
    cluster.forebay(["run", &enough, "--id", "enough"]).code(0);
    let logs = cluster.forebay(["runs", "logs", "enough"]).code(0).stdout;
    for (variable, values) in [
        ("WORLD_SIZE=3", 3),
        ("LOCAL_RANK=0", 3),
        ("LOCAL_WORLD_SIZE=1", 3),
        ("MASTER_ADDR=127.0.0.1", 3),
        ("MASTER_PORT=2", 3),
        ("NODE_RANK=2", 1),
    ] {
        assert_eq!(logs.matches(variable).count(), values, "{variable}: {logs}");
    }
}
