//! Manifests and configs of bases, kept so that a second build asks the network for nothing.
//!
//! A directory of files named by digest. It may be deleted at any time, and what is read from it is
//! checked against its name.

use std::path::PathBuf;

use bytes::Bytes;
use tierce_image::{BlobSource, BlobStream, BoxError, Content, ImageSource};
use tierce_oci::{Descriptor, Digest, Document, MediaType, Selector};
use tierce_store::atomic::write_file;

/// The cache.
#[derive(Debug, Clone)]
pub(crate) struct Documents {
    directory: PathBuf,
}

impl Documents {
    /// Keeps documents under `cache`.
    pub(crate) fn new(cache: &std::path::Path) -> Self {
        Self {
            directory: cache.join("documents/sha256"),
        }
    }

    /// The document with this digest, if it is here and whole.
    pub(crate) fn read(&self, digest: &Digest) -> Option<Bytes> {
        let bytes = std::fs::read(self.directory.join(digest.hex())).ok()?;
        (Digest::of(&bytes) == *digest).then(|| Bytes::from(bytes))
    }

    /// Keeps a document. A cache that cannot be written is only slower, never an error.
    pub(crate) fn keep(&self, bytes: &[u8]) {
        let path = self.directory.join(Digest::of(bytes).hex());
        let kept = std::fs::create_dir_all(&self.directory)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(write_file(&path, bytes)?));
        if let Err(error) = kept {
            tracing::debug!("could not keep {}: {error:#}", path.display());
        }
    }
}

/// A source of manifests with [`Documents`] in front of it.
pub(crate) struct Cached<'a, P> {
    pub(crate) place: &'a P,
    pub(crate) documents: &'a Documents,
    /// Whether the place itself must not be asked.
    pub(crate) offline: bool,
}

/// What [`Cached`] answers when it cannot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CachedError {
    #[error("`{0}` is not known here, and --offline forbids to ask the registry")]
    Offline(Selector),
    // Not transparent, or the place's own error would be missing from the chain, where hints are
    // looked for. Causes that say the same are shown once.
    #[error("{0}")]
    Place(#[source] BoxError),
}

impl<P: ImageSource> ImageSource for Cached<'_, P> {
    type Error = CachedError;

    async fn manifest(&self, selector: &Selector) -> Result<Document, CachedError> {
        if let Selector::Digest(digest) = selector
            && let Some(bytes) = self.documents.read(digest)
            && let Ok(document) = Document::parse(bytes, None)
        {
            return Ok(document);
        }
        if self.offline {
            return Err(CachedError::Offline(selector.clone()));
        }
        let document = self
            .place
            .manifest(selector)
            .await
            .map_err(|error| CachedError::Place(Box::new(error)))?;
        self.documents.keep(document.bytes());
        Ok(document)
    }

    fn content(&self, blob: &Descriptor) -> Content {
        self.place.content(blob)
    }
}

/// A source of blobs with [`Documents`] in front of it, for configs only.
pub(crate) struct CachedConfigs<'a, B> {
    pub(crate) blobs: &'a B,
    pub(crate) documents: &'a Documents,
}

impl<B: BlobSource> BlobSource for CachedConfigs<'_, B> {
    async fn open(
        &self,
        blob: &Descriptor,
        content: &Content,
        from: u64,
    ) -> Result<BlobStream, BoxError> {
        let is_config = matches!(blob.media_type, MediaType::Config(_));
        if !is_config || from > 0 {
            return self.blobs.open(blob, content, from).await;
        }
        let bytes = match self.documents.read(&blob.digest) {
            Some(bytes) => bytes,
            None => {
                let bytes = tierce_image::read_blob(self.blobs, blob, content).await?;
                self.documents.keep(&bytes);
                bytes
            }
        };
        Ok(Box::pin(futures_util::stream::iter([Ok(bytes)])))
    }
}
