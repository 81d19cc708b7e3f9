//! What is compiled into the worker's program: its failures are the attempt's.

use forebay_jobs::{Column, Emit, Job, Map, Record, Reduce, Result, Rows, Values};

use super::*;

const JOB: &str = "[mapreduce]\nmap = { native = 'faulty' }\npartitions = 1\n[output]\nformat = 'csv'";

struct Faulty;

impl Map for Faulty {
    fn map(&mut self, record: Record<'_>, out: &mut Emit<'_>) -> Result {
        if let Some(began) = record.text()?.strip_prefix("wait ") {
            fs::write(began, "")?;
            while !out.is_cancelled() {
                std::thread::yield_now();
            }
            return Ok(());
        }
        match record.bytes {
            b"panic" => panic!("it was told to"),
            b"error" => return Err("it was told so".into()),
            line => out.emit(line, 1_u64),
        }
        Ok(())
    }
}

impl Reduce for Faulty {
    fn reduce(&mut self, key: &[u8], values: &mut Values<'_>, out: &mut Rows<'_>) -> Result {
        out.row(&[key.into(), values.of::<u64>().sum::<u64>().into()]);
        Ok(())
    }
}

pub(super) fn natives() -> Natives {
    let columns = [Column::text("line"), Column::uint("count")];
    Natives::new([Job::named("faulty").map(|_| Ok(Faulty)).reduce(columns, |_| Ok(Faulty))]).unwrap()
}

#[tokio::test]
async fn a_panic_or_an_error_fails_its_attempt_alone() {
    let mut this = Fixture::start(JOB).await;
    let texts = ["fine\npanic\n", "fine\nfine\nerror\n"];
    this.assign([(1, this.stage("a.txt", texts[0])), (2, this.stage("b.txt", texts[1]))]);
    let failed = |message: &str| {
        let message = format!("the map of `faulty` failed at byte {message}");
        Outcome::Failed(Failure::Error { message, retryable: true })
    };
    let expected = [failed("5 of `a.txt`: it panicked: it was told to"), failed("10 of `b.txt`: it was told so")];
    assert_eq!(this.reports(2).await.into_values().collect::<Vec<_>>(), expected);
    assert!(this.attempts().is_empty(), "what they made is gone");
    // The worker goes on.
    this.assign([(0, this.stage("c.txt", "b\na\nb\n"))]);
    this.reduce_what_is_mapped().await;
    assert_eq!(this.done().await["part-00000.csv"], "line,count\na,1\nb,2\n");
    this.shut_down().await;
}

#[tokio::test]
async fn a_map_that_asks_whether_it_is_to_end_gives_back_when_its_worker_drains_and_is_cancelled_when_it_is_killed() {
    for drains in [true, false] {
        let mut this = Fixture::start(JOB).await;
        // The map is in its last record.
        this.assign([(0, this.stage("a.txt", &format!("wait {}\n", this.dir.path().join("began").display())))]);
        this.appears("began").await;
        if drains {
            this.tell.send(()).await.unwrap();
            assert_eq!(this.reports(1).await[&0], Outcome::GivenBack);
        } else {
            this.send(ToWorker::Kill(vec![attempt(0)]));
            assert_eq!(this.reports(1).await[&0], Outcome::Failed(Failure::Cancelled));
            this.shut_down().await;
        }
    }
}
