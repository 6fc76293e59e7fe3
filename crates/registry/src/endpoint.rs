//! How the name of a registry becomes a place in the network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Position, Url};

use crate::error::printable;

/// Docker Hub answers its API on another host than the one its images are named by.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Which registries are spoken to without TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PlainHttp {
    /// Those of this machine, as Docker does it.
    #[default]
    Loopback,
    /// Those of this machine, and these (`host` or `host:port`, as they stand in references).
    Hosts(Vec<String>),
    /// Every registry.
    Everywhere,
}

impl PlainHttp {
    fn allows(&self, registry: &str) -> bool {
        match self {
            Self::Loopback => false,
            Self::Hosts(hosts) => hosts.iter().any(|host| host == registry),
            Self::Everywhere => true,
        }
    }
}

/// How a registry is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Where, and how, the registry of a given name is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    scheme: Scheme,
    /// Where requests go; its path ends in a slash and comes before that of the API.
    base: Url,
    /// Where the name of the registry leads, when `base` stands for that.
    replaced: Option<Url>,
}

/// A registry's name that cannot stand in a URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a registry: expected a host and perhaps a port")]
pub struct BadRegistryName(pub String);

impl Endpoint {
    /// Decides how `registry` is reached.
    ///
    /// A registry of this machine is spoken to in the clear, unless certificate authorities were
    /// given (`trusts_given_authorities`): then TLS is likely meant. The client corrects a wrong
    /// guess, for registries of this machine only. All others are spoken to over TLS, unless
    /// `plain_http` names them.
    pub fn new(
        registry: &str,
        plain_http: &PlainHttp,
        trusts_given_authorities: bool,
    ) -> Result<Self, BadRegistryName> {
        let host = if registry == DOCKER_HUB.0 {
            DOCKER_HUB.1
        } else {
            registry
        };
        let bad = || BadRegistryName(registry.to_owned());
        if host
            .chars()
            .any(|letter| matches!(letter, '/' | '\\' | '@' | '?' | '#') || letter.is_whitespace())
        {
            return Err(bad());
        }
        let with = |scheme: Scheme| {
            let base = Url::parse(&format!("{}://{host}/", scheme.as_str())).map_err(|_| bad())?;
            Ok(Self {
                scheme,
                base,
                replaced: None,
            })
        };
        let https = with(Scheme::Https)?;
        if plain_http.allows(registry) || (https.is_loopback() && !trusts_given_authorities) {
            return with(Scheme::Http);
        }
        Ok(https)
    }

    /// The server that `url` is on.
    pub(crate) fn at(url: &Url) -> Option<Self> {
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let base = url.join("/").ok()?;
        Some(Self {
            scheme,
            base,
            replaced: None,
        })
    }

    /// The same registry, reached at `address` in place of where its name leads.
    pub(crate) fn reached_at(self, address: &Url) -> Self {
        let mut base = address.clone();
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        let scheme = match base.scheme() {
            "http" => Scheme::Http,
            _ => Scheme::Https,
        };
        Self {
            scheme,
            base,
            replaced: Some(self.base),
        }
    }

    /// Whether it was said where the registry is reached, so that there is nothing to guess.
    pub(crate) fn is_given(&self) -> bool {
        self.replaced.is_some()
    }

    /// Whether TLS is spoken.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Host and port, the port only when it is not the scheme's own.
    pub fn authority(&self) -> &str {
        host_and_port(&self.base)
    }

    /// Whether the registry runs on this machine.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.base)
    }

    /// Whether the port was written, and is not the scheme's own.
    pub(crate) fn names_port(&self) -> bool {
        self.base.port().is_some()
    }

    /// The same host and written port, spoken to the other way.
    pub(crate) fn spoken_otherwise(&self) -> Self {
        let scheme = match self.scheme {
            Scheme::Http => Scheme::Https,
            Scheme::Https => Scheme::Http,
        };
        let mut base = self.base.clone();
        // Both are special schemes, between which the URL standard allows the change.
        let _ = base.set_scheme(scheme.as_str());
        Self {
            scheme,
            base,
            replaced: self.replaced.clone(),
        }
    }

    /// The URL of a path and query on the registry.
    pub(crate) fn url(&self, path_and_query: &str) -> Url {
        let prefix = self.base.path().trim_end_matches('/');
        self.base
            .join(&format!("{prefix}{path_and_query}"))
            .expect("repository paths, tags and digests are URL path characters by their grammars")
    }

    /// Where a URL that the registry names really leads.
    ///
    /// Registries behind a proxy that ends TLS often name themselves with `http`, and one that is
    /// reached at another address may name itself by its own.
    pub(crate) fn place(&self, mut url: Url) -> Url {
        let names = |own: &Url| host_and_port(own) == host_and_port(&url);
        let is_by_name = self.replaced.as_ref().is_some_and(names);
        if is_by_name {
            // All of these are special schemes, between which the URL standard allows the change,
            // and a base has a host.
            let _ = url.set_scheme(self.base.scheme());
            let _ = url.set_host(self.base.host_str());
            let _ = url.set_port(self.base.port());
        } else if self.scheme == Scheme::Https && url.scheme() == "http" && names(&self.base) {
            let _ = url.set_scheme("https");
        }
        // What answers there may not know of the path that is before its own.
        let is_of_api = self.owns(&url) && url.path().starts_with("/v2/");
        if self.is_given() && (is_by_name || is_of_api) {
            let prefix = self.base.path().trim_end_matches('/');
            url.set_path(&format!("{prefix}{}", url.path()));
        }
        url
    }

    /// Whether `url` is on this very registry, so that it may see credentials.
    pub(crate) fn owns(&self, url: &Url) -> bool {
        self.base.origin() == url.origin()
    }

    /// Judges a URL that the registry names: the realm of a token, where an upload goes on, or where
    /// a redirect leads.
    ///
    /// A registry must not be able to make us talk in the clear when we talk to it over TLS, nor
    /// send us to services of this machine or its network that trust whoever reaches them (cloud
    /// metadata is the classic). Names that resolve to such addresses are not found out here.
    pub(crate) fn check_named_url(&self, url: &Url) -> Result<(), Distrust> {
        self.check_scheme(url)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Distrust::UserInfo);
        }
        if self.base.host() == url.host() {
            return Ok(());
        }
        match reach(url) {
            Reach::Public => Ok(()),
            Reach::LinkLocal => Err(Distrust::InnerAddress),
            inner if inner == reach(&self.base) => Ok(()),
            Reach::Private | Reach::Loopback => Err(Distrust::InnerAddress),
        }
    }

    fn check_scheme(&self, url: &Url) -> Result<(), Distrust> {
        match (url.scheme(), self.scheme) {
            ("https", _) | ("http", Scheme::Http) => Ok(()),
            ("http", Scheme::Https) => Err(Distrust::Downgrade),
            _ => Err(Distrust::NotHttp),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = self.base.path().trim_end_matches('/');
        write!(
            formatter,
            "{}://{}{prefix}",
            self.scheme.as_str(),
            self.authority()
        )
    }
}

/// Host and port as they may be told, which the user name and password before them may not.
pub(crate) fn host_and_port(url: &Url) -> &str {
    &url[Position::BeforeHost..Position::BeforePath]
}

/// Where a URL leads that may not even be one of HTTP.
pub(crate) fn destination(url: &Url) -> String {
    match url.scheme() {
        "http" | "https" => host_and_port(url).to_owned(),
        scheme => format!("a `{}:` address", printable(scheme, 32)),
    }
}

/// Why a URL that a registry names is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// From TLS to plain HTTP.
    #[error("it leads from https to http")]
    Downgrade,
    /// Neither `http` nor `https`.
    #[error("it is not an http address")]
    NotHttp,
    /// With credentials in it, which only their owner may use.
    #[error("it has a user name or password in it")]
    UserInfo,
    /// To an address of this machine or of a private network.
    #[error("it leads to an address inside this machine or network")]
    InnerAddress,
}

/// Whether `url` leads to this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    reach(url) == Reach::Loopback
}

/// From where an address can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Public,
    Private,
    LinkLocal,
    Loopback,
}

fn reach(url: &Url) -> Reach {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            if name == "localhost" || name.ends_with(".localhost") {
                Reach::Loopback
            } else {
                Reach::Public
            }
        }
        Some(Host::Ipv4(address)) => reach_of(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => reach_of(IpAddr::V6(address)),
        None => Reach::Private,
    }
}

fn reach_of(address: IpAddr) -> Reach {
    match address.to_canonical() {
        IpAddr::V4(address) => reach_of_v4(address),
        IpAddr::V6(address) => reach_of_v6(address),
    }
}

fn reach_of_v4(address: Ipv4Addr) -> Reach {
    let [first, second, ..] = address.octets();
    if address.is_loopback() {
        Reach::Loopback
    } else if address.is_link_local() {
        Reach::LinkLocal
    } else if address.is_private()
        || first == 0
        || address.is_broadcast()
        // Shared address space (RFC 6598): some clouds keep their metadata there.
        || (first == 100 && (64..128).contains(&second))
    {
        Reach::Private
    } else {
        Reach::Public
    }
}

fn reach_of_v6(address: Ipv6Addr) -> Reach {
    if address.is_loopback() {
        Reach::Loopback
    } else if address.is_unicast_link_local() {
        Reach::LinkLocal
    } else if address.is_unique_local() || address.is_unspecified() {
        Reach::Private
    } else {
        Reach::Public
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(registry: &str) -> Endpoint {
        Endpoint::new(registry, &PlainHttp::Loopback, false).unwrap()
    }

    #[test]
    fn loopback_is_plain_and_the_rest_is_not() {
        for (registry, url) in [
            ("docker.io", "https://registry-1.docker.io/v2/"),
            ("ghcr.io", "https://ghcr.io/v2/"),
            ("10.0.0.5:5000", "https://10.0.0.5:5000/v2/"),
            ("localhost", "http://localhost/v2/"),
            ("localhost:5000", "http://localhost:5000/v2/"),
            ("127.0.0.9:5000", "http://127.0.0.9:5000/v2/"),
            ("[::1]:5000", "http://[::1]:5000/v2/"),
            (
                "localhost.example:5000",
                "https://localhost.example:5000/v2/",
            ),
        ] {
            assert_eq!(endpoint(registry).url("/v2/").as_str(), url);
        }
    }

    #[test]
    fn what_was_asked_for_decides() {
        use Scheme::{Http, Https};
        let with = |plain: PlainHttp, authorities| {
            let registry = "127.0.0.1:5000";
            let other = Endpoint::new("a.b:80", &plain, authorities).unwrap();
            let loopback = Endpoint::new(registry, &plain, authorities).unwrap();
            (loopback.scheme(), other.scheme())
        };
        assert_eq!(with(PlainHttp::Loopback, false), (Http, Https));
        assert_eq!(with(PlainHttp::Loopback, true), (Https, Https));
        assert_eq!(with(PlainHttp::Everywhere, true), (Http, Http));
        let hosts = PlainHttp::Hosts(vec!["a.b:80".to_owned()]);
        assert_eq!(with(hosts, true), (Https, Http));
    }

    #[test]
    fn a_registry_is_where_it_was_said_to_be() {
        let ecr = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        let at = |address: &str| endpoint(ecr).reached_at(&Url::parse(address).unwrap());
        for (address, url) in [
            ("http://127.0.0.1:5000", "http://127.0.0.1:5000/v2/a?b=c"),
            ("https://a.example/", "https://a.example/v2/a?b=c"),
            ("https://a.example/x/y", "https://a.example/x/y/v2/a?b=c"),
            ("https://a.example/x/y/", "https://a.example/x/y/v2/a?b=c"),
        ] {
            assert_eq!(at(address).url("/v2/a?b=c").as_str(), url);
        }
        let here = at("http://127.0.0.1:5000");
        assert_eq!(here.to_string(), "http://127.0.0.1:5000");
        assert!(here.is_loopback() && here.scheme() == Scheme::Http);
        // The name itself is not asked any more, and so sees nothing.
        assert!(!here.owns(&Url::parse(&format!("https://{ecr}/v2/")).unwrap()));
        assert_eq!(at("https://a.b/x").to_string(), "https://a.b/x");
    }

    #[test]
    fn what_the_registry_calls_itself_is_where_it_was_said_to_be() {
        let ecr = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        let place = |address: &str, url: &str| {
            let endpoint = endpoint(ecr).reached_at(&Url::parse(address).unwrap());
            endpoint.place(Url::parse(url).unwrap()).to_string()
        };
        let here = "http://127.0.0.1:5000";
        for url in [
            format!("https://{ecr}/v2/a/blobs/uploads/1?x=%2F"),
            format!("http://{ecr}/v2/a/blobs/uploads/1?x=%2F"),
            format!("https://{ecr}:443/v2/a/blobs/uploads/1?x=%2F"),
            format!("{here}/v2/a/blobs/uploads/1?x=%2F"),
        ] {
            let expected = format!("{here}/v2/a/blobs/uploads/1?x=%2F");
            assert_eq!(place(here, &url), expected);
        }
        for other in [
            "https://storage.example/v2/",
            "https://1.dkr.ecr.eu-west-1.amazonaws.com/v2/",
            "http://127.0.0.1:5001/v2/",
        ] {
            assert_eq!(place(here, other), other);
        }
        let below = "https://a.example/x";
        for (url, expected) in [
            (format!("https://{ecr}/v2/"), "https://a.example/x/v2/"),
            (
                "https://a.example/v2/".to_owned(),
                "https://a.example/x/v2/",
            ),
            ("http://a.example/v2/".to_owned(), "https://a.example/x/v2/"),
            ("https://a.example/y".to_owned(), "https://a.example/y"),
            (format!("https://{ecr}/token"), "https://a.example/x/token"),
            (
                "https://a.example/x/v2/".to_owned(),
                "https://a.example/x/v2/",
            ),
        ] {
            assert_eq!(place(below, &url), expected);
        }
        // A user in it is still there to be refused.
        let url = place(here, &format!("https://u:pw@{ecr}/v2/"));
        assert_eq!(url, "http://u:pw@127.0.0.1:5000/v2/");
        let plain = endpoint("ghcr.io").place(Url::parse("http://ghcr.io/a").unwrap());
        assert_eq!(plain.as_str(), "https://ghcr.io/a");
    }

    #[test]
    fn names_that_are_not_hosts_are_refused() {
        for name in [
            "",
            "a/b",
            "user@host",
            "a b",
            "a?b",
            "a#b",
            "a:99999",
            "[::1",
        ] {
            assert!(
                Endpoint::new(name, &PlainHttp::Loopback, false).is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn inner_addresses_are_only_named_by_their_like() {
        let check = |registry: &str, url: &str| {
            endpoint(registry)
                .check_named_url(&Url::parse(url).unwrap())
                .err()
        };
        let inner = Some(Distrust::InnerAddress);
        assert_eq!(check("ghcr.io", "https://auth.example/token"), None);
        assert_eq!(check("ghcr.io", "https://ghcr.io:8443/token"), None);
        assert_eq!(
            check("ghcr.io", "http://ghcr.io/token"),
            Some(Distrust::Downgrade)
        );
        assert_eq!(
            check("ghcr.io", "file:///etc/passwd"),
            Some(Distrust::NotHttp)
        );
        for address in [
            "169.254.169.254",
            "127.0.0.1",
            "2130706433",
            "0x7f.1",
            "10.1.2.3",
            "192.168.0.1",
            "100.100.100.200",
            "0.0.0.0",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[::ffff:169.254.169.254]",
            "localhost",
            "a.localhost",
        ] {
            assert_eq!(
                check("ghcr.io", &format!("https://{address}/")),
                inner,
                "{address}"
            );
        }
        assert_eq!(check("127.0.0.1:5000", "http://127.0.0.1:5001/token"), None);
        assert_eq!(check("127.0.0.1:5000", "http://localhost:5001/token"), None);
        assert_eq!(check("127.0.0.1:5000", "http://169.254.169.254/"), inner);
        assert_eq!(check("127.0.0.1:5000", "http://10.0.0.1/"), inner);
        assert_eq!(check("10.0.0.5:5000", "https://10.0.0.6/token"), None);
        assert_eq!(check("10.0.0.5:5000", "https://127.0.0.1/token"), inner);
        assert_eq!(check("169.254.1.1", "https://169.254.1.1:81/token"), None);
        let with_user = Some(Distrust::UserInfo);
        assert_eq!(check("ghcr.io", "https://u:pw@ghcr.io/"), with_user);
        assert_eq!(check("ghcr.io", "https://u@auth.example/"), with_user);
        assert_eq!(check("ghcr.io", "https://:pw@10.0.0.1/"), with_user);
        assert_eq!(check("ghcr.io", "https://@auth.example/"), None);
    }

    #[test]
    fn a_destination_has_no_user_and_always_a_name() {
        for (url, expected) in [
            ("https://a.b/c?d", "a.b"),
            ("http://u:pw@10.0.0.1:81/c", "10.0.0.1:81"),
            ("http://u@[::1]:81", "[::1]:81"),
            ("file:///etc/passwd", "a `file:` address"),
            ("ftp://u:pw@a.b/c", "a `ftp:` address"),
            ("mailto:u@a.b", "a `mailto:` address"),
        ] {
            assert_eq!(destination(&Url::parse(url).unwrap()), expected);
        }
    }
}
