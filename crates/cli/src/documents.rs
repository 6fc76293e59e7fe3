//! What is kept of bases, so that a second build asks the network for nothing: manifests, configs,
//! and the symlinks that their layers hold.
//!
//! A directory of files named by digest. It may be deleted at any time, and what is read from it is
//! checked against its name.

use std::path::PathBuf;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tierce_image::{BlobSource, BlobStream, BoxError, Content};
use tierce_layer::{BaseLinks, EntryPath};
use tierce_oci::json::to_canonical;
use tierce_oci::{Descriptor, Digest, MediaType};
use tierce_store::atomic::write_file;

use crate::records;

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

/// The symlinks of bases, kept by the digest of the image, so that its layers are read only once.
#[derive(Debug, Clone)]
pub(crate) struct LinkCache {
    directory: PathBuf,
}

/// Where the links are, below the cache directory. The name counts up with their format.
pub(crate) fn links_in(cache: &std::path::Path) -> PathBuf {
    cache.join("links-1")
}

/// Whether a file of the links is as it was written.
pub(crate) fn are_links_sound(bytes: &[u8]) -> bool {
    KeptLinks::decode(bytes).is_some()
}

/// One file of [`LinkCache`]. Paths and targets are bytes, written in hexadecimal.
#[derive(Debug, Serialize, Deserialize)]
struct KeptLinks {
    links: Vec<(String, String)>,
    /// Of `links` in canonical JSON: a flipped bit here would move files in an image.
    digest: Digest,
}

impl KeptLinks {
    fn of(links: Vec<(String, String)>) -> Self {
        let digest = Digest::of(&to_canonical(&json!(links)));
        Self { links, digest }
    }

    fn decode(bytes: &[u8]) -> Option<BaseLinks> {
        let kept: Self = serde_json::from_slice(bytes).ok()?;
        let stated = kept.digest;
        let kept = Self::of(kept.links);
        if kept.digest != stated {
            return None;
        }
        links_from_text(&kept.links)
    }
}

impl LinkCache {
    /// Keeps links under `cache`.
    pub(crate) fn new(cache: &std::path::Path) -> Self {
        Self {
            directory: links_in(cache).join("sha256"),
        }
    }

    /// The links of the image with this manifest, if they are here and whole.
    pub(crate) fn read(&self, image: &Digest) -> Option<BaseLinks> {
        let path = self.directory.join(image.hex());
        let links = KeptLinks::decode(&std::fs::read(&path).ok()?)?;
        records::touch(&path);
        Some(links)
    }

    /// Keeps the links of an image. A cache that cannot be written is only slower, never an error.
    pub(crate) fn keep(&self, image: &Digest, links: &BaseLinks) {
        let links = links_to_text(links);
        let path = self.directory.join(image.hex());
        let kept = serde_json::to_vec(&KeptLinks::of(links))
            .map_err(anyhow::Error::from)
            .and_then(|bytes| {
                std::fs::create_dir_all(&self.directory)?;
                Ok(write_file(&path, &bytes)?)
            });
        if let Err(error) = kept {
            tracing::debug!("could not keep {}: {error:#}", path.display());
        }
    }
}

/// Links as text: paths and targets are bytes, written in hexadecimal.
pub(crate) fn links_to_text(links: &BaseLinks) -> Vec<(String, String)> {
    links
        .iter()
        .map(|(path, target)| (hex(path.as_bytes()), hex(target)))
        .collect()
}

/// The links that [`links_to_text`] wrote; `None` when it did not.
pub(crate) fn links_from_text(links: &[(String, String)]) -> Option<BaseLinks> {
    links
        .iter()
        .map(|(path, target)| Some((EntryPath::new(unhex(path)?).ok()?, unhex(target)?)))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_kept_whole_or_not_at_all() {
        let cache = tempfile::tempdir().unwrap();
        let cache = LinkCache::new(cache.path());
        let image = Digest::of(b"image");
        assert!(cache.read(&image).is_none());
        let path = EntryPath::new(b"lib64\xff").unwrap();
        let links: BaseLinks = [(path, b"usr/lib64".to_vec())].into_iter().collect();
        cache.keep(&image, &links);
        assert_eq!(cache.read(&image), Some(links));
        cache.keep(&image, &BaseLinks::none());
        assert_eq!(cache.read(&image), Some(BaseLinks::none()));

        let file = cache.directory.join(image.hex());
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("[]", r#"[["61","62"]]"#)).unwrap();
        assert!(cache.read(&image).is_none());
    }
}
