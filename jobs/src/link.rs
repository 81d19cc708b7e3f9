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
        let message = serde_json::from_reader(buffer.reader());
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
