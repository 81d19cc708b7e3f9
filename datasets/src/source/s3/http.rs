//! A lean HTTP/1.1 client for the hot GETs: one connection, one request at a time, on the calling thread.
//!
//! On small objects nearly all of the cost of a GET is the client library around it. Here a request is one `write`, an
//! answer is one or two `read`s, and a body goes straight into the caller's buffer. What the SDK does well stays with
//! the SDK: credentials, regions, endpoints, listing and errors.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    sync::Arc,
    time::{Duration, Instant},
};

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use rustix::net::RecvFlags;
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

/// Longest head of an answer.
const HEAD: usize = 64 << 10;
/// Headers in it.
const FIELDS: usize = 100;
/// What is read at once of a head, and with it of the beginning of a body.
const INPUT: usize = 32 << 10;
/// What an answer of slower transfer than this gets no more patience for, beside [`Limits::read`].
const SLOWEST: u64 = 32 << 10;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// No connection could be made.
    Unreachable(io::Error),
    /// The connection broke off.
    Broken(io::Error),
}

/// How long a connection waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For the server to accept it.
    pub connect: Duration,
    /// For the next byte.
    pub read: Duration,
}

/// Where requests go, and through what.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// `host` or `host:port`, as the `Host` header has it.
    pub authority: String,
    host: String,
    port: u16,
    tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
    proxy: Option<Proxy>,
    limits: Limits,
}

#[derive(Debug)]
struct Proxy {
    host: String,
    port: u16,
    authorization: Option<String>,
}

impl Endpoint {
    /// Of a base address, through the proxy that the environment names for it, if any.
    pub(super) fn new(base: &Uri, tls: &Arc<ClientConfig>, limits: Limits) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{base} {what}"));
        let authority = base.authority().ok_or_else(|| invalid("names no host"))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let https = match base.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(invalid("begins neither with http:// nor with https://")),
        };
        let tls = match https {
            true => {
                let name =
                    ServerName::try_from(host.clone()).map_err(|_| invalid("has a host that TLS cannot name"))?;
                Some((name, Arc::clone(tls)))
            }
            false => None,
        };
        let proxy = Matcher::from_env().intercept(base).map(|proxy| {
            let uri = proxy.uri();
            let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
            let authorization = proxy.basic_auth().and_then(|auth| auth.to_str().ok()).map(str::to_owned);
            Proxy { host: uri.host().unwrap_or_default().to_owned(), port, authorization }
        });
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { authority: authority.as_str().to_owned(), host, port, tls, proxy, limits })
    }

    /// What a request line begins its target with: nothing, or everything where a proxy has to know.
    pub(super) fn target_prefix(&self) -> String {
        match (&self.proxy, &self.tls) {
            (Some(_), None) => format!("http://{}", self.authority),
            _ => String::new(),
        }
    }

    /// Headers that every request to a proxy needs.
    pub(super) fn proxy_fields(&self) -> String {
        match (&self.proxy, &self.tls) {
            (Some(Proxy { authorization: Some(value), .. }), None) => format!("proxy-authorization: {value}\r\n"),
            _ => String::new(),
        }
    }

    fn connect(&self) -> io::Result<Stream> {
        let (host, port) =
            self.proxy.as_ref().map_or((&*self.host, self.port), |proxy| (proxy.host.as_str(), proxy.port));
        let mut addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
        // S3 answers with several addresses, each of which carries only so much.
        if addresses.len() > 1 {
            let first = rand::random_range(0..addresses.len());
            addresses.rotate_left(first);
        }
        let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
        let connected = addresses.iter().find_map(|address| {
            TcpStream::connect_timeout(address, self.limits.connect).map_err(|error| failed = error).ok()
        });
        let Some(mut socket) = connected else { return Err(failed) };
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(self.limits.read))?;
        socket.set_write_timeout(Some(self.limits.read))?;
        let Some((name, config)) = &self.tls else { return Ok(Stream::Plain(socket)) };
        if let Some(proxy) = &self.proxy {
            tunnel(&mut socket, &format!("{}:{}", self.host, self.port), proxy)?;
        }
        let session = ClientConnection::new(Arc::clone(config), name.clone()).map_err(io::Error::other)?;
        Ok(Stream::Tls(Box::new(StreamOwned::new(session, socket))))
    }
}

/// Asks a proxy for a way through: <https://www.rfc-editor.org/rfc/rfc9110#name-connect>
fn tunnel(socket: &mut TcpStream, to: &str, proxy: &Proxy) -> io::Result<()> {
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n");
    if let Some(value) = &proxy.authorization {
        let _ = write!(request, "proxy-authorization: {value}\r\n");
    }
    request.push_str("\r\n");
    socket.write_all(request.as_bytes())?;
    // Byte by byte: what follows the head is the server's, and belongs to TLS.
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > HEAD {
            return Err(io::Error::other("the proxy's answer does not end"));
        }
    }
    match head.get(9..12) {
        Some(status) if status.starts_with(b"2") => Ok(()),
        status => {
            let status = String::from_utf8_lossy(status.unwrap_or_default()).into_owned();
            Err(io::Error::other(format!("the proxy {}:{} answered {status}", proxy.host, proxy.port)))
        }
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    /// Waits for as much as the buffer holds, so that a large body takes few system calls; less at the end of the
    /// stream, and where the socket's time is up.
    fn read_much(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => Ok(rustix::net::recv(socket, &mut *buffer, RecvFlags::WAITALL)?.0),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Plain(_)) { "Plain" } else { "Tls" })
    }
}

/// How a body ends: <https://www.rfc-editor.org/rfc/rfc9112#name-message-body-length>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// After so many bytes more.
    Length(u64),
    /// After the chunk of length 0; so much is left of this one.
    Chunked(u64),
    /// With the connection.
    Close,
}

/// The head of an answer.
#[derive(Debug, Default)]
pub(super) struct Head {
    pub status: u16,
    fields: Vec<(String, String)>,
}

impl Head {
    /// A header's value; names in lower case.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.get("content-length")?.parse().ok()
    }
}

/// One connection, made when it is needed, kept while the server keeps it.
#[derive(Debug)]
pub(super) struct Connection {
    endpoint: Arc<Endpoint>,
    stream: Option<Stream>,
    /// What was read and not yet used.
    input: Vec<u8>,
    unread: std::ops::Range<usize>,
    framing: Framing,
    keeps: bool,
    patience: Option<Instant>,
}

impl Connection {
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        let input = vec![0; INPUT];
        Self { endpoint, stream: None, input, unread: 0..0, framing: Framing::Length(0), keeps: false, patience: None }
    }

    /// Sends a request and reads the head of its answer. A connection that the server closed meanwhile is made anew.
    pub(super) fn ask(&mut self, request: &[u8], has_body: bool) -> Result<Head, NoAnswer> {
        // What was not read of the last answer would be taken for the next one's head.
        if self.framing != Framing::Length(0) || !self.keeps {
            self.stream = None;
        }
        let fresh = self.stream.is_none();
        match self.exchange(request, has_body) {
            Err(NoAnswer::Broken(error)) if !fresh && self.unread.is_empty() && is_closed(&error) => {
                self.stream = None;
                self.exchange(request, has_body)
            }
            answered => answered,
        }
        .inspect_err(|_| self.stream = None)
    }

    fn exchange(&mut self, request: &[u8], has_body: bool) -> Result<Head, NoAnswer> {
        (self.unread, self.keeps) = (0..0, false);
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(self.endpoint.connect().map_err(NoAnswer::Unreachable)?),
        };
        stream.write_all(request).map_err(NoAnswer::Broken)?;
        loop {
            let head = self.read_head().map_err(NoAnswer::Broken)?;
            // Interim answers come before the one that counts.
            if head.status >= 200 {
                self.begin_body(&head, has_body);
                return Ok(head);
            }
        }
    }

    fn read_head(&mut self) -> io::Result<Head> {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; FIELDS];
            let mut answer = httparse::Response::new(&mut fields);
            let have = &self.input[self.unread.clone()];
            match answer.parse(have).map_err(io::Error::other)? {
                httparse::Status::Complete(length) => {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let fields = answer.headers.iter();
                    let fields = fields.map(|field| (field.name.to_ascii_lowercase(), text(field.value))).collect();
                    self.keeps = answer.version == Some(1);
                    let status = answer.code.unwrap_or(0);
                    self.unread.start += length;
                    return Ok(Head { status, fields });
                }
                httparse::Status::Partial if have.len() >= HEAD => {
                    return Err(io::Error::other("the head of the answer does not end"));
                }
                httparse::Status::Partial if self.fill()? == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                httparse::Status::Partial => {}
            }
        }
    }

    /// Reads what comes next behind what is there.
    fn fill(&mut self) -> io::Result<usize> {
        if self.unread.is_empty() {
            self.unread = 0..0;
        }
        if self.unread.end == self.input.len() {
            self.input.resize(self.input.len() * 2, 0);
        }
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let read = retried(|| stream.read(&mut self.input[self.unread.end..]))?;
        self.unread.end += read;
        Ok(read)
    }

    fn begin_body(&mut self, head: &Head, has_body: bool) {
        let chunked = head.get("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        let empty = !has_body || matches!(head.status, 204 | 304);
        self.framing = match head.length() {
            _ if empty => Framing::Length(0),
            _ if chunked => Framing::Chunked(0),
            Some(length) => Framing::Length(length),
            None => Framing::Close,
        };
        self.keeps &= !head.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        self.keeps &= self.framing != Framing::Close;
        let allowed = Duration::from_secs(head.length().unwrap_or(0) / SLOWEST);
        self.patience = Instant::now().checked_add(self.endpoint.limits.read * 2 + allowed);
    }

    /// Fills the buffer, or as much of it as the body has left. An answer that ends early is an error.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let left = match self.framing {
                Framing::Length(0) => break,
                Framing::Length(left) => left,
                Framing::Chunked(0) => match self.next_chunk()? {
                    0 => break,
                    left => left,
                },
                Framing::Chunked(left) => left,
                Framing::Close => u64::MAX,
            };
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len() - filled);
            let read = self.read_some(&mut buffer[filled..filled + room])?;
            if read == 0 {
                match self.framing {
                    Framing::Close => self.framing = Framing::Length(0),
                    _ => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
                }
            }
            filled += read;
            match &mut self.framing {
                Framing::Length(left) | Framing::Chunked(left) => *left -= read as u64,
                Framing::Close => {}
            }
        }
        Ok(filled)
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.unread.is_empty() {
            let take = self.unread.len().min(buffer.len());
            buffer[..take].copy_from_slice(&self.input[self.unread.start..self.unread.start + take]);
            self.unread.start += take;
            return Ok(take);
        }
        if self.patience.is_some_and(|end| Instant::now() > end) {
            return Err(self.broken(io::Error::new(io::ErrorKind::TimedOut, "the answer comes too slowly")));
        }
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        retried(|| stream.read_much(buffer)).map_err(|error| self.broken(error))
    }

    /// The length of the next chunk; 0 after the last, whose trailers are read too.
    fn next_chunk(&mut self) -> io::Result<u64> {
        let mut line = self.line()?;
        // The end of the chunk before.
        if line.is_empty() {
            line = self.line()?;
        }
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length = u64::from_str_radix(digits, 16).map_err(|_| io::Error::other("the answer's chunks are broken"))?;
        if length == 0 {
            while !self.line()?.is_empty() {}
            self.framing = Framing::Length(0);
        } else {
            self.framing = Framing::Chunked(length);
        }
        Ok(length)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            if self.unread.is_empty() && self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let byte = self.input[self.unread.start];
            self.unread.start += 1;
            match byte {
                b'\n' => return Ok(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()),
                _ if line.len() > 1024 => return Err(io::Error::other("the answer's chunks are broken")),
                byte => line.push(byte),
            }
        }
    }

    /// Nothing more can be read from a connection after an error.
    fn broken(&mut self, error: io::Error) -> io::Error {
        self.stream = None;
        error
    }

    /// The whole of a small body, such as that of an error; cut at 64 KiB.
    pub(super) fn text(&mut self) -> io::Result<String> {
        let mut text = vec![0; HEAD];
        let length = self.read(&mut text)?;
        text.truncate(length);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn retried(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came any more"));
            }
            outcome => return outcome,
        }
    }
}

/// Whether the server had closed the connection before it saw the request.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}
