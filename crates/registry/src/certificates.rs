//! Certificates out of files, and out of the directories where container tools keep them by host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::{Certificate, Identity};

use crate::error::Cause;
use crate::hosts::ClientCertificate;
use crate::settings::SettingsError;

/// What a directory of a host holds (containers-certs.d(5), and the same of Docker).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HostDirectory {
    /// Its `*.crt`.
    pub(crate) ca_files: Vec<PathBuf>,
    /// The first of its `*.cert`, with the `*.key` of the same name.
    pub(crate) client_certificate: Option<ClientCertificate>,
}

impl HostDirectory {
    /// Reads the directory of `host` in the first of `directories` that has one; what the others have
    /// does not count.
    pub(crate) fn find(directories: &[PathBuf], host: &str) -> Result<Option<Self>, SettingsError> {
        // The host may come out of a redirect, and must not lead out of the directory.
        if host.is_empty() || host.starts_with('.') || host.contains(['/', '\0']) {
            return Ok(None);
        }
        for directory in directories {
            let directory = directory.join(host);
            let read = |source| SettingsError::ReadCertificates {
                path: directory.clone(),
                source,
            };
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if is_absence(&error) => continue,
                Err(error)
                    if error.kind() == io::ErrorKind::PermissionDenied
                        && fs::symlink_metadata(&directory).is_err() =>
                {
                    // Docker's daemon keeps `/etc/docker` to itself on many machines. Whether there is
                    // something for this host cannot be told then.
                    tracing::debug!("{} cannot be looked at: {error}", directory.display());
                    continue;
                }
                Err(error) => return Err(read(error)),
            };
            let mut files = entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<io::Result<Vec<_>>>()
                .map_err(read)?;
            files.sort();
            return Self::of(&files).map(Some);
        }
        Ok(None)
    }

    fn of(files: &[PathBuf]) -> Result<Self, SettingsError> {
        let mut found = Self::default();
        for path in files {
            let partner = |extension: &str| {
                let partner = path.with_extension(extension);
                if files.contains(&partner) {
                    return Ok(partner);
                }
                Err(SettingsError::Unpaired {
                    path: path.clone(),
                    partner,
                })
            };
            match path.extension().and_then(|it| it.to_str()) {
                Some("crt") => found.ca_files.push(path.clone()),
                Some("cert") => {
                    let key = partner("key")?;
                    found.client_certificate.get_or_insert(ClientCertificate {
                        certificate: path.clone(),
                        key,
                    });
                }
                Some("key") => drop(partner("cert")?),
                _ => {}
            }
        }
        Ok(found)
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Reads certificate authorities.
pub(crate) fn read_authorities(path: &Path) -> Result<Vec<Certificate>, SettingsError> {
    let pem = fs::read(path).map_err(|source| SettingsError::ReadAuthorities {
        path: path.to_owned(),
        source,
    })?;
    let bad = |error: &reqwest::Error| SettingsError::BadAuthority {
        path: path.to_owned(),
        source: Cause::of(error),
    };
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| bad(&error))?;
    if certificates.is_empty() {
        return Err(SettingsError::NoAuthorities {
            path: path.to_owned(),
        });
    }
    // They are only looked into when a client is made of them.
    reqwest::Client::builder()
        .tls_certs_only(certificates.iter().cloned())
        .build()
        .map_err(|error| bad(&error))?;
    Ok(certificates)
}

/// Reads what is shown to servers that ask for a certificate.
pub(crate) fn read_identity(pair: &ClientCertificate) -> Result<Identity, SettingsError> {
    let read = |path: &Path| {
        fs::read(path).map_err(|source| SettingsError::ReadCertificates {
            path: path.to_owned(),
            source,
        })
    };
    let mut pem = read(&pair.certificate)?;
    pem.push(b'\n');
    pem.extend(read(&pair.key)?);
    let bad = |error: &reqwest::Error| SettingsError::BadClientCertificate {
        certificate: pair.certificate.clone(),
        key: pair.key.clone(),
        source: Cause::of(error),
    };
    let identity = Identity::from_pem(&pem).map_err(|error| bad(&error))?;
    // Whether the key belongs to the certificate is only looked at when a client is made of them.
    reqwest::Client::builder()
        .tls_certs_only([])
        .identity(identity.clone())
        .build()
        .map_err(|error| bad(&error))?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(directory: &Path, names: &[&str]) {
        fs::create_dir_all(directory).unwrap();
        for name in names {
            fs::write(directory.join(name), "").unwrap();
        }
    }

    #[test]
    fn the_first_directory_of_a_host_counts_alone() {
        let root = tempfile::tempdir().unwrap();
        let directories: Vec<_> = ["one", "two", "three"]
            .map(|name| root.path().join(name))
            .into();
        let find = |host: &str| HostDirectory::find(&directories, host).unwrap();
        assert_eq!(find("a.example"), None);
        let two = directories[1].join("a.example");
        touch(&two, &["z.crt", "b.crt", "read.me", "y.cert", "y.key"]);
        touch(&two, &["x.cert", "x.key"]);
        touch(&directories[2].join("a.example"), &["other.crt"]);
        let expected = HostDirectory {
            ca_files: vec![two.join("b.crt"), two.join("z.crt")],
            client_certificate: Some(ClientCertificate {
                certificate: two.join("x.cert"),
                key: two.join("x.key"),
            }),
        };
        assert_eq!(find("a.example"), Some(expected));
        // The port is part of the name, as in references.
        assert_eq!(find("a.example:443"), None);
        touch(&directories[0].join("a.example:443"), &[]);
        assert_eq!(find("a.example:443"), Some(HostDirectory::default()));
        for host in ["", ".", "..", "../two/a.example", "/"] {
            assert_eq!(find(host), None, "{host}");
        }
    }

    #[test]
    fn a_certificate_without_key_is_named_and_the_reverse() {
        for (name, partner) in [("me.cert", "me.key"), ("me.key", "me.cert")] {
            let root = tempfile::tempdir().unwrap();
            let host = root.path().join("a.example");
            touch(&host, &[name, "ca.crt"]);
            let error = HostDirectory::find(&[root.path().to_owned()], "a.example").unwrap_err();
            let expected = format!("{} is there without {partner}", host.join(name).display());
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_file_in_place_of_a_directory_is_no_directory() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), &["a.example"]);
        let found = HostDirectory::find(&[root.path().to_owned()], "a.example");
        assert_eq!(found.unwrap(), None);
    }
}
