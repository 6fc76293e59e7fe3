//! A directory of blobs: `blobs/sha256/<hex>`.

use std::collections::BTreeSet;
use std::fs::{self, File};
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
