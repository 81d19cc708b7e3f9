//! What a test decides of its cluster.

use std::path::PathBuf;

/// What the cluster does not do, or does otherwise.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Objects in one page at most, whatever is asked for.
    pub page: usize,
    /// Pods at most, of the quota.
    pub pods: Option<usize>,
    /// Jobs at most, of the quota.
    pub jobs: Option<usize>,
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
        Self { page: 500, pods: None, jobs: None, unschedulable: None, image: None, admission: None, account: None }
    }
}
