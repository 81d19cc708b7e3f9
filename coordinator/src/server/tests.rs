//! The server against streams of the tests' own.

use std::net::Ipv4Addr;

use forebay_jobs::{
    link::LinkClient,
    mail,
    wire::{CancelRequest, FromWorker},
};
use futures::{StreamExt, stream::BoxStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::*;

const COMMAND: &str = "[command]\nargv = ['true']\n";
const BY_LETTER: &str = "[command]\nargv = ['true']\n[workers]\nlink = 'files'\n";

struct Fixture {
    _dir: tempfile::TempDir,
    epoch_dir: PathBuf,
    volume: Volume,
    server: Server,
    inbox: mpsc::Receiver<Heard>,
    run: RunId,
}

/// What a worker says, and hears.
struct Worker {
    say: mpsc::Sender<FromWorker>,
    heard: BoxStream<'static, Result<ToWorker, Status>>,
}

impl Worker {
    async fn hear(&mut self) -> Option<Result<ToWorker, Status>> {
        tokio::time::timeout(Duration::from_secs(60), self.heard.next()).await.unwrap()
    }

    async fn refused(&mut self) -> Status {
        self.hear().await.unwrap().unwrap_err()
    }

    /// Reads the canary, and says what the test makes of it.
    async fn look(&mut self, volume: &Volume, make: impl Fn(String) -> Option<String>) {
        let Some(Ok(ToWorker::Look { canary })) = self.hear().await else { panic!("nothing to look at") };
        let seen = fs::read_to_string(volume.resolve(&canary).unwrap()).unwrap();
        self.say.send(FromWorker::Seen(make(seen))).await.unwrap();
    }
}

impl Fixture {
    async fn new() -> Self {
        Self::of(COMMAND).await
    }

    async fn of(work: &str) -> Self {
        let text = format!("name = 'n'\n[dataset]\nsource = 'file:///x'\n{work}\n");
        let job = forebay_jobs::spec::parse::job_file(&text, Path::new("/"), &[]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_create(dir.path()).unwrap();
        let epoch_dir = volume.run_dir("r").join("epochs/3");
        fs::create_dir_all(&epoch_dir).unwrap();
        fs::write(epoch_dir.join(mail::LEASE), "").unwrap();
        let (sender, inbox) = mpsc::channel(8);
        let run: RunId = "r".parse().unwrap();
        let config = ServerConfig {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: Vec::new(),
            run: run.clone(),
            epoch: Epoch(3),
            job,
            volume: volume.clone(),
            scheduler: None,
        };
        let server = Server::start(config, &epoch_dir, sender).await.unwrap();
        Self { _dir: dir, epoch_dir, volume, server, inbox, run }
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
            volume: self.volume.id().into(),
            root: "/elsewhere".into(),
            natives: BTreeSet::new(),
        }
    }

    /// A stream that begins with this message.
    async fn call(&self, link: &LinkFile, first: FromWorker) -> Result<Worker, Status> {
        let (say, said) = mpsc::channel(8);
        say.send(first).await.unwrap();
        let heard = if link.addresses.is_empty() {
            mail::correspond(self.epoch_dir.clone(), &link.token, said).boxed()
        } else {
            LinkClient::connect(link).await.unwrap().work(ReceiverStream::new(said)).await?.boxed()
        };
        Ok(Worker { say, heard })
    }

    /// One that has shown that it sees the volume.
    async fn worker(&self) -> Worker {
        let mut worker = self.call(self.server.link(), self.hello()).await.unwrap();
        worker.look(&self.volume, Some).await;
        worker
    }

    fn canaries(&self) -> usize {
        let link = fs::read_dir(self.epoch_dir.join(LINK)).unwrap();
        link.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("canary")).count()
    }
}

#[tokio::test]
async fn a_worker_is_welcomed_heard_and_missed_by_whatever_link() {
    for work in [COMMAND, BY_LETTER] {
        let mut fixture = Fixture::of(work).await;
        assert_eq!(fixture.server.link().addresses.is_empty(), work == BY_LETTER);
        let mut worker = fixture.worker().await;
        worker.say.send(FromWorker::Started(vec![])).await.unwrap();
        let welcome = worker.hear().await.unwrap().unwrap();
        assert!(matches!(welcome, ToWorker::Welcome { epoch: Epoch(3), .. }));
        let Some(Heard::Joined { worker: id, stream, slots: 2, sender, .. }) = fixture.inbox.recv().await else {
            panic!()
        };
        assert!(matches!(fixture.inbox.recv().await, Some(Heard::Started { .. })));
        sender.send(Ok(ToWorker::Kill(vec![]))).unwrap();
        assert_eq!(worker.hear().await.unwrap().unwrap(), ToWorker::Kill(vec![]));
        let Worker { say, mut heard } = worker;
        drop(say);
        let Some(Heard::Left { worker: left, stream: ended }) = fixture.inbox.recv().await else { panic!() };
        assert_eq!((left, ended, fixture.canaries()), (id, stream, 0));
        drop(sender);
        assert!(heard.next().await.is_none(), "the coordinator's end ends the stream");
        let link = fixture.epoch_dir.join(LINK);
        assert!(link.exists());
        fixture.server.stop().await;
        assert!(!link.exists(), "nothing is left of it");
    }
}

#[tokio::test]
async fn a_wrong_token_a_strange_run_and_another_volume_are_refused() {
    let fixture = Fixture::new().await;
    let link = fixture.server.link().clone();
    let wrong = LinkFile { token: link.token.replace(|_: char| true, "0"), ..link.clone() };
    let refused = fixture.call(&wrong, fixture.hello()).await.err().unwrap();
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
        let refused = fixture.call(&link, hello).await.err().unwrap();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{change}");
        if change == "volume" {
            let (said, ours) = (refused.message(), fixture.volume.root().display().to_string());
            let told = ["other, at /elsewhere on", fixture.volume.id(), &ours, "--volume"];
            assert!(told.iter().all(|part| said.contains(part)), "{said}");
        }
    }
    let refused = fixture.call(&link, FromWorker::Heartbeat).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn who_does_not_see_what_is_written_on_the_volume_is_refused_by_whatever_link() {
    let wrong: [fn(String) -> Option<String>; 2] = [|_| None, |seen| Some(format!("{seen}0"))];
    for (work, make) in [COMMAND, BY_LETTER].into_iter().flat_map(|work| wrong.map(|make| (work, make))) {
        let mut fixture = Fixture::of(work).await;
        let mut worker = fixture.call(fixture.server.link(), fixture.hello()).await.unwrap();
        worker.look(&fixture.volume, make).await;
        let refused = worker.refused().await;
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let said = refused.message();
        assert!(said.contains("is a copy of it") && said.contains("/elsewhere"), "{said}");
        assert!(fixture.inbox.try_recv().is_err() && fixture.canaries() == 0);
    }
}

#[tokio::test]
async fn a_hello_that_is_sent_again_is_nobodys() {
    let mut fixture = Fixture::of(BY_LETTER).await;
    let (epoch_dir, token) = (fixture.epoch_dir.clone(), fixture.server.link().token.clone());
    let up = mail::Mailbox::up(&epoch_dir, &token);
    // As a worker writes it, so that it can be kept.
    fs::create_dir(epoch_dir.join(LINK).join(mail::DOWN).join("a")).unwrap();
    let hello = || [mail::Line::Said(fixture.hello())];
    let elsewhere = tempfile::tempdir().unwrap();
    let kept = mail::Mailbox::up(elsewhere.path(), &token);
    fs::create_dir_all(kept.dir()).unwrap();
    mail::Outbox::new(kept.clone(), "a").say(hello()).unwrap();
    let letter = fs::read(kept.dir().join("a.1")).unwrap();
    // Whole letters appear by a rename.
    let put = |name: &str, letter: &[u8]| {
        fs::write(up.dir().join(".put"), letter).unwrap();
        fs::rename(up.dir().join(".put"), up.dir().join(name)).unwrap();
    };
    let is_gone = async |name: &str| {
        while up.dir().join(name).exists() {
            tokio::task::yield_now().await;
        }
    };
    // In another mailbox, as another number, of another token, and torn: none of them begins a stream.
    let other = mail::Mailbox::up(elsewhere.path(), "another");
    put("b.1", &letter);
    put("a.2", &letter);
    mail::Outbox::new(other.clone(), "c").say(hello()).unwrap();
    put("c.1", &fs::read(other.dir().join("c.1")).unwrap());
    put("d.1", &letter[..letter.len() - 1]);
    put("core", b"garbage");
    for name in ["b.1", "a.2", "c.1", "d.1", "core"] {
        is_gone(name).await;
    }
    let down = epoch_dir.join(LINK).join(mail::DOWN).join("a/a.1");
    assert!(!down.exists() && fixture.canaries() == 0);
    // As it was, it does; and not once more.
    put("a.1", &letter);
    while !down.exists() {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.canaries(), 1);
    put("a.1", &letter);
    is_gone("a.1").await;
    assert_eq!(fixture.canaries(), 1);
    assert!(fixture.inbox.try_recv().is_err());
}

#[tokio::test]
async fn a_worker_without_what_the_job_calls_for_is_refused() {
    let fixture = Fixture::of("[mapreduce]\nmap = { native = 'sessions' }").await;
    let link = fixture.server.link().clone();
    let refused = fixture.call(&link, fixture.hello()).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("map is `sessions`, and compiled into the worker is none"), "{refused}");
    let mut hello = fixture.hello();
    if let FromWorker::Hello { natives, .. } = &mut hello {
        *natives = ["other", "sessions"].map(str::to_owned).into();
    }
    fixture.call(&link, hello).await.unwrap();
}

#[tokio::test]
async fn another_certificate_is_not_trusted() {
    let (fixture, other) = (Fixture::new().await, Fixture::new().await);
    let certificate = other.server.link().certificate.clone();
    let link = LinkFile { certificate, ..fixture.server.link().clone() };
    let unreachable = LinkClient::connect(&link).await.unwrap_err().to_string();
    assert!(unreachable.contains("certificate"), "{unreachable}");
}

#[tokio::test]
async fn addresses_are_tried_in_turn_and_what_was_tried_is_told() {
    let fixture = Fixture::new().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("https://{}", closed.local_addr().unwrap());
    drop(closed);
    let mut link = fixture.server.link().clone();
    let there = link.addresses[0].clone();
    link.addresses.insert(0, nobody.clone());
    assert_eq!(LinkClient::connect(&link).await.unwrap().address(), there);
    link.addresses[1] = "https://no-such-host.invalid:1".into();
    let unreachable = LinkClient::connect(&link).await.unwrap_err().to_string();
    let expected = format!("{nobody}: Connection refused (os error 111); https://no-such-host.invalid:1: ");
    assert!(unreachable.starts_with(&expected), "{unreachable}");
}

#[tokio::test]
async fn an_address_that_is_not_this_hosts_and_a_port_that_is_taken_are_told_apart() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let cases = [
        (format!("127.0.0.1:{port}"), format!("another program has port {port}")),
        ("192.0.2.1:0".to_owned(), "this host has no such address".to_owned()),
    ];
    for (address, expected) in cases {
        let fixture = Fixture::new().await;
        let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).unwrap();
        let identity = Identity::from_pem(made.cert.pem(), made.signing_key.serialize_pem());
        let door = Door(Arc::new(Inside {
            config: ServerConfig {
                listen: address.parse().unwrap(),
                advertise: Vec::new(),
                run: fixture.run.clone(),
                epoch: Epoch(1),
                job: forebay_jobs::spec::parse::job_file(
                    &format!("name = 'n'\n[dataset]\nsource = 'file:///x'\n{COMMAND}"),
                    Path::new("/"),
                    &[],
                )
                .unwrap(),
                volume: fixture.volume.clone(),
                scheduler: None,
            },
            epoch_dir: fixture.epoch_dir.clone(),
            authorization: String::new(),
            inbox: mpsc::channel(1).0,
            streams: AtomicU64::new(0),
            readers: TaskTracker::new(),
            stop: CancellationToken::new(),
            strangers: Arc::default(),
        }));
        let error = serve(address.parse().unwrap(), identity, door, &Arc::default()).await.unwrap_err().to_string();
        assert!(error.contains(&expected) && error.contains("--listen"), "{error}");
    }
}

#[tokio::test]
async fn a_cancel_is_answered_once_it_is_noted_by_whatever_link() {
    for work in [COMMAND, BY_LETTER] {
        let mut fixture = Fixture::of(work).await;
        let (link, epoch_dir) = (fixture.server.link().clone(), fixture.epoch_dir.clone());
        let request = |run: &RunId| CancelRequest { run: run.clone() };
        let call = async |request| match link.addresses.is_empty() {
            true => mail::ask_to_cancel(epoch_dir.clone(), &link.token, request, SILENCE).await,
            false => LinkClient::connect(&link).await.unwrap().cancel(request, SILENCE).await.map(drop),
        };
        let refused = call(request(&"other".parse().unwrap())).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let asked = request(&fixture.run);
        let note = async {
            let Some(Heard::Cancel { noted }) = fixture.inbox.recv().await else { panic!() };
            noted.send(()).unwrap();
        };
        let (answered, ()) = tokio::join!(call(asked), note);
        answered.unwrap();
    }
}

#[tokio::test]
async fn the_link_file_is_the_users_alone() {
    let fixture = Fixture::new().await;
    fixture.server.announce().unwrap();
    let path = fixture.epoch_dir.join(LinkFile::NAME);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let read: LinkFile = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(&read, fixture.server.link());
}
