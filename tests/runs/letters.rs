//! Runs whose workers and coordinator leave each other letters on the volume.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use rustix::process::Signal;

use super::adoption::{Fixture, TASKS};
use crate::support::{Cluster, copies, eventually, processes::kill, published};

/// What a job of two workers publishes, by this link.
async fn words(cluster: &Cluster, link: &str) -> std::collections::BTreeMap<String, Vec<u8>> {
    let text = format!(
        "name = 'words'\nreuse = 'off'\n[dataset]\nsource = 's3://data'\n[mapreduce]\nmap = 'word-count'\npartitions = 3\n\
         [split]\nsize = '64KiB'\n[workers]\ncount = 2\nslots = 2\nlink = '{link}'\n[output]\nformat = 'csv'\n"
    );
    let job = cluster.file(&format!("{link}.toml"), &text);
    let result = cluster.forebay(["run", &job, "--id", link, "--json"]).json(0);
    assert_eq!((&result["state"], &result["workers"]), (&"succeeded".into(), &2.into()), "{result}");
    published(&cluster.run_dir(link).join("output"))
}

fn link_dir(fixture: &Fixture) -> PathBuf {
    fixture.cluster.run_dir("r").join("epochs/1/link")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_by_letter_gives_the_same_output_byte_for_byte_and_leaves_no_letter() {
    let cluster = Cluster::start().await;
    for n in 0..6 {
        let line = format!("some words of file {n} and some of all\n");
        cluster.s3.put("data", &format!("{n}.txt"), line.repeat(4000));
    }
    let by_letter = words(&cluster, "files").await;
    assert!(!by_letter.is_empty() && by_letter == words(&cluster, "tcp").await);
    // Each coordinator has given its lease back.
    let epochs = cluster.run_dir("files").join("epochs");
    assert!(epochs.join("1.sealed").exists() && !epochs.join("1.sealed/link").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tasks_of_a_killed_worker_are_done_by_others() {
    let fixture = Fixture::new("link = 'files'").await;
    let (running, workers) = fixture.at_work();
    let mode = fs::metadata(link_dir(&fixture).parent().unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "nobody else reads or writes letters");
    kill(&workers[..1]);
    eventually("its tasks are begun by another", || fixture.marks("begun").len() == TASKS + 2);
    fixture.go();
    let result = running.outcome().json(0);
    assert_eq!((&result["tasks"]["succeeded"], &result["tasks"]["failed"]), (&TASKS.into(), &0.into()));
    assert_eq!(published(&fixture.cluster.run_dir("r").join("output")), copies(TASKS));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_by_letter_is_cancelled_through_its_coordinator() {
    let fixture = Fixture::new("link = 'files'").await;
    let (running, _) = fixture.at_work();
    fixture.cluster.forebay(["cancel", "r"]).code(0);
    running.outcome().code(1);
    assert_eq!(fixture.marks("done").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_among_the_letters_is_turned_away_and_a_letter_that_is_lost_costs_nothing() {
    let fixture = Fixture::new("link = 'files'").await;
    let (running, workers) = fixture.at_work();
    let link = link_dir(&fixture);
    // Workers that are stopped take no letter, and write none.
    let signal = |signal| workers.iter().for_each(|worker| rustix::process::kill_process(*worker, signal).unwrap());
    signal(Signal::STOP);
    let garbage = ["0123456789abcdef.1", "0123456789abcdef.7", "core", "x.1", "huge.1"];
    for name in garbage {
        fs::write(link.join("up").join(name), "{\"said\":\"heartbeat\"}").unwrap();
    }
    // It takes no room, and is longer than any letter.
    fs::OpenOptions::new().write(true).open(link.join("up/huge.1")).and_then(|huge| huge.set_len(8 << 30)).unwrap();
    eventually("garbage goes", || !garbage.iter().any(|name| link.join("up").join(name).exists()));
    // In the place of letters to the workers.
    for mailbox in fs::read_dir(link.join("down")).unwrap() {
        let mailbox = mailbox.unwrap();
        let name = mailbox.file_name().into_string().unwrap();
        for number in 1..64 {
            fs::write(mailbox.path().join(format!("{name}.{number}")), "torn").unwrap();
        }
    }
    signal(Signal::CONT);
    fixture.go();
    let outcome = running.outcome();
    assert!(outcome.stderr.contains("turned away from the run's link"), "{}", outcome.stderr);
    assert!(outcome.stderr.lines().count() < 20, "{}", outcome.stderr);
    fixture.check(&outcome.json(0));
}
