//! The door, by clients of the link.

use std::net::Ipv4Addr;

use forebay_jobs::wire::{CancelRequest, FromWorker};
use futures::{StreamExt, stream};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Streaming};

use super::*;
use crate::driver::reach;

struct Fixture {
    server: Server,
    inbox: mpsc::Receiver<Heard>,
    run: RunId,
}

impl Fixture {
    async fn new() -> Self {
        Self::of("[command]\nargv = ['true']").await
    }

    async fn of(work: &str) -> Self {
        let text = format!("name = 'n'\n[dataset]\nsource = 'file:///x'\n{work}\n");
        let job = forebay_jobs::spec::parse::job_file(&text, Path::new("/"), &[]).unwrap();
        let (sender, inbox) = mpsc::channel(8);
        let run: RunId = "r".parse().unwrap();
        let volume = "v".to_owned();
        let listen = Ipv4Addr::LOCALHOST.into();
        let config = ServerConfig { listen, run: run.clone(), epoch: Epoch(3), job, volume, scheduler: None };
        Self { server: Server::start(config, sender).await.unwrap(), inbox, run }
    }

    fn hello(&self) -> FromWorker {
        FromWorker::Hello {
            run: self.run.clone(),
            worker: "w".parse().unwrap(),
            slots: 2,
            process: Holder::this_process(),
            holds: BTreeSet::new(),
            left: None,
            version: env!("CARGO_PKG_VERSION").into(),
            volume: "v".into(),
            natives: BTreeSet::new(),
        }
    }

    async fn work(&self, link: &LinkFile, messages: Vec<FromWorker>) -> Result<Streaming<ToWorker>, Status> {
        self.work_until(link, messages, stream::pending()).await
    }

    /// The stream ends when the other one does.
    async fn work_until(
        &self,
        link: &LinkFile,
        messages: Vec<FromWorker>,
        end: impl futures::Stream<Item = FromWorker> + Send + 'static,
    ) -> Result<Streaming<ToWorker>, Status> {
        let client = reach(link).await.unwrap();
        client.client().work(client.request(stream::iter(messages).chain(end))).await
    }
}

#[tokio::test]
async fn a_worker_is_welcomed_heard_and_missed() {
    let mut fixture = Fixture::new().await;
    let link = fixture.server.link().clone();
    let (last_word, end) = mpsc::unbounded_channel();
    let messages = vec![fixture.hello(), FromWorker::Started(vec![])];
    let mut said = fixture.work_until(&link, messages, UnboundedReceiverStream::new(end)).await.unwrap();
    let welcome = said.message().await.unwrap().unwrap();
    assert!(matches!(welcome, ToWorker::Welcome { epoch: Epoch(3), .. }));
    let Some(Heard::Joined { worker, stream, slots: 2, sender, .. }) = fixture.inbox.recv().await else { panic!() };
    assert!(matches!(fixture.inbox.recv().await, Some(Heard::Started { .. })));
    sender.send(Ok(ToWorker::Shutdown)).unwrap();
    assert_eq!(said.message().await.unwrap(), Some(ToWorker::Shutdown));
    drop(last_word);
    let Some(Heard::Left { worker: left, stream: ended }) = fixture.inbox.recv().await else { panic!() };
    assert_eq!((left, ended), (worker, stream));
    fixture.server.stop().await;
}

#[tokio::test]
async fn a_wrong_token_a_strange_run_and_another_volume_are_refused() {
    let fixture = Fixture::new().await;
    let link = fixture.server.link().clone();
    let wrong = LinkFile { token: link.token.replace(|_: char| true, "0"), ..link.clone() };
    let refused = fixture.work(&wrong, vec![fixture.hello()]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    for change in ["run", "volume", "version"] {
        let mut hello = fixture.hello();
        if let FromWorker::Hello { run, volume, version, .. } = &mut hello {
            match change {
                "run" => *run = "other".parse().unwrap(),
                "volume" => *volume = "other".into(),
                _ => *version = "0.0.0".into(),
            }
        }
        let refused = fixture.work(&link, vec![hello]).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{change}");
    }
    let refused = fixture.work(&link, vec![FromWorker::Heartbeat]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_worker_without_what_the_job_calls_for_is_refused() {
    let fixture = Fixture::of("[mapreduce]\nmap = { native = 'sessions' }").await;
    let link = fixture.server.link().clone();
    let refused = fixture.work(&link, vec![fixture.hello()]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("map is `sessions`, and compiled into the worker is none"), "{refused}");
    let mut hello = fixture.hello();
    if let FromWorker::Hello { natives, .. } = &mut hello {
        *natives = ["other", "sessions"].map(str::to_owned).into();
    }
    fixture.work(&link, vec![hello]).await.unwrap();
}

#[tokio::test]
async fn another_certificate_is_not_trusted() {
    let (fixture, other) = (Fixture::new().await, Fixture::new().await);
    let certificate = other.server.link().certificate.clone();
    let link = LinkFile { certificate, ..fixture.server.link().clone() };
    assert!(reach(&link).await.is_err());
}

#[tokio::test]
async fn a_cancel_is_answered_once_it_is_noted() {
    let mut fixture = Fixture::new().await;
    let client = reach(fixture.server.link()).await.unwrap();
    let call = client.client().cancel(client.request(CancelRequest { run: fixture.run.clone() }));
    let note = async {
        let Some(Heard::Cancel { noted }) = fixture.inbox.recv().await else { panic!() };
        noted.send(()).unwrap();
    };
    let (answered, ()) = tokio::join!(call, note);
    answered.unwrap();
}

#[tokio::test]
async fn the_link_file_is_the_users_alone() {
    let (fixture, dir) = (Fixture::new().await, tempfile::tempdir().unwrap());
    fixture.server.announce(dir.path()).unwrap();
    let path = dir.path().join(LINK);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let read: LinkFile = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(&read, fixture.server.link());
}
