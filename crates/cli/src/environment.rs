//! The one place where the environment is read.
//!
//! Everything that a run takes from outside its arguments enters here, once, as a value.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use etcetera::BaseStrategy as _;
use tierce_oci::Timestamp;
use tierce_registry::ConfigFiles;

use crate::byte_size::ByteSize;

/// Whether stderr is a terminal whose user has not said `NO_COLOR` (no-color.org).
pub(crate) fn colours_are_welcome() -> bool {
    std::io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|text| text.is_empty())
}

/// Enough for the dependencies of some dozen functions, and little beside what they take unpacked.
const CACHE_LIMIT: u64 = 10 << 30;

/// What the environment says.
#[derive(Debug, Clone)]
pub(crate) struct Environment {
    /// Where the local store is: `$TIERCE_STORE`, else `tierce/store` in the user's data directory.
    pub(crate) store: PathBuf,
    /// What may be deleted at any time: `$TIERCE_CACHE`, else `tierce` in the user's cache
    /// directory.
    pub(crate) cache: PathBuf,
    /// How many bytes the layer cache may take: `$TIERCE_CACHE_LIMIT`, else 10 GiB.
    pub(crate) cache_limit: u64,
    /// `SOURCE_DATE_EPOCH` (reproducible-builds.org/specs/source-date-epoch).
    pub(crate) source_date_epoch: Option<Timestamp>,
    /// Where Docker, podman and their helpers keep credentials.
    pub(crate) credentials: ConfigFiles,
    /// Where `docker login` writes: `config.json` in `$DOCKER_CONFIG`, else in `~/.docker`.
    pub(crate) docker_config: Option<PathBuf>,
    /// Where it is written what is settled about registries.
    pub(crate) registries: RegistriesPlaces,
    /// All of it, for the tools that tierce runs.
    pub(crate) variables: Variables,
}

/// The variables of the environment. What they hold is never shown: much of it is secret.
#[derive(Clone, Default)]
pub(crate) struct Variables(BTreeMap<OsString, OsString>);

impl fmt::Debug for Variables {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Variables(…)")
    }
}

impl Variables {
    /// The value of a variable that is set and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        let value = self.0.get(OsStr::new(name))?;
        Some(value.as_os_str()).filter(|value| !value.is_empty())
    }

    /// All names and values, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        let pairs = self.0.iter();
        pairs.map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// Of plain texts.
    #[cfg(test)]
    pub(crate) fn of<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        let pairs = pairs.into_iter();
        Self(
            pairs
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

/// Where it is written what is settled about registries.
#[derive(Debug, Clone)]
pub(crate) struct RegistriesPlaces {
    /// `$TIERCE_REGISTRIES`, else `tierce/registries.toml` in the user's configuration directory.
    pub(crate) file: PathBuf,
    /// Whether the environment names it, so that it must be there.
    pub(crate) is_named: bool,
    /// Where certificates lie in directories named after hosts. Of these the first that has one for
    /// a host counts: the user's own comes before the machine's, as with podman.
    pub(crate) certificate_directories: Vec<PathBuf>,
}

impl Environment {
    /// Reads it.
    pub(crate) fn read() -> Result<Self> {
        let directories = etcetera::base_strategy::Xdg::new()
            .context("there is no home directory: set HOME, or XDG_DATA_HOME and XDG_CACHE_HOME")?;
        let path = |name: &str| {
            env::var_os(name)
                .filter(|it| !it.is_empty())
                .map(PathBuf::from)
        };
        let source_date_epoch = env::var("SOURCE_DATE_EPOCH")
            .ok()
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().context("SOURCE_DATE_EPOCH cannot be used"))
            .transpose()?;
        let cache_limit = env::var("TIERCE_CACHE_LIMIT")
            .ok()
            .filter(|text| !text.is_empty())
            .map(|text| {
                text.parse::<ByteSize>()
                    .context("TIERCE_CACHE_LIMIT cannot be used")
            })
            .transpose()?
            .map_or(CACHE_LIMIT, |size| size.0);
        let configuration = directories.config_dir();
        let named = path("TIERCE_REGISTRIES");
        let registries = RegistriesPlaces {
            is_named: named.is_some(),
            file: named.unwrap_or_else(|| configuration.join("tierce/registries.toml")),
            certificate_directories: vec![
                configuration.join("containers/certs.d"),
                PathBuf::from("/etc/containers/certs.d"),
                PathBuf::from("/etc/docker/certs.d"),
            ],
        };
        Ok(Self {
            cache_limit,
            store: path("TIERCE_STORE")
                .unwrap_or_else(|| directories.data_dir().join("tierce/store")),
            cache: path("TIERCE_CACHE").unwrap_or_else(|| directories.cache_dir().join("tierce")),
            source_date_epoch,
            credentials: ConfigFiles::usual(|name| env::var_os(name)),
            docker_config: path("DOCKER_CONFIG")
                .or_else(|| Some(path("HOME")?.join(".docker")))
                .map(|directory| directory.join("config.json")),
            registries,
            variables: Variables(env::vars_os().collect()),
        })
    }
}
