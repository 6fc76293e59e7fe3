//! Credentials out of the files that Docker and podman keep.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tierce_image::BoxError;
use tierce_oci::Repository;

use crate::credentials::config::{BadConfig, Config, helper_key};
use crate::credentials::{CredentialSource, Credentials, helper};

/// How long a credential helper may think; some ask a person to unlock a key ring.
const HELPER_PATIENCE: Duration = Duration::from_mins(1);

/// Reads credentials where `docker login` and `podman login` leave them.
///
/// The places are asked in order, and the first that knows the registry wins. Within one, as in
/// Docker, the registry's own helper comes before the store for all, and that before what stands in
/// the file. A file that is not there says nothing; one that cannot be read or understood is an
/// error, because a push without the credentials that were meant would fail less clearly later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFiles {
    /// The content of `DOCKER_AUTH_CONFIG`, which comes before all files.
    pub inline: Option<crate::Secret>,
    /// The files, in the order in which they are asked.
    pub files: Vec<PathBuf>,
    /// Where credential helpers are found, as in `PATH`.
    pub helper_path: OsString,
    /// How long a helper may take.
    pub helper_patience: Duration,
}

/// Why the credentials cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialFilesError {
    /// A file is there but cannot be read.
    #[error("could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A configuration makes no sense.
    #[error("{place} cannot be used")]
    Malformed {
        /// The file, or `DOCKER_AUTH_CONFIG`.
        place: String,
        /// Why.
        #[source]
        source: BadConfig,
    },
    /// A helper that a configuration names does not work.
    #[error("{place} names a credential helper that does not work")]
    Helper {
        /// The file, or `DOCKER_AUTH_CONFIG`.
        place: String,
        /// Why.
        #[source]
        source: helper::HelperError,
    },
}

impl ConfigFiles {
    /// Finds the usual places, given the environment's variables by `variable`.
    ///
    /// In order: `DOCKER_AUTH_CONFIG` itself; `$REGISTRY_AUTH_FILE`; `$DOCKER_CONFIG/config.json` or
    /// else `~/.docker/config.json`; `$XDG_RUNTIME_DIR/containers/auth.json`;
    /// `~/.config/containers/auth.json`. What is named explicitly comes first.
    pub fn usual(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = path("HOME");
        let in_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
        let files = [
            path("REGISTRY_AUTH_FILE"),
            path("DOCKER_CONFIG")
                .or_else(|| in_home(".docker"))
                .map(|directory| directory.join("config.json")),
            path("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json")),
            path("XDG_CONFIG_HOME")
                .or_else(|| in_home(".config"))
                .map(|directory| directory.join("containers/auth.json")),
        ];
        Self {
            inline: variable("DOCKER_AUTH_CONFIG")
                .map(|text| crate::Secret::new(text.to_string_lossy())),
            files: files.into_iter().flatten().collect(),
            helper_path: variable("PATH").unwrap_or_default(),
            helper_patience: HELPER_PATIENCE,
        }
    }

    /// Looks in every place for the credentials of `repository`.
    ///
    /// Dropping the future ends a running helper.
    pub async fn find(
        &self,
        repository: &Repository,
    ) -> Result<Option<Credentials>, CredentialFilesError> {
        if let Some(text) = &self.inline {
            let place = "DOCKER_AUTH_CONFIG".to_owned();
            let found = self.look(&place, text.expose().as_bytes(), repository);
            if let Some(found) = found.await? {
                return Ok(Some(found));
            }
        }
        for path in &self.files {
            let text = match tokio::fs::read(path).await {
                Ok(text) => text,
                Err(error) if is_absence(&error) => continue,
                Err(source) => {
                    let path = path.clone();
                    return Err(CredentialFilesError::Read { path, source });
                }
            };
            // An empty file is what a fresh `REGISTRY_AUTH_FILE` looks like.
            if text.trim_ascii().is_empty() {
                continue;
            }
            let place = path.display().to_string();
            if let Some(found) = self.look(&place, &text, repository).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn look(
        &self,
        place: &str,
        text: &[u8],
        repository: &Repository,
    ) -> Result<Option<Credentials>, CredentialFilesError> {
        let malformed = |source| CredentialFilesError::Malformed {
            place: place.to_owned(),
            source,
        };
        let config = Config::parse(text).map_err(malformed)?;
        if let Some(name) = config.helper(&repository.registry) {
            let key = helper_key(&repository.registry);
            let kind = helper::ask(name, key, &self.helper_path, self.helper_patience)
                .await
                .map_err(|source| CredentialFilesError::Helper {
                    place: place.to_owned(),
                    source,
                })?;
            if let Some(kind) = kind {
                let origin = format!("docker-credential-{name} (named in {place})");
                return Ok(Some(Credentials {
                    kind,
                    origin,
                    good_until: None,
                }));
            }
        }
        let kind = config.stored(repository).map_err(malformed)?;
        Ok(kind.map(|kind| Credentials {
            kind,
            origin: place.to_owned(),
            good_until: None,
        }))
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

impl CredentialSource for ConfigFiles {
    fn credentials<'a>(
        &'a self,
        repository: &'a Repository,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        Box::pin(async move { self.find(repository).await.map_err(BoxError::from) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;

    fn files(files: Vec<PathBuf>) -> ConfigFiles {
        ConfigFiles {
            inline: None,
            files,
            helper_path: OsString::new(),
            helper_patience: HELPER_PATIENCE,
        }
    }

    #[test]
    fn the_usual_places_in_their_order() {
        let environment = |pairs: &[(&str, &str)]| {
            let pairs: BTreeMap<String, OsString> = pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
                .collect();
            let usual = ConfigFiles::usual(|name| pairs.get(name).cloned());
            let files = usual.files.iter().map(|path| path.display().to_string());
            (files.collect::<Vec<_>>(), usual.inline.is_some())
        };
        assert_eq!(environment(&[]), (vec![], false));
        assert_eq!(
            environment(&[("HOME", "/h"), ("DOCKER_CONFIG", "")]).0,
            ["/h/.docker/config.json", "/h/.config/containers/auth.json"]
        );
        let all = environment(&[
            ("HOME", "/h"),
            ("DOCKER_CONFIG", "/d"),
            ("REGISTRY_AUTH_FILE", "/r.json"),
            ("XDG_RUNTIME_DIR", "/x"),
            ("DOCKER_AUTH_CONFIG", "{}"),
        ]);
        assert_eq!(
            all.0,
            [
                "/r.json",
                "/d/config.json",
                "/x/containers/auth.json",
                "/h/.config/containers/auth.json"
            ]
        );
        assert!(all.1);
    }

    #[tokio::test]
    async fn the_first_place_that_knows_wins() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let entry = |host: &str, user: &str| {
            format!(r#"{{"auths":{{"{host}":{{"username":"{user}","password":"p"}}}}}}"#)
        };
        fs::write(path("empty"), "\n").unwrap();
        fs::write(path("one"), entry("a.b", "one")).unwrap();
        fs::write(path("two"), entry("c.d", "two")).unwrap();
        let mut source = files(vec![
            path("absent"),
            path("empty"),
            path("one"),
            path("two"),
        ]);
        let find = async |source: &ConfigFiles, repository: &str| {
            let repository: Repository = repository.parse().unwrap();
            source.find(&repository).await.unwrap()
        };
        let found = find(&source, "c.d/x").await.unwrap();
        assert_eq!(found.origin, path("two").display().to_string());
        assert_eq!(find(&source, "e.f/x").await, None);
        source.inline = Some(crate::Secret::new(entry("a.b", "inline")));
        let found = find(&source, "a.b/x").await.unwrap();
        assert_eq!(found.origin, "DOCKER_AUTH_CONFIG");
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let source = files(vec![path.clone()]);
        let repository: Repository = "a.b/c".parse().unwrap();
        for (text, expected) in [
            ("{", "cannot be used"),
            (
                r#"{"credsStore":"absent"}"#,
                "names a credential helper that does not work",
            ),
        ] {
            fs::write(&path, text).unwrap();
            let error = source.find(&repository).await.unwrap_err().to_string();
            assert_eq!(error, format!("{} {expected}", path.display()));
        }
        let source = files(vec![directory.path().to_owned()]);
        let error = source.find(&repository).await.unwrap_err().to_string();
        assert!(error.starts_with("could not read "), "{error}");
    }
}
