//! AWS JSON 1.1 over HTTP, and the metadata that a container may ask for.

use std::{io, sync::Arc, time::Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::{Logged, Shared, actions, actions::Answer};

/// The services, as their signatures name them, and their protocols.
const SERVICES: [(&str, &str); 2] = [("ecs", "AmazonEC2ContainerServiceV20141113."), ("logs", "Logs_20140328.")];

pub async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let serve = hyper::service::service_fn(move |request| answer(Arc::clone(&shared), request));
            let _ = http.serve_connection(TokioIo::new(stream), serve).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

fn response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let builder = Response::builder().status(status).header("content-type", "application/x-amz-json-1.1");
    builder.body(Full::new(Bytes::from(body.to_string()))).unwrap()
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
    if request.method() == Method::GET {
        let task = request.uri().path().strip_prefix("/v4/").and_then(|path| path.strip_suffix("/task"));
        let known = task.filter(|task| shared.lock().tasks.contains_key(*task));
        return Ok(match known {
            Some(task) => response(StatusCode::OK, &json!({ "Cluster": "c", "TaskARN": actions::task_arn(task) })),
            None => response(StatusCode::NOT_FOUND, &json!({})),
        });
    }
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let target = header("x-amz-target");
    let of = SERVICES.iter().find_map(|(service, protocol)| Some((*service, target.strip_prefix(protocol)?)));
    let (service, action) = of.unwrap_or_default();
    let signed = header("authorization").starts_with("AWS4-HMAC-SHA256 Credential=")
        && header("authorization").contains(&format!("/us-east-1/{service}/aws4_request"));
    let action = action.to_owned();
    let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let at = Instant::now();
    let answer = match signed {
        true => actions::answer(&shared, &action, &body),
        false => {
            Answer::Refused("MissingAuthenticationTokenException", "Missing Authentication Token".into(), json!({}))
        }
    };
    let error = match &answer {
        Answer::Refused(error, ..) => Some((*error).to_owned()),
        Answer::Done(_) | Answer::Lost => None,
    };
    shared.lock().log.push(Logged { at, action: action.clone(), body, error });
    if action == "RunTask" {
        // It was done; whether the answer is given is another matter.
        let _ = shared.answers.subscribe().wait_for(|answers| *answers).await;
    }
    match answer {
        Answer::Done(body) => Ok(response(StatusCode::OK, &body)),
        Answer::Refused(error, message, mut more) => {
            (more["__type"], more["message"]) = (error.into(), message.into());
            Ok(response(StatusCode::BAD_REQUEST, &more))
        }
        Answer::Lost => Err(io::ErrorKind::ConnectionReset.into()),
    }
}
