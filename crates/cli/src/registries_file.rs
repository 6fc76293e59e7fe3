//! `registries.toml`: what a user has settled about registries, and how its mistakes are pointed at.
//!
//! It is the user's file and not the project's: where a registry really is, and whom to trust there,
//! is nothing that a checkout may decide.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tierce_aws::Identity;
use tierce_registry::{ClientCertificate, HostSettings, Hosts};
use toml::Spanned;
use url::Url;

use crate::byte_size::ByteSize;
use crate::config_file::{self, ConfigFileError};
use crate::diagnostic::Hinted as _;
use crate::environment::RegistriesPlaces;
use crate::time_span::TimeSpan;

/// What is settled about registries.
#[derive(Debug, Default)]
pub(crate) struct Registries {
    /// For the client.
    pub(crate) hosts: Hosts,
    /// As whom AWS is asked, by the registry's name.
    pub(crate) aws: BTreeMap<String, Identity>,
}

/// The table of one registry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct HostTable {
    endpoint: Option<Spanned<String>>,
    #[serde(default)]
    mirror: Vec<Spanned<String>>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    ca: Vec<PathBuf>,
    client_certificate: Option<Spanned<PathBuf>>,
    client_key: Option<Spanned<PathBuf>>,
    connect_timeout: Option<TimeSpan>,
    header_timeout: Option<TimeSpan>,
    read_timeout: Option<TimeSpan>,
    upload_answer_timeout: Option<TimeSpan>,
    concurrency: Option<Spanned<i64>>,
    chunk_size: Option<Spanned<ByteSize>>,
    aws_profile: Option<String>,
    aws_role: Option<String>,
}

impl Registries {
    /// Reads the user's file, if there is one. One that was named must be there.
    pub(crate) fn load(places: &RegistriesPlaces) -> Result<Self> {
        let path = &places.file;
        let mut registries = match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text)?,
            Err(error) if !places.is_named && is_absence(&error) => Self::default(),
            Err(error) => {
                let read = Err(error).with_context(|| format!("could not read {}", path.display()));
                if places.is_named {
                    return read.hint("TIERCE_REGISTRIES names it");
                }
                return read;
            }
        };
        registries
            .hosts
            .certificate_directories
            .clone_from(&places.certificate_directories);
        Ok(registries)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigFileError> {
        let complain = |span, message| config_file::complain(path, text, &span, message);
        // Names come first: a host without quotes is a table in a table, whose keys mean nothing.
        let names: BTreeMap<Spanned<String>, toml::Value> = config_file::read_toml(path, text)?;
        for name in names.keys() {
            if let Err(error) = Hosts::canonical(name.get_ref()) {
                let message = format!("{error}, in quotes when it has dots");
                return Err(complain(name.span(), message));
            }
        }
        let tables: BTreeMap<Spanned<String>, HostTable> = config_file::read_toml(path, text)?;
        let mut registries = Self::default();
        let mut addresses = Vec::new();
        for (name, table) in tables {
            let canonical = Hosts::canonical(name.get_ref());
            let host = canonical.map_err(|error| complain(name.span(), error.to_string()))?;
            if registries.hosts.get(&host).is_some() {
                let message = format!("there is another table for `{host}`");
                return Err(complain(name.span(), message));
            }
            if table.aws_profile.is_some() || table.aws_role.is_some() {
                let identity = Identity {
                    profile: table.aws_profile.clone(),
                    role: table.aws_role.clone(),
                };
                registries.aws.insert(host.clone(), identity);
            }
            for written in table.endpoint.iter().chain(&table.mirror) {
                addresses.push((host.clone(), written.clone()));
            }
            let settings = table.settings(path, text)?;
            let inserted = registries.hosts.insert(&host, settings);
            inserted.expect("the name was found to be a registry's");
        }
        // Whether a mirror may be spoken to without TLS is told by a table of its own.
        for (host, written) in addresses {
            let url = address(path, text, &written)?;
            if let Err(error) = registries.hosts.check_address(&host, &url) {
                return Err(complain(written.span(), error.to_string()));
            }
        }
        Ok(registries)
    }
}

impl HostTable {
    fn settings(self, path: &Path, text: &str) -> Result<HostSettings, ConfigFileError> {
        let complain =
            |span, message: &str| config_file::complain(path, text, &span, message.to_owned());
        let directory = path.parent().unwrap_or(Path::new(""));
        let client_certificate = match (self.client_certificate, self.client_key) {
            (Some(certificate), Some(key)) => Some(ClientCertificate {
                certificate: directory.join(certificate.into_inner()),
                key: directory.join(key.into_inner()),
            }),
            (Some(alone), None) => {
                return Err(complain(alone.span(), "there is no `client-key` with it"));
            }
            (None, Some(alone)) => {
                let message = "there is no `client-certificate` with it";
                return Err(complain(alone.span(), message));
            }
            (None, None) => None,
        };
        let concurrency = match &self.concurrency {
            None => None,
            Some(written) => {
                let number = usize::try_from(*written.get_ref()).ok();
                let number = number.and_then(NonZeroUsize::new);
                Some(number.ok_or_else(|| complain(written.span(), "it must be at least 1"))?)
            }
        };
        let chunk_size = match &self.chunk_size {
            Some(written) if written.get_ref().0 == 0 => {
                return Err(complain(written.span(), "it must be at least 1 byte"));
            }
            written => written.as_ref().map(|written| written.get_ref().0),
        };
        let endpoint = self.endpoint.as_ref();
        let endpoint = endpoint.map(|written| address(path, text, written));
        let mirrors = self.mirror.iter();
        let mirrors = mirrors.map(|written| address(path, text, written));
        let time = |span: Option<TimeSpan>| span.map(|span| span.0);
        Ok(HostSettings {
            endpoint: endpoint.transpose()?,
            mirrors: mirrors.collect::<Result<_, _>>()?,
            insecure: self.insecure,
            ca_files: self.ca.iter().map(|file| directory.join(file)).collect(),
            client_certificate,
            connect_timeout: time(self.connect_timeout),
            header_timeout: time(self.header_timeout),
            read_timeout: time(self.read_timeout),
            upload_answer_timeout: time(self.upload_answer_timeout),
            concurrency,
            chunk_size,
        })
    }
}

fn address(path: &Path, text: &str, written: &Spanned<String>) -> Result<Url, ConfigFileError> {
    written.get_ref().parse().map_err(|_| {
        let message = "it is not an address: expected `https://HOST[:PORT][/PATH]`";
        config_file::complain(path, text, &written.span(), message.to_owned())
    })
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

    fn parse(text: &str) -> Result<Registries, ConfigFileError> {
        Registries::parse(Path::new("/home/me/registries.toml"), text)
    }

    #[test]
    fn the_example_of_the_documentation_is_understood() {
        let registries = parse(&format!(
            r#"
            ["{ECR}"]
            endpoint = "http://127.0.0.1:5000"
            mirror = ["https://mirror.example/hub"]
            insecure = false
            ca = ["corporate.pem", "/etc/ssl/other.pem"]
            client-certificate = "me.pem"
            client-key = "me.key"
            connect-timeout = "10s"
            header-timeout = "5m"
            read-timeout = "1m"
            upload-answer-timeout = "1h"
            concurrency = 4
            chunk-size = "16MiB"
            aws-profile = "prod"
            aws-role = "arn:aws:iam::123456789012:role/push"

            ["Index.docker.io"]
            mirror = ["https://mirror.example/hub"]

            [localhost]
            insecure = true
            "#
        ))
        .unwrap();
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let mirror = Url::parse("https://mirror.example/hub").unwrap();
        let expected = HostSettings {
            endpoint: Some(Url::parse("http://127.0.0.1:5000").unwrap()),
            mirrors: vec![mirror.clone()],
            insecure: false,
            ca_files: vec![
                PathBuf::from("/home/me/corporate.pem"),
                PathBuf::from("/etc/ssl/other.pem"),
            ],
            client_certificate: Some(ClientCertificate {
                certificate: PathBuf::from("/home/me/me.pem"),
                key: PathBuf::from("/home/me/me.key"),
            }),
            connect_timeout: seconds(10),
            header_timeout: seconds(300),
            read_timeout: seconds(60),
            upload_answer_timeout: seconds(3600),
            concurrency: NonZeroUsize::new(4),
            chunk_size: Some(16 << 20),
        };
        assert_eq!(registries.hosts.get(ECR), Some(&expected));
        let hub = registries.hosts.get("docker.io").unwrap();
        assert_eq!(hub.mirrors, [mirror]);
        assert!(registries.hosts.get("localhost").unwrap().insecure);
        let identity = Identity {
            profile: Some("prod".to_owned()),
            role: Some("arn:aws:iam::123456789012:role/push".to_owned()),
        };
        assert_eq!(registries.aws.get(ECR), Some(&identity));
        assert_eq!(registries.aws.get("docker.io"), None);
    }

    #[test]
    fn an_unknown_key_is_pointed_at_with_the_nearest_known_one() {
        let error = parse("[\"a.example\"]\nmirrors = []\n").unwrap_err();
        assert_eq!((error.line, error.column), (2, 1));
        assert_eq!(error.nearest.as_deref(), Some("mirror"));
    }

    #[test]
    fn a_mistake_is_pointed_at() {
        for (text, line, column, part) in [
            ("[my-host]", 1, 2, "`my-host` is not the name of a registry"),
            ("[\"https://a.b\"]", 1, 2, "is not the name of a registry"),
            ("[\"a.b/team\"]", 1, 2, "is not the name of a registry"),
            (
                "[ghcr.io]\ninsecure = true",
                1,
                2,
                "`ghcr` is not the name of a registry: expected a host and perhaps a port, in quotes",
            ),
            ("insecure = true", 1, 1, "`insecure` is not the name"),
            ("[localhost]\nendpoint = ", 2, 12, ""),
            (
                "[\"docker.io\"]\n[\"index.docker.io\"]",
                2,
                2,
                "another table for `docker.io`",
            ),
            (
                "[\"A.example\"]\n[\"a.example\"]",
                2,
                2,
                "another table for `a.example`",
            ),
            (
                "[\"a.b\"]\nendpoint = \"b.example:5000\"",
                2,
                12,
                "it is not an `http://`",
            ),
            (
                "[\"a.b\"]\nendpoint = \"https://\"",
                2,
                12,
                "it is not an address",
            ),
            (
                "[\"a.b\"]\nendpoint = \"http://b.example\"",
                2,
                12,
                "`b.example` is another machine",
            ),
            (
                "[\"a.b\"]\nmirror = [\"https://b.example\", \"https://u:pw@b.example\"]",
                2,
                32,
                "user name or password",
            ),
            (
                "[\"a.b\"]\nclient-key = \"me.key\"",
                2,
                14,
                "no `client-certificate`",
            ),
            (
                "[\"a.b\"]\nclient-certificate = \"me.pem\"",
                2,
                22,
                "no `client-key`",
            ),
            ("[\"a.b\"]\nread-timeout = \"soon\"", 2, 16, "time to wait"),
            ("[\"a.b\"]\nread-timeout = 10", 2, 16, "time to wait"),
            ("[\"a.b\"]\nconcurrency = 0", 2, 15, "at least 1"),
            ("[\"a.b\"]\nchunk-size = \"0\"", 2, 14, "at least 1 byte"),
            ("[\"a.b\"]\nca = \"one.pem\"", 2, 6, "invalid type"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!((error.line, error.column), (line, column), "{error}");
            assert!(error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn plain_http_to_another_machine_is_for_the_insecure() {
        for text in [
            "[\"a.b\"]\ninsecure = true\nendpoint = \"http://b.example\"",
            "[\"a.b\"]\nendpoint = \"http://[::1]:5000/x\"",
            "[\"a.b\"]\nmirror = [\"http://b.example\"]\n[\"b.example\"]\ninsecure = true",
        ] {
            parse(text).unwrap();
        }
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let mut places = RegistriesPlaces {
            file: directory.path().join("registries.toml"),
            is_named: false,
            certificate_directories: vec![directory.path().join("certs.d")],
        };
        let registries = Registries::load(&places).unwrap();
        assert_eq!(
            registries.hosts.certificate_directories,
            places.certificate_directories
        );
        places.is_named = true;
        let error = Registries::load(&places).unwrap_err();
        let expected = format!("could not read {}", places.file.display());
        assert_eq!(error.to_string(), expected);
    }
}
