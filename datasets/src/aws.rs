//! What all clients of AWS have in common: credentials, regions and endpoints as the AWS SDK finds them, proxies and
//! certificates as the environment names them, over one kind of TLS.

use std::{fs, sync::Arc, time::Duration};

use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_smithy_http_client::{
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

pub(crate) const CONNECT: Duration = Duration::from_secs(5);
pub(crate) const READ: Duration = Duration::from_secs(30);
const ATTEMPT: Duration = Duration::from_secs(60);

/// `AWS_CA_BUNDLE` names a file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("AWS_CA_BUNDLE: the certificates in {path} cannot be used: {why}")]
pub struct BadCertificates {
    /// The file.
    pub path: String,
    /// What is wrong.
    pub why: String,
}

/// What a client of any service is made of. It retries nothing: that is for who knows what else is in flight.
///
/// # Errors
/// [`BadCertificates`]
pub async fn config(region: Option<&str>) -> Result<SdkConfig, BadCertificates> {
    let loader = loader(&Authorities::of_environment()?);
    let loader = match region {
        Some(region) => loader.region(Region::new(region.to_owned())),
        None => loader,
    };
    Ok(loader.load().await)
}

pub(crate) fn loader(authorities: &Authorities) -> ConfigLoader {
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT).read_timeout(READ).operation_attempt_timeout(ATTEMPT);
    let (proxy, context) = (ProxyConfig::from_env(), authorities.for_sdk());
    let http = aws_smithy_http_client::Builder::new().build_with_connector_fn(move |settings, _components| {
        let mut connector = aws_smithy_http_client::Connector::builder().proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context.clone()).build()
    });
    let loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
    loader.retry_config(RetryConfig::disabled()).timeout_config(timeouts.build())
}

/// Who vouches for servers: the system's certificates, and those of `AWS_CA_BUNDLE` where it is set.
#[derive(Clone, Debug)]
pub(crate) struct Authorities {
    bundle: Option<(String, Vec<u8>)>,
}

impl Authorities {
    pub(crate) fn of_environment() -> Result<Self, BadCertificates> {
        let path = std::env::var("AWS_CA_BUNDLE").ok().filter(|path| !path.is_empty());
        let bundle = path.map(|path| match fs::read(&path) {
            Ok(pem) => Ok((path, pem)),
            Err(error) => Err(BadCertificates { path, why: error.to_string() }),
        });
        let authorities = Self { bundle: bundle.transpose()? };
        authorities.certificates()?;
        Ok(authorities)
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, BadCertificates> {
        let Some((path, pem)) = &self.bundle else { return Ok(Vec::new()) };
        let bad = |why| BadCertificates { path: path.clone(), why };
        let found: Vec<_> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| bad(format!("{e:?}")))?;
        match found.is_empty() {
            true => Err(bad("it holds no PEM certificate".to_owned())),
            false => Ok(found),
        }
    }

    pub(crate) fn for_sdk(&self) -> TlsContext {
        let store = TrustStore::empty().with_native_roots(true);
        let store = match &self.bundle {
            Some((_, pem)) => store.with_pem_certificate(pem.clone()),
            None => store,
        };
        TlsContext::builder().with_trust_store(store).build().expect("a trust store alone is a whole context")
    }

    pub(crate) fn for_lanes(&self) -> Result<Arc<ClientConfig>, BadCertificates> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots.add_parsable_certificates(self.certificates()?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("ring has the default versions").with_root_certificates(roots);
        Ok(Arc::new(config.with_no_client_auth()))
    }
}
