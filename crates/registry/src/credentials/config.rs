//! The JSON of Docker's `config.json` and of podman's `auth.json`.
//!
//! The `docker_credential` crate reads such files too, but not as Docker does: it prefers `auths` to
//! `credsStore`, takes `"auth": ""` for an error and a helper's "not found" for a failure, knows
//! neither `registrytoken` nor podman's keys with a path, and waits for helpers without end. Of what
//! it does, too little would be left to lean on.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use tierce_oci::Repository;

use crate::credentials::CredentialKind;
use crate::secret::Secret;

/// The key under which Docker keeps the credentials for Docker Hub, and what it asks helpers for.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// The names that mean Docker Hub, wherever a host is named.
const DOCKER_HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Why a configuration cannot be used. The text of the file, which holds secrets, is never quoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadConfig {
    /// Not JSON.
    #[error("it is not JSON: line {line}, column {column}")]
    NotJson {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// JSON in another shape.
    #[error("line {line}, column {column} is not what belongs there")]
    Shape {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// An `auth` that is not base64 of `user:password`.
    #[error("the `auth` of `{0}` is not base64 of a user name, `:` and a password")]
    BadAuth(String),
}

/// What such a file says of credentials; all else in it is ignored.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    auths: Option<BTreeMap<String, Option<Entry>>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl Config {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, BadConfig> {
        serde_json::from_slice(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            match error.classify() {
                serde_json::error::Category::Data => BadConfig::Shape { line, column },
                _ => BadConfig::NotJson { line, column },
            }
        })
    }

    /// The helper to ask for `registry`: one of its own, or the store for all.
    pub(crate) fn helper(&self, registry: &str) -> Option<&str> {
        let of_its_own = self
            .cred_helpers
            .iter()
            .flatten()
            .find(|(key, _)| names_registry(key, registry))
            .map(|(_, helper)| helper.as_str());
        // An empty name switches the store off for that registry.
        of_its_own
            .or(self.creds_store.as_deref())
            .filter(|helper| !helper.is_empty())
    }

    /// The credentials that stand in the file itself.
    pub(crate) fn stored(
        &self,
        repository: &Repository,
    ) -> Result<Option<CredentialKind>, BadConfig> {
        let Some(auths) = &self.auths else {
            return Ok(None);
        };
        // containers-auth.json(5): the key that names most of the repository wins.
        let mut name = repository.to_string();
        while name.len() > repository.registry.len() {
            if let Some(Some(entry)) = auths.get(&name)
                && let Some(kind) = entry.kind(&name)?
            {
                return Ok(Some(kind));
            }
            name.truncate(name.rfind('/').unwrap_or(0));
        }
        for (key, entry) in auths {
            if names_registry(key, &repository.registry)
                && let Some(entry) = entry
                && let Some(kind) = entry.kind(key)?
            {
                return Ok(Some(kind));
            }
        }
        Ok(None)
    }
}

/// What a helper is asked for.
pub(crate) fn helper_key(registry: &str) -> &str {
    if registry == DOCKER_HUB_HOSTS[0] {
        DOCKER_HUB_KEY
    } else {
        registry
    }
}

/// Whether `key` stands for `registry` as a whole: its host, or an address on it as old versions of
/// Docker wrote them.
fn names_registry(key: &str, registry: &str) -> bool {
    let (has_scheme, rest) = match key.split_once("://") {
        Some((_, rest)) => (true, rest),
        None => (false, key),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let whole = has_scheme || matches!(path.trim_end_matches('/'), "" | "v1" | "v2");
    let host = host.to_ascii_lowercase();
    let host = if DOCKER_HUB_HOSTS.contains(&host.as_str()) {
        DOCKER_HUB_HOSTS[0]
    } else {
        &host
    };
    whole && host == registry
}

impl Entry {
    /// `None` for an entry without content, as `docker login` leaves it beside a store.
    fn kind(&self, key: &str) -> Result<Option<CredentialKind>, BadConfig> {
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = text(&self.registrytoken) {
            return Ok(Some(CredentialKind::RegistryToken(Secret::new(token))));
        }
        if let Some(token) = text(&self.identitytoken) {
            return Ok(Some(CredentialKind::IdentityToken(Secret::new(token))));
        }
        let pair = match text(&self.auth) {
            Some(auth) => Some(decode(&auth).ok_or_else(|| BadConfig::BadAuth(key.to_owned()))?),
            None => text(&self.username).zip(text(&self.password)),
        };
        Ok(pair.map(|(username, password)| password_or_token(username, password)))
    }
}

/// Helpers and files mark an identity token by the user name `<token>`.
pub(crate) fn password_or_token(username: String, password: String) -> CredentialKind {
    let password = Secret::new(password);
    if username == "<token>" {
        CredentialKind::IdentityToken(password)
    } else {
        CredentialKind::Password { username, password }
    }
}

fn decode(auth: &str) -> Option<(String, String)> {
    let lenient =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes = GeneralPurpose::new(&STANDARD, lenient)
        .decode(auth.trim())
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    // Docker pads the password with NULs in old files.
    Some((username.to_owned(), password.trim_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str, password: &str) -> CredentialKind {
        CredentialKind::Password {
            username: username.to_owned(),
            password: Secret::new(password),
        }
    }

    fn stored(config: &str, repository: &str) -> Option<CredentialKind> {
        Config::parse(config.as_bytes())
            .unwrap()
            .stored(&repository.parse().unwrap())
            .unwrap()
    }

    /// `user:pass:word` in base64.
    const AUTH: &str = "dXNlcjpwYXNzOndvcmQ=";

    #[test]
    fn keys_are_understood_as_docker_and_podman_write_them() {
        for (key, repository, found) in [
            ("ghcr.io", "ghcr.io/a/b", true),
            ("https://ghcr.io", "ghcr.io/a/b", true),
            ("https://ghcr.io/v2/", "ghcr.io/a/b", true),
            ("ghcr.io/v1/", "ghcr.io/a/b", true),
            ("GHCR.io", "ghcr.io/a/b", true),
            ("ghcr.io/a", "ghcr.io/a/b", true),
            ("ghcr.io/a/b", "ghcr.io/a/b", true),
            ("ghcr.io/a/b", "ghcr.io/a", false),
            ("ghcr.io/a", "ghcr.io/ab", false),
            ("ghcr.io:443", "ghcr.io/a/b", false),
            ("localhost:5000", "localhost:5000/a", true),
            ("https://index.docker.io/v1/", "alpine", true),
            ("docker.io", "alpine", true),
            ("docker.io/library", "alpine", true),
            ("https://index.docker.io/v1/", "ghcr.io/a", false),
        ] {
            let config = format!(r#"{{"auths":{{"{key}":{{"auth":"{AUTH}"}}}}}}"#);
            let expected = found.then(|| password("user", "pass:word"));
            assert_eq!(stored(&config, repository), expected, "{key} {repository}");
        }
    }

    #[test]
    fn the_longest_key_wins() {
        let config = r#"{"auths":{
            "quay.io":{"username":"a","password":"1"},
            "quay.io/org":{"username":"b","password":"2"},
            "quay.io/org/repo":{"auth":""}}}"#;
        assert_eq!(stored(config, "quay.io/x"), Some(password("a", "1")));
        assert_eq!(stored(config, "quay.io/org/y"), Some(password("b", "2")));
        assert_eq!(stored(config, "quay.io/org/repo"), Some(password("b", "2")));
    }

    #[test]
    fn every_form_of_entry_is_read() {
        let entry = |entry: &str| stored(&format!(r#"{{"auths":{{"a.b":{entry}}}}}"#), "a.b/c");
        let token = Secret::new("t");
        assert_eq!(entry(r#"{"auth":"dTpw"}"#), Some(password("u", "p")));
        assert_eq!(entry(r#"{"auth":"dXM6cA"}"#), Some(password("us", "p")));
        assert_eq!(
            entry(r#"{"auth":"dTpw","identitytoken":"t"}"#),
            Some(CredentialKind::IdentityToken(token.clone()))
        );
        assert_eq!(
            entry(r#"{"username":"<token>","password":"t"}"#),
            Some(CredentialKind::IdentityToken(token.clone()))
        );
        assert_eq!(
            entry(r#"{"registrytoken":"t"}"#),
            Some(CredentialKind::RegistryToken(token))
        );
        for empty in ["{}", r#"{"auth":""}"#, "null", r#"{"email":"x@y"}"#] {
            assert_eq!(entry(empty), None, "{empty}");
        }
        assert_eq!(stored(r#"{"auths":null,"proxies":{}}"#, "a.b/c"), None);
    }

    #[test]
    fn helpers_are_chosen_as_docker_chooses() {
        let config = Config::parse(
            br#"{"credsStore":"all","credHelpers":{"a.b":"one","c.d":"",
                "https://index.docker.io/v1/":"hub"}}"#,
        )
        .unwrap();
        assert_eq!(config.helper("a.b"), Some("one"));
        assert_eq!(config.helper("c.d"), None);
        assert_eq!(config.helper("e.f"), Some("all"));
        assert_eq!(config.helper("docker.io"), Some("hub"));
        assert_eq!(helper_key("docker.io"), "https://index.docker.io/v1/");
        assert_eq!(helper_key("a.b:1"), "a.b:1");
    }

    #[test]
    fn errors_say_where_and_never_what() {
        let error = |text: &str| match Config::parse(text.as_bytes()) {
            Err(error) => error.to_string(),
            Ok(config) => match config.stored(&"a.b/c".parse().unwrap()) {
                Err(error) => error.to_string(),
                Ok(_) => String::new(),
            },
        };
        assert_eq!(
            error("{\n \"auths\": {]"),
            "it is not JSON: line 2, column 12"
        );
        let shape = error("{\"auths\":{\"a.b\":\"c2VjcmV0\"}}");
        assert!(shape.starts_with("line 1, column "), "{shape}");
        assert!(!shape.contains("c2VjcmV0"));
        for auth in ["c2VjcmV0", "%%%", "_w"] {
            let error = error(&format!(r#"{{"auths":{{"a.b":{{"auth":"{auth}"}}}}}}"#));
            assert!(error.contains("`a.b`") && !error.contains(auth), "{error}");
        }
    }
}
