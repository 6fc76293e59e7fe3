//! Certificates made on the spot: an authority that clients can be told to trust, and keys that
//! sign tokens.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SigningKey,
};
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// The name, besides those of this machine, that server certificates are for: tests reach it through
/// proxies.
const ELSEWHERE: &str = "registry.test";

/// A certificate authority of one test, and the server certificate it issued.
pub(crate) struct Authority {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) server: Arc<ServerConfig>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path();
        formatter.debug_tuple("Authority").field(&path).finish()
    }
}

impl Authority {
    /// Makes an authority and a certificate for `localhost`, `127.0.0.1` and `registry.test`.
    pub(crate) fn new() -> io::Result<Self> {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters
            .distinguished_name
            .push(DnType::CommonName, "tierce testkit authority");
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let issuer = CertifiedIssuer::self_signed(parameters, key).map_err(io::Error::other)?;

        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("ca.pem"), issuer.pem())?;
        let server = server_config(&issuer, None)?;
        Ok(Self {
            directory,
            issuer,
            server,
        })
    }

    /// Where the authority's own certificate lies, in PEM.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Makes a certificate for a client, and a server that lets in those alone who have one.
    pub(crate) fn demanding(&self) -> io::Result<(ClientFiles, Arc<ServerConfig>)> {
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        let (certificate, key) = issue(&self.issuer, &[], purpose)?;
        let files = ClientFiles {
            certificate: self.directory.path().join("client.cert"),
            key: self.directory.path().join("client.key"),
        };
        std::fs::write(&files.certificate, certificate.pem())?;
        std::fs::write(&files.key, key.serialize_pem())?;

        let mut roots = RootCertStore::empty();
        let root = self.issuer.der().clone();
        roots.add(root).map_err(io::Error::other)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(io::Error::other)?;
        Ok((files, server_config(&self.issuer, Some(verifier))?))
    }
}

/// A client's certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub(crate) struct ClientFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

fn issue(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    names: &[&str],
    purpose: ExtendedKeyUsagePurpose,
) -> io::Result<(rcgen::Certificate, KeyPair)> {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = CertificateParams::new(names).map_err(io::Error::other)?;
    parameters
        .distinguished_name
        .push(DnType::CommonName, "tierce testkit");
    parameters.extended_key_usages = vec![purpose];
    parameters.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = parameters
        .signed_by(&key, issuer)
        .map_err(io::Error::other)?;
    Ok((certificate, key))
}

fn server_config(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> io::Result<Arc<ServerConfig>> {
    let names = ["localhost", "127.0.0.1", ELSEWHERE];
    let (certificate, key) = issue(issuer, &names, ExtendedKeyUsagePurpose::ServerAuth)?;
    let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone(), issuer.der().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(chain, key);
    Ok(Arc::new(config.map_err(io::Error::other)?))
}

/// A P-256 key with a self-signed certificate, as `docker-registry` wants it for tokens.
#[derive(Debug)]
pub(crate) struct TokenKey {
    key: KeyPair,
    certificate: rcgen::Certificate,
    directory: TempDir,
}

impl TokenKey {
    /// Makes a new key and writes its certificate to a temporary file.
    pub(crate) fn new() -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut parameters = CertificateParams::default();
        parameters
            .distinguished_name
            .push(DnType::CommonName, "tierce testkit tokens");
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = parameters.self_signed(&key).map_err(io::Error::other)?;
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("tokens.pem"), certificate.pem())?;
        Ok(Self {
            key,
            certificate,
            directory,
        })
    }

    /// The certificate's bytes, for a token's `x5c` header.
    pub(crate) fn certificate(&self) -> &[u8] {
        self.certificate.der()
    }

    /// The certificate as a PEM file.
    pub(crate) fn certificate_path(&self) -> PathBuf {
        self.directory.path().join("tokens.pem")
    }

    /// Signs with ES256, in the 64 bytes that a JWT carries.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let der = self
            .key
            .sign(message)
            .expect("a P-256 key in memory can sign");
        fixed_width(&der).expect("an ECDSA signature is a sequence of two integers")
    }
}

/// Turns a DER signature (`SEQUENCE { r, s }`) into `r || s` of 32 bytes each.
fn fixed_width(der: &[u8]) -> Option<[u8; 64]> {
    let mut fixed = [0; 64];
    // Both lengths of a P-256 signature fit the one-byte form.
    let mut rest = der.get(2..)?;
    for half in fixed.chunks_exact_mut(32) {
        let length = usize::from(*rest.get(1)?);
        let integer = rest.get(2..2 + length)?;
        let significant = &integer[integer.iter().take_while(|byte| **byte == 0).count()..];
        half[32_usize.checked_sub(significant.len())?..].copy_from_slice(significant);
        rest = &rest[2 + length..];
    }
    Some(fixed)
}

/// Reads a PEM file that this crate wrote.
pub(crate) fn read_pem(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("the certificate was written when the server started")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_der_signature_becomes_two_padded_integers() {
        let mut der = vec![0x30, 0x27, 0x02, 0x02, 0x00, 0x80, 0x02, 0x21, 0x00];
        der.extend([0xff; 32]);
        let fixed = fixed_width(&der).unwrap();
        assert_eq!(fixed[..31], [0; 31]);
        assert_eq!(fixed[31], 0x80);
        assert_eq!(fixed[32..], [0xff; 32]);
    }
}
