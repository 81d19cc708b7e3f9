//! A query in all workers of its run, by Apache Ballista.
//!
//! ```text
//! Session ─► physical plan ─► scheduler ─► stages ─► executors ─► shuffle files ─► output: files
//!   the attempt's worker      coordinator            all workers    the volume      the attempt's worker
//! ```
//!
//! The attempt that executes the task plans the query as it would for itself, hands the plan to the scheduler, and reads
//! what the last stage has left. So whatever stands around a query stays as it is: retries, checks, the commit.
//! Here is what all three sides need: how they know each other ([`endpoint`], [`server_tls`]), how a plan travels
//! (`codec`), what it runs in ([`Site`]) and how it fails (`fault`). The scheduler itself is the coordinator's, the
//! executor the worker's.
//!
//! Executors write into one directory of the volume, under names that no other task has, and read from there; a file that
//! is not seen there yet is fetched from its executor. A job that loses an executor is given up by the scheduler's
//! coordinator, and the query begun again (`query`): Ballista's own way, to repeat the stages that are lost, would hand
//! on what a stage had done before it was rolled back a second time.

mod codec;
mod fault;
mod query;
mod site;

use std::{collections::BTreeMap, sync::Arc};

use ballista_core::{extension::SessionConfigExt, utils::default_session_builder};
use datafusion::{
    error::DataFusionError,
    execution::{SessionStateBuilder, session_state::SessionState},
    prelude::SessionConfig,
};
use forebay_datasets::volume::Volume;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig};

pub(super) use self::query::{Job, Lost, encoded, rows};
pub use self::{codec::Codec, fault::told, site::Site};
use super::{
    engine,
    held::{HeldFiles, volume_url},
    options,
};
use crate::wire::{Cluster, SERVER_NAME};

/// The largest message between the parts of a cluster: a plan names every file of its tables.
pub const LARGEST: usize = 256 << 20;

/// Where, below a run's directory, stages leave what the next ones read.
pub const SHUFFLE: &str = "shuffle";

/// How another part of the cluster at this endpoint is called.
///
/// # Errors
/// If the cluster's certificate is none.
pub fn endpoint(cluster: &Cluster, endpoint: &Endpoint) -> Result<Endpoint, tonic::transport::Error> {
    // Ballista calls executors by http, and TLS is only spoken by https.
    let address = endpoint.uri().to_string().replacen("http://", "https://", 1);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&cluster.certificate))
        .identity(Identity::from_pem(&cluster.certificate, &cluster.key))
        .domain_name(SERVER_NAME);
    let endpoint = Endpoint::from_shared(address)?.tls_config(tls)?.tcp_nodelay(true);
    let endpoint = endpoint.connect_timeout(std::time::Duration::from_secs(5));
    let (ping, pong) = (std::time::Duration::from_secs(5), std::time::Duration::from_secs(10));
    Ok(endpoint.http2_keep_alive_interval(ping).keep_alive_timeout(pong).keep_alive_while_idle(true))
}

/// How a part of the cluster lets others in: those that have the cluster's key.
pub fn server_tls(cluster: &Cluster) -> ServerTlsConfig {
    ServerTlsConfig::new()
        .identity(Identity::from_pem(&cluster.certificate, &cluster.key))
        .client_ca_root(Certificate::from_pem(&cluster.certificate))
}

/// What an executor, or who reads after it, starts its settings from.
pub fn settings(config: SessionConfig, cluster: &Cluster) -> SessionConfig {
    let cluster = cluster.clone();
    let call = move |other: Endpoint| -> Result<Endpoint, Box<dyn std::error::Error + Send + Sync>> {
        Ok(endpoint(&cluster, &other)?)
    };
    let config = config.upgrade_for_ballista().with_ballista_use_tls(true);
    let config = config.with_ballista_grpc_client_max_message_size(LARGEST);
    config.with_ballista_override_create_grpc_client_endpoint(Arc::new(call))
}

/// What a scheduler reads a plan in: it opens no file, and has to know that there are such.
///
/// # Errors
/// If the volume cannot be looked at.
pub fn scheduling(volume: &Volume, config: SessionConfig) -> Result<SessionState, DataFusionError> {
    let state = default_session_builder(config)?;
    let files = HeldFiles::of(volume, &[]).map_err(|error| DataFusionError::External(Box::new(error)))?;
    state.runtime_env().register_object_store(volume_url().as_ref(), Arc::new(files));
    Ok(state)
}

/// The settings of a query whose tasks are executed by so many threads in all, with the options of a job.
pub(super) fn config_of(threads: usize, options: &BTreeMap<String, String>) -> Result<SessionConfig, DataFusionError> {
    let mut config = options::config(threads).upgrade_for_ballista();
    let both = options.clone().into_iter().chain(engine::fixed());
    both.into_iter().try_for_each(|(name, value)| config.options_mut().set(&name, &value))?;
    Ok(config)
}

/// A session state whose optimizer knows what several processes cannot do.
pub(super) fn upgraded(state: SessionState) -> SessionState {
    if state.config().options().extensions.get::<ballista_core::config::BallistaConfig>().is_none() {
        return state;
    }
    let rules = ballista_core::optimizer::with_ballista_optimizer_rules(state.optimizers());
    SessionStateBuilder::new_from_existing(state).with_optimizer_rules(rules).build()
}
