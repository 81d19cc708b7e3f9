//! What a test decides of its cluster.

use std::{path::PathBuf, time::Duration};

/// How fast the cluster is, and what it does not do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Objects in one page at most, whatever is asked for.
    pub page: usize,
    /// Pods at most, of the quota.
    pub pods: Option<usize>,
    /// Jobs at most, of the quota.
    pub jobs: Option<usize>,
    /// From the end of a pod that was disrupted to the next of its index.
    pub backoff: Duration,
    /// How long two pods of an index are left.
    pub duplicates: Duration,
    /// How often pods are collected that nobody runs.
    pub collect: Duration,
    /// From the loss of a node to the deletion of its pods, and to the end of the node's record.
    pub lost: (Duration, Duration),
    /// Why no node takes a pod.
    pub unschedulable: Option<String>,
    /// Why images cannot be pulled, and what follows.
    pub image: Option<(String, String)>,
    /// Why pods are not admitted.
    pub admission: Option<String>,
    /// A kubeconfig, for pods that get their service account's token.
    pub account: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            page: 500,
            pods: None,
            jobs: None,
            backoff: Duration::from_millis(100),
            duplicates: Duration::from_secs(3600),
            collect: Duration::from_millis(200),
            lost: (Duration::from_millis(300), Duration::from_millis(600)),
            unschedulable: None,
            image: None,
            admission: None,
            account: None,
        }
    }
}
