//! Connections: resets, clocks that differ, and a server that has gone silent.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::{HeaderMap, Request, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use s3s::{Body, HttpResponse, S3Error, S3ErrorCode, service::S3Service};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{
    delivery::Line,
    store::{Store, header},
};

/// What S3 forgives.
const SKEW: SignedDuration = SignedDuration::from_mins(15);

/// A connection that can end with a reset.
struct Socket {
    stream: TcpStream,
    line: Line,
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, to)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.line.is_to_be_reset() {
            // A FIN before the reset would be an orderly end.
            true => Poll::Ready(Ok(())),
            false => Pin::new(&mut self.stream).poll_shutdown(context),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.line.is_to_be_reset() {
            let _ = self.stream.set_zero_linger();
        }
    }
}

/// The answer of a server whose clock is so many seconds ahead.
pub(super) fn skewed(ahead: i64) -> S3Error {
    let mut error = S3Error::with_message(
        S3ErrorCode::RequestTimeTooSkewed,
        "The difference between the request time and the current time is too large.",
    );
    error.set_headers(date(ahead).as_deref().and_then(|date| header(("date", date))).into_iter().collect());
    error
}

fn date(ahead: i64) -> Option<String> {
    let now = Timestamp::now().checked_add(SignedDuration::from_secs(ahead)).ok()?;
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now).ok()
}

/// How far the time of a request is from the server's; a request that is not signed has none.
fn differs(headers: &HeaderMap, ahead: i64) -> Option<SignedDuration> {
    let text = headers.get("x-amz-date")?.to_str().ok()?;
    let sent = DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    Some(Timestamp::now().duration_since(sent) + SignedDuration::from_secs(ahead))
}

async fn answer(service: S3Service, store: Store, line: Line, mut request: Request<Incoming>) -> HttpResponse {
    store.gate.passed().await;
    let ahead = store.lock().faults.clock_ahead;
    request.extensions_mut().insert(line);
    let answered = match differs(request.headers(), ahead).is_some_and(|by| by.abs() > SKEW) {
        true => skewed(ahead).to_http_response(),
        false => service.call(request.map(Body::from)).await.map_err(|_| S3Error::new(S3ErrorCode::InternalError)),
    };
    store.gate.passed().await;
    let mut answered = answered.unwrap_or_default();
    if ahead != 0
        && let Some((name, value)) = date(ahead).as_deref().and_then(|date| header(("date", date)))
    {
        answered.headers_mut().insert(name, value);
    }
    answered
}

pub(super) async fn accept(listener: TcpListener, service: S3Service, store: Store) {
    // Connections end with the task that owns them.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        // Answers of two writes would wait for each other's acknowledgement.
        let _ = stream.set_nodelay(true);
        let (service, store, line) = (service.clone(), store.clone(), Line::default());
        let socket = Socket { stream, line: line.clone() };
        connections.spawn(async move {
            let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let answer = hyper::service::service_fn(move |request| {
                let answered = answer(service.clone(), store.clone(), line.clone(), request);
                async { Ok::<_, Infallible>(answered.await) }
            });
            let _ = http.serve_connection(TokioIo::new(socket), answer).await;
        });
        while connections.try_join_next().is_some() {}
    }
}
