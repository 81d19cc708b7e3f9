//! The cluster's API server: one request after the other, and what its refusals mean.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use forebay_jobs::spec::kubernetes::KubernetesSpec;
use futures::io::AsyncBufRead;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Event, Pod, Secret},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, LogParams, PostParams, Preconditions},
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
    core::{Status, response::reason},
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tower::util::MapResponseLayer;

use super::manifest::RUN;
use crate::{
    commit::chain,
    fleet::engine::{Class, EngineError, Tag},
};

/// Objects in one page of a list.
const PAGE: u32 = 500;
/// How often a list is begun anew whose next page the server has forgotten.
const ANEW: u32 = 3;
/// How long the server may take to answer.
const ANSWER: Duration = Duration::from_secs(25);
const EVENTS: u32 = 50;

/// What a server that is asked too often asks for in return.
#[derive(Debug, Default)]
struct Pause(Mutex<Option<Instant>>);

impl Pause {
    fn note(&self, response: &http::response::Parts) {
        let seconds =
            response.headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(seconds) = seconds.filter(|_| matches!(response.status.as_u16(), 429 | 503)) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Instant::now() + Duration::from_secs(seconds));
        }
    }

    fn check(&self) -> Result<(), EngineError> {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match until.map(|until| until.saturating_duration_since(Instant::now())) {
            Some(left) if !left.is_zero() => {
                let why = format!("the API server asked to be left alone for {:.0} s more", left.as_secs_f64().ceil());
                Err(EngineError::new(Class::Throttled, why))
            }
            _ => Ok(()),
        }
    }
}

/// The objects of one namespace.
pub(super) struct Cluster {
    client: Client,
    namespace: String,
    pause: Arc<Pause>,
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Cluster {
    /// By a kubeconfig, or as the pod that this process runs in. Asks nothing yet.
    pub(super) async fn open(spec: &KubernetesSpec) -> Result<Self, String> {
        let options = KubeConfigOptions { context: spec.context.clone(), ..KubeConfigOptions::default() };
        let config = match &spec.kubeconfig {
            Some(path) => {
                let config = match Kubeconfig::read_from(path) {
                    Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
                    Err(error) => Err(error),
                };
                config.map_err(|error| chain(&error))
            }
            None if spec.context.is_some() => Config::from_kubeconfig(&options).await.map_err(|error| chain(&error)),
            None => Config::infer().await.map_err(|error| chain(&error)),
        };
        let mut config = config.map_err(|why| {
            format!("how the cluster is reached is not known: {why}; see kubeconfig and context under [kubernetes]")
        })?;
        // What is tried again, and when, is not the client's to decide.
        config.default_retry = false;
        config.read_timeout = Some(ANSWER);
        let namespace = spec.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let pause = Arc::new(Pause::default());
        let told = Arc::clone(&pause);
        let listen = MapResponseLayer::new(move |response: http::Response<_>| {
            let (parts, body) = response.into_parts();
            told.note(&parts);
            http::Response::from_parts(parts, body)
        });
        let client = ClientBuilder::try_from(config).map_err(|error| chain(&error))?.with_layer(&listen).build();
        Ok(Self { client, namespace, pause })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Makes a Job, unless there is one of its name, which then is this one.
    pub(super) async fn create(&self, job: &Job) -> Result<(), EngineError> {
        self.pause.check()?;
        match self.api::<Job>().create(&PostParams::default(), job).await {
            Err(kube::Error::Api(status)) if status.reason == reason::ALREADY_EXISTS => Ok(()),
            made => made.map(drop).map_err(|error| self.refusal("the Job was not made", &error)),
        }
    }

    /// Asks whether a Job would be made, and makes none.
    pub(super) async fn would_create(&self, job: &Job) -> Result<(), EngineError> {
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let made = self.api::<Job>().create(&dry, job).await;
        made.map(drop).map_err(|error| self.refusal("the Job would not be made", &error))
    }

    /// A run's Jobs, and their pods.
    pub(super) async fn of_run(&self, tag: &Tag) -> Result<(Vec<Job>, Vec<Pod>), EngineError> {
        let selector = format!("{RUN}={}", tag.as_str());
        // In this order: a pod without a Job is one whose Job has gone, not one whose Job was made in between.
        let pods = self.list(&selector).await?;
        Ok((self.list(&selector).await?, pods))
    }

    /// The pods of a Job.
    pub(super) async fn pods_of(&self, job: &str) -> Result<Vec<Pod>, EngineError> {
        self.list(&format!("batch.kubernetes.io/job-name={job}")).await
    }

    /// Makes a Secret, unless there is one of its name.
    pub(super) async fn create_secret(&self, secret: &Secret) -> Result<(), EngineError> {
        self.pause.check()?;
        match self.api::<Secret>().create(&PostParams::default(), secret).await {
            Err(kube::Error::Api(status)) if status.reason == reason::ALREADY_EXISTS => Ok(()),
            made => made.map(drop).map_err(|error| self.refusal("the Secret was not made", &error)),
        }
    }

    /// What a pod's container has printed, and prints until it ends.
    pub(super) async fn log(&self, pod: &str, follow: bool) -> Result<impl AsyncBufRead, EngineError> {
        self.pause.check()?;
        let log = self.api::<Pod>().log_stream(pod, &LogParams { follow, ..LogParams::default() }).await;
        log.map_err(|error| self.refusal("the log was not read", &error))
    }

    /// What the cluster has noted about a Job or a pod; nothing if it may not be read.
    pub(super) async fn events(&self, name: &str) -> Vec<Event> {
        let of = ListParams::default().fields(&format!("involvedObject.name={name},type=Warning")).limit(EVENTS);
        match self.pause.check() {
            Ok(()) => self.api::<Event>().list(&of).await.map(|events| events.items).unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Deletes a Job, and, after it, its pods.
    pub(super) async fn delete_job(&self, name: &str) -> Result<(), EngineError> {
        self.pause.check()?;
        let deleted = self.api::<Job>().delete(name, &DeleteParams::background()).await;
        self.gone(deleted.map(drop), "the Job was not deleted")
    }

    /// Deletes this pod, and no other one of its name.
    pub(super) async fn delete_pod(&self, pod: &Pod) -> Result<(), EngineError> {
        self.pause.check()?;
        let (Some(name), uid) = (&pod.metadata.name, pod.metadata.uid.clone()) else { return Ok(()) };
        let of = DeleteParams::default().preconditions(Preconditions { uid, resource_version: None });
        self.gone(self.api::<Pod>().delete(name, &of).await.map(drop), "the pod was not deleted")
    }

    fn gone(&self, deleted: Result<(), kube::Error>, what: &str) -> Result<(), EngineError> {
        match deleted {
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            deleted => deleted.map_err(|error| self.refusal(what, &error)),
        }
    }

    /// All pages, as all of it was when the first was read, which is after whatever was answered before.
    async fn list<K>(&self, selector: &str) -> Result<Vec<K>, EngineError>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        'anew: for _ in 0..ANEW {
            let mut page = ListParams::default().labels(selector).limit(PAGE);
            let mut all = Vec::new();
            loop {
                self.pause.check()?;
                let read = match self.api::<K>().list(&page).await {
                    // It does not remember any more how it was at the first page.
                    Err(kube::Error::Api(status)) if status.code == 410 => continue 'anew,
                    read => read.map_err(|error| self.refusal("the list was not read", &error))?,
                };
                all.extend(read.items);
                match read.metadata.continue_.filter(|token| !token.is_empty()) {
                    Some(token) => page = page.continue_token(&token),
                    None => return Ok(all),
                }
            }
        }
        Err(EngineError::new(Class::Throttled, "the API server forgets a list faster than it is read"))
    }

    fn refusal(&self, what: &str, error: &kube::Error) -> EngineError {
        match error {
            kube::Error::Api(status) => refused(what, &self.namespace, status),
            error => EngineError::new(Class::Unknown, format!("{what}: {}", chain(error))),
        }
    }
}

/// What a refusal means.
fn refused(what: &str, namespace: &str, status: &Status) -> EngineError {
    let message = status.message.trim();
    let (class, help) = match status.code {
        429 => (Class::Throttled, ""),
        // Others change the quota's count at the same time.
        409 => (Class::Throttled, ""),
        403 if message.contains("exceeded quota") => {
            (Class::Capacity, "; it is asked again: raise the quota, or take fewer or smaller [workers]")
        }
        401 => (Class::Permanent, "; renew the credentials of the context, or name another under [kubernetes]"),
        403 if message.contains("cannot ") => {
            (Class::Permanent, "; who coordinates needs a Role for Jobs and pods: docs/kubernetes.md has it")
        }
        403 => (Class::Permanent, "; what the namespace admits is its administrators' to say"),
        404 => (Class::Permanent, "; is namespace under [kubernetes] right?"),
        400 | 405..=408 | 411..=422 => (Class::Permanent, "; correct it under [kubernetes] or [workers]"),
        _ => (Class::Unknown, ""),
    };
    EngineError::new(class, format!("{what} in namespace `{namespace}`: {message} ({}){help}", status.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(code: u16, message: &str) -> Class {
        let status = Status { code, message: message.to_owned(), ..Status::failure("", "") };
        let error = refused("the Job was not made", "n", &status);
        assert!(error.why.contains(message), "{error}");
        error.class
    }

    #[test]
    fn refusals_mean_what_can_be_done_about_them() {
        assert_eq!(
            class(403, "jobs.batch \"x\" is forbidden: exceeded quota: q, requested: count/jobs.batch=1"),
            Class::Capacity
        );
        assert_eq!(class(403, "jobs.batch is forbidden: User \"u\" cannot create resource \"jobs\""), Class::Permanent);
        assert_eq!(class(403, "admission webhook \"w\" denied the request: no"), Class::Permanent);
        assert_eq!(class(401, "Unauthorized"), Class::Permanent);
        assert_eq!(class(404, "namespaces \"n\" not found"), Class::Permanent);
        assert_eq!(class(422, "Job.batch \"x\" is invalid"), Class::Permanent);
        assert_eq!(class(429, "Too many requests"), Class::Throttled);
        assert_eq!(class(409, "Operation cannot be fulfilled on resourcequotas \"q\""), Class::Throttled);
        // It may have been done.
        assert_eq!([500, 503, 504].map(|code| class(code, "etcdserver: request timed out")), [Class::Unknown; 3]);
    }
}
