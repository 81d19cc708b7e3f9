//! Which task of ECS a container is of: it may ask for its metadata,
//! <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-metadata-endpoint-v4.html>.

use std::{io, time::Duration};

use bytes::Bytes;
use forebay_jobs::id::MemberId;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Uri, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Where the metadata is, in the environment of every container of ECS.
pub(super) const METADATA: &str = "ECS_CONTAINER_METADATA_URI_V4";
/// The agent may be slow while it starts many tasks.
const TRIES: u32 = 5;
const PATIENCE: Duration = Duration::from_secs(5);

/// The task, as its fleet calls it.
///
/// # Errors
/// Who should tell it does not.
pub(super) async fn member(base: &str) -> io::Result<MemberId> {
    let mut tries = 0;
    loop {
        tries += 1;
        let asked = tokio::time::timeout(PATIENCE, ask(&format!("{base}/task"))).await;
        match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            // Nothing tells when it will.
            Err(_) if tries < TRIES => tokio::time::sleep(Duration::from_secs(1)).await,
            answered => return answered.and_then(|task| named(&task)),
        }
    }
}

fn named(task: &Value) -> io::Result<MemberId> {
    let arn = task["TaskARN"].as_str().unwrap_or_default();
    let id = arn.rsplit('/').next().unwrap_or_default();
    let unusable = || io::Error::other(format!("`{arn}` is no task's ARN"));
    if id.is_empty() { Err(unusable()) } else { format!("ecs-{id}").parse().map_err(|_| unusable()) }
}

async fn ask(url: &str) -> io::Result<Value> {
    let uri: Uri = url.parse().map_err(io::Error::other)?;
    let authority = uri.authority().ok_or_else(|| io::Error::other(format!("`{url}` has no host")))?;
    let stream = TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::get(uri.path()).header(HOST, authority.as_str()).body(Empty::<Bytes>::new());
    let request = request.map_err(io::Error::other)?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        if !answer.status().is_success() {
            return Err(io::Error::other(format!("it answered {}", answer.status())));
        }
        let body = answer.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        serde_json::from_slice(&body).map_err(io::Error::other)
    };
    tokio::select! {
        answered = answered => answered,
        ended = connection => Err(ended.map_or_else(io::Error::other, |()| io::ErrorKind::UnexpectedEof.into())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_task_is_named_by_the_last_part_of_its_arn() {
        let of = |arn: &str| named(&json!({ "TaskARN": arn })).map(|member| member.to_string());
        let arn = "arn:aws:ecs:eu-west-1:123456789012:task/forebay/158d1c8083dd49d6b527399fd6414f5c";
        assert_eq!(of(arn).unwrap(), "ecs-158d1c8083dd49d6b527399fd6414f5c");
        assert!(of("").is_err() && of("arn:aws:ecs:x:y:task/a b").is_err());
    }
}
