//! How the SDK sends its requests.
//!
//! The client of its own making knows neither proxies nor further authorities.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::{AwsError, Told};

/// The clients of a run.
#[derive(Debug)]
pub(crate) struct Http {
    /// Goes straight to what is here, and to all else as the environment's proxies want it.
    pub(crate) by_place: SharedHttpClient,
    /// Goes straight everywhere.
    pub(crate) direct: SharedHttpClient,
}

impl Http {
    /// Makes clients that trust the authorities in `ca_files` too.
    pub(crate) async fn new(ca_files: &[PathBuf]) -> Result<Self, AwsError> {
        let mut trusted = trust_of_system();
        for path in ca_files {
            let pem = tokio::fs::read(path)
                .await
                .map_err(|source| AwsError::ReadAuthorities {
                    path: path.clone(),
                    source,
                })?;
            trusted.add_pem_certificate(pem);
        }
        let tls = TlsContext::builder()
            .with_trust_store(trusted)
            .build()
            .map_err(|error| AwsError::Setup(Told::text(error.to_string())))?;
        let direct = client(&tls, ProxyConfig::disabled);
        let by_place = ByPlace {
            proxied: client(&tls, ProxyConfig::from_env),
            direct: direct.clone(),
        };
        Ok(Self {
            by_place: SharedHttpClient::new(by_place),
            direct,
        })
    }
}

/// The system's authorities. Where it has none at all (a bare container) they are those that
/// registries are found trustworthy by there.
fn trust_of_system() -> TrustStore {
    // What cannot be read of them is told by the SDK, which reads them again.
    if !rustls_native_certs::load_native_certs().certs.is_empty() {
        return TrustStore::default();
    }
    let mut trusted = TrustStore::empty();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        let text = STANDARD.encode(certificate);
        trusted.add_pem_certificate(format!(
            "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"
        ));
    }
    trusted
}

fn client(tls: &TlsContext, proxy: fn() -> ProxyConfig) -> SharedHttpClient {
    let tls = tls.clone();
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(proxy());
        if let Some(settings) = settings {
            connector = connector.connector_settings(settings.clone());
        }
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        connector
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(tls.clone())
            .build()
    })
}

/// Looks at each request where it leads.
#[derive(Debug)]
struct ByPlace<T> {
    proxied: T,
    direct: T,
}

impl HttpClient for ByPlace<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(ByPlace {
            proxied: self.proxied.http_connector(settings, components),
            direct: self.direct.http_connector(settings, components),
        })
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.proxied.connector_metadata()
    }
}

impl HttpConnector for ByPlace<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        if is_here(request.uri()) {
            self.direct.call(request)
        } else {
            self.proxied.call(request)
        }
    }
}

/// Whether an address is this machine's own, or one at which it is given credentials: those of a
/// container (`169.254.170.2`, and `[fd00:ec2::23]` in EKS) and of an instance. A proxy elsewhere has
/// other neighbours, and must not see the token that a container asks with.
fn is_here(uri: &str) -> bool {
    let (_, rest) = uri.split_once("://").unwrap_or(("", uri));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, it)| it);
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.is_unicast_link_local() || is_metadata(address)
        }
        Err(_) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

/// Whether it is of `fd00:ec2::/32`, where EC2 and EKS keep such services.
fn is_metadata(address: Ipv6Addr) -> bool {
    address.segments().starts_with(&[0xfd00, 0x0ec2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_here_is_told_by_its_address() {
        for (uri, here) in [
            ("http://127.0.0.1:5000/", true),
            ("http://localhost:4566", true),
            ("http://moto.localhost/x", true),
            ("http://[::1]:80/", true),
            ("http://169.254.170.2/v2/credentials/x", true),
            ("http://169.254.169.254/latest/api/token", true),
            ("http://[fd00:ec2::23]/v1/credentials", true),
            ("http://[::ffff:127.0.0.1]/", true),
            ("https://api.ecr.eu-west-1.amazonaws.com/", false),
            ("https://10.0.0.7/", false),
            ("https://[fd00:ec3::23]/", false),
            ("https://localhost.example/", false),
            ("https://localhost@proxy.example/", false),
            ("https://a.example/?x=http://localhost", false),
            ("", false),
        ] {
            assert_eq!(is_here(uri), here, "{uri}");
        }
    }
}
