//! Proxies that the environment names: the only way to a server whose name nobody can resolve.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use tempfile::TempDir;

use crate::support::{Cluster, Outcome, Terminal, eventually, free_port};

/// A name that is reserved to be nobody's.
const NOBODY: &str = "s3.invalid";

/// Passes on to one server whatever is asked for, and remembers the first lines and who asked.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(to: SocketAddr, refuses: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let log = Arc::clone(&log);
                // A client that breaks off is no failure of the test.
                std::thread::spawn(move || drop(pass(client, to, refuses, &log)));
            }
        });
        Self { address, asked }
    }

    fn url(&self) -> String {
        format!("http://user:secret@{}", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// Serves one connection of a client.
fn pass(client: TcpStream, to: SocketAddr, refuses: bool, log: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let head = head(&mut reader)?;
    let authorized = head.iter().any(|line| line.eq_ignore_ascii_case("proxy-authorization: Basic dXNlcjpzZWNyZXQ="));
    log.lock().unwrap().push(format!("{}{}", head[0], if authorized { " authorized" } else { "" }));
    if refuses {
        return (&client).write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n");
    }
    let server = TcpStream::connect(to)?;
    match head[0].starts_with("CONNECT ") {
        true => (&client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?,
        false => send(&server, &head)?,
    }
    let (back, out) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut &back, &mut &out);
        out.shutdown(Shutdown::Both)
    });
    if head[0].starts_with("CONNECT ") {
        io::copy(&mut reader, &mut &server)?;
        return server.shutdown(Shutdown::Write);
    }
    // Further requests of the same connection, none of which has a body.
    loop {
        let head = self::head(&mut reader)?;
        log.lock().unwrap().push(head[0].clone());
        send(&server, &head)?;
    }
}

/// The lines of a request's head.
fn head(reader: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.by_ref().take(64 << 10).read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => return Ok(lines),
            line => lines.push(line.to_owned()),
        }
    }
}

/// As the server wants it: the target without the server's name.
fn send(mut server: &TcpStream, head: &[String]) -> io::Result<()> {
    let first = head[0].replacen(&format!("http://{NOBODY}"), "", 1);
    let rest = head[1..].iter().filter(|line| !line.to_lowercase().starts_with("proxy-"));
    let lines: Vec<_> = std::iter::once(&first).chain(rest).map(String::as_str).collect();
    server.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes())
}

/// Ends TLS before the cluster's server, under [`NOBODY`]'s name.
struct TlsFront {
    process: Child,
    address: SocketAddr,
    certificate: TempDir,
}

impl TlsFront {
    /// None where there is no `socat`.
    fn start(cluster: &Cluster) -> Option<Self> {
        Command::new("socat").arg("-V").output().ok()?;
        let made = rcgen::generate_simple_self_signed([NOBODY.to_owned()]).unwrap();
        let certificate = TempDir::new().unwrap();
        let path = |name: &str| certificate.path().join(name);
        std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let listen = format!(
            "OPENSSL-LISTEN:{},bind=127.0.0.1,fork,reuseaddr,verify=0,cert={},key={}",
            address.port(),
            path("cert.pem").display(),
            path("key.pem").display()
        );
        let to = cluster.s3.endpoint().replace("http://", "TCP:");
        let process = Command::new("socat").args([listen, to]).stderr(Stdio::null()).spawn().unwrap();
        eventually("it listens", || TcpStream::connect(address).is_ok());
        Some(Self { process, address, certificate })
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    for n in 0..40 {
        cluster.s3.put("data", &format!("{n:02}"), format!("object {n}"));
    }
    cluster.s3.put("data", "big", vec![7; 40 << 20]);
    cluster
}

fn address(cluster: &Cluster) -> SocketAddr {
    cluster.s3.endpoint().strip_prefix("http://").unwrap().parse().unwrap()
}

fn stage(terminal: &Terminal, endpoint: &str) -> Outcome {
    terminal.forebay(["dataset", "stage", "s3://data", "--endpoint", endpoint])
}

#[tokio::test(flavor = "multi_thread")]
async fn listing_and_gets_go_through_the_proxy_of_http() {
    let cluster = cluster().await;
    let proxy = Proxy::start(address(&cluster), false);
    let terminal = cluster.with_env("HTTP_PROXY", &proxy.url());
    stage(&terminal, &format!("http://{NOBODY}")).code(0);
    cluster.forebay(["dataset", "verify", "data", "--full"]).code(0);
    let asked = proxy.asked();
    assert!(asked.iter().any(|line| line.contains("list-type=2")), "the listing: {asked:?}");
    assert!(asked.iter().any(|line| line.starts_with(&format!("GET http://{NOBODY}/data/07 "))), "{asked:?}");
    assert!(asked.iter().any(|line| line.ends_with(" authorized")), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_through_a_tunnel() {
    let cluster = cluster().await;
    let Some(front) = TlsFront::start(&cluster) else {
        return println!("left out: there is no socat");
    };
    let proxy = Proxy::start(front.address, false);
    let bundle = front.certificate.path().join("cert.pem");
    let terminal = cluster.with_env("HTTPS_PROXY", &proxy.url()).env("AWS_CA_BUNDLE", bundle.to_str().unwrap());
    stage(&terminal, &format!("https://{NOBODY}")).code(0);
    cluster.forebay(["dataset", "verify", "data", "--full"]).code(0);
    let asked = proxy.asked();
    let tunnel = format!("CONNECT {NOBODY}:443 HTTP/1.1 authorized");
    assert!(asked.len() > 1 && asked.iter().all(|line| *line == tunnel), "the SDK's and the lanes': {asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_needs_no_proxy_is_asked_without_it() {
    let cluster = cluster().await;
    let proxy = Proxy::start(address(&cluster), false);
    let terminal = cluster.with_env("HTTP_PROXY", &proxy.url()).env("NO_PROXY", "127.0.0.1");
    stage(&terminal, &cluster.s3.endpoint()).code(0);
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_is_an_error() {
    let cluster = cluster().await;
    let proxy = Proxy::start(address(&cluster), true);
    let cases = [
        ("HTTP_PROXY", format!("http://{NOBODY}"), "it answered 407"),
        ("HTTPS_PROXY", format!("https://{NOBODY}"), "proxy authorization required"),
    ];
    for (variable, endpoint, why) in cases {
        let error = stage(&cluster.with_env(variable, &proxy.url()), &endpoint).code(4);
        assert!(error.words().contains(why) && !proxy.asked().is_empty(), "{error:?}");
    }
    cluster.forebay(["dataset", "show", "data"]).code(3);
}
