//! Programs as users have them: loud, deaf, forking, failing, unfinished.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::Value;

use crate::support::{
    Cluster, eventually, failure, files,
    processes::{is_running, kill},
    published,
};

/// A cluster with one object, and a job that runs a shell text over it.
async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x.txt", "hello\n");
    cluster
}

fn job(cluster: &Cluster, shell: &str, more: &str) -> String {
    let text = format!(
        "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\nshell = \"\"\"{shell}\"\"\"\n[workers]\ncount = 1\n{more}"
    );
    cluster.file("job.toml", &text)
}

fn output_of(result: &Value) -> PathBuf {
    result["output"]["path"].as_str().unwrap().into()
}

/// A file of the only task's output.
fn output_file(result: &Value, name: &str) -> String {
    fs::read_to_string(output_of(result).join("task-00000").join(name)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_has_the_environment_that_is_promised_and_no_secrets() {
    let cluster = cluster().await;
    let shell = "env | sort > $FOREBAY_OUTPUT_DIR/env; cat $FOREBAY_INPUTS > $FOREBAY_OUTPUT_DIR/inputs; \
                 cat $FOREBAY_SPLIT > $FOREBAY_OUTPUT_DIR/split";
    let job = job(&cluster, shell, "[params]\nlr = 0.1\n");
    let result = cluster.forebay(["run", &job, "--id", "r", "--set", "lr=0.2", "--json"]).json(0);
    let env = output_file(&result, "env");
    let value = |name: &str| {
        let line = env.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{name} in {env}")).to_owned()
    };
    for (name, expected) in [
        ("FOREBAY_RUN_ID", "r"),
        ("FOREBAY_TASK_INDEX", "0"),
        ("FOREBAY_TASK_COUNT", "1"),
        ("FOREBAY_ATTEMPT", "1"),
        ("FOREBAY_PARAM_LR", "0.2"),
        ("AWS_BATCH_JOB_ARRAY_INDEX", "0"),
        ("AWS_BATCH_JOB_ARRAY_SIZE", "1"),
        ("JOB_COMPLETION_INDEX", "0"),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
    let input = output_file(&result, "inputs");
    assert_eq!(fs::read_to_string(input.trim()).unwrap(), "hello\n");
    assert!(Path::new(input.trim()).starts_with(value("FOREBAY_DATASET_DIR")));
    assert!(output_file(&result, "split").contains("x.txt"));
    for secret in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        assert!(!env.contains(secret), "{env}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_on_standard_output_is_read_and_little_of_it_kept() {
    let cluster = cluster().await;
    let shell = "echo first; head -c 1073741824 /dev/zero | tr '\\\\0' x; echo; echo last";
    let job = job(&cluster, shell, "");
    cluster.forebay(["run", &job, "--id", "r"]).code(0);
    let kept: u64 = files(&cluster.run_dir("r")).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(kept < 12 << 20, "{kept} bytes are left of the run");
    let logs = cluster.forebay(["runs", "logs", "r", "--task", "0"]).code(0).stdout;
    assert!(logs.starts_with("first\n") && logs.ends_with("\nlast\n") && logs.contains("were not kept]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ignores_sigterm_ends_all_the_same() {
    let cluster = cluster().await;
    let pid = cluster.volume().join("pid");
    let shell = format!("trap '' TERM; echo $$ > {}; while true; do sleep 1; done", pid.display());
    let job = job(&cluster, &shell, "[retry]\nattempts = 1\ntimeout = '1s'\n");
    let begun = Instant::now();
    let failed = cluster.forebay(["run", &job, "--id", "r", "--json"]).json(1);
    assert!(begun.elapsed().as_secs() < 40, "{:?}", begun.elapsed());
    assert!(failure(&failed).contains("time-out of 1 s"), "{failed}");
    let pid = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    assert!(!is_running(rustix::process::Pid::from_raw(pid).unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_leaves_running_ends_with_it() {
    let cluster = cluster().await;
    let dir = cluster.volume().display().to_string();
    let shell = format!(
        "sleep 600 & echo $! > {dir}/pid-1; setsid sh -c 'echo $$ > {dir}/pid-2; exec sleep 600' & \
         while [ ! -s {dir}/pid-2 ]; do sleep 0.01; done; echo done > $FOREBAY_OUTPUT_DIR/x"
    );
    let result = cluster.forebay(["run", &job(&cluster, &shell, ""), "--json"]).json(0);
    assert_eq!(output_file(&result, "x"), "done\n");
    for name in ["pid-1", "pid-2"] {
        let pid = fs::read_to_string(cluster.volume().join(name)).unwrap().trim().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let ended = !is_running(pid);
        kill(&[pid]);
        assert!(ended, "{name}");
    }
}

/// Counts tries in the directory that survives from one attempt to the next.
const COUNT: &str = "cd $FOREBAY_CHECKPOINT_DIR; echo x >> tries; n=$(wc -l < tries); ";

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fails_twice_succeeds_at_the_third_try() {
    let cluster = cluster().await;
    let shell = format!("{COUNT} echo try $n >&2; test $n -ge 3 || exit 1; echo $n > $FOREBAY_OUTPUT_DIR/n");
    let job = job(&cluster, &shell, "[retry]\nattempts = 3\nbackoff = '10ms..10ms'\n");
    let run = cluster.forebay(["run", &job, "--id", "r"]).code(0);
    assert!(run.stderr.contains("task 0-0, attempt 2: its program ended with exit code 1"), "{}", run.stderr);
    let shown = cluster.forebay(["runs", "show", "r", "--json"]).json(0);
    assert_eq!((&shown["tasks"]["attempts"], &shown["tasks"]["succeeded"]), (&3.into(), &1.into()));
    assert_eq!(output_file(&shown, "n"), "3\n");
    let logs = cluster.forebay(["runs", "logs", "r"]).code(0).stdout;
    assert!(logs.contains("==> 0-0.1.1 on local-1-1 <==\ntry 1\n") && logs.contains("try 3\n"), "{logs}");
    let explained = cluster.forebay(["explain", "r", "0", "--json"]).json(0);
    let attempts = explained["attempts"].as_array().unwrap();
    assert_eq!(explained["why"], "attempt 0-0.3.1 was the first that was done, with 1 file");
    let outcomes: Vec<_> = attempts.iter().map(|attempt| attempt["outcome"].as_str().unwrap()).collect();
    assert_eq!(
        outcomes,
        ["its program ended with exit code 1: try 1", "its program ended with exit code 1: try 2", "done"]
    );
    assert!(attempts.iter().all(|attempt| attempt["worker"] == "local-1-1" && attempt["given"].is_string()));
    let text = cluster.forebay(["explain", "r", "0"]).code(0).stdout;
    assert!(
        text.starts_with("task 0-0 is succeeded: attempt 0-0.3.1") && text.contains("exit code 1: try 2"),
        "{text}"
    );
    cluster.forebay(["explain", "r", "1-0"]).code(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_code_75_uses_up_no_try() {
    let cluster = cluster().await;
    let shell = format!("{COUNT} test $n -ge 4 || exit 75; echo $n > $FOREBAY_OUTPUT_DIR/n");
    let job = job(&cluster, &shell, "[retry]\nattempts = 1\nbackoff = '10ms..10ms'\n");
    let result = cluster.forebay(["run", &job, "--json"]).json(0);
    assert_eq!((&result["tasks"]["attempts"], &result["tasks"]["failed"]), (&4.into(), &0.into()));
    assert_eq!(output_file(&result, "n"), "4\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn shipped_files_are_the_ones_of_the_submission() {
    let cluster = cluster().await;
    cluster.file("score.sh", "#!/bin/sh\ntr a-z A-Z < \"$1\" > \"$FOREBAY_OUTPUT_DIR/out\"\n");
    let text = "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\n\
                argv = ['sh', 'score.sh', '${params.in}']\nfiles = ['score.sh']\n[params]\nin = '?'\n";
    let job = cluster.file("job.toml", text);
    let input = format!("in={}", cluster.file("in.txt", "abc"));
    let result = cluster.forebay(["run", &job, "--set", &input, "--json"]).json(0);
    assert_eq!(output_file(&result, "out"), "ABC");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_map_and_reduce_lines() {
    let cluster = Cluster::start().await;
    for n in 0..20 {
        cluster.s3.put("data", &format!("{n}.txt"), format!("apple pear\nplum apple {n}\n"));
    }
    let text = r#"
        name = "j"
        [dataset]
        source = "s3://data"
        [mapreduce]
        map = ["sh", "-c", "tr ' ' '\\n' | sed 's/$/\\t1/'"]
        reduce = ["awk", "-F\\t", "{ n[$1] += $2 } END { for (k in n) print k, n[k] }"]
        partitions = 2
        [split]
        size = "64B"
    "#;
    let result = cluster.forebay(["run", &cluster.file("job.toml", text), "--json"]).json(0);
    let output = published(&output_of(&result));
    let mut lines: Vec<_> = output.values().map(|part| String::from_utf8(part.clone()).unwrap()).collect();
    lines = lines.concat().lines().map(str::to_owned).collect();
    lines.sort();
    let mut expected: Vec<_> = (0..20).map(|n| format!("{n} 1")).collect();
    expected.extend(["apple 40", "pear 20", "plum 20"].map(str::to_owned));
    expected.sort();
    assert_eq!(lines, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_followed_to_the_end() {
    let cluster = cluster().await;
    let go = cluster.volume().join("go");
    let shell = format!("echo begun; while [ ! -e {} ]; do sleep 0.01; done; echo ended", go.display());
    let running = cluster.terminal().start(["run", &job(&cluster, &shell, ""), "--id", "r"]);
    eventually("the run is there", || cluster.run_dir("r").join("plan.ndjson").exists());
    let following = cluster.terminal().start(["runs", "logs", "r", "--task", "0", "-f"]);
    fs::write(go, "").unwrap();
    running.outcome().code(0);
    assert_eq!(following.outcome().code(0).stdout, "begun\nended\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_objects_reach_a_map_program_as_they_are() {
    let cluster = Cluster::start().await;
    for n in 0..3 {
        // A whole gzip stream each; together they are one again.
        let zipped =
            std::process::Command::new("sh").args(["-c", &format!("echo word-{n} | gzip -c")]).output().unwrap();
        cluster.s3.put("data", &format!("{n}.gz"), zipped.stdout);
    }
    let text =
        "name = 'j'\n[dataset]\nsource = 's3://data'\n[mapreduce]\nmap = ['gzip', '-dc']\nreduce = ['cut', '-f1']\n";
    let result = cluster.forebay(["run", &cluster.file("job.toml", text), "--json"]).json(0);
    let output = published(&output_of(&result));
    assert_eq!(String::from_utf8(output["part-00000.txt"].clone()).unwrap(), "word-0\nword-1\nword-2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shell_has_started_has_time_to_write_its_checkpoint() {
    let cluster = cluster().await;
    // The shell dies of SIGTERM at once; the program in it takes a moment.
    let program =
        "trap 'sleep 0.5; echo saved > $FOREBAY_CHECKPOINT_DIR/state; exit 75' TERM; while true; do sleep 0.05; done";
    cluster.file("program.sh", program);
    let shell = "if [ -e $FOREBAY_CHECKPOINT_DIR/state ]; then cp $FOREBAY_CHECKPOINT_DIR/state $FOREBAY_OUTPUT_DIR; \
                 else sh program.sh; echo not reached; fi";
    let more = "[retry]\nattempts = 2\ntimeout = '1s'\nbackoff = '10ms..10ms'\n";
    let job = job(&cluster, shell, more);
    let text = fs::read_to_string(&job).unwrap().replace("[workers]", "files = ['program.sh']\n[workers]");
    let result = cluster.forebay(["run", &cluster.file("job.toml", &text), "--json"]).json(0);
    assert_eq!(output_file(&result, "state"), "saved\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_detached_program_takes_its_children_with_it() {
    let cluster = cluster().await;
    let pid = cluster.volume().join("pid");
    // Its memory takes a moment to go, in which it is neither alive nor a zombie.
    let daemon = format!(
        "my $hold = 'x' x (300 << 20); my $child = fork; if (!$child) {{ exec 'sleep', '600' }} \
         open(my $f, '>', '{}'); print $f $child; close $f; sleep 600;",
        pid.display()
    );
    let path = cluster.file("daemon.pl", &daemon);
    let shell = format!(
        "setsid perl {path} < /dev/null > /dev/null 2>&1 & while [ ! -s {} ]; do sleep 0.01; done",
        pid.display()
    );
    cluster.forebay(["run", &job(&cluster, &shell, "")]).code(0);
    let child = rustix::process::Pid::from_raw(fs::read_to_string(pid).unwrap().parse().unwrap()).unwrap();
    let ended = !is_running(child);
    kill(&[child]);
    assert!(ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_tasks_that_are_only_said_to_be_done_are_each_committed_once() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "x.txt", "x\n".repeat(5000));
    // It would fail if it were run.
    let text = "name = 'j'\n[dataset]\nsource = 's3://data'\n[command]\nargv = ['false']\n\
                [split]\nby = 'bytes'\ncount = 5000\n[workers]\ncount = 2\nslots = 1\n";
    let job = cluster.file("job.toml", text);
    let result = cluster.forebay(["run", &job, "--id", "r", "--pretend", "--json"]).json(0);
    let tasks = &result["tasks"];
    assert_eq!((&tasks["succeeded"], &tasks["attempts"]), (&5000.into(), &5000.into()), "{tasks}");
    assert_eq!(result["output"]["files"], serde_json::json!([]));
    let shown = cluster.forebay(["runs", "show", "r", "--json"]).json(0);
    assert_eq!(shown["tasks"]["succeeded"], 5000, "as the journal tells it");
    // They are listed in pages.
    let (mut listed, mut next) = (0, Some("0".to_owned()));
    while let Some(from) = next {
        let page = cluster.forebay(["runs", "tasks", "r", "--from", &from, "--limit", "1200", "--json"]).json(0);
        assert_eq!(page["tasks"][0]["task"], format!("0-{listed}"));
        listed += page["tasks"].as_array().unwrap().len();
        next = page["next"].as_str().map(str::to_owned);
    }
    assert_eq!(listed, 5000);
    let table = cluster.forebay(["runs", "tasks", "r", "--limit", "2", "--from", "0-17"]).code(0);
    assert!(table.stdout.contains("0-18") && table.stderr.contains("there are more: --from 0-19"), "{table:?}");
}
