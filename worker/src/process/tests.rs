//! Real programs, as they come.

use std::{fs, io::Write, path::Path, sync::Arc, time::Instant};

use forebay_jobs::id::{AttemptId, Epoch, TaskId};

use super::*;
use crate::logs::{self, Content, HEAD, Logs, Stream, TAIL};

type NoFeed = fn(io::PipeWriter);
type NoTake = fn(Output);

struct Bench {
    dir: tempfile::TempDir,
    logs: Arc<Logs>,
    mark: String,
}

impl Bench {
    fn new() -> Self {
        become_subreaper();
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::create(&dir.path().join("logs"), &"w".parse().unwrap()).unwrap();
        let mark = format!("MARK={}", dir.path().display());
        Self { dir, logs, mark }
    }

    fn shell(&self, text: &str) -> Command {
        let (name, value) = self.mark.split_once('=').unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", text]).current_dir(self.dir.path()).env(name, value);
        command
    }

    fn streams<F, T>(&self, feed: Option<F>, take: Option<T>) -> Streams<F, T> {
        let attempt = AttemptId { task: TaskId { phase: 0, index: 0 }, number: 1, epoch: Epoch(1) };
        let sink = |stream| self.logs.sink(attempt, stream);
        Streams {
            slots: 1,
            feed,
            fed_in_vain: CancellationToken::new(),
            take,
            stdout: sink(Stream::Stdout),
            stderr: sink(Stream::Stderr),
        }
    }

    async fn run(&self, text: &str, stop: &Stop) -> Ended<(), ()> {
        let streams = self.streams(None::<NoFeed>, None::<NoTake>);
        let (command, mark, stop) = (self.shell(text), self.mark.clone(), stop.clone());
        let run = move || run(command, &mark, streams, &stop, None);
        tokio::task::spawn_blocking(run).await.unwrap().unwrap()
    }

    fn printed(&self) -> (u64, u64) {
        let (mut kept, mut dropped) = (0, 0);
        let take = |entry: logs::Entry<'_>| {
            match entry.content {
                Content::Bytes(bytes) => kept += bytes.len() as u64,
                Content::Dropped(bytes) => dropped += bytes,
            }
            Ok(())
        };
        logs::read(self.dir.path(), None, take).unwrap();
        (kept, dropped)
    }
}

fn is_running(pid_file: &Path) -> bool {
    let pid = fs::read_to_string(pid_file).unwrap();
    fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits for a file that a program makes; ten seconds at most. It is another process's, and tells nobody that it is
/// there: so this looks again and again.
async fn appears(path: &Path) {
    for _ in 0..1000 {
        if path.exists() {
            return;
        }
        // A program makes it, and tells nobody.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} does not appear", path.display());
}

#[tokio::test]
async fn a_gibibyte_on_standard_output_costs_nine_mebibytes_of_log() {
    let bench = Bench::new();
    let ended = bench.run("head -c 1073741824 /dev/zero; echo done >&2", &Stop::default()).await;
    assert!(ended.status.success());
    assert_eq!(ended.stderr, "done");
    let (kept, dropped) = bench.printed();
    assert_eq!((kept, kept + dropped), (HEAD + TAIL as u64 + 5, (1 << 30) + 5));
    assert!(fs::metadata(bench.dir.path().join("logs/w.log")).unwrap().len() < 10 << 20);
}

#[tokio::test]
async fn an_exit_code_and_a_signal_are_told_with_the_last_words() {
    let bench = Bench::new();
    let ended = bench.run("echo no such luck >&2; exit 3", &Stop::default()).await;
    assert_eq!((ended.status.code(), &*ended.stderr), (Some(3), "no such luck"));
    let ended = bench.run("kill -SEGV $$", &Stop::default()).await;
    assert_eq!(ended.status.signal(), Some(11));
}

#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_it() {
    let bench = Bench::new();
    let started = Instant::now();
    // One stays in the group, one leaves it; both hold standard output.
    let text = "sh -c 'echo $$ > stays; exec sleep 1000' & setsid sh -c 'echo $$ > leaves; sleep 1000; true' &
        while ! [ -s stays ] || ! [ -s leaves ]; do :; done";
    assert!(bench.run(text, &Stop::default()).await.status.success());
    assert!(started.elapsed() < STREAMS);
    for name in ["stays", "leaves"] {
        assert!(!is_running(&bench.dir.path().join(name)), "{name}");
    }
}

#[tokio::test]
async fn what_may_be_left_of_a_program_is_told() {
    let bench = Bench::new();
    // Without an environment nothing tells whose it is.
    let text = "env -i setsid sh -c 'echo $$ > leaves; exec sleep 1000' >/dev/null 2>&1 &
        while ! [ -s leaves ]; do :; done";
    assert!(!bench.run(text, &Stop::default()).await.whole);
    let leaves = bench.dir.path().join("leaves");
    assert!(is_running(&leaves));
    let pid = fs::read_to_string(leaves).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test]
async fn sigterm_comes_first_and_lets_a_program_end_by_itself() {
    let bench = Bench::new();
    let stop = Stop::default();
    let text = "trap 'exit 75' TERM; touch ready; while :; do sleep 0.01; done";
    let ready = bench.dir.path().join("ready");
    let order = async {
        appears(&ready).await;
        stop.order(Why::Drain);
    };
    let (ended, ()) = tokio::join!(bench.run(text, &stop), order);
    assert_eq!(ended.status.code(), Some(75));
}

#[tokio::test]
async fn who_ignores_sigterm_is_killed_after_the_grace() {
    let bench = Bench::new();
    let stop = Stop::default();
    let ready = bench.dir.path().join("ready");
    let order = async {
        appears(&ready).await;
        stop.order(Why::TimedOut);
    };
    let started = Instant::now();
    let run = bench.run("trap '' TERM; touch ready; while :; do sleep 0.01; done", &stop);
    let (ended, ()) = tokio::join!(run, order);
    assert_eq!(ended.status.signal(), Some(9));
    assert!(started.elapsed() >= GRACE);
}

#[tokio::test]
async fn an_abort_cuts_the_grace_short() {
    let bench = Bench::new();
    let stop = Stop::default();
    let ready = bench.dir.path().join("ready");
    let order = async {
        appears(&ready).await;
        stop.order(Why::Cancelled);
        stop.order(Why::Abort);
    };
    let started = Instant::now();
    let run = bench.run("trap '' TERM; touch ready; while :; do sleep 0.01; done", &stop);
    let (ended, ()) = tokio::join!(run, order);
    assert_eq!(ended.status.signal(), Some(9));
    assert!(started.elapsed() < GRACE);
}

#[test]
fn input_is_fed_and_output_is_taken() {
    let bench = Bench::new();
    // More than a pipe holds.
    let text = vec![b'x'; 3 * WIDEST];
    let feed = |text: Vec<u8>| move |mut pipe: io::PipeWriter| pipe.write_all(&text);
    let take = |mut output: Output| {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).map(|_| bytes.len())
    };
    let streams = bench.streams(Some(feed(text.clone())), Some(take));
    let ended = run(bench.shell("cat"), &bench.mark, streams, &Stop::default(), None).unwrap();
    assert!(ended.fed.unwrap().is_ok());
    assert_eq!(ended.taken.unwrap().unwrap(), text.len());
    // One that does not read to the end breaks the pipe.
    let streams = bench.streams(Some(feed(text)), None::<NoTake>);
    let ended = run(bench.shell("exit 0"), &bench.mark, streams, &Stop::default(), None).unwrap();
    assert_eq!(ended.fed.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert!(ended.status.success());
}

#[test]
fn a_program_that_is_not_there_is_no_reason_to_try_again() {
    let bench = Bench::new();
    let streams = || bench.streams(None::<NoFeed>, None::<NoTake>);
    let stop = Stop::default();
    let start = |program: String| run(Command::new(program), &bench.mark, streams(), &stop, None);
    let error = start("no-such-program".into()).unwrap_err();
    assert_eq!(error.to_string(), "cannot start `no-such-program`");
    assert!(!error.is_retryable());
    let file = bench.dir.path().join("file");
    fs::write(&file, "no program").unwrap();
    assert!(!start(file.display().to_string()).unwrap_err().is_retryable());
}
