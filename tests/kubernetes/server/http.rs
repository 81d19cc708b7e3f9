//! Requests and answers: routes, selectors, pages, and faults.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use serde_json::{Value, json};

use super::{Shared, world::Refusal};

/// A request as it came, and what was answered.
#[derive(Clone, Debug)]
pub struct Logged {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub body: Value,
    pub status: u16,
}

/// What becomes of a request that is like this.
#[derive(Clone, Debug)]
pub struct Fault {
    pub method: &'static str,
    /// What its path ends with, or holds.
    pub path: &'static str,
    /// How often.
    pub times: u32,
    pub what: Failing,
}

#[derive(Clone, Debug)]
pub enum Failing {
    /// It is not done.
    Refuse(Refusal),
    /// It is done, and the answer is another.
    Lose(Refusal),
    /// It is done, and the answer comes late.
    Late(Duration),
}

pub async fn answer(shared: &Shared, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let query: BTreeMap<String, String> = request.uri().query().map(parse).unwrap_or_default();
    if let Some(pod) = path.strip_suffix("/log").and_then(|path| path.rsplit('/').next()) {
        return log(shared, pod, query.get("follow").is_some_and(|follow| follow == "true")).await;
    }
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let fault = shared.fault(method.as_str(), &path);
    let answer = match &fault {
        Some(Failing::Refuse(refusal)) => Err(refusal.clone()),
        Some(Failing::Lose(refusal)) => {
            let _ = route(shared, &method, &path, &query, &body);
            Err(refusal.clone())
        }
        Some(Failing::Late(_)) | None => route(shared, &method, &path, &query, &body),
    };
    let status = match &answer {
        Ok(_) if method == Method::POST => 201,
        Ok(_) => 200,
        Err(refusal) => refusal.code,
    };
    let sent = serde_json::from_slice(&body).unwrap_or(Value::Null);
    shared.log(Logged { method: method.to_string(), path, query, body: sent, status });
    if let Some(Failing::Late(late)) = fault {
        tokio::time::sleep(late).await;
    }
    let mut response = Response::builder()
        .status(StatusCode::from_u16(status).expect("it is a status"))
        .header("content-type", "application/json");
    if let Err(Refusal { retry_after: Some(seconds), .. }) = &answer {
        response = response.header("retry-after", seconds.to_string());
    }
    let body = answer.unwrap_or_else(|refusal| refusal.body());
    response.body(Full::new(Bytes::from(body.to_string()))).expect("it is a response")
}

/// A pod's log, when it is whole if it is to be followed.
async fn log(shared: &Shared, pod: &str, follow: bool) -> Response<Full<Bytes>> {
    loop {
        let said = shared.world().pods.get(pod).map(|live| match &live.container {
            Some(container) => (container.said(), false),
            None => (live.log.clone(), live.ended.is_some()),
        });
        match said {
            None => return Response::builder().status(404).body(Full::default()).expect("it is a response"),
            Some((_, false)) if follow => tokio::time::sleep(Duration::from_millis(20)).await,
            Some((said, _)) => return Response::new(Full::new(said.into())),
        }
    }
}

fn parse(query: &str) -> BTreeMap<String, String> {
    let decoded =
        |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn route(
    shared: &Shared,
    method: &Method,
    path: &str,
    query: &BTreeMap<String, String>,
    body: &[u8],
) -> Result<Value, Refusal> {
    let parts: Vec<_> = path.trim_matches('/').split('/').collect();
    let (kind, namespace, rest) = match parts.as_slice() {
        ["apis", "batch", "v1", "namespaces", namespace, "jobs", rest @ ..] => ("Job", *namespace, rest),
        ["api", "v1", "namespaces", namespace, "pods", rest @ ..] => ("Pod", *namespace, rest),
        ["api", "v1", "namespaces", namespace, "secrets"] => ("Secret", *namespace, &[][..]),
        ["api", "v1", "namespaces", namespace, "events"] => ("Event", *namespace, &[][..]),
        _ => return Err(Refusal::new(404, "NotFound", "the server could not find the requested resource")),
    };
    if namespace != shared.namespace {
        return Err(Refusal::new(404, "NotFound", format!("namespaces \"{namespace}\" not found")));
    }
    let options = || -> Result<DeleteOptions, Refusal> {
        serde_json::from_slice(body).map_err(|e| Refusal::new(400, "BadRequest", e.to_string()))
    };
    match (method.as_str(), kind, rest) {
        ("POST", "Job", []) => {
            let is_dry = query.get("dryRun").is_some_and(|dry| dry == "All");
            shared.world().create_job(body, is_dry)
        }
        ("POST", "Secret", []) => shared.world().create_secret(body),
        ("DELETE", "Job", [name]) => shared.world().delete_job(name, &options()?),
        ("DELETE", "Pod", [name]) => shared.world().delete_pod(name, &options()?),
        ("GET", "Job" | "Pod" | "Event", []) => list(shared, kind, query),
        _ => Err(Refusal::new(405, "MethodNotAllowed", "this server does not do that")),
    }
}

fn list(shared: &Shared, kind: &str, query: &BTreeMap<String, String>) -> Result<Value, Refusal> {
    let world = shared.world();
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let limit = limit.min(world.settings.page);
    let mut page: Vec<Value> = match query.get("continue") {
        Some(token) => shared.rest(token).ok_or_else(|| {
            let message = "The provided continue parameter is too old to display a consistent list result.";
            Refusal::new(410, "Expired", message)
        })?,
        None => {
            let all: Vec<Value> = match kind {
                "Job" => world.jobs.values().map(|job| serde_json::to_value(job).unwrap()).collect(),
                "Pod" => world.pods.values().map(|live| serde_json::to_value(&live.pod).unwrap()).collect(),
                _ => world.events.iter().map(|event| serde_json::to_value(event).unwrap()).collect(),
            };
            let labels = query.get("labelSelector").map(|text| selector(text, &["metadata", "labels"])).transpose()?;
            let fields = query.get("fieldSelector").map(|text| selector(text, &[])).transpose()?;
            let matches = |item: &Value| [&labels, &fields].into_iter().flatten().all(|matches| matches(item));
            all.into_iter().filter(matches).collect()
        }
    };
    let left = page.split_off(limit.min(page.len()));
    let mut meta = json!({});
    if !left.is_empty() {
        meta["continue"] = shared.keep(left).into();
    }
    let group = if kind == "Job" { "batch/v1" } else { "v1" };
    Ok(json!({"kind": format!("{kind}List"), "apiVersion": group, "metadata": meta, "items": page}))
}

/// Equalities, with a comma between them. Labels have points in their names, fields stand for what is within.
fn selector(text: &str, at: &'static [&'static str]) -> Result<impl Fn(&Value) -> bool + use<>, Refusal> {
    let pairs = text.split(',').map(|pair| pair.split_once('=').filter(|(key, _)| !key.ends_with('!')));
    let pairs = pairs.map(|pair| pair.map(|(key, value)| (key.to_owned(), value.trim_start_matches('=').to_owned())));
    let pairs: Option<Vec<_>> = pairs.collect();
    let pairs = pairs.ok_or_else(|| Refusal::new(400, "BadRequest", format!("unable to parse {text}")))?;
    Ok(move |item: &Value| {
        let item = at.iter().fold(item, |item, name| &item[*name]);
        pairs.iter().all(|(key, value)| {
            let found = match at.is_empty() {
                true => key.split('.').fold(item, |item, name| &item[name]),
                false => &item[key.as_str()],
            };
            found.as_str() == Some(value.as_str())
        })
    })
}
