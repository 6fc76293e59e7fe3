//! What the registry holds: repositories, blobs, and uploads in progress.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tierce_oci::Digest;

use super::management::{Management, TagMutability, now};
use super::upload::Upload;

/// The bytes of a blob, in memory or in an unnamed temporary file.
#[derive(Debug, Clone)]
pub(crate) enum Blob {
    Memory(Bytes),
    Spooled(Arc<Mutex<File>>, u64),
}

impl Blob {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spooled(_, length) => *length,
        }
    }

    /// Reads `length` bytes from `offset`; the range must lie within the blob.
    pub(crate) fn read(&self, offset: u64, length: u64) -> io::Result<Bytes> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        match self {
            Self::Memory(bytes) => {
                let offset = usize::try_from(offset).map_err(io::Error::other)?;
                Ok(bytes.slice(offset..offset + length))
            }
            Self::Spooled(file, _) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(offset))?;
                let mut bytes = vec![0; length];
                file.read_exact(&mut bytes)?;
                Ok(bytes.into())
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct StoredManifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
    /// When it was pushed, in seconds since 1970.
    pub(crate) pushed: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Repository {
    pub(crate) management: Management,
    pub(crate) blobs: BTreeSet<Digest>,
    pub(crate) manifests: BTreeMap<Digest, StoredManifest>,
    pub(crate) tags: BTreeMap<String, Digest>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) repositories: BTreeMap<String, Repository>,
    pub(crate) uploads: BTreeMap<String, Arc<Mutex<Upload>>>,
    blobs: BTreeMap<Digest, Blob>,
    uploads_begun: u64,
    /// Whether blobs are mounted, when that was changed since the start.
    pub(crate) mounts: Option<bool>,
    /// How the tags of new repositories are.
    mutability: TagMutability,
}

impl State {
    /// The repository, made when it is missing.
    pub(crate) fn repository(&mut self, name: &str) -> &mut Repository {
        let mutability = self.mutability;
        let repository = self.repositories.entry(name.to_owned());
        repository.or_insert_with(|| Repository {
            management: Management::new(mutability),
            ..Repository::default()
        })
    }

    pub(crate) fn put_blob(&mut self, repository: &str, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        self.store_blob(repository, digest, Blob::Memory(bytes));
        digest
    }

    pub(crate) fn store_blob(&mut self, repository: &str, digest: Digest, blob: Blob) {
        self.blobs.entry(digest).or_insert(blob);
        self.repository(repository).blobs.insert(digest);
    }

    pub(crate) fn has_blob(&self, repository: &str, digest: &Digest) -> bool {
        let repository = self.repositories.get(repository);
        repository.is_some_and(|repository| repository.blobs.contains(digest))
    }

    pub(crate) fn find_blob(&self, repository: &str, digest: &Digest) -> Option<Blob> {
        let held = self.has_blob(repository, digest);
        held.then(|| self.blobs.get(digest).cloned()).flatten()
    }

    /// A blob by digest alone, as the second host knows them.
    pub(crate) fn any_blob(&self, digest: &Digest) -> Option<Blob> {
        self.blobs.get(digest).cloned()
    }

    pub(crate) fn put_manifest(
        &mut self,
        repository: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Digest {
        let digest = Digest::of(&bytes);
        let manifests = &mut self.repository(repository).manifests;
        // What is there already keeps the time of its first push.
        let pushed = manifests.get(&digest).map_or_else(now, |old| old.pushed);
        let stored = StoredManifest {
            media_type: media_type.to_owned(),
            bytes,
            pushed,
        };
        manifests.insert(digest, stored);
        digest
    }

    pub(crate) fn find_manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Option<(Digest, StoredManifest)> {
        let repository = self.repositories.get(repository)?;
        let digest = match reference.parse() {
            Ok(digest) => digest,
            Err(_) => *repository.tags.get(reference)?,
        };
        Some((digest, repository.manifests.get(&digest)?.clone()))
    }

    /// Begins an upload and names it.
    pub(crate) fn begin_upload(&mut self, repository: &str) -> String {
        self.uploads_begun += 1;
        let id = format!("5e551011-0000-4000-8000-{:012x}", self.uploads_begun);
        let upload = Arc::new(Mutex::new(Upload::new(repository)));
        self.uploads.insert(id.clone(), upload);
        id
    }
}

/// The state that handlers and the test share.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<State>>);

impl Shared {
    pub(crate) fn new(repositories: &BTreeSet<String>, immutable_tags: bool) -> Self {
        let shared = Self::default();
        if immutable_tags {
            shared.lock().mutability = TagMutability::Immutable;
        }
        for name in repositories {
            shared.lock().repository(name);
        }
        shared
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
