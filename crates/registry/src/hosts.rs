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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use crate::certificates::HostDirectory;
use crate::endpoint::{BadRegistryName, host_and_port, is_loopback};
use crate::settings::{SettingsError, Timeouts};

/// The names that all mean Docker Hub; the first is the one of references.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// How long a mirror may take for a connection, unless it was settled otherwise: there is another
/// place to go.
const MIRROR_CONNECT: Duration = Duration::from_secs(5);

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
    fn check_address(url: &Url, insecure: bool) -> Result<(), BadAddress> {
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
}

/// The hosts that something is settled about, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts {
    by_name: BTreeMap<String, HostSettings>,
    /// Where certificates lie in directories named after hosts, as in `/etc/containers/certs.d`
    /// (containers-certs.d(5)): `*.crt` are authorities, `*.cert` with `*.key` is a client
    /// certificate. Of these the first that has a directory for a host counts, and no other.
    pub certificate_directories: Vec<PathBuf>,
}

impl Hosts {
    /// Settles something about the registry of that name (`host` or `host:port`, as they stand in
    /// references), in place of what was settled before.
    pub fn insert(&mut self, name: &str, settings: HostSettings) -> Result<(), BadRegistryName> {
        let name = Self::canonical(name)?;
        self.by_name.insert(name, settings);
        Ok(())
    }

    /// Whether `url` can be the endpoint or a mirror of the registry of that name. Without TLS that
    /// is so on this machine, and where either is `insecure`.
    pub fn check_address(&self, name: &str, url: &Url) -> Result<(), BadAddress> {
        let is_insecure = |name: &str| self.get(name).is_some_and(|settings| settings.insecure);
        let insecure = is_insecure(name) || is_insecure(host_and_port(url));
        HostSettings::check_address(url, insecure)
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
    /// Whether there is anything that holds for this host and not for all.
    is_settled: bool,
    /// The downloads that may run at once.
    reading: Option<Arc<Semaphore>>,
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
    fn new(name: &str, settings: HostSettings, found: HostDirectory, defaults: &Timeouts) -> Self {
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
            ca_files: [settings.ca_files.clone(), found.ca_files].concat(),
            certificate: settings
                .client_certificate
                .clone()
                .or(found.client_certificate),
        };
        let most = settings.concurrency.map(NonZeroUsize::get);
        Self {
            name: name.to_owned(),
            is_settled: settings != HostSettings::default() || trust != Trust::default(),
            settings,
            timeouts,
            trust,
            reading: most.map(|most| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)))),
            warned: AtomicBool::new(false),
        }
    }

    /// Whether something is settled that only TLS needs.
    pub(crate) fn means_tls(&self) -> bool {
        self.trust != Trust::default()
    }

    /// Waits until one more download may run. It counts for as long as the answer is kept.
    pub(crate) async fn turn_to_read(&self) -> Option<OwnedSemaphorePermit> {
        let turn = Arc::clone(self.reading.as_ref()?).acquire_owned().await;
        Some(turn.expect("nobody closes it"))
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
        let host = Arc::new(self.read(&name)?);
        known.insert(name, Arc::clone(&host));
        Ok(host)
    }

    fn read(&self, name: &str) -> Result<Host, SettingsError> {
        let settings = self.settings.get(name).cloned().unwrap_or_default();
        for url in settings.endpoint.iter().chain(&settings.mirrors) {
            let checked = self.settings.check_address(name, url);
            checked.map_err(SettingsError::Address)?;
        }
        let found = HostDirectory::find(&self.settings.certificate_directories, name)?;
        let found = found.unwrap_or_default();
        Ok(Host::new(name, settings, found, &self.defaults))
    }

    /// What holds for the mirror at the host of that name: what is settled about it or, when that is
    /// nothing, about the registry that it stands for.
    pub(crate) fn find_mirror(
        &self,
        registry: &Host,
        name: &str,
    ) -> Result<Arc<Host>, SettingsError> {
        let mut host = self.read(&usual(name))?;
        if !host.is_settled {
            host.settings = HostSettings {
                endpoint: None,
                mirrors: Vec::new(),
                ..registry.settings.clone()
            };
            host.trust = registry.trust.clone();
            host.timeouts = registry.timeouts;
            host.reading.clone_from(&registry.reading);
        }
        if host.settings.connect_timeout.is_none() {
            host.timeouts.connect = host.timeouts.connect.min(MIRROR_CONNECT);
        }
        Ok(Arc::new(host))
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
