//! The gRPC service `forebay.Link`, client and server, with JSON messages.
//!
//! Written by hand and not generated, so that no `protoc` is needed to build forebay, and the types on the wire are
//! the types of [`wire`](crate::wire) and no second set of them.

use std::{
    convert::Infallible, error::Error, fmt, future::Future, marker::PhantomData, sync::Arc, task::Poll, time::Duration,
};

use bytes::{Buf, BufMut};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{Body as HttpBody, BoxFuture, Service, StdError},
    metadata::{Ascii, MetadataValue},
    server::{Grpc, NamedService, StreamingService, UnaryService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::wire::{CancelReply, CancelRequest, FromWorker, LinkFile, SERVER_NAME, ToWorker};

const WORK: &str = "/forebay.Link/Work";
const CANCEL: &str = "/forebay.Link/Cancel";
/// The largest message that is taken; an assignment of a reduce over 100,000 files has about 30 MiB.
pub(crate) const LARGEST: usize = 64 << 20;
/// How long one address of a coordinator's is tried.
const CONNECT: Duration = Duration::from_secs(5);
/// A coordinator that is stopped, or whose host is gone, is noticed by pings that nobody answers.
const PING: Duration = Duration::from_secs(5);
const PONG: Duration = Duration::from_secs(10);

/// JSON over gRPC.
struct Json<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Json<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Json<T, U>
where
    T: Serialize + Send + 'static,
    U: DeserializeOwned + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Json<T, ()>;
    type Decoder = Json<(), U>;

    fn encoder(&mut self) -> Self::Encoder {
        Json::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Json::default()
    }
}

impl<T: Serialize> Encoder for Json<T, ()> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        serde_json::to_writer(buffer.writer(), &item).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<U: DeserializeOwned> Decoder for Json<(), U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message that lies in one piece need not be read byte by byte.
        let message = match buffer.chunk().len() == buffer.remaining() {
            true => {
                let message = serde_json::from_slice(buffer.chunk());
                buffer.advance(buffer.remaining());
                message
            }
            false => serde_json::from_reader(buffer.reader()),
        };
        message.map(Some).map_err(|error| Status::invalid_argument(format!("not a message of forebay's: {error}")))
    }
}

/// What a coordinator answers.
pub trait Link: Send + Sync + 'static {
    /// Says whether a call may be made at all, by what is known before a byte of its message is read.
    fn authorize(&self, headers: &http::HeaderMap, connection: &http::Extensions) -> Result<(), Status>;

    /// What goes to a worker.
    type ToWorker: futures::Stream<Item = Result<ToWorker, Status>> + Send + 'static;

    /// A worker's stream, for as long as it lives.
    fn work(
        &self,
        request: Request<Streaming<FromWorker>>,
    ) -> impl Future<Output = Result<Response<Self::ToWorker>, Status>> + Send;

    /// Someone wants the run to end.
    fn cancel(
        &self,
        request: Request<CancelRequest>,
    ) -> impl Future<Output = Result<Response<CancelReply>, Status>> + Send;
}

/// Serves a [`Link`].
#[derive(Debug)]
pub struct LinkServer<L>(Arc<L>);

impl<L> LinkServer<L> {
    /// Wraps what answers.
    pub fn new(link: L) -> Self {
        Self(Arc::new(link))
    }
}

impl<L> Clone for LinkServer<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: Link> NamedService for LinkServer<L> {
    const NAME: &'static str = "forebay.Link";
}

struct Work<L>(Arc<L>);

impl<L: Link> StreamingService<FromWorker> for Work<L> {
    type Response = ToWorker;
    type ResponseStream = L::ToWorker;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<FromWorker>>) -> Self::Future {
        let link = Arc::clone(&self.0);
        Box::pin(async move { link.work(request).await })
    }
}

struct Cancel<L>(Arc<L>);

impl<L: Link> UnaryService<CancelRequest> for Cancel<L> {
    type Response = CancelReply;
    type Future = BoxFuture<Response<CancelReply>, Status>;

    fn call(&mut self, request: Request<CancelRequest>) -> Self::Future {
        let link = Arc::clone(&self.0);
        Box::pin(async move { link.cancel(request).await })
    }
}

impl<L, B> Service<http::Request<B>> for LinkServer<L>
where
    L: Link,
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let link = Arc::clone(&self.0);
        if let Err(refused) = link.authorize(request.headers(), request.extensions()) {
            return Box::pin(async move { Ok(refused.into_http()) });
        }
        match request.uri().path() {
            WORK => Box::pin(async move {
                let mut grpc = Grpc::new(Json::default()).max_decoding_message_size(LARGEST);
                Ok(grpc.streaming(Work(link), request).await)
            }),
            CANCEL => Box::pin(async move {
                let mut grpc = Grpc::new(Json::default()).max_decoding_message_size(1 << 20);
                Ok(grpc.unary(Cancel(link), request).await)
            }),
            _ => Box::pin(async { Ok(Status::unimplemented("no such call").into_http()) }),
        }
    }
}

/// A connection to a coordinator.
#[derive(Clone, Debug)]
pub struct LinkClient {
    channel: Channel,
    authorization: Option<MetadataValue<Ascii>>,
    address: String,
}

/// Why none of a coordinator's addresses could be connected to.
#[derive(Debug)]
pub struct Unreachable(Vec<(String, String)>);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("it says no address");
        }
        let tried: Vec<_> = self.0.iter().map(|(address, why)| format!("{address}: {why}")).collect();
        f.write_str(&tried.join("; "))
    }
}

impl Error for Unreachable {}

impl LinkClient {
    /// Connects to the first of a coordinator's addresses at which it is, and to nobody else who may listen there.
    ///
    /// # Errors
    /// What was tried, and why each failed.
    pub async fn connect(link: &LinkFile) -> Result<Self, Unreachable> {
        let mut tried = Vec::new();
        for address in &link.addresses {
            match tokio::time::timeout(CONNECT, channel(link, address)).await {
                Ok(Ok(channel)) => {
                    let authorization = format!("Bearer {}", link.token).parse().ok();
                    return Ok(Self { channel, authorization, address: address.clone() });
                }
                Ok(Err(error)) => tried.push((address.clone(), why(&error))),
                Err(_) => tried.push((address.clone(), format!("no answer in {} s", CONNECT.as_secs()))),
            }
        }
        Err(Unreachable(tried))
    }

    /// The address at which it was found.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Opens a worker's stream.
    pub async fn work<S>(&self, messages: S) -> Result<Streaming<ToWorker>, Status>
    where
        S: futures::Stream<Item = FromWorker> + Send + 'static,
    {
        let mut grpc = self.ready().await?;
        let path = http::uri::PathAndQuery::from_static(WORK);
        Ok(grpc.streaming(self.request(messages), path, Json::default()).await?.into_inner())
    }

    /// Asks for the run's end, and waits for the answer no longer than this.
    pub async fn cancel(&self, request: CancelRequest, patience: Duration) -> Result<CancelReply, Status> {
        let mut grpc = self.ready().await?;
        let path = http::uri::PathAndQuery::from_static(CANCEL);
        let mut request = self.request(request);
        request.set_timeout(patience);
        Ok(grpc.unary(request, path, Json::default()).await?.into_inner())
    }

    /// Shows the run's token.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }
}

async fn channel(link: &LinkFile, address: &str) -> Result<Channel, tonic::transport::Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&link.certificate)).domain_name(SERVER_NAME);
    let endpoint = Endpoint::from_shared(address.to_owned())?.tls_config(tls)?;
    let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
    let endpoint = endpoint.http2_keep_alive_interval(PING).keep_alive_timeout(PONG).keep_alive_while_idle(true);
    endpoint.connect().await
}

/// The innermost cause, which is the system's or that of TLS.
fn why(error: &tonic::transport::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures::{StreamExt, channel::mpsc, stream, stream::BoxStream};
    use tokio::net::TcpListener;
    use tonic::{Code, transport::Server};

    use super::*;
    use crate::id::{AttemptId, Epoch, TaskId};

    /// Answers every `Started` with `Kill` of the same attempts, until its worker's stream ends.
    struct Echo;

    impl Link for Echo {
        type ToWorker = BoxStream<'static, Result<ToWorker, Status>>;

        fn authorize(&self, _: &http::HeaderMap, _: &http::Extensions) -> Result<(), Status> {
            Ok(())
        }

        async fn work(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::ToWorker>, Status> {
            let answers = request.into_inner().filter_map(|message| async {
                match message {
                    Ok(FromWorker::Started(attempts)) => Some(Ok(ToWorker::Kill(attempts))),
                    Ok(_) => None,
                    Err(status) => Some(Err(status)),
                }
            });
            Ok(Response::new(answers.boxed()))
        }

        async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<CancelReply>, Status> {
            match request.into_inner().run.as_str() {
                "r" => Ok(Response::new(CancelReply {})),
                other => Err(Status::not_found(format!("no run {other}"))),
            }
        }
    }

    /// A client of a server that lives as long as the test's runtime.
    async fn client() -> LinkClient {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = stream::unfold(listener, |listener| async {
            let connection = listener.accept().await.map(|(connection, _)| connection);
            Some((connection, listener))
        });
        tokio::spawn(Server::builder().add_service(LinkServer::new(Echo)).serve_with_incoming(incoming));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        LinkClient { channel, authorization: None, address: address.to_string() }
    }

    fn attempts(count: u32) -> Vec<AttemptId> {
        (0..count).map(|index| AttemptId { task: TaskId { phase: 0, index }, number: 1, epoch: Epoch(1) }).collect()
    }

    #[tokio::test]
    async fn messages_go_both_ways_while_the_stream_is_open() {
        let client = client().await;
        let (say, said) = mpsc::unbounded();
        let mut heard = client.work(said).await.unwrap();
        // The last is larger than any frame of HTTP/2, and comes in several pieces.
        for count in [0, 1, 3, 50_000] {
            say.unbounded_send(FromWorker::Heartbeat).unwrap();
            say.unbounded_send(FromWorker::Started(attempts(count))).unwrap();
            assert_eq!(heard.message().await.unwrap(), Some(ToWorker::Kill(attempts(count))));
        }
        drop(say);
        assert_eq!(heard.message().await.unwrap(), None, "the worker's end ends the stream");
    }

    #[tokio::test]
    async fn a_call_is_answered_or_refused_in_the_server_s_words() {
        let client = client().await;
        let cancel = |run: &str| client.cancel(CancelRequest { run: run.parse().unwrap() }, CONNECT);
        assert_eq!(cancel("r").await.unwrap(), CancelReply {});
        let status = cancel("x").await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "no run x"));
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused_and_harms_no_other_call() {
        let client = client().await;
        let call = async |path: &'static str, message: serde_json::Value| {
            let path = http::uri::PathAndQuery::from_static(path);
            let codec = Json::<serde_json::Value, CancelReply>::default();
            client.ready().await.unwrap().unary(Request::new(message), path, codec).await.map(Response::into_inner)
        };
        let status = call(CANCEL, serde_json::json!({ "run": "../x" })).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("is no run id"), "{}", status.message());
        let status = call("/forebay.Link/Other", serde_json::Value::Null).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        assert_eq!(call(CANCEL, serde_json::json!({ "run": "r" })).await.unwrap(), CancelReply {});
    }
}
