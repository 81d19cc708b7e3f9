//! Those who connect and are not of this run. A connection is a stranger's until a call on it has shown the token, be it
//! silent, slow, or talking nonsense; it has little time for that, and there are never many: the oldest goes when one
//! more comes, so that a worker finds room however many hold connections open. What they cost is bounded by that.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, Sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// How many connections there are at once that have not shown the token.
const MOST: usize = 256;
/// How long a connection may take to show it.
const PATIENCE: Duration = Duration::from_secs(10);
/// After an error of the listener's own, such as no more open files.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two words in the log.
const QUIET: Duration = Duration::from_secs(10);

/// Connections that have not shown the token, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    present: Mutex<BTreeMap<u64, CancellationToken>>,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    next: u64,
    silent_until: Option<Instant>,
    untold: u64,
}

impl Strangers {
    /// Takes connections from a listener.
    pub(super) fn incoming(
        self: &Arc<Self>,
        listener: TcpListener,
    ) -> impl futures::Stream<Item = io::Result<Connection>> + Send + 'static {
        futures::stream::unfold((Arc::clone(self), listener), async |(strangers, listener)| {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        // Two small messages after each other would wait for the peer's delayed acknowledgement, 40 ms, otherwise.
                        let _ = stream.set_nodelay(true);
                        let connection = Connection::new(stream, Visitor::new(peer, &strangers));
                        return Some((Ok(connection), (strangers, listener)));
                    }
                    Err(error) => {
                        strangers.turned_away(None, &format!("connections cannot be taken: {error}"));
                        // Whoever waits goes on waiting, and asking again at once would only cost.
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        })
    }

    /// Says in the log that somebody was turned away; of many only how many.
    pub(super) fn turned_away(&self, peer: Option<IpAddr>, why: &str) {
        let untold = {
            let (mut log, now) = (held(&self.log), Instant::now());
            if log.silent_until.is_some_and(|until| until > now) {
                log.untold += 1;
                return;
            }
            log.silent_until = Some(now + QUIET);
            std::mem::take(&mut log.untold)
        };
        let who = peer.map_or_else(|| "somebody".to_owned(), |peer| peer.to_canonical().to_string());
        match untold {
            0 => tracing::warn!("{who} was turned away from the run's link: {why}"),
            _ => tracing::warn!("{who} was turned away from the run's link, as {untold} before: {why}"),
        }
    }

    fn arrived(&self) -> (u64, CancellationToken) {
        let number = {
            let mut log = held(&self.log);
            log.next += 1;
            log.next
        };
        let token = CancellationToken::new();
        let mut present = held(&self.present);
        present.insert(number, token.clone());
        if present.len() > MOST
            && let Some((_, oldest)) = present.pop_first()
        {
            oldest.cancel();
        }
        (number, token)
    }
}

/// Who is at the other end of a connection. Calls find it among their extensions.
#[derive(Clone, Debug)]
pub(super) struct Visitor(Arc<Known>);

#[derive(Debug)]
struct Known {
    peer: IpAddr,
    number: u64,
    leave: CancellationToken,
    is_ours: AtomicBool,
    strangers: Arc<Strangers>,
}

impl Visitor {
    fn new(peer: SocketAddr, strangers: &Arc<Strangers>) -> Self {
        let (number, leave) = strangers.arrived();
        let (is_ours, strangers) = (AtomicBool::new(false), Arc::clone(strangers));
        Self(Arc::new(Known { peer: peer.ip(), number, leave, is_ours, strangers }))
    }

    pub(super) fn peer(&self) -> IpAddr {
        self.0.peer
    }

    /// It has shown the token.
    pub(super) fn is_ours(&self) {
        if !self.0.is_ours.swap(true, Ordering::Relaxed) {
            held(&self.0.strangers.present).remove(&self.0.number);
        }
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        if !*self.is_ours.get_mut() {
            held(&self.strangers.present).remove(&self.number);
            self.strangers.turned_away(Some(self.peer), "it did not show the run's token");
        }
    }
}

/// How long it may be one, and the order to leave.
type Limits = (Pin<Box<Sleep>>, Pin<Box<WaitForCancellationFutureOwned>>);

/// A connection, which ends by itself while it is a stranger's.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    visitor: Visitor,
    /// None once it is not a stranger's any more.
    limits: Option<Limits>,
}

impl Connection {
    fn new(stream: TcpStream, visitor: Visitor) -> Self {
        // A limit, which ends with the connection's first token.
        let limits = (Box::pin(tokio::time::sleep(PATIENCE)), Box::pin(visitor.0.leave.clone().cancelled_owned()));
        Self { stream, visitor, limits: Some(limits) }
    }

    /// Whether it has to end now. Who waits for its bytes is woken when it does.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        if self.visitor.0.is_ours.load(Ordering::Relaxed) {
            self.limits = None;
        }
        let Some((patience, leave)) = &mut self.limits else { return false };
        patience.as_mut().poll(context).is_ready() || leave.as_mut().poll(context).is_ready()
    }
}

impl Connected for Connection {
    type ConnectInfo = Visitor;

    fn connect_info(&self) -> Visitor {
        self.visitor.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Nothing is done under these locks that could leave them half done.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
