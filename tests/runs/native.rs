//! A map and a reduce that are compiled into a program: `examples/sessions`, with the built binary beside it.

use std::{collections::BTreeMap, fs};

use crate::support::{
    Cluster, eventually,
    examples::{example, job, sessions, stations},
    files, link, output,
    processes::kill,
    published,
};

const PAUSE: u64 = 1800;

async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.put_tree("logs", &example("access-logs"));
    cluster
}

/// The example's job over the logs in S3, with something in it replaced.
fn sessions_job(cluster: &Cluster, what: &str, by: &str) -> String {
    let text = job("sessions/sessions.toml", "../access-logs", "s3://logs");
    assert!(text.contains(what), "{text}");
    cluster.file("sessions.toml", &text.replace(what, by))
}

/// Users, sessions and requests, counted the plain way.
fn counted<'a>(logs: impl Iterator<Item = &'a str>) -> BTreeMap<String, (usize, usize)> {
    let mut times = BTreeMap::<&str, Vec<u64>>::new();
    for line in logs.flat_map(str::lines) {
        let words: Vec<_> = line.split(' ').collect();
        times.entry(words[2]).or_default().push(words[0].parse().unwrap());
    }
    let sessions = |times: &mut Vec<u64>| {
        times.sort();
        1 + times.windows(2).filter(|pair| pair[1] > pair[0] + PAUSE).count()
    };
    times.iter_mut().map(|(user, times)| ((*user).to_owned(), (sessions(times), times.len()))).collect()
}

fn rows(output: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, (usize, usize)> {
    let parts = output.values().map(|part| std::str::from_utf8(part).unwrap());
    let row = |row: &str| {
        let cells: Vec<_> = row.split(',').collect();
        (cells[0].to_owned(), (cells[1].parse().unwrap(), cells[2].parse().unwrap()))
    };
    parts.flat_map(|part| part.lines().skip(1)).map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn stations_are_what_a_plain_program_finds_and_bad_lines_are_named() {
    let cluster = Cluster::start().await;
    cluster.put_tree("stations", &example("stations/measurements"));
    let text = job("stations/stations.toml", "./measurements", "s3://stations");
    let terminal = cluster.terminal().of_program(stations());
    let job = cluster.file("stations.toml", &text);
    let result = terminal.forebay(["run", &job, "--json"]).json(0);
    assert!(result["tasks"]["total"].as_u64() > Some(2), "a station is of several tasks: {result}");
    let mut tenths = BTreeMap::<String, Vec<i64>>::new();
    for file in files(&example("stations/measurements")) {
        for line in fs::read_to_string(file).unwrap().lines() {
            let (station, degrees) = line.split_once(';').unwrap();
            tenths.entry(station.to_owned()).or_default().push(degrees.replace('.', "").parse().unwrap());
        }
    }
    let expected: String = tenths
        .iter()
        .map(|(station, all)| {
            let degrees = |tenths: &i64| *tenths as f64 / 10.0;
            let mean = all.iter().sum::<i64>() as f64 / all.len() as f64 / 10.0;
            let (least, greatest) = (degrees(all.iter().min().unwrap()), degrees(all.iter().max().unwrap()));
            format!("{station},{least:?},{mean:?},{greatest:?}\n")
        })
        .collect();
    let output = output(&result);
    let found: Vec<_> = output.values().map(|part| String::from_utf8_lossy(part)).collect();
    assert_eq!(found, [format!("station,min,mean,max\n{expected}")]);
    for (line, why) in [("Quito", "there is no `;`"), ("Quito;1x.0", "what follows the `;` is no temperature")] {
        cluster.s3.put("stations", "bad.txt", line);
        let error = terminal.forebay(["run", &job]).code(1);
        let said = format!("the map of `stations` failed at byte 0 of `bad.txt`: {why}");
        assert!(error.stderr.contains(&said), "{}", error.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_what_a_plain_program_counts_however_the_logs_are_cut() {
    let cluster = cluster().await;
    let texts: Vec<_> = files(&example("access-logs")).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let expected = counted(texts.iter().map(String::as_str));
    assert_eq!((expected["ada"], expected["emil"]), ((14, 52), (15, 58)), "as DuckDB counts them");
    let terminal = cluster.terminal().of_program(sessions());
    let mut first = None;
    for (size, tasks) in [("8KiB", 8), ("1KiB", 35), ("1GiB", 3)] {
        let job = sessions_job(&cluster, "8KiB", size);
        terminal.forebay(["check", &job]).code(0);
        let result = terminal.forebay(["run", &job, "--json"]).json(0);
        assert_eq!(result["tasks"]["total"], tasks, "{result}");
        assert_eq!(result["output"]["rows"], 10);
        let output = output(&result);
        assert_eq!(rows(&output), expected);
        assert_eq!(first.get_or_insert_with(|| output.clone()), &output);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_in_the_middle_make_no_difference() {
    let cluster = Cluster::start().await;
    let line = |n: u64| format!("{} 10.0.0.1 user-{} \"GET / HTTP/1.1\" 200 1\n", 1_357_000_000 + n * 60, n * n % 97);
    let text: String = (0..200_000).map(line).collect();
    cluster.s3.put("logs", "all.log", text.clone());
    let job = sessions_job(&cluster, "8KiB", "8KiB");
    let terminal = cluster.terminal().of_program(sessions());
    let mut running = terminal.start(["run", &job, "--id", "r", "--json"]);
    let mut seen = Vec::new();
    for done in [20, 150] {
        eventually("some tasks are done", || cluster.tasks("r", "succeeded") >= done);
        let workers = running.children();
        assert!(!running.has_ended() && !workers.is_empty(), "the run is in the middle");
        seen.extend(&workers);
        kill(&workers[..1]);
        eventually("another one comes in its place", || running.children().iter().any(|pid| !seen.contains(pid)));
    }
    let result = running.outcome().json(0);
    assert_eq!(result["tasks"]["succeeded"], result["tasks"]["total"], "{result}");
    let output = published(&cluster.run_dir("r").join("output"));
    assert!(rows(&output) == counted(std::iter::once(&*text)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_code_does_not_bear_is_named() {
    let cluster = Cluster::start().await;
    cluster.s3.put("logs", "bad.log", "7 - ada \"GET /\" 200 1\nyesterday - ada \"GET /\" 200 1\n");
    let job = sessions_job(&cluster, "[workers]", "[retry]\nattempts = 2\nbackoff = '10ms'\n[workers]");
    let terminal = cluster.terminal().of_program(sessions());
    let error = terminal.forebay(["run", &job, "--id", "r"]).code(1);
    let said = "the map of `sessions` failed at byte 22 of `bad.log`: invalid digit found in string";
    assert!(error.stderr.contains(said), "{}", error.stderr);
    let tasks = cluster.forebay(["runs", "tasks", "r", "--state", "failed", "--json"]).json(0);
    assert_eq!(tasks["tasks"][0]["attempts"], 2, "it was tried again: {tasks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_compiled_in_is_told_before_a_run() {
    let cluster = cluster().await;
    let (volume, native) = (cluster.volume().join("none"), cluster.terminal().of_program(sessions()));
    let (stock, native) = (cluster.terminal().on_volume(&volume), native.on_volume(&volume));
    let job = sessions_job(&cluster, "8KiB", "8KiB");
    for command in ["check", "run"] {
        let error = stock.forebay([command, &job]).code(2);
        for part in ["`sessions` is not compiled into this program, which has none", "sessions.toml:8:", "PROGRAM run"]
        {
            assert!(error.stderr.contains(part), "{part}: {}", error.stderr);
        }
        let job = sessions_job(&cluster, "native = \"sessions\"", "native = \"session\"");
        let error = native.forebay([command, &job]).code(2);
        assert!(error.stderr.contains("`session` is not compiled into this program, which has sessions"), "{error:#?}");
        let job = sessions_job(&cluster, "pause = 1800", "pause = \"long\"");
        let error = native.forebay([command, &job]).code(2);
        let said = "the reduce of `sessions` failed when it is made: the parameter `pause` is `long`: invalid digit";
        assert!(error.words().contains(said), "{}", error.stderr);
        sessions_job(&cluster, "8KiB", "8KiB");
    }
    assert!(!volume.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_the_code_is_refused_and_one_that_has_it_works_for_any_coordinator() {
    let cluster = cluster().await;
    let job = sessions_job(&cluster, "[workers]", "[workers]\nfleet = \"external\"");
    // It does not need the code itself.
    cluster.forebay(["check", &job]).code(0);
    let running = cluster.terminal().start(["--listen", "127.0.0.1", "run", &job, "--id", "r", "--json"]);
    link(&cluster.run_dir("r"), 1);
    let refused = cluster.forebay(["worker", "--run", "r"]).code(4);
    let said = "the job's map is `sessions`, and compiled into the worker is none: start the program that has it";
    assert!(refused.words().contains(said), "{}", refused.stderr);
    let worker = cluster.terminal().of_program(sessions()).start(["worker", "--run", "r"]);
    let result = running.outcome().json(0);
    assert_eq!((&result["workers"], &result["output"]["rows"]), (&1.into(), &10.into()), "{result}");
    worker.outcome().code(0);
}
