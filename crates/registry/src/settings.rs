//! What a client is told when it is made.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::control::{ControlPlane, Unmanaged};
use crate::credentials::{Anonymous, CredentialSource};
use crate::endpoint::PlainHttp;
use crate::error::Cause;
use crate::hosts::{BadAddress, Hosts};
use crate::manners::Manners;
use crate::retry::RetryPolicy;

/// All that a [`Client`](crate::Client) needs to know.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// PEM files with certificate authorities to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// Which registries are spoken to without TLS.
    pub plain_http: PlainHttp,
    /// What is settled about single hosts, over what is said here for all.
    pub hosts: Hosts,
    /// How the client introduces itself.
    pub user_agent: String,
    /// When to try again.
    pub retry: RetryPolicy,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// Who we are. Asked only when a registry demands it.
    pub credentials: Arc<dyn CredentialSource>,
    /// The registries' management, where there is one to be asked.
    pub control: Arc<dyn ControlPlane>,
    /// What is known of the registry of that name.
    pub manners: fn(&str) -> Manners,
    /// Where uploads that broke off are written down, so that another run can go on with them.
    pub unfinished_uploads: Option<PathBuf>,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            ca_files: Vec::new(),
            plain_http: PlainHttp::default(),
            hosts: Hosts::default(),
            user_agent: concat!("tierce/", env!("CARGO_PKG_VERSION")).to_owned(),
            retry: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            credentials: Arc::new(Anonymous),
            control: Arc::new(Unmanaged),
            manners: |_| Manners::default(),
            unfinished_uploads: None,
        }
    }
}

/// How long to wait before a connection counts as broken. No blob as a whole has a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the beginning of an answer; as long as `read` when `None`.
    pub header: Option<Duration>,
    /// For each next piece in either direction.
    pub read: Duration,
    /// For all of a manifest, of a token server's answer, or of the text that explains an error:
    /// piece by piece they could be drawn out without end.
    pub document: Duration,
    /// For the answer to a whole blob, which registries check before they answer.
    pub upload_answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            header: None,
            read: Duration::from_mins(1),
            document: Duration::from_mins(1),
            // buildkit had to go from half a minute to this (moby/buildkit#3995).
            upload_answer: Duration::from_mins(10),
        }
    }
}

/// Why a client cannot be made of its settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file of certificate authorities cannot be read.
    #[error("could not read the certificate authorities in {}", path.display())]
    ReadAuthorities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of certificate authorities holds none.
    #[error("{} has no certificate in PEM form", path.display())]
    NoAuthorities {
        /// The file.
        path: PathBuf,
    },
    /// A certificate in it is broken.
    #[error("{} has a certificate that cannot be used", path.display())]
    BadAuthority {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A registry or its mirror cannot be at the address that was given.
    #[error("an address that was given for it cannot be used")]
    Address(#[source] BadAddress),
    /// A directory of certificates, or a file of a client certificate, cannot be read.
    #[error("could not read {}", path.display())]
    ReadCertificates {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A client certificate without its key, or a key without its certificate.
    #[error("{} is there without {}", path.display(), partner.file_name().unwrap_or_default().display())]
    Unpaired {
        /// The file.
        path: PathBuf,
        /// The file that should be beside it.
        partner: PathBuf,
    },
    /// A client certificate and its key are no pair, or one of them is broken.
    #[error("{} and {} cannot be used as a client certificate", certificate.display(), key.display())]
    BadClientCertificate {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The user agent cannot stand in a header.
    #[error("`{0}` cannot be a user agent")]
    UserAgent(String),
}
