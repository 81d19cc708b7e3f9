//! The worker against a coordinator of the tests' own: real TLS, real programs, a real volume.

mod fixture;
mod native;

use std::{fs, path::Path};

use forebay_datasets::split::Part;
use forebay_jobs::task::{Failure, Outcome, TaskInput};

use self::fixture::{Fixture, TOKEN, attempt, nothing};
use super::*;
use crate::logs::{self, Content};

#[tokio::test]
async fn a_command_gets_its_input_and_its_files_and_leaves_its_output() {
    let text = "[command]\nshell = 'cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/copy; cat; \
        echo to the log; test -d $FOREBAY_CHECKPOINT_DIR; echo $FOREBAY_TASK_INDEX $FOREBAY_DATASET_DIR > \
        $FOREBAY_OUTPUT_DIR/told'";
    let mut this = Fixture::start(text).await;
    this.assign([(3, this.stage("a.txt", "hello\n"))]);
    assert_eq!(this.hear().await, FromWorker::Started(vec![attempt(3)]));
    let files = this.done().await;
    assert_eq!(files["task-00003/copy"], "hello\n");
    let dataset = this.volume.root().join("datasets/d/snapshots/5nap/data");
    assert_eq!(files["task-00003/told"], format!("3 {}\n", dataset.display()));
    // Its working directory is empty again, its output stays.
    assert_eq!(fs::read_dir(this.volume.run_dir("r").join("slots/w.0/work")).unwrap().count(), 0);
    let mut printed = Vec::new();
    let take = |entry: logs::Entry<'_>| {
        if let Content::Bytes(bytes) = entry.content {
            printed.extend_from_slice(bytes);
        }
        Ok(())
    };
    logs::read(&this.volume.run_dir("r"), Some(attempt(3).task), take).unwrap();
    assert_eq!(printed, b"to the log\n");
    this.shut_down().await;
}

#[tokio::test]
async fn shipped_files_are_the_working_directory_and_an_attempts_own() {
    // Only the files that the job names are there.
    let text = "[command]\nargv = ['./tool.sh', 'one', 'two words']\nfiles = ['@/tool.sh']";
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tool.sh"), "").unwrap();
    let text = text.replace('@', &dir.path().display().to_string());
    let mut this = Fixture::start(&text).await;
    this.assign([(0, nothing())]);
    assert!(this.done().await.is_empty());
    let mut printed = Vec::new();
    let take = |entry: logs::Entry<'_>| {
        if let Content::Bytes(bytes) = entry.content {
            printed.extend_from_slice(bytes);
        }
        Ok(())
    };
    logs::read(&this.volume.run_dir("r"), None, take).unwrap();
    assert_eq!(String::from_utf8(printed).unwrap(), "shipped one two words\n");
    this.shut_down().await;
}

#[tokio::test]
async fn exit_codes_signals_and_missing_programs_are_told_apart() {
    let text =
        "[command]\nshell = '''case $FOREBAY_TASK_INDEX in 0) exit 75;; 1) echo why >&2; exit 4;; 2) kill -9 $$;;
        3) ln -s /etc $FOREBAY_OUTPUT_DIR/l;; esac'''";
    let mut this = Fixture::start(text).await;
    this.assign((0..4).map(|index| (index, nothing())));
    let reports = this.reports(4).await;
    assert_eq!(reports[&0], Outcome::GivenBack);
    assert_eq!(reports[&1], Outcome::Failed(Failure::ExitCode { code: 4, stderr: "why".into() }));
    assert_eq!(reports[&2], Outcome::Failed(Failure::Signal { signal: 9, stderr: String::new() }));
    let Outcome::Failed(Failure::Error { message, .. }) = &reports[&3] else { panic!("{:?}", reports[&3]) };
    assert!(message.contains("neither a file nor a directory"), "{message}");
    assert_eq!(this.attempts(), [""; 0], "what failed leaves nothing");
    this.shut_down().await;

    let mut this = Fixture::start("[command]\nargv = ['no-such-program']").await;
    this.assign([(0, nothing())]);
    let expected = Failure::Error {
        message: "cannot start `no-such-program`: No such file or directory (os error 2)".into(),
        retryable: false,
    };
    assert_eq!(this.reports(1).await[&0], Outcome::Failed(expected));
    this.shut_down().await;
}

#[tokio::test]
async fn slots_are_filled_in_order_and_what_is_killed_is_reported() {
    let mut this = Fixture::start("[command]\nshell = 'touch @/$FOREBAY_TASK_INDEX; exec sleep 1000'").await;
    this.assign((0..4).map(|index| (index, nothing())));
    // A second time changes nothing.
    this.assign([(0, nothing()), (3, nothing())]);
    assert_eq!(this.hear().await, FromWorker::Started(vec![attempt(0), attempt(1)]));
    this.appears("0").await;
    this.send(ToWorker::Kill(vec![attempt(0), attempt(3)]));
    let cancelled = Outcome::Failed(Failure::Cancelled);
    assert_eq!(this.reports(1).await, BTreeMap::from([(3, cancelled.clone())]));
    assert_eq!(this.reports(1).await, BTreeMap::from([(0, cancelled)]));
    assert_eq!(this.hear().await, FromWorker::Started(vec![attempt(2)]));
    this.shut_down().await;
}

#[tokio::test]
async fn a_time_out_ends_a_program() {
    let mut this = Fixture::start("[command]\nargv = ['sleep', '1000']\n[retry]\ntimeout = '1s'").await;
    this.assign([(0, nothing())]);
    assert_eq!(this.reports(1).await[&0], Outcome::Failed(Failure::TimedOut { seconds: 1 }));
    this.shut_down().await;
}

#[tokio::test]
async fn told_to_end_a_worker_gives_back_what_is_not_done() {
    let text = "[command]\nshell = 'trap \"exit 0\" TERM; touch @/$FOREBAY_TASK_INDEX; while :; do sleep 0.01; done'";
    let mut this = Fixture::start(text).await;
    this.assign((0..3).map(|index| (index, nothing())));
    this.appears("0").await;
    this.appears("1").await;
    this.tell.send(()).await.unwrap();
    // One that ends well because it was told to end has not done its work.
    let given_back = (0..3).map(|index| (index, Outcome::GivenBack)).collect();
    assert_eq!(this.reports(3).await, given_back);
    (&mut this.worker).await.unwrap().unwrap();
    assert_eq!(this.attempts(), [""; 0]);
}

#[tokio::test]
async fn a_worker_that_is_taken_away_drains_in_time() {
    // Longer than it needs to drain.
    let until = SystemTime::now() + BEFORE_THE_END + Duration::from_secs(2);
    let text = "[command]\nshell = 'echo $FOREBAY_DEADLINE > @/d; mv @/d @/deadline; exec sleep 1000'";
    let mut this = Fixture::start_until(text, TOKEN, Some(until)).await;
    this.assign((0..3).map(|index| (index, nothing())));
    assert_eq!(this.hear().await, FromWorker::Started(vec![attempt(0), attempt(1)]));
    this.appears("deadline").await;
    let deadline: u64 = fs::read_to_string(this.dir.path().join("deadline")).unwrap().trim().parse().unwrap();
    assert_eq!(deadline, until.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
    assert_eq!(this.hear().await, FromWorker::Draining);
    assert_eq!(this.reports(3).await, (0..3).map(|index| (index, Outcome::GivenBack)).collect());
    (&mut this.worker).await.unwrap().unwrap();
    assert!(SystemTime::now() < until);
}

#[tokio::test]
async fn a_worker_that_drains_says_so_to_the_next_coordinator_too() {
    let shell = "trap 'touch @/told; until test -e @/go; do sleep 0.01; done; exit 75' TERM; touch @/up; while :; do sleep 0.01; done";
    let mut this = Fixture::start(&format!("[command]\nshell = \"{shell}\"")).await;
    this.assign([(0, nothing())]);
    this.appears("up").await;
    this.tell.send(()).await.unwrap();
    this.appears("told").await;
    while this.hear().await != FromWorker::Draining {}
    this.answers = None;
    assert_eq!(this.come_back().await, [0]);
    assert_eq!(this.hear().await, FromWorker::Draining);
    fs::write(this.dir.path().join("go"), "").unwrap();
    assert_eq!(this.reports(1).await.into_values().collect::<Vec<_>>(), [Outcome::GivenBack]);
    (&mut this.worker).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_a_coordinator_a_worker_finishes_what_it_holds_and_is_taken_on_by_the_next() {
    let shell = "until test $FOREBAY_TASK_INDEX = 0 || test -e @/$FOREBAY_TASK_INDEX; do sleep 0.01; done";
    let mut this = Fixture::start(&format!("[command]\nshell = '{shell}'")).await;
    this.assign((0..4).map(|index| (index, nothing())));
    // That it was reported, nobody has noted.
    let done = this.reports(1).await.remove(&0).unwrap();
    this.answers = None;
    assert_eq!(this.kept(1).await, [(0, done.clone())]);
    fs::write(this.dir.path().join("1"), "").unwrap();
    let outcomes = this.kept(2).await;
    assert!(matches!(&outcomes[..], [(1, Outcome::Done { .. })]), "{outcomes:?}");
    assert_eq!(this.come_back().await, [0, 1, 2, 3]);
    assert_eq!(this.reports(2).await.into_keys().collect::<Vec<_>>(), [0, 1]);
    // What was queued has been started meanwhile.
    assert_eq!(this.hear().await, FromWorker::Started(vec![attempt(2), attempt(3)]));
    this.send(ToWorker::Noted(vec![attempt(0), attempt(1)]));
    this.send(ToWorker::Kill(vec![attempt(3)]));
    assert_eq!(this.reports(1).await.into_keys().collect::<Vec<_>>(), [3]);
    this.answers = None;
    assert_eq!(this.kept(3).await, [(3, Outcome::Failed(Failure::Cancelled))]);
    assert_eq!(this.come_back().await, [2, 3], "what is noted is not kept for ever");
    this.shut_down().await;
}

#[tokio::test]
async fn a_worker_whose_coordinator_never_comes_back_ends_by_itself_and_leaves_what_it_has_to_report() {
    let text = "[command]\nshell = 'echo $$ > @/p; mv @/p @/pid; exec sleep 1000'\n[workers]\npatience = '1s'";
    let mut this = Fixture::start(text).await;
    this.assign([(0, nothing())]);
    this.appears("pid").await;
    this.answers = None;
    let ended = (&mut this.worker).await.unwrap();
    assert!(matches!(ended, Err(WorkerError::LinkLost { source: None, .. })), "{ended:?}");
    let pid = fs::read_to_string(this.dir.path().join("pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists());
    assert_eq!(this.kept(1).await, [(0, Outcome::GivenBack)]);
}

#[tokio::test]
async fn a_worker_that_is_dropped_takes_its_programs_with_it() {
    let mut this = Fixture::start("[command]\nshell = 'echo $$ > @/p; mv @/p @/pid; exec sleep 1000'").await;
    this.assign([(0, nothing())]);
    this.appears("pid").await;
    this.worker.abort();
    assert!((&mut this.worker).await.unwrap_err().is_cancelled());
    let process = Path::new("/proc").join(fs::read_to_string(this.dir.path().join("pid")).unwrap().trim());
    for _ in 0..1000 {
        if !process.exists() {
            return;
        }
        // Dying takes a moment, and nobody waits for its thread any more.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("its program goes on");
}

#[tokio::test]
async fn a_worker_of_an_engine_waits_for_the_next_coordinator_and_another_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = Volume::open_or_create(dir.path()).unwrap().run_dir("r");
    fs::create_dir_all(run_dir.join("epochs/1.sealed")).unwrap();
    let start = |worker: &str| {
        let (tell, told) = mpsc::channel(2);
        let (volume_root, worker) = (dir.path().to_owned(), worker.parse().unwrap());
        let (run, slots) = ("r".parse().unwrap(), Some(1));
        let config = WorkerConfig { volume_root, run, worker, slots, until: None, pretend: false };
        (tell, tokio::spawn(run_until(config, native::natives(), told)))
    };
    let (_tell, other) = start("w");
    assert!(matches!(other.await.unwrap(), Err(WorkerError::Link(LinkError::None { .. }))));
    // One that took letters, and is no more.
    fs::create_dir(run_dir.join("epochs/2")).unwrap();
    let link = r#"{"version":2,"epoch":2,"addresses":[],"mail":true,"certificate":"","token":"t"}"#;
    fs::write(run_dir.join("epochs/2/link.json"), link).unwrap();
    let (tell, first) = start("ecs-1.00000001");
    let (_tell, second) = start("ecs-2.00000001");
    tell.send(()).await.unwrap();
    first.await.unwrap().unwrap();
    assert!(!second.is_finished());
    fs::write(run_dir.join(kept::RESULT), "{}").unwrap();
    second.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_worker_whose_run_has_ended_without_it_ends() {
    let mut this = Fixture::start("[command]\nargv = ['sleep', '1000']").await;
    this.assign([(0, nothing())]);
    assert_eq!(this.hear().await, FromWorker::Started(vec![attempt(0)]));
    fs::write(this.volume.run_dir("r").join(kept::RESULT), "{}").unwrap();
    this.answers = None;
    (&mut this.worker).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_worker_with_a_wrong_token_is_refused() {
    let mut this = Fixture::start_with_token("[command]\nargv = ['true']", "another").await;
    let error = (&mut this.worker).await.unwrap().unwrap_err();
    assert!(error.to_string().ends_with("refuses this worker: the token is wrong"), "{error}");
}

#[tokio::test]
async fn built_in_map_and_reduce_count_words() {
    let mut this = Fixture::start("[mapreduce]\nmap = 'word-count'\npartitions = 1\n[output]\nformat = 'csv'").await;
    this.assign([(0, this.stage("a.txt", "b a\nb\n"))]);
    this.reduce_what_is_mapped().await;
    assert_eq!(this.done().await["part-00000.csv"], "word,count\na,1\nb,2\n");
    this.shut_down().await;
}

#[tokio::test]
async fn a_map_task_that_is_to_make_way_is_done_with_what_it_has_read_and_says_what_it_has_not() {
    for drains in [false, true] {
        let mut this = Fixture::start("[mapreduce]\nmap = 'word-count'").await;
        // Read by several parts of 4 MiB.
        let line = "so many words\n";
        let text = line.repeat((96 << 20) / line.len());
        let input = this.stage("words", &text);
        let TaskInput::Split(all) = &input else { panic!() };
        this.assign([(0, input.clone())]);
        if drains {
            while this.hear().await != FromWorker::Started(vec![attempt(0)]) {}
            this.tell.send(()).await.unwrap();
        } else {
            this.send(ToWorker::Yield(vec![attempt(0), attempt(7)]));
        }
        let Outcome::Done { outputs, metrics, rest } = this.reports(1).await.remove(&0).unwrap() else { panic!() };
        let rest = rest.unwrap();
        assert!(all.has_tail(&rest), "{rest:?}");
        let Part::Bytes { offset, length } = rest.pieces[0].part else { panic!("{rest:?}") };
        assert_eq!((offset % (4 << 20), offset + length), (0, text.len() as u64));
        // The record in which the part ends is read to its end.
        let read = offset.div_ceil(line.len() as u64) * 3;
        assert_eq!((metrics["words"], outputs.len()), (read as f64, 1));
        if !drains {
            this.shut_down().await;
        }
    }
}

#[tokio::test]
async fn map_and_reduce_programs_read_and_write_lines() {
    let text = "[mapreduce]\nmap = ['sed', 's/ /\\t/']\nreduce = ['cut', '-f', '2']\npartitions = 1";
    let mut this = Fixture::start(&text.replace("\\t", "\\\\t").replace('\'', "\"")).await;
    this.assign([(0, this.stage("a.txt", "b 1\na 2\n"))]);
    this.reduce_what_is_mapped().await;
    assert_eq!(this.done().await["part-00000.txt"], "2\n1\n");
    this.shut_down().await;
}

#[tokio::test]
async fn a_query_takes_the_whole_worker() {
    let text = "[sql]\nquery = 'SELECT sum(x) AS x FROM d'\ntables = { d = '*.csv' }\n[output]\nformat = 'csv'";
    let mut this = Fixture::start(text).await;
    this.assign([(0, this.stage("a.csv", "x\n1\n2\n"))]);
    assert_eq!(this.done().await["part-00000.csv"], "x\n3\n");
    this.shut_down().await;
}
