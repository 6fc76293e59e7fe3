//! `tierce.lock`: what the base's tag stood for when it was first built on.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tierce_oci::Digest;
use tierce_store::atomic::write_file;

use crate::diagnostic::Hinted as _;

const HEADER: &str = "# What the base's tag stood for, by platform. Written by tierce; keep it in version control.\n\
# `tierce lock --update` moves it.\n\n";

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LockFile {
    version: u32,
    #[serde(default, rename = "base")]
    bases: Vec<LockedBase>,
}

/// One base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LockedBase {
    /// As it stands in `tierce.toml`.
    name: String,
    /// Platform to the digest of its image manifest.
    platforms: BTreeMap<String, Digest>,
}

impl Default for LockFile {
    fn default() -> Self {
        Self {
            version: 1,
            bases: Vec::new(),
        }
    }
}

impl LockFile {
    /// Reads the file at `path`; one that is not there pins nothing.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("could not read {}", path.display()));
            }
        };
        let lock: Self = toml::from_str(&text)
            .with_context(|| format!("{} is not a lock file of tierce", path.display()))
            .hint("take it from version control, or delete it: the next build pins anew")?;
        anyhow::ensure!(
            lock.version == 1,
            "{} has the version {}, which this tierce does not know",
            path.display(),
            lock.version
        );
        Ok(lock)
    }

    /// The digest that `name` is held to for `platform`.
    pub(crate) fn pinned(&self, name: &str, platform: &str) -> Option<Digest> {
        self.base(name)?.platforms.get(platform).copied()
    }

    /// The platforms for which `name` is pinned.
    pub(crate) fn platforms(&self, name: &str) -> Vec<String> {
        self.base(name)
            .map(|base| base.platforms.keys().cloned().collect())
            .unwrap_or_default()
    }

    fn base(&self, name: &str) -> Option<&LockedBase> {
        self.bases.iter().find(|base| base.name == name)
    }

    /// Holds `name` to `digest` for `platform`.
    pub(crate) fn pin(&mut self, name: &str, platform: String, digest: Digest) {
        match self.bases.iter_mut().find(|base| base.name == name) {
            Some(base) => {
                base.platforms.insert(platform, digest);
            }
            None => {
                let platforms = BTreeMap::from([(platform, digest)]);
                self.bases.push(LockedBase {
                    name: name.to_owned(),
                    platforms,
                });
            }
        }
    }

    /// Forgets bases other than `name`, which the project no longer builds on.
    pub(crate) fn retain(&mut self, name: &str) {
        self.bases.retain(|base| base.name == name);
    }

    /// Writes the file, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let body = toml::to_string(self).context("the lock file could not be encoded")?;
        Ok(write_file(path, format!("{HEADER}{body}").as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tierce.lock");
        assert_eq!(LockFile::read(&path).unwrap(), LockFile::default());
        let mut lock = LockFile::default();
        lock.pin("a:1", "linux/arm64".into(), Digest::of(b"arm64"));
        lock.pin("a:1", "linux/amd64".into(), Digest::of(b"amd64"));
        lock.write(&path).unwrap();
        assert_eq!(LockFile::read(&path).unwrap(), lock);
        assert_eq!(
            lock.pinned("a:1", "linux/arm64"),
            Some(Digest::of(b"arm64"))
        );
        assert_eq!(lock.pinned("a:2", "linux/arm64"), None);
    }

    #[test]
    fn what_is_not_a_lock_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tierce.lock");
        for text in ["version = 2", "version = 1\nextra = 1", "nonsense"] {
            std::fs::write(&path, text).unwrap();
            let error = LockFile::read(&path).unwrap_err();
            assert!(error.to_string().contains("tierce.lock"), "{error}");
        }
    }
}
