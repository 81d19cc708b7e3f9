//! Strangers at the coordinator's port while a run goes on, which must end right, in bounded memory, and without a flood
//! in its log.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::{Request, body::Frame};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::Value;
use tonic::{Code, Status, body::Body, codegen::Service};

use super::{adoption::Fixture, ballista::strangers::caller};
use crate::support::{eventually, link, processes::Running};

/// A stranger is turned away within 10 s.
const PATIENCE: Duration = Duration::from_secs(30);
/// What strangers may cost: 256 at a time, and what an allocator keeps of it.
const MEMORY: u64 = 192 << 20;

struct Scene {
    fixture: Fixture,
    running: Running,
    pid: Pid,
    link: Value,
    before: u64,
}

impl Scene {
    /// A run all of whose tasks are begun and wait.
    async fn new() -> Self {
        let fixture = Fixture::new("").await;
        let (running, _) = fixture.at_work();
        let (pid, link) = (running.pid(), link(&fixture.cluster.run_dir("r"), 1));
        Self { fixture, running, pid, link, before: most_memory(pid) }
    }

    fn url(&self) -> &str {
        self.link["addresses"][0].as_str().unwrap()
    }

    fn address(&self) -> SocketAddr {
        self.url().strip_prefix("https://").unwrap().parse().unwrap()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A connection that trusts this certificate.
    fn secure(&self, certificate: &str) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connection = ClientConnection::new(Arc::new(config), "forebay".try_into().unwrap()).unwrap();
        StreamOwned::new(connection, self.connect())
    }

    fn certificate(&self) -> &str {
        self.link["certificate"].as_str().unwrap()
    }

    /// The answer to a call of a worker's that shows this token and begins a message of 4 GiB.
    async fn huge_call(&self, token: &str) -> Code {
        let begun = [&[0, 0xff, 0xff, 0xff, 0xff][..], &[b'x'; 8192]].concat();
        let begun = stream::iter([Ok::<_, Status>(Frame::data(Bytes::from(begun)))]);
        let request = Request::post("/forebay.Link/Work")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {token}"))
            // The rest of it never comes.
            .body(Body::new(StreamBody::new(begun.chain(stream::pending()))));
        let mut channel = caller(self.url(), self.certificate(), None);
        std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
        let answer = channel.call(request.unwrap()).await.unwrap();
        Status::from_header_map(answer.headers()).unwrap().code()
    }

    /// The run ends right, and has cost no more than strangers may. What its coordinator said.
    fn check(self) -> String {
        let spent = most_memory(self.pid).saturating_sub(self.before);
        assert!(spent < MEMORY, "{} MiB", spent >> 20);
        self.fixture.go();
        let outcome = self.running.outcome();
        let said = outcome.stderr.clone();
        self.fixture.check(&outcome.json(0));
        let told = said.lines().filter(|line| line.contains("turned away from the run's link")).count();
        assert!((1..8).contains(&told), "{told} lines: {said}");
        said
    }
}

/// The most memory that a process has had, in bytes.
fn most_memory(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// Reads until the other side has closed.
fn until_closed(stream: &mut impl Read) {
    let (began, mut buffer) = (Instant::now(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                panic!("not turned away")
            }
            Err(_) => return,
        }
        assert!(began.elapsed() < PATIENCE, "not turned away");
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn who_talks_nonsense_or_slowly_is_turned_away() {
    let scene = Scene::new().await;
    // Not TLS.
    let mut garbage = scene.connect();
    garbage.write_all(&[0x5a; 100_000]).ok();
    until_closed(&mut garbage);

    // A handshake that is never finished: the beginning of a record, a byte at a time.
    let mut hello = vec![22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3];
    hello.resize(hello.len() + 200, 0);
    let mut slow = scene.connect();
    let dripping = thread::spawn(move || {
        let began = Instant::now();
        for byte in hello {
            if slow.write_all(&[byte]).is_err() {
                break;
            }
            // What is tried out is a stranger who takes his time.
            thread::sleep(Duration::from_secs(1));
        }
        assert!(began.elapsed() < PATIENCE, "not turned away");
    });

    // TLS, and then the beginning of HTTP/2, a byte at a time.
    let mut slow = scene.secure(scene.certificate());
    let slower = thread::spawn(move || {
        let began = Instant::now();
        let frames = [PREFACE, &frame(4, 0, 0, &[0; 120])].concat();
        for byte in frames {
            if slow.write_all(&[byte]).and_then(|()| slow.flush()).is_err() {
                break;
            }
            // As above.
            thread::sleep(Duration::from_secs(1));
        }
        assert!(began.elapsed() < PATIENCE, "not turned away");
    });

    // A frame of 16 MiB, which is the largest that its header can tell.
    let mut large = scene.secure(scene.certificate());
    large.write_all(PREFACE).unwrap();
    large.write_all(&frame(4, 0, 0, &[])).unwrap();
    large.write_all(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]).unwrap();
    large.write_all(&[0; 100_000]).ok();
    until_closed(&mut large);

    // The beginning of HTTP/2, and no call.
    let mut idle = scene.secure(scene.certificate());
    idle.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).unwrap();
    until_closed(&mut idle);

    // A message of 4 GiB: without the token, and with it, as from a worker that has gone mad.
    assert_eq!(scene.huge_call("0123").await, Code::Unauthenticated);
    assert_eq!(scene.huge_call(scene.link["token"].as_str().unwrap()).await, Code::OutOfRange);

    // One that expects another coordinator goes by itself.
    let made = rcgen::generate_simple_self_signed(["forebay".to_owned()]).unwrap();
    let mut other = scene.secure(&made.cert.pem());
    let refused = other.write_all(PREFACE).and_then(|()| other.flush()).unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");

    dripping.join().unwrap();
    slower.join().unwrap();
    let said = scene.check();
    assert!(said.contains("127.0.0.1 was turned away"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_silent_connections_keep_no_worker_out() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).unwrap();
    let most = limit.maximum.unwrap_or(u64::MAX).saturating_sub(2000).min(10_000);
    let scene = Scene::new().await;
    let mut held: Vec<_> = (0..most).map(|_| scene.connect()).collect();
    let open = || fs::read_dir(format!("/proc/{}/fd", scene.pid.as_raw_nonzero())).unwrap().count();
    eventually("no more than 256 of them are there", || open() < 400);
    // While they are held open a worker joins.
    let terminal = scene.fixture.cluster.terminal();
    let worker = terminal.start(["worker", "--run", "r", "--name", "late", "--slots", "1"]);
    let show = || scene.fixture.cluster.forebay(["runs", "show", "r", "--json"]).json(0)["workers"].as_u64();
    eventually("it has joined", || show() == Some(3));
    // All are turned away in the end, the last of them too.
    until_closed(held.last_mut().unwrap());
    let said = scene.check();
    worker.outcome().code(0);
    assert!(said.contains("was turned away"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_another_run_cannot_join_by_what_its_own_run_gave_it() {
    let (scene, other) = (Scene::new().await, Scene::new().await);
    // The other's address with this one's certificate and token, and the other's certificate too.
    let volume = scene.fixture.cluster.volume();
    let path = scene.fixture.cluster.run_dir("r").join("epochs/1/link.json");
    let ours = fs::read(&path).unwrap();
    for (keys, why) in
        [(&["addresses"][..], "certificate"), (&["addresses", "certificate"], "the token is not this run's")]
    {
        let mut link = scene.link.clone();
        for key in keys {
            link[*key] = other.link[*key].clone();
        }
        fs::write(&path, serde_json::to_vec(&link).unwrap()).unwrap();
        let terminal = scene.fixture.cluster.terminal().on_volume(volume);
        let refused = terminal.forebay(["worker", "--run", "r", "--name", "strange"]).code(4);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    fs::write(&path, ours).unwrap();
    let said = other.check();
    assert!(said.contains("127.0.0.1 was turned away"), "{said}");
    scene.fixture.go();
    scene.fixture.check(&scene.running.outcome().json(0));
}
