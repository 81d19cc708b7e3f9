//! S3 servers that no one here wrote, started by a test and ended with it; and this project's own, for comparison.

use std::{
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
};
use forebay::s3_server::{ACCESS_KEY, S3Server, SECRET_KEY};
use tempfile::TempDir;

use crate::support::{eventually, free_port};

/// What a server can be asked for; what it cannot is written down in `docs/s3-servers.md`.
#[derive(Clone, Copy, Debug)]
pub struct Can {
    /// A wrong secret is refused.
    pub signatures: bool,
    /// Keys that are no paths.
    pub odd_keys: &'static [&'static str],
    pub versions: bool,
    /// Checksums of whole objects and of parts.
    pub checksums: bool,
}

const ODD_KEYS: &[&str] = &[
    "a",
    "a/b",
    "a//b",
    "a/",
    "/leading",
    "dot/./dot",
    "up/../up",
    "space and + and %20",
    "é/ß/日本",
    "e\u{301}",
    "quote\"'<&>",
    "tab\tline\nbreak",
    "Case",
    "case",
];

/// What can be a file below a directory, and needs no other name there.
const PATHS: &[&str] = &["a/b", "space and + and %20", "é/ß/日本", "n\u{303}", "quote\"'<&>", "Case", "case"];

pub struct Server {
    pub name: &'static str,
    pub endpoint: String,
    pub can: Can,
    _running: Running,
}

enum Running {
    Process { child: Child, _dir: TempDir },
    Here(#[expect(dead_code, reason = "it ends when it is dropped")] S3Server),
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Process { child, .. } = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A program that `.ci/run` has installed.
fn program(name: &str) -> PathBuf {
    let dir =
        std::env::var_os("FOREBAY_TEST_SERVERS").expect("FOREBAY_TEST_SERVERS is a venv with the servers: .ci/run");
    Path::new(&dir).join("bin").join(name)
}

fn start(name: &'static str, can: Can, endpoint: String, port: u16, dir: TempDir, command: &mut Command) -> Server {
    let child = command.env("HOME", dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = child.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut running = Running::Process { child, _dir: dir };
    eventually(name, || {
        let Running::Process { child, .. } = &mut running else { unreachable!("it is one") };
        assert!(child.try_wait().unwrap().is_none(), "{name} has ended");
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
    });
    Server { name, endpoint, can, _running: running }
}

impl Server {
    /// This project's own.
    pub async fn own() -> Self {
        let server = S3Server::start().await.unwrap();
        let can = Can { signatures: true, odd_keys: ODD_KEYS, versions: false, checksums: true };
        Self { name: "own", endpoint: server.endpoint(), can, _running: Running::Here(server) }
    }

    /// ministack, a Python program that keeps everything in memory.
    pub fn ministack() -> Self {
        let (port, dir) = (free_port(), TempDir::new().unwrap());
        let mut command = Command::new(program("ministack"));
        command.env("GATEWAY_PORT", port.to_string()).env("BIND_HOST", "127.0.0.1").env("TMPDIR", dir.path());
        let can = Can { signatures: false, odd_keys: ODD_KEYS, versions: true, checksums: true };
        start("ministack", can, format!("http://127.0.0.1:{port}"), port, dir, &mut command)
    }

    /// `rclone serve s3` over a directory, with a certificate or without, for whom has the keys or for anybody.
    pub fn rclone(certificate: Option<&Certificate>, anonymous: bool) -> Self {
        let (port, dir) = (free_port(), TempDir::new().unwrap());
        let mut command = Command::new(program("rclone"));
        command.args(["serve", "s3", "--addr", &format!("127.0.0.1:{port}")]);
        if !anonymous {
            command.arg("--auth-key").arg(format!("{ACCESS_KEY},{SECRET_KEY}"));
        }
        if let Some(certificate) = certificate {
            command.arg("--cert").arg(certificate.path("cert.pem")).arg("--key").arg(certificate.path("key.pem"));
        }
        command.arg(dir.path());
        let can = Can { signatures: true, odd_keys: PATHS, versions: false, checksums: false };
        let scheme = if certificate.is_some() { "https" } else { "http" };
        start("rclone", can, format!("{scheme}://127.0.0.1:{port}"), port, dir, &mut command)
    }

    /// A client that somebody else wrote, for putting what is to be staged.
    pub fn client(&self, certificate: Option<&Certificate>) -> Client {
        use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
        let tls = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
        let http = match certificate {
            None => tls.build_https(),
            Some(certificate) => {
                let pem = std::fs::read(certificate.path("cert.pem")).unwrap();
                let trust = TrustStore::empty().with_pem_certificate(pem);
                tls.tls_context(TlsContext::builder().with_trust_store(trust).build().unwrap()).build_https()
            }
        };
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test"))
            .region(Region::new("us-east-1"))
            .endpoint_url(&self.endpoint)
            .force_path_style(true)
            .http_client(http);
        Client::from_conf(config.build())
    }
}

/// A certificate for 127.0.0.1 that is its own authority.
pub struct Certificate(TempDir);

impl Certificate {
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        Self(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
