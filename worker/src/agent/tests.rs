//! The worker against a coordinator of the tests' own: real TLS, real programs, a real volume.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::Path,
};

use forebay_datasets::{
    output,
    split::{Part, Piece, Split},
};
use forebay_jobs::{
    id::{Epoch, TaskId},
    link::{Link, LinkServer},
    plan::Plan,
    spec::{JobSpec, parse},
    task::{Failure, OutputFile, TaskInput, TaskSpec},
    wire::{Assignment, CancelReply, CancelRequest, LinkFile, SERVER_NAME},
};
use futures::{StreamExt, stream::BoxStream};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Request, Response, Streaming,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

use super::*;
use crate::logs::{self, Content};

mod native;

const TOKEN: &str = "a-token";

/// Answers a worker's streams, each with what the test sends, and shows the test what the worker says.
/// Of the streams to come; a worker that comes when there are none is turned away.
type Answers = Arc<Mutex<VecDeque<mpsc::UnboundedReceiver<ToWorker>>>>;

struct Coordinator {
    said: mpsc::UnboundedSender<FromWorker>,
    answers: Answers,
}

impl Link for Coordinator {
    type ToWorker = BoxStream<'static, Result<ToWorker, Status>>;

    fn authorize(&self, headers: &http::HeaderMap, _: &http::Extensions) -> Result<(), Status> {
        match headers.get("authorization").is_some_and(|shown| shown == &format!("Bearer {TOKEN}")) {
            true => Ok(()),
            false => Err(Status::unauthenticated("the token is wrong")),
        }
    }

    async fn work(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::ToWorker>, Status> {
        let (said, mut messages) = (self.said.clone(), request.into_inner());
        let mut answers = self.answers.lock().unwrap().pop_front().ok_or_else(|| Status::unavailable("nobody"))?;
        let (done, mut ended) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                if message != FromWorker::Heartbeat {
                    let _ = said.send(message);
                }
            }
            drop(done);
        });
        // The stream ends with the test's sender, or after the worker's own.
        let stream = futures::stream::poll_fn(move |context| match answers.poll_recv(context) {
            std::task::Poll::Pending => std::pin::Pin::new(&mut ended).poll(context).map(|_| None),
            answer => answer.map(|answer| answer.map(Ok)),
        });
        Ok(Response::new(stream.boxed()))
    }

    async fn cancel(&self, _: Request<CancelRequest>) -> Result<Response<CancelReply>, Status> {
        Ok(Response::new(CancelReply {}))
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    volume: Volume,
    server: JoinHandle<()>,
    answers: Option<mpsc::UnboundedSender<ToWorker>>,
    streams: Answers,
    said: mpsc::UnboundedReceiver<FromWorker>,
    tell: mpsc::Sender<()>,
    worker: JoinHandle<Result<(), WorkerError>>,
}

impl Fixture {
    /// A worker of two slots that has said hello, and was welcomed to a job with this kind of work.
    async fn start(kind: &str) -> Self {
        Self::start_with_token(kind, TOKEN).await
    }

    async fn start_with_token(kind: &str, token: &str) -> Self {
        Self::start_until(kind, token, None).await
    }

    async fn start_until(kind: &str, token: &str, until: Option<SystemTime>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(&dir.path().join("volume")).unwrap();
        let run_dir = volume.run_dir("r");
        for dir in ["files", "attempts", "slots", "reports", "checkpoints", "logs"] {
            fs::create_dir_all(run_dir.join(dir)).unwrap();
        }
        fs::create_dir_all(run_dir.join("epochs/1")).unwrap();
        fs::write(run_dir.join("files/tool.sh"), "#!/bin/sh\necho shipped \"$@\"\n").unwrap();
        make_executable(&run_dir.join("files/tool.sh"));
        Plan {
            snapshot: Some("5nap".into()),
            listing: None,
            data: "datasets/d/snapshots/5nap/data".into(),
            splits: vec![],
            partitions: None,
            table: None,
        }
        .write(&run_dir.join("plan.ndjson"))
        .unwrap();

        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([SERVER_NAME.to_owned()]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = LinkFile {
            version: LinkFile::VERSION,
            epoch: Epoch(1),
            addresses: vec![format!("https://{}", listener.local_addr().unwrap())],
            mail: false,
            certificate: cert.pem(),
            token: token.into(),
            cluster: None,
        };
        fs::write(run_dir.join("epochs/1/link.json"), serde_json::to_vec(&link).unwrap()).unwrap();
        let (said, heard) = mpsc::unbounded_channel();
        let (answers, to_worker) = mpsc::unbounded_channel();
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(cert.pem(), signing_key.serialize_pem()));
        let streams = Answers::new(Mutex::new([to_worker].into()));
        let service = LinkServer::new(Coordinator { said, answers: Arc::clone(&streams) });
        let serve = Server::builder().tls_config(tls).unwrap().add_service(service);
        let serve = serve.serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(async move { serve.await.unwrap() });

        let config = WorkerConfig {
            volume_root: dir.path().join("volume"),
            run: "r".parse().unwrap(),
            worker: "w".parse().unwrap(),
            slots: Some(2),
            until,
            pretend: false,
        };
        let (tell, told) = mpsc::channel(2);
        let worker = tokio::spawn(run_until(config, native::natives(), told));
        let welcome = ToWorker::Welcome { epoch: Epoch(1), job: Box::new(job(kind, dir.path())) };
        answers.send(welcome).unwrap();
        let mut this = Self { dir, volume, server, answers: Some(answers), streams, said: heard, tell, worker };
        if token == TOKEN {
            let hello = this.hear().await;
            assert!(matches!(&hello, FromWorker::Hello { slots: 2, volume, .. } if volume == this.volume.id()));
        }
        this
    }

    /// A coordinator is there again. What the worker says that it holds.
    async fn come_back(&mut self) -> Vec<u32> {
        let (answers, to_worker) = mpsc::unbounded_channel();
        answers
            .send(ToWorker::Welcome {
                epoch: Epoch(2),
                job: Box::new(job("[command]\nargv = ['true']", self.dir.path())),
            })
            .unwrap();
        self.answers = Some(answers);
        self.streams.lock().unwrap().push_back(to_worker);
        loop {
            if let FromWorker::Hello { holds, .. } = self.hear().await {
                return holds.into_iter().map(|attempt| attempt.task.index).collect();
            }
        }
    }

    /// What the worker has kept in this file of its.
    async fn kept(&self, number: u32) -> Vec<(u32, Outcome)> {
        self.appears(&format!("volume/runs/r/reports/w.{number}.json")).await;
        let reports = kept::read(&self.volume.run_dir("r"), &"w".parse().unwrap(), number).unwrap().unwrap();
        reports.into_iter().map(|report| (report.attempt.task.index, report.outcome)).collect()
    }

    fn send(&self, message: ToWorker) {
        self.answers.as_ref().unwrap().send(message).unwrap();
    }

    fn assign(&self, tasks: impl IntoIterator<Item = (u32, TaskInput)>) {
        let one = |(index, input)| Assignment {
            attempt: attempt(index),
            spec: spec(index, input),
            beside: false,
            rendezvous: None,
        };
        self.send(ToWorker::Assign(tasks.into_iter().map(one).collect()));
    }

    async fn hear(&mut self) -> FromWorker {
        tokio::time::timeout(Duration::from_secs(60), self.said.recv()).await.unwrap().unwrap()
    }

    async fn reports(&mut self, count: usize) -> BTreeMap<u32, Outcome> {
        let mut reports = BTreeMap::new();
        while reports.len() < count {
            if let FromWorker::Reports(batch) = self.hear().await {
                reports.extend(batch.into_iter().map(|report| (report.attempt.task.index, report.outcome)));
            }
        }
        reports
    }

    /// The outputs of the only attempt, checked as a coordinator does; their content by the name that they get.
    async fn done(&mut self) -> BTreeMap<String, String> {
        let outcome = self.reports(1).await.into_values().next().unwrap();
        self.read(&outcome)
    }

    fn read(&self, outcome: &Outcome) -> BTreeMap<String, String> {
        let Outcome::Done { outputs, .. } = outcome else { panic!("{outcome:?}") };
        let read = |file: &OutputFile| {
            let path = self.volume.resolve(&file.path).unwrap();
            output::check(&path, file.size, file.checksum).unwrap();
            (
                file.publish_as.clone().unwrap_or_default(),
                String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned(),
            )
        };
        outputs.iter().map(read).collect()
    }

    /// What the worker ends with once it was told that nothing more will come.
    async fn shut_down(mut self) {
        self.send(ToWorker::Shutdown);
        (&mut self.worker).await.unwrap().unwrap();
    }

    fn attempts(&self) -> Vec<String> {
        let entries = fs::read_dir(self.volume.run_dir("r").join("attempts")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn stage(&self, name: &str, text: &str) -> TaskInput {
        let path = format!("datasets/d/snapshots/5nap/data/{name}");
        let file = self.volume.resolve(&path).unwrap();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        let piece = Piece { key: name.into(), path, size: text.len() as u64, partial: false, part: Part::Whole };
        TaskInput::Split(Split { pieces: vec![piece] })
    }

    /// Takes the first map task's report, and assigns a reduce task over what it made.
    async fn reduce_what_is_mapped(&mut self) {
        let outcome = self.reports(1).await.remove(&0).unwrap();
        let Outcome::Done { outputs, .. } = outcome else { panic!("{outcome:?}") };
        let mut reduce = spec(0, TaskInput::Shuffle(outputs));
        reduce.task.phase = 1;
        let attempt = AttemptId { task: reduce.task, ..attempt(0) };
        self.send(ToWorker::Assign(vec![Assignment { attempt, spec: reduce, beside: false, rendezvous: None }]));
    }

    /// Waits for a file that a program makes. It is another process's, and tells nobody that it is there: so this looks
    /// again and again, and the wait is as long as the program takes.
    async fn appears(&self, name: &str) {
        for _ in 0..3000 {
            if self.dir.path().join(name).exists() {
                return;
            }
            // A program makes it, and tells nobody.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} does not appear");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server.abort();
        self.worker.abort();
    }
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// `@` in the job's text is the test's directory.
fn job(kind: &str, dir: &Path) -> JobSpec {
    let kind = kind.replace('@', &dir.display().to_string());
    let text = format!("name = \"t\"\n[dataset]\nsource = \"file:///d\"\nname = \"d\"\n{kind}");
    parse::job_file(&text, dir, &[]).unwrap()
}

fn attempt(index: u32) -> AttemptId {
    AttemptId { task: TaskId { phase: 0, index }, number: 1, epoch: Epoch(1) }
}

fn spec(index: u32, input: TaskInput) -> TaskSpec {
    TaskSpec { task: TaskId { phase: 0, index }, count: 9, input }
}

fn nothing() -> TaskInput {
    TaskInput::Split(Split::default())
}

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
