//! A later run does only what no earlier run has done.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use serde_json::Value;

use crate::support::{Cluster, published, seed};

const WORK: &str =
    "[command]\nshell = 'for f in $(cat $FOREBAY_INPUTS); do tr a-z A-Z < $f; done > $FOREBAY_OUTPUT_DIR/text'\n";

/// A job over the bucket `data`, a task an object.
fn job(work: &str, rest: &str) -> String {
    format!(
        "name = 'j'\n{rest}\n[dataset]\nsource = 's3://data'\n{work}\n[split]\nby = 'file'\n\
         [workers]\ncount = 1\nslots = 2\n"
    )
}

fn run(cluster: &Cluster, id: &str, job: &str) -> Value {
    let job = cluster.file("job.toml", job);
    cluster.forebay(["run", &job, "--id", id, "--json"]).json(0)
}

/// Tasks that were reused, and attempts that were made.
fn figures(result: &Value) -> (u64, u64) {
    let tasks = &result["tasks"];
    (tasks["reused"].as_u64().unwrap(), tasks["attempts"].as_u64().unwrap())
}

fn output(cluster: &Cluster, id: &str) -> BTreeMap<String, Vec<u8>> {
    published(&cluster.run_dir(id).join("output"))
}

fn why(cluster: &Cluster, id: &str, task: &str) -> String {
    cluster.forebay(["explain", id, task, "--json"]).json(0)["reuse"].as_str().unwrap().to_owned()
}

fn results(cluster: &Cluster) -> Vec<PathBuf> {
    let children = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    children(cluster.volume().join("reuse")).flat_map(children).collect()
}

async fn weekly() -> Cluster {
    let cluster = Cluster::start().await;
    for week in 1..=52 {
        cluster.s3.put("data", &format!("week-{week:02}.txt"), format!("week {week}\n"));
    }
    assert_eq!(figures(&run(&cluster, "first", &job(WORK, ""))), (0, 52));
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn of_52_weeks_and_a_new_one_the_new_one_is_done() {
    let cluster = weekly().await;
    // It comes before all others, so that every task has another place than before.
    cluster.s3.put("data", "week-00.txt", "week 0\n");
    let result = run(&cluster, "second", &job(WORK, ""));
    assert_eq!(figures(&result), (52, 1), "{result}");
    assert_eq!(result["output"]["files"].as_array().unwrap().len(), 53);
    run(&cluster, "whole", &job(WORK, "reuse = 'off'"));
    assert_eq!(output(&cluster, "second"), output(&cluster, "whole"));
    assert_eq!(why(&cluster, "second", "0-0"), "not reused: `week-00.txt` is new: run first did not read it");
    assert_eq!(why(&cluster, "second", "0-52"), "reused: run first had done the same work on the same input");
    // Nothing is copied: the three runs' outputs and what is kept are names of the same files.
    let file = |id: &str, name: &str| fs::metadata(cluster.run_dir(id).join("output").join(name)).unwrap();
    let (first, second) = (file("first", "task-00000/text"), file("second", "task-00001/text"));
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 4));
    // A third one takes all from the second, be what the first had kept gone.
    let first = results(&cluster).into_iter().find(|dir| dir.ends_with("first")).unwrap();
    fs::remove_dir_all(first).unwrap();
    let result = run(&cluster, "third", &job(WORK, ""));
    assert_eq!(figures(&result), (53, 0), "{result}");
    assert_eq!(result["workers"], 0, "nobody was needed");
    assert_eq!(output(&cluster, "third"), output(&cluster, "whole"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_in_place_or_comes_of_other_work_is_done_again_and_explained() {
    let cluster = weekly().await;
    assert_eq!(why(&cluster, "first", "0-0"), "not reused: no earlier run of the job `j` has left results");
    // Whoever writes into a published file writes into what is kept.
    fs::write(cluster.run_dir("first").join("output/task-00004/text"), "spoilt\n").unwrap();
    cluster.s3.put("data", "week-07.txt", "corrected\n");
    assert_eq!(figures(&run(&cluster, "second", &job(WORK, ""))), (50, 2));
    assert_eq!(output(&cluster, "second")["task-00004/text"], b"WEEK 5\n");
    assert_eq!(why(&cluster, "second", "0-4"), "not reused: what run first had made of it was changed or removed");
    assert_eq!(why(&cluster, "second", "0-6"), "not reused: `week-07.txt` has changed since run first");
    let other = WORK.replace("A-Z", "B-ZA");
    assert_eq!(figures(&run(&cluster, "third", &job(&other, ""))), (0, 52));
    assert_eq!(why(&cluster, "third", "0-4"), "not reused: the work changed since run second");
    let params = format!("{WORK}[params]\ndepth = 3\n");
    assert_eq!(figures(&run(&cluster, "fourth", &job(&params, ""))), (0, 52));
    let off = job(WORK, "reuse = 'off'");
    assert_eq!(figures(&run(&cluster, "fifth", &off)), (0, 52));
    assert_eq!(why(&cluster, "fifth", "0-4"), "the job says `reuse = \"off\"`");
    assert!(!results(&cluster).iter().any(|dir| dir.ends_with("fifth")), "and it leaves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_had_done_before_it_failed_is_not_done_again() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c", "d"] {
        cluster.s3.put("data", &format!("{name}.txt"), name);
    }
    // What its work is does not tell whether the world lets it succeed.
    let broken = cluster.volume().join("broken");
    fs::create_dir(&broken).unwrap();
    let work = format!(
        "[command]\nshell = '! grep -q c $(cat $FOREBAY_INPUTS) || [ ! -d {} ] || exit 1; \
         cp $(cat $FOREBAY_INPUTS) $FOREBAY_OUTPUT_DIR'\n[retry]\nattempts = 1\n",
        broken.display()
    );
    let job = job(&work, "");
    let path = cluster.file("job.toml", &job);
    let result = cluster.forebay(["run", &path, "--id", "first", "--json"]).json(1);
    let done = result["tasks"]["succeeded"].as_u64().unwrap();
    assert!((1..4).contains(&done), "some of it was done: {result}");
    fs::remove_dir(&broken).unwrap();
    assert_eq!(figures(&run(&cluster, "second", &job)), (done, 4 - done));
    assert_eq!(output(&cluster, "second").into_values().collect::<Vec<_>>(), [b"a", b"b", b"c", b"d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_no_file_is_done_each_time() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "a.txt", "a");
    let job = job("[command]\nargv = ['true']\n", "");
    for id in ["first", "second"] {
        assert_eq!(figures(&run(&cluster, id, &job)), (0, 1));
    }
    assert!(results(&cluster).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn results_give_way_to_the_quota_and_to_collections() {
    let cluster = Cluster::start().await;
    cluster.s3.put("data", "a.txt", "word ".repeat(2_000));
    let words = job("[mapreduce]\nmap = 'word-count'\npartitions = 1\n", "");
    run(&cluster, "first", &words);
    cluster.s3.put("data", "b.txt", "word ".repeat(2_000));
    run(&cluster, "second", &words);
    assert_eq!(results(&cluster).len(), 2);
    let collected = cluster.forebay(["dataset", "gc", "--keep-last", "1", "--json"]).json(0);
    assert_eq!(collected["results"], serde_json::json!(["first"]), "{collected}");
    assert_eq!(results(&cluster).len(), 1);
    // Both snapshots fit, and a third, but not with what is kept of the runs.
    cluster.forebay(["volume", "set", "--quota", "30100"]).code(0);
    cluster.s3.put("data", "c.txt", "word ".repeat(2_000));
    cluster.forebay(["dataset", "stage", "s3://data", "--name", "data"]).code(0);
    assert!(results(&cluster).is_empty());
    cluster.forebay(["volume", "set", "--quota", "none"]).code(0);
    assert_eq!(figures(&run(&cluster, "third", &words)).0, 0, "what is gone is made again");
}

/// What a run with reuse makes, and how much of it itself, against runs that do everything.
#[tokio::test(flavor = "multi_thread")]
async fn over_random_edits_all_is_as_if_done_anew_and_only_what_changed_is_done() {
    let mut random = fastrand::Rng::with_seed(seed());
    let (cluster, mut objects) = (Cluster::start().await, BTreeMap::<String, String>::new());
    let words = "[mapreduce]\nmap = 'word-count'\npartitions = 3\n";
    // Of the last two runs all is kept, which is of every object that was there.
    let mut seen: Vec<BTreeSet<(String, String)>> = Vec::new();
    for step in 0..7 {
        for _ in 0..random.usize(..=3) {
            edit(&cluster, &mut objects, &mut random);
        }
        if objects.is_empty() {
            edit(&cluster, &mut objects, &mut random);
        }
        let now: BTreeSet<_> = objects.clone().into_iter().collect();
        let new = now.iter().filter(|object| !seen.iter().any(|seen| seen.contains(object))).count() as u64;
        for (kind, work) in [("command", WORK), ("words", words)] {
            let (id, anew) = (format!("{kind}-{step}"), format!("{kind}-{step}-anew"));
            let result = run(&cluster, &id, &job(work, ""));
            run(&cluster, &anew, &job(work, "reuse = 'off'"));
            assert_eq!(output(&cluster, &id), output(&cluster, &anew), "{objects:?}");
            let (reused, attempts) = figures(&result);
            let total = result["tasks"]["total"].as_u64().unwrap();
            assert_eq!(reused + attempts, total, "{result}");
            let reduces = match kind {
                "command" => 0,
                _ if seen.last() == Some(&now) => 0,
                _ => attempts.saturating_sub(new).min(3),
            };
            assert_eq!(attempts, new + reduces, "{kind}: {result}, {objects:?} after {seen:?}");
        }
        seen.push(now);
        seen = seen.split_off(seen.len().saturating_sub(2));
    }
}

/// Adds, changes, deletes or renames an object.
fn edit(cluster: &Cluster, objects: &mut BTreeMap<String, String>, random: &mut fastrand::Rng) {
    let some = |objects: &BTreeMap<String, String>, random: &mut fastrand::Rng| {
        let keys: Vec<_> = objects.keys().cloned().collect();
        random.choice(keys)
    };
    let text = format!("{} and {}\n", random.usize(..4), random.usize(..4));
    let fresh = format!("{}.txt", random.usize(..9));
    match (random.usize(..4), some(objects, random)) {
        (0, Some(key)) => {
            cluster.s3.remove("data", &key);
            objects.remove(&key);
        }
        (1, Some(key)) => {
            let text = objects.remove(&key).unwrap();
            cluster.s3.remove("data", &key);
            cluster.s3.put("data", &fresh, text.clone());
            objects.insert(fresh, text);
        }
        (2, Some(key)) => {
            cluster.s3.put("data", &key, text.clone());
            objects.insert(key, text);
        }
        _ => {
            cluster.s3.put("data", &fresh, text.clone());
            objects.insert(fresh, text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_by_splits_is_done_again_where_its_table_changed() {
    let cluster = Cluster::start().await;
    let month = |n: usize| format!("carrier,delay\nUA,{n}\nAA,{}\n", 2 * n);
    for n in 1..=6 {
        cluster.s3.put("data", &format!("{n}.csv"), month(n));
    }
    let query =
        "[sql]\nengine = 'splits'\nquery = 'select carrier, sum(delay) as sum from data group by 1 order by 1'\n";
    let job = |rest: &str| format!("{}[output]\nformat = 'csv'\n", job(query, rest));
    assert_eq!(figures(&run(&cluster, "first", &job(""))), (0, 7));
    cluster.s3.put("data", "0.csv", month(100));
    let result = run(&cluster, "second", &job(""));
    assert_eq!(figures(&result), (6, 2), "the new one, and all put together: {result}");
    let sums = |id: &str| String::from_utf8(output(&cluster, id)["part-00000.csv"].clone()).unwrap();
    assert_eq!(sums("second"), "carrier,sum\nAA,242\nUA,121\n");
    // A file that makes the column another one's type makes every task another.
    cluster.s3.put("data", "7.csv", "carrier,delay\nUA,0.5\n");
    assert_eq!(figures(&run(&cluster, "third", &job(""))), (0, 9));
    assert_eq!(sums("third"), "carrier,sum\nAA,242.0\nUA,121.5\n");
}
