//! A query in all workers of its run: the answer is that of one worker, whoever is killed, and nobody else gets in.

pub(crate) mod strangers;

use std::{fs, path::Path};

use serde_json::Value;

use super::tables::parquet;

use crate::support::{
    Cluster, csv, eventually, failure, link,
    namespace::start_in_namespace,
    processes::{Running, kill},
};

const TABLES: &str = "tables = { flights = 'flights/*.parquet', weather = 'weather.csv', airlines = 'airlines.csv', \
                      fares = 'fares/month=*/*.parquet' }\n";

/// Each with what its rows are ordered by.
const QUERIES: [(&str, &str); 6] = [
    (
        "a view, joins of Parquet and CSV, an aggregate",
        "create view late as select * from flights where dep_delay > 30;
         select a.name, w.origin, count(*) as n, sum(l.distance) as miles from late l
         join airlines a on l.carrier = a.carrier
         join weather w on l.origin = w.origin and l.month = w.month and l.day = w.day and l.hour = w.hour
         group by 1, 2 order by n desc, 1, 2",
    ),
    ("partitions", "select month, sum(fare) as s, count(*) as n from fares where month > 1 group by 1 order by 1"),
    ("a limit", "select carrier, flight, dep_delay from flights order by dep_delay desc nulls last, 1, 2 limit 7"),
    (
        "branches that a task may have no part of",
        "select 'f' as k, count(*) as n from flights union all select 'w', count(*) from weather
         union all select 'a', count(*) from airlines order by 1",
    ),
    (
        "a subquery and a window",
        "select * from (select month, carrier, n, rank() over (partition by month order by n desc) as r from
         (select month, carrier, count(*) as n from flights
          where distance > (select avg(distance) from flights) group by 1, 2)) where r < 3 order by 1, 4, 2",
    ),
    (
        "no row of the other side",
        "select a.carrier, count(f.flight) as n from airlines a
         left join (select * from flights where month = 1 and day = 1) f on a.carrier = f.carrier
         where a.carrier not in (select carrier from flights where month = 2 and day = 3 and origin = 'LGA')
         group by 1 order by 1",
    ),
];

/// So many pairs of rows that a stage takes seconds.
const LONG: &str = "select a.origin, count(*) as n, sum(a.distance) as s from flights a join flights b
    on a.origin = b.origin and a.month = b.month and a.day = b.day
    where a.month < 4 and a.dep_delay < b.dep_delay group by 1 order by 1";

/// The flights of 2013, and a table in partitions.
async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nycflights13");
    for part in ["flights", "airlines.csv", "weather.csv"] {
        let path = data.join(part);
        let files = if path.is_dir() { crate::support::files(&path) } else { vec![path] };
        for file in files {
            let key = file.strip_prefix(&data).unwrap().to_str().unwrap();
            cluster.s3.put("acme", key, fs::read(&file).unwrap());
        }
    }
    for month in 1..4 {
        let fares = parquet(&[("fare", (0..100).map(|n| n * month).collect())]);
        cluster.s3.put("acme", &format!("fares/month={month}/a.parquet"), fares);
    }
    cluster
}

fn job(cluster: &Cluster, name: &str, query: &str, rest: &str) -> String {
    let text = format!(
        "name = '{name}'\nreuse = 'off'\n[dataset]\nsource = 's3://acme'\n[output]\nformat = 'csv'\n[retry]\nbackoff = '10ms..10ms'\n\
         [sql]\nquery = \"\"\"{query}\"\"\"\n{TABLES}{rest}"
    );
    cluster.file(&format!("{name}.toml"), &text)
}

fn figure(cluster: &Cluster, run: &str, name: &str) -> f64 {
    let explained = cluster.forebay(["explain", run, "0-0", "--json"]).json(0);
    let attempts = explained["attempts"].as_array().unwrap().iter();
    attempts.filter_map(|attempt| attempt["metrics"][name].as_f64()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_and_four_give_the_rows_that_one_gives() {
    let cluster = cluster().await;
    for (index, (what, query)) in QUERIES.into_iter().enumerate() {
        let run = |engine: &str, workers: u32| {
            let rest = format!("engine = '{engine}'\n[workers]\ncount = {workers}\nslots = 2\n");
            let id = format!("{engine}-{workers}-{index}");
            let result = cluster.forebay(["run", &job(&cluster, "j", query, &rest), "--id", &id, "--json"]).json(0);
            (csv(&result), result["workers"].as_u64().unwrap(), id)
        };
        let (expected, ..) = run("datafusion", 1);
        assert!(expected.lines().count() > 2, "{what}: {expected}");
        for workers in [2, 4] {
            let (given, there, id) = run("ballista", workers);
            assert_eq!(given, expected, "{what}, by {workers} workers");
            assert!((1..=u64::from(workers)).contains(&there), "{what}: {there} workers");
            assert_eq!(figure(&cluster, &id, "queries"), 1.0, "{what}");
            assert!(!cluster.run_dir(&id).join("shuffle").exists(), "{what}: what lay between stages is gone");
        }
    }
}

/// A run of the long query whose two workers are at work on it.
struct Long {
    cluster: Cluster,
    coordinator: Running,
    workers: Vec<Running>,
}

impl Long {
    async fn begin() -> Self {
        let cluster = cluster().await;
        let rest = "engine = 'ballista'\n[workers]\nfleet = 'external'\ncount = 2\n";
        let file = job(&cluster, "long", LONG, rest);
        let args = ["--listen", "127.0.0.1", "run", &file, "--id", "long", "--json"];
        let coordinator = cluster.terminal().start(args);
        let dir = cluster.run_dir("long");
        link(&dir, 1);
        let worker = |name| cluster.terminal().start(["worker", "--run", "long", "--slots", "2", "--name", name]);
        let workers = vec![worker("a"), worker("b")];
        let logs = |name: &str| dir.join(format!("logs/{name}.log")).exists();
        eventually("both have joined", || logs("a") && logs("b"));
        // What the first stages have made is there, and so the long one is next.
        let made = || crate::support::files(&dir.join("shuffle")).len() > 1;
        eventually("a stage is done", || dir.join("shuffle").exists() && made());
        assert!(!dir.join("result.json").exists());
        Self { cluster, coordinator, workers }
    }

    fn link(&self) -> Value {
        link(&self.cluster.run_dir("long"), 1)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_in_a_stage_costs_time_and_no_row() {
    let expected = {
        let cluster = cluster().await;
        let file = job(&cluster, "one", LONG, "engine = 'datafusion'\n");
        csv(&cluster.forebay(["run", &file, "--json"]).json(0))
    };
    for victim in [0, 1] {
        let Long { cluster, coordinator, workers } = Long::begin().await;
        kill(&[workers[victim].pid()]);
        let result = coordinator.outcome().json(0);
        assert_eq!(csv(&result), expected);
        // Either the attempt was the killed worker's, or its query was begun again by the other one.
        let again = (result["tasks"]["attempts"].as_f64().unwrap(), figure(&cluster, "long", "queries"));
        assert!(again == (2.0, 1.0) || again == (1.0, 2.0), "{again:?}");
        assert!(!cluster.run_dir("long").join("shuffle").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_killed_takes_its_scheduler_along_and_the_next_one_has_another() {
    let Long { cluster, coordinator, workers } = Long::begin().await;
    kill(&[coordinator.pid()]);
    drop(coordinator);
    let result = cluster.forebay(["--listen", "127.0.0.1", "resume", "long", "--json"]).json(0);
    assert_eq!(result["tasks"]["attempts"], 1, "the attempt went on: {result}");
    assert!(csv(&result).starts_with("origin,n,s\nEWR,"), "{result}");
    workers.into_iter().for_each(|worker| drop(worker.outcome().code(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_worker_may_have_the_volume_at_a_path_of_its_own() {
    let cluster = cluster().await;
    let (_, query) = QUERIES[0];
    let run = |id: &'static str, rest: &str| {
        let file = job(&cluster, id, query, rest);
        cluster.terminal().start(["--listen", "127.0.0.1", "run", &file, "--id", id, "--json"])
    };
    let expected = csv(&run("one", "engine = 'datafusion'\n").outcome().json(0));
    let coordinator = run("two", "engine = 'ballista'\n[workers]\nfleet = 'external'\ncount = 2\n");
    link(&cluster.run_dir("two"), 1);
    let volume = cluster.volume().display();
    let workers = ["a", "b"].map(|name| {
        // The coordinator's path holds nothing there.
        let text = format!(
            "mount -t tmpfs tmpfs /mnt; mkdir -p /mnt/{name}/volume; mount --bind {volume} /mnt/{name}/volume
             mount -t tmpfs tmpfs {volume}; test ! -e {volume}/volume.json
             exec $forebay --volume /mnt/{name}/volume worker --run two --slots 1 --name {name}"
        );
        start_in_namespace(&cluster.terminal(), &text)
    });
    let result = coordinator.outcome().json(0);
    assert_eq!(csv(&result), expected);
    assert_eq!((&result["tasks"]["attempts"], figure(&cluster, "two", "queries")), (&1.into(), 1.0), "{result}");
    workers.into_iter().for_each(|worker| drop(worker.outcome().code(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_is_named_whoever_reads_it() {
    let cluster = cluster().await;
    cluster.s3.put("acme", "weather.csv", "origin,month\nEWR,1\nJFK,two\n");
    let query = "select origin, sum(month) as s from months group by 1";
    let text = format!(
        "name = 'bad'\nreuse = 'off'\n[dataset]\nsource = 's3://acme'\n[sql]\nquery = '{query}'\nengine = 'ballista'\n\
         tables.months = {{ include = 'weather.csv', schema = {{ month = 'BIGINT' }} }}\n\
         [workers]\ncount = 2\nslots = 1\n"
    );
    let result = cluster.forebay(["run", &cluster.file("bad.toml", &text), "--json"]).json(1);
    let told = failure(&result);
    assert!(told.contains("`weather.csv`, line 3: the column `month`: `two` is no Int64"), "{told}");
    assert_eq!(result["tasks"]["attempts"], 1, "another try would find the same: {result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_s_memory_holds_for_its_part_which_is_spilled_or_refused() {
    let cluster = cluster().await;
    let rest = "engine = 'ballista'\n[workers]\ncount = 2\nslots = 1\nmemory = '64MiB'\n";
    // More rows to sort than a pool of 16 MiB holds.
    let sorted = "select count(*) as c, sum(r * f) as s from (
        select b.flight as f, row_number() over (order by a.tailnum, b.flight, a.dep_time, b.dep_time, b.dest) as r
        from flights a join flights b on a.origin = b.origin and a.month = b.month and a.day = b.day and a.hour = b.hour
        where a.month = 1 and a.day < 16)";
    let one = job(&cluster, "one", sorted, "engine = 'datafusion'\n");
    let expected = csv(&cluster.forebay(["run", &one, "--json"]).json(0));
    let file = job(&cluster, "spills", sorted, rest);
    let mut run = cluster.terminal().start(["run", &file, "--id", "spills", "--json"]);
    let slots = cluster.run_dir("spills").join("slots");
    let has_spilled = || {
        let dirs = fs::read_dir(&slots).into_iter().flatten().flatten();
        let mut stages = dirs.filter(|dir| dir.file_name().to_string_lossy().ends_with(".stages"));
        stages.any(|dir| {
            crate::support::files(&dir.path()).iter().any(|file| file.metadata().is_ok_and(|file| file.len() > 0))
        })
    };
    eventually("it spills, or ends", || has_spilled() || run.has_ended());
    assert!(!run.has_ended(), "nothing was spilled: {:?}", run.outcome());
    assert_eq!(csv(&run.outcome().json(0)), expected);

    let all = "select array_length(array_agg(repeat(a.tailnum || b.dest, 60))) as l from flights a join flights b
        on a.origin = b.origin and a.month = b.month and a.day = b.day and a.hour = b.hour where a.month = 1 and a.day < 8";
    let result = cluster.forebay(["run", &job(&cluster, "refused", all, rest), "--json"]).json(1);
    let told = failure(&result);
    assert!(told.contains("give [workers] memory more"), "{told}");
    assert_eq!(result["tasks"]["attempts"], 1, "another try would want as much: {result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_which_engine_it_is_and_why_and_what_ballista_cannot_do() {
    let cluster = cluster().await;
    let check = |query: &str, rest: &str| cluster.forebay(["check", &job(&cluster, "c", query, rest)]).code(0).stdout;
    let said = check("select count(*) from flights", "[workers]\ncount = 2\nslots = 1\n");
    assert!(said.contains("engine: datafusion, since 7 MiB are less than the 1024 that"), "{said}");
    let said = check("select count(*) from flights", "engine = 'ballista'\n[workers]\ncount = 2\nslots = 1\n");
    assert!(said.contains("engine: ballista, since the job says so"), "{said}");

    let recursive = "with recursive r(n) as (select 1 union all select n + 1 from r where n < 3) select * from r";
    let file = job(&cluster, "recursive", recursive, "engine = 'ballista'\n[workers]\ncount = 2\nslots = 1\n");
    let refused = cluster.forebay(["run", &file]).code(2).stderr;
    assert!(refused.contains("Ballista cannot execute") && refused.contains("engine = \"datafusion\""), "{refused}");
    let other = job(&cluster, "other", recursive, "engine = 'datafusion'\n[workers]\ncount = 2\nslots = 1\n");
    assert_eq!(csv(&cluster.forebay(["run", &other, "--json"]).json(0)), "n\n1\n2\n3\n");
}
