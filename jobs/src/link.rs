//! The gRPC service `forebay.Link`, client and server, with JSON messages.
//!
//! Written by hand and not generated, so that no `protoc` is needed to build forebay, and the types on the wire are
//! the types of [`wire`](crate::wire) and no second set of them.

use std::{convert::Infallible, future::Future, marker::PhantomData, sync::Arc, task::Poll};

use bytes::{Buf, BufMut};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{Body as HttpBody, BoxFuture, Service, StdError},
    server::{Grpc, NamedService, StreamingService, UnaryService},
    transport::Channel,
};

use crate::wire::{CancelReply, CancelRequest, FromWorker, ToWorker};

const WORK: &str = "/forebay.Link/Work";
const CANCEL: &str = "/forebay.Link/Cancel";
/// The largest message that is taken; an assignment of a reduce over 100,000 files has about 30 MiB.
const LARGEST: usize = 64 << 20;

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

/// Calls a coordinator.
#[derive(Clone, Debug)]
pub struct LinkClient(Channel);

impl LinkClient {
    /// Over a channel that is connected.
    pub fn new(channel: Channel) -> Self {
        Self(channel)
    }

    /// Opens a worker's stream.
    pub async fn work<S>(&self, request: Request<S>) -> Result<Streaming<ToWorker>, Status>
    where
        S: futures::Stream<Item = FromWorker> + Send + 'static,
    {
        let mut grpc = self.ready().await?;
        let path = http::uri::PathAndQuery::from_static(WORK);
        Ok(grpc.streaming(request, path, Json::default()).await?.into_inner())
    }

    /// Asks for the run's end.
    pub async fn cancel(&self, request: Request<CancelRequest>) -> Result<CancelReply, Status> {
        let mut grpc = self.ready().await?;
        let path = http::uri::PathAndQuery::from_static(CANCEL);
        Ok(grpc.unary(request, path, Json::default()).await?.into_inner())
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone()).max_decoding_message_size(LARGEST);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }
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
        LinkClient::new(Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap())
    }

    fn attempts(count: u32) -> Vec<AttemptId> {
        (0..count).map(|index| AttemptId { task: TaskId { phase: 0, index }, number: 1, epoch: Epoch(1) }).collect()
    }

    #[tokio::test]
    async fn messages_go_both_ways_while_the_stream_is_open() {
        let client = client().await;
        let (say, said) = mpsc::unbounded();
        let mut heard = client.work(Request::new(said)).await.unwrap();
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
        let cancel = |run: &str| Request::new(CancelRequest { run: run.parse().unwrap() });
        assert_eq!(client.cancel(cancel("r")).await.unwrap(), CancelReply {});
        let status = client.cancel(cancel("x")).await.unwrap_err();
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
