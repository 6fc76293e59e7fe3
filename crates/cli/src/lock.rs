//! `tierce.lock`: what the base's tag stood for when it was first built on, and what that base has.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tierce_lambda::BaseFacts;
use tierce_oci::Digest;
use tierce_store::atomic::write_file;

use crate::diagnostic::Hinted as _;

/// Of a file that pins and says nothing else.
const VERSION_OF_PINS: u32 = 1;
/// Of one that holds facts too.
const VERSION_OF_FACTS: u32 = 2;

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
    /// What is true of an image, by its digest, where no table says it or the table is wrong.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    facts: BTreeMap<Digest, BaseFacts>,
}

impl LockedBase {
    fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            platforms: BTreeMap::new(),
            facts: BTreeMap::new(),
        }
    }
}

impl Default for LockFile {
    fn default() -> Self {
        Self {
            version: VERSION_OF_PINS,
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
            (VERSION_OF_PINS..=VERSION_OF_FACTS).contains(&lock.version),
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
        self.base_mut(name).platforms.insert(platform, digest);
    }

    /// What is held to be true of the image with this digest.
    pub(crate) fn facts(&self, name: &str, digest: &Digest) -> Option<&BaseFacts> {
        self.base(name)?.facts.get(digest)
    }

    /// Holds `facts` to be true of the image with this digest.
    pub(crate) fn record(&mut self, name: &str, digest: Digest, facts: BaseFacts) {
        self.base_mut(name).facts.insert(digest, facts);
        self.version = VERSION_OF_FACTS;
    }

    fn base_mut(&mut self, name: &str) -> &mut LockedBase {
        let known = self.bases.iter().position(|base| base.name == name);
        let position = known.unwrap_or_else(|| {
            self.bases.push(LockedBase::named(name));
            self.bases.len() - 1
        });
        &mut self.bases[position]
    }

    /// Forgets bases other than `name`, which the project no longer builds on.
    pub(crate) fn retain(&mut self, name: &str) {
        self.bases.retain(|base| base.name == name);
        let has_facts = self.bases.iter().any(|base| !base.facts.is_empty());
        self.version = if has_facts {
            VERSION_OF_FACTS
        } else {
            VERSION_OF_PINS
        };
    }

    /// Writes the file, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let body = toml::to_string_pretty(self).context("the lock file could not be encoded")?;
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
        for text in ["version = 3", "version = 1\nextra = 1", "nonsense"] {
            std::fs::write(&path, text).unwrap();
            let error = LockFile::read(&path).unwrap_err();
            assert!(error.to_string().contains("tierce.lock"), "{error}");
        }
    }

    #[test]
    fn facts_need_the_newer_version_and_go_with_their_base() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tierce.lock");
        let mut lock = LockFile::default();
        lock.pin("a:1", "linux/amd64".into(), Digest::of(b"amd64"));
        let facts = BaseFacts::named(&"public.ecr.aws/lambda/python:3.12".parse().unwrap());
        lock.record("a:1", Digest::of(b"amd64"), facts.clone());
        lock.retain("a:1");
        lock.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("version = 2"), "{text}");
        assert!(text.contains("libc = \"glibc 2.34\""), "{text}");
        let mut read = LockFile::read(&path).unwrap();
        assert_eq!(read, lock);
        assert_eq!(read.facts("a:1", &Digest::of(b"amd64")), Some(&facts));
        assert_eq!(read.facts("a:1", &Digest::of(b"other")), None);
        read.retain("b:1");
        assert_eq!(read, LockFile::default());
    }
}
