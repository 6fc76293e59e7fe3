//! A directory of blobs: `blobs/sha256/<hex>`.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use futures_util::StreamExt as _;
use tierce_image::{Blob, BlobSource, OpenBlobError};
use tierce_oci::{Descriptor, Digest, Document};

use crate::atomic::{AtomicFile, PathError, sync_directory};
use crate::file::{Pace, hash_file, read_limited};
use crate::stamp::Mark;

/// Whose word is good for what is in a directory of blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Only what this very value wrote or hashed; anything else is hashed first.
    Nobody,
    /// Also what has the right size and still bears [`Mark::Right`]: any later write would have
    /// changed that. For directories that only tierce writes to.
    Stamp,
}

/// Writes and judges the blobs of a layout or of the store.
#[derive(Debug)]
pub(crate) struct BlobDirectory {
    directory: PathBuf,
    temporary: PathBuf,
    trust: Trust,
    known: Mutex<BTreeSet<Digest>>,
}

impl BlobDirectory {
    /// `directory` is `…/blobs/sha256`; files are begun in `temporary`.
    pub(crate) fn new(directory: PathBuf, temporary: PathBuf, trust: Trust) -> Self {
        Self {
            directory,
            temporary,
            trust,
            known: Mutex::default(),
        }
    }

    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the blob is there and needs no hashing to be believed.
    pub(crate) fn vouches_for(&self, blob: &Descriptor) -> bool {
        let Ok(metadata) = fs::metadata(self.path(&blob.digest)) else {
            return false;
        };
        metadata.is_file()
            && metadata.len() == blob.size
            && (self.is_known(&blob.digest)
                || self.trust == Trust::Stamp && Mark::Right.is_on(&metadata))
    }

    /// Whether the blob is there, with the right bytes.
    pub(crate) async fn holds(&self, blob: &Descriptor) -> bool {
        if self.vouches_for(blob) {
            return true;
        }
        let path = self.path(&blob.digest);
        let right_size = fs::metadata(&path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == blob.size);
        // What cannot be read is replaced like what is wrong.
        let holds = right_size
            && hash_file(&path, blob.size)
                .await
                .is_ok_and(|found| found == blob.digest);
        if holds {
            self.settle(&blob.digest);
        }
        holds
    }

    /// Takes `file`, whole and right by contract, over under its digest.
    ///
    /// `false` when that cannot be: another file system, a file of another length, or one that a
    /// place has already taken. Two places never share a file: damage to one would be damage to
    /// both, and the store's marks would show on a layout that is the user's.
    pub(crate) fn link(&self, file: &Path, blob: &Descriptor) -> Result<bool, PathError> {
        let fits = fs::symlink_metadata(file)
            .is_ok_and(|found| found.is_file() && found.len() == blob.size && found.nlink() == 1);
        if !fits {
            return Ok(false);
        }
        let target = self.path(&blob.digest);
        // What is there already was found wrong a moment ago, or another process has just put it: the
        // rename of a copy replaces it at once, where a link would leave a moment without any.
        if fs::hard_link(file, &target).is_err() {
            return Ok(false);
        }
        // Another place may have linked it since the first look: then neither keeps it, or one.
        let shared = fs::symlink_metadata(&target).is_ok_and(|found| found.nlink() > 2);
        if shared {
            fs::remove_file(&target).map_err(PathError::of("replace", &target))?;
            return Ok(false);
        }
        let synced = self.adopt_mode(&target).and_then(|()| {
            File::open(&target)
                .and_then(|file| file.sync_all())
                .map_err(PathError::of("write", &target))
        });
        if let Err(error) = synced {
            let _ = fs::remove_file(&target);
            return Err(error);
        }
        self.settle(&blob.digest);
        Ok(true)
    }

    /// A sealed file is private to its maker; as a blob it is as readable as the directory.
    fn adopt_mode(&self, path: &Path) -> Result<(), PathError> {
        let mode = fs::metadata(&self.directory)
            .map_err(PathError::of("look at", &self.directory))?
            .permissions()
            .mode();
        fs::set_permissions(path, Permissions::from_mode(mode & 0o644))
            .map_err(PathError::of("set the mode of", path))
    }

    /// Writes the bytes of `blob`, verified, under its digest.
    pub(crate) async fn receive<S, E>(&self, blob: &Blob<'_, S>) -> Result<(), E>
    where
        S: BlobSource,
        E: From<PathError> + From<OpenBlobError>,
    {
        let mut pieces = blob.open().await?;
        let digest = blob.descriptor().digest;
        let mut file = AtomicFile::create_through(&self.temporary, self.path(&digest))?;
        let mut pace = Pace::default();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            file.write_all(&piece)?;
            pace.after(piece.len()).await;
        }
        file.persist_unsynced()?;
        self.settle(&digest);
        Ok(())
    }

    /// Writes a manifest under its digest, and makes all blobs' names durable: a name may follow.
    ///
    /// One that is there is compared, whatever its mark says: it is small, and the store has found
    /// it incomplete, which may be because it is damaged.
    pub(crate) fn put_document(&self, document: &Document) -> Result<(), PathError> {
        let descriptor = document.descriptor();
        let path = self.path(&descriptor.digest);
        let is_there = read_limited(&path, document.bytes().len() as u64)
            .is_ok_and(|found| found.as_ref() == Some(document.bytes()));
        if !is_there {
            let mut file = AtomicFile::create_through(&self.temporary, path)?;
            file.write_all(document.bytes())?;
            file.persist_unsynced()?;
        }
        self.settle(&descriptor.digest);
        sync_directory(&self.directory)
    }

    fn is_known(&self, digest: &Digest) -> bool {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(digest)
    }

    /// Remembers that the file under `digest` is right.
    fn settle(&self, digest: &Digest) {
        if self.trust == Trust::Stamp
            && let Ok(file) = File::open(self.path(digest))
        {
            Mark::Right.put_on(&file);
        }
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(*digest);
    }
}
