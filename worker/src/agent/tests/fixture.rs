//! A coordinator of the tests' own, and a worker that has joined it.

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
    kept,
    link::{Link, LinkServer},
    plan::Plan,
    spec::{JobSpec, parse},
    task::{Outcome, OutputFile, TaskInput, TaskSpec},
    wire::{Assignment, CancelReply, CancelRequest, LinkFile, SERVER_NAME},
};
use futures::{StreamExt, stream::BoxStream};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Request, Response, Streaming,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

use super::{super::*, native};

pub(super) const TOKEN: &str = "a-token";

/// Of the streams to come; a worker that comes when there are none is turned away.
type Answers = Arc<Mutex<VecDeque<mpsc::UnboundedReceiver<ToWorker>>>>;

/// Answers a worker's streams, each with what the test sends, and shows the test what the worker says.
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

pub(super) struct Fixture {
    pub(super) dir: tempfile::TempDir,
    pub(super) volume: Volume,
    pub(super) server: JoinHandle<()>,
    pub(super) answers: Option<mpsc::UnboundedSender<ToWorker>>,
    pub(super) streams: Answers,
    pub(super) said: mpsc::UnboundedReceiver<FromWorker>,
    pub(super) tell: mpsc::Sender<()>,
    pub(super) worker: JoinHandle<Result<(), WorkerError>>,
}

impl Fixture {
    /// A worker of two slots that has said hello, and was welcomed to a job with this kind of work.
    pub(super) async fn start(kind: &str) -> Self {
        Self::start_with_token(kind, TOKEN).await
    }

    pub(super) async fn start_with_token(kind: &str, token: &str) -> Self {
        Self::start_until(kind, token, None).await
    }

    pub(super) async fn start_until(kind: &str, token: &str, until: Option<SystemTime>) -> Self {
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
    pub(super) async fn come_back(&mut self) -> Vec<u32> {
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
    pub(super) async fn kept(&self, number: u32) -> Vec<(u32, Outcome)> {
        self.appears(&format!("volume/runs/r/reports/w.{number}.json")).await;
        let reports = kept::read(&self.volume.run_dir("r"), &"w".parse().unwrap(), number).unwrap().unwrap();
        reports.into_iter().map(|report| (report.attempt.task.index, report.outcome)).collect()
    }

    pub(super) fn send(&self, message: ToWorker) {
        self.answers.as_ref().unwrap().send(message).unwrap();
    }

    pub(super) fn assign(&self, tasks: impl IntoIterator<Item = (u32, TaskInput)>) {
        let one = |(index, input)| Assignment {
            attempt: attempt(index),
            spec: spec(index, input),
            beside: false,
            rendezvous: None,
        };
        self.send(ToWorker::Assign(tasks.into_iter().map(one).collect()));
    }

    pub(super) async fn hear(&mut self) -> FromWorker {
        tokio::time::timeout(Duration::from_secs(60), self.said.recv()).await.unwrap().unwrap()
    }

    pub(super) async fn reports(&mut self, count: usize) -> BTreeMap<u32, Outcome> {
        let mut reports = BTreeMap::new();
        while reports.len() < count {
            if let FromWorker::Reports(batch) = self.hear().await {
                reports.extend(batch.into_iter().map(|report| (report.attempt.task.index, report.outcome)));
            }
        }
        reports
    }

    /// The outputs of the only attempt, checked as a coordinator does; their content by the name that they get.
    pub(super) async fn done(&mut self) -> BTreeMap<String, String> {
        let outcome = self.reports(1).await.into_values().next().unwrap();
        self.read(&outcome)
    }

    pub(super) fn read(&self, outcome: &Outcome) -> BTreeMap<String, String> {
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
    pub(super) async fn shut_down(mut self) {
        self.send(ToWorker::Shutdown);
        (&mut self.worker).await.unwrap().unwrap();
    }

    pub(super) fn attempts(&self) -> Vec<String> {
        let entries = fs::read_dir(self.volume.run_dir("r").join("attempts")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub(super) fn stage(&self, name: &str, text: &str) -> TaskInput {
        let path = format!("datasets/d/snapshots/5nap/data/{name}");
        let file = self.volume.resolve(&path).unwrap();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        let piece = Piece { key: name.into(), path, size: text.len() as u64, partial: false, part: Part::Whole };
        TaskInput::Split(Split { pieces: vec![piece] })
    }

    /// Takes the first map task's report, and assigns a reduce task over what it made.
    pub(super) async fn reduce_what_is_mapped(&mut self) {
        let outcome = self.reports(1).await.remove(&0).unwrap();
        let Outcome::Done { outputs, .. } = outcome else { panic!("{outcome:?}") };
        let mut reduce = spec(0, TaskInput::Shuffle(outputs));
        reduce.task.phase = 1;
        let attempt = AttemptId { task: reduce.task, ..attempt(0) };
        self.send(ToWorker::Assign(vec![Assignment { attempt, spec: reduce, beside: false, rendezvous: None }]));
    }

    /// Waits for a file that a program makes. It is another process's, and tells nobody that it is there: so this looks
    /// again and again, and the wait is as long as the program takes.
    pub(super) async fn appears(&self, name: &str) {
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

pub(super) fn attempt(index: u32) -> AttemptId {
    AttemptId { task: TaskId { phase: 0, index }, number: 1, epoch: Epoch(1) }
}

fn spec(index: u32, input: TaskInput) -> TaskSpec {
    TaskSpec { task: TaskId { phase: 0, index }, count: 9, input }
}

pub(super) fn nothing() -> TaskInput {
    TaskInput::Split(Split::default())
}
