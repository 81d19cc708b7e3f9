//! What a worker and its slots have: memory, cores, GPUs, and jobs that ask for more than there is.

use std::collections::BTreeSet;

use crate::support::{Cluster, Outcome, failure, published};

fn job(cluster: &Cluster, argv: &str, workers: &str) -> String {
    for n in 0..4 {
        cluster.s3.put("data", &format!("{n}.txt"), "x\n");
    }
    let text = format!(
        "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\n{argv}\n[workers]\n{workers}\n[retry]\nattempts = 1\n"
    );
    cluster.file("job.toml", &text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_gets_no_more_memory_than_its_slot_has() {
    let cluster = Cluster::start().await;
    let take = |mib: u32| {
        let program = format!("import os; x = bytearray({mib} << 20); print(len(x), os.environ['FOREBAY_MEMORY'])");
        job(&cluster, &format!("argv = ['python3', '-c', \"{program}\"]"), "memory = '600MiB'\nslots = 2")
    };
    cluster.forebay(["run", &take(150), "--id", "little"]).code(0);
    let logs = cluster.forebay(["runs", "logs", "little"]).code(0).stdout;
    assert!(logs.contains(&format!("{} {}", 150 << 20, 300 << 20)), "{logs}");
    let result = cluster.forebay(["run", &take(450), "--id", "much", "--json"]).json(1);
    let error = failure(&result);
    // Where there are control groups the kernel ends it, elsewhere it is refused the memory.
    assert!(error.contains("used more than its 300 MiB of memory") || error.contains("MemoryError"), "{error}");
    // A program that is not there is still said not to be.
    let missing = job(&cluster, "argv = ['no-such-program']", "memory = '100MiB'\nslots = 1");
    let result = cluster.forebay(["run", &missing, "--id", "missing", "--json"]).json(1);
    let error = failure(&result);
    assert!(error.contains("cannot start `no-such-program`: No such file"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_slot_has_gpus_of_its_own_and_its_share_of_the_cores() {
    let cluster = Cluster::start().await;
    let marks = cluster.volume().join("marks");
    std::fs::create_dir(&marks).unwrap();
    // All four are in slots at the same time.
    let shell = format!(
        "shell = \"\"\": > {marks}/$FOREBAY_TASK_INDEX; until [ $(ls {marks} | wc -l) = 4 ]; do sleep 0.01; done\n\
         echo $CUDA_VISIBLE_DEVICES $FOREBAY_GPUS $FOREBAY_CPUS $OMP_NUM_THREADS > $FOREBAY_OUTPUT_DIR/has\"\"\"",
        marks = marks.display()
    );
    let job = job(&cluster, &shell, "count = 2\ngpus = 2\ncpus = 1");
    let terminal = cluster.with_env("CUDA_VISIBLE_DEVICES", "3,1,GPU-7,0");
    terminal.forebay(["run", &job, "--id", "r"]).code(0);
    let output = published(&cluster.run_dir("r").join("output"));
    let has: BTreeSet<_> = output.into_values().map(|text| String::from_utf8(text).unwrap()).collect();
    let expected = ["3", "1", "GPU-7", "0"].map(|gpu| format!("{gpu} {gpu} 1 1\n"));
    assert_eq!(has, BTreeSet::from(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_worker_could_ever_hold_is_an_error_at_once() {
    let cluster = Cluster::start().await;
    for (wants, error) in [
        ("memory = '900TiB'", "a worker wants 921600.0 GiB of memory, and this host has "),
        ("cpus = 1000", "a worker wants 1000 cpus, and this host has "),
        ("gpus = 3", "a worker wants 3 gpus, and this host has 2 gpus"),
    ] {
        let job = job(&cluster, "argv = ['true']", wants);
        let terminal = cluster.with_env("CUDA_VISIBLE_DEVICES", "0,1");
        for command in [&["check", &job][..], &["run", &job, "--id", "r"]] {
            let outcome = terminal.command().args(command).output().unwrap();
            let outcome = Outcome::of(outcome).code(5);
            assert!(outcome.stderr.contains(error), "{outcome:?}");
        }
    }
    assert!(!cluster.run_dir("r").exists());
    // As many workers as fit are enough.
    let job = job(&cluster, "argv = ['true']", "gpus = 2\ncount = 3");
    let result = cluster.with_env("CUDA_VISIBLE_DEVICES", "0,1").forebay(["run", &job, "--json"]).json(0);
    assert_eq!(result["workers"], 1);
}
