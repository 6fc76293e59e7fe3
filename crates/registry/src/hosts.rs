//! What is settled about single hosts: where they really are, whom they trust, how patient to be.
//!
//! Settings belong to a *name*, as it stands in references. Credentials, tokens and what is remembered
//! of a registry go by that name too, wherever its requests are sent.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tierce_oci::Repository;
use url::Url;

use crate::endpoint::{BadRegistryName, host_and_port, is_loopback};
use crate::settings::{SettingsError, Timeouts};

/// The names that all mean Docker Hub; the first is the one of references.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// What is settled about one host. The default settles nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostSettings {
    /// Where requests for this registry go in place of the host that its name says; a path is put
    /// before `/v2/`.
    ///
    /// That address stands for the registry: it sees the registry's credentials, and where an answer
    /// names the registry's own host, it is meant.
    pub endpoint: Option<Url>,
    /// Addresses that are asked for manifests and blobs before the registry itself, in this order;
    /// nothing is ever written there. A path is put before the repository's: at
    /// `https://mirror.example/hub` the repository `library/alpine` is `hub/library/alpine`.
    pub mirrors: Vec<Url>,
    /// Whether any certificate is taken, and plain HTTP where no TLS is spoken.
    pub insecure: bool,
    /// PEM files with certificate authorities to trust besides those for all.
    pub ca_files: Vec<PathBuf>,
    /// What is shown to a server that asks for a certificate.
    pub client_certificate: Option<ClientCertificate>,
    /// In place of [`Timeouts::connect`].
    pub connect_timeout: Option<Duration>,
    /// In place of [`Timeouts::header`].
    pub header_timeout: Option<Duration>,
    /// In place of [`Timeouts::read`].
    pub read_timeout: Option<Duration>,
    /// In place of [`Timeouts::upload_answer`].
    pub upload_answer_timeout: Option<Duration>,
    /// How many blobs may be on their way from the registry at once, and as many to it.
    pub concurrency: Option<NonZeroUsize>,
    /// Uploads go in chunks of so many bytes.
    pub chunk_size: Option<u64>,
}

/// A certificate of this side, and its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientCertificate {
    /// The certificate, and those that lead to its authority.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// An address that no registry or mirror can be at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// Neither `http` nor `https`.
    #[error("it is not an `http://` or `https://` address")]
    NotHttp,
    /// With credentials in it, whose place is elsewhere.
    #[error("it has a user name or password in it")]
    UserInfo,
    /// With more than scheme, host, port and path.
    #[error("it has a query or a fragment")]
    Query,
    /// Without TLS to another machine.
    #[error("`{0}` is another machine, and without TLS only `insecure` ones are spoken to")]
    Plain(String),
}

impl HostSettings {
    /// Says whether `url` can stand in [`Self::endpoint`] or [`Self::mirrors`]. Without TLS that is
    /// so for this machine, and where `insecure` was said.
    pub fn check_address(url: &Url, insecure: bool) -> Result<(), BadAddress> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(BadAddress::NotHttp);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadAddress::UserInfo);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(BadAddress::Query);
        }
        if url.scheme() == "http" && !insecure && !is_loopback(url) {
            return Err(BadAddress::Plain(host_and_port(url).to_owned()));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), BadAddress> {
        self.endpoint
            .iter()
            .chain(&self.mirrors)
            .try_for_each(|url| Self::check_address(url, self.insecure))
    }
}

/// The hosts that something is settled about, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts {
    by_name: BTreeMap<String, HostSettings>,
}

impl Hosts {
    /// Settles something about the registry of that name (`host` or `host:port`, as they stand in
    /// references), in place of what was settled before.
    pub fn insert(&mut self, name: &str, settings: HostSettings) -> Result<(), BadRegistryName> {
        let name = Self::canonical(name)?;
        self.by_name.insert(name, settings);
        Ok(())
    }

    /// What is settled about the registry of that name.
    pub fn get(&self, name: &str) -> Option<&HostSettings> {
        self.by_name.get(&usual(name))
    }

    /// The one spelling of a registry's name: lower-case, and `docker.io` for all names of Docker Hub.
    pub fn canonical(name: &str) -> Result<String, BadRegistryName> {
        let usual = usual(name);
        // What no reference could name would never be looked up.
        let example: Option<Repository> = format!("{name}/a/b").parse().ok();
        match example {
            Some(example) if example.path == "a/b" && example.registry == usual => Ok(usual),
            _ => Err(BadRegistryName(name.to_owned())),
        }
    }
}

fn usual(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    if DOCKER_HUB.contains(&name.as_str()) {
        DOCKER_HUB[0].to_owned()
    } else {
        name
    }
}

/// What holds for one host: its own settings, and those for all where it has none.
#[derive(Debug)]
pub(crate) struct Host {
    name: String,
    pub(crate) settings: HostSettings,
    pub(crate) timeouts: Timeouts,
    pub(crate) trust: Trust,
    warned: AtomicBool,
}

/// Whom a connection trusts, and what it shows of us. Connections that agree in it are shared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Trust {
    pub(crate) insecure: bool,
    /// Besides the authorities for all.
    pub(crate) ca_files: Vec<PathBuf>,
    pub(crate) certificate: Option<ClientCertificate>,
}

impl Host {
    fn new(name: &str, settings: HostSettings, defaults: &Timeouts) -> Self {
        let timeouts = Timeouts {
            connect: settings.connect_timeout.unwrap_or(defaults.connect),
            header: settings.header_timeout.or(defaults.header),
            read: settings.read_timeout.unwrap_or(defaults.read),
            upload_answer: settings
                .upload_answer_timeout
                .unwrap_or(defaults.upload_answer),
            ..*defaults
        };
        let trust = Trust {
            insecure: settings.insecure,
            ca_files: settings.ca_files.clone(),
            certificate: settings.client_certificate.clone(),
        };
        Self {
            name: name.to_owned(),
            settings,
            timeouts,
            trust,
            warned: AtomicBool::new(false),
        }
    }

    /// Whether something is settled that only TLS needs.
    pub(crate) fn means_tls(&self) -> bool {
        self.trust != Trust::default()
    }

    /// Tells, once, of a host that could be anybody.
    pub(crate) fn warn_if_insecure(&self) {
        if self.trust.insecure && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{} is insecure by its settings: its certificate is not verified",
                self.name
            );
        }
    }
}

/// All hosts of a client, each looked up once.
#[derive(Debug)]
pub(crate) struct HostTable {
    settings: Hosts,
    defaults: Timeouts,
    known: Mutex<BTreeMap<String, Arc<Host>>>,
}

impl HostTable {
    pub(crate) fn new(settings: Hosts, defaults: Timeouts) -> Self {
        Self {
            settings,
            defaults,
            known: Mutex::default(),
        }
    }

    /// What holds for the host of that name.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Host>, SettingsError> {
        let name = usual(name);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = known.get(&name) {
            return Ok(Arc::clone(host));
        }
        let settings = self.settings.get(&name).cloned().unwrap_or_default();
        settings.check().map_err(SettingsError::Address)?;
        let host = Arc::new(Host::new(&name, settings, &self.defaults));
        known.insert(name, Arc::clone(&host));
        Ok(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_references() {
        for (name, expected) in [
            ("ghcr.io", "ghcr.io"),
            ("GHCR.io", "ghcr.io"),
            ("registry.example:5000", "registry.example:5000"),
            ("localhost", "localhost"),
            ("my-host:80", "my-host:80"),
            ("[::1]:5000", "[::1]:5000"),
            ("docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("Registry-1.Docker.io", "docker.io"),
        ] {
            assert_eq!(Hosts::canonical(name).as_deref(), Ok(expected), "{name}");
        }
        for name in [
            "",
            "my-host",
            "https://ghcr.io",
            "ghcr.io/",
            "ghcr.io/team",
            "a.b:99999",
            "a b.c",
            "*.example",
        ] {
            assert!(Hosts::canonical(name).is_err(), "{name}");
        }
    }

    #[test]
    fn settings_are_found_by_every_spelling_of_the_name() {
        let mut hosts = Hosts::default();
        let settings = HostSettings {
            insecure: true,
            ..HostSettings::default()
        };
        hosts.insert("index.docker.io", settings.clone()).unwrap();
        assert_eq!(hosts.get("DOCKER.io"), Some(&settings));
        assert_eq!(hosts.get("docker.io:443"), None);
        assert_eq!(hosts.get("ghcr.io"), None);
    }

    #[test]
    fn plain_http_stays_on_this_machine_unless_told() {
        let check = |url: &str, insecure| {
            HostSettings::check_address(&Url::parse(url).unwrap(), insecure).err()
        };
        for good in [
            "https://a.example",
            "https://10.0.0.1:5000/x/",
            "http://127.0.0.1:5000",
            "http://localhost",
        ] {
            assert_eq!(check(good, false), None, "{good}");
        }
        let plain = |host: &str| Some(BadAddress::Plain(host.to_owned()));
        assert_eq!(check("http://a.example", false), plain("a.example"));
        assert_eq!(check("http://10.0.0.1:5000", false), plain("10.0.0.1:5000"));
        assert_eq!(check("http://a.example", true), None);
        assert_eq!(check("ftp://a.example", true), Some(BadAddress::NotHttp));
        assert_eq!(
            check("https://u:pw@a.example", true),
            Some(BadAddress::UserInfo)
        );
        assert_eq!(check("https://a.example/?q", true), Some(BadAddress::Query));
        assert_eq!(check("https://a.example/#f", true), Some(BadAddress::Query));
    }
}
