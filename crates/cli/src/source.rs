//! Every place that images are read from, as one source.

use tierce_image::{BoxError, Content, ImageSource};
use tierce_oci::{Descriptor, Document, Selector};
use tierce_registry::RepositoryClient;
use tierce_store::{ArchiveLayout, Layout, StoreImage};

use crate::documents::Documents;

/// A place that holds manifests.
#[derive(Debug)]
pub(crate) enum Source {
    /// A repository, with what is remembered of it in front.
    Registry {
        repository: RepositoryClient,
        documents: Documents,
        /// Whether the registry itself must not be asked.
        offline: bool,
    },
    Store(StoreImage),
    Layout(Layout),
    Archive(ArchiveLayout),
}

/// What a [`Source`] answers when it cannot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("`{0}` is not known here, and --offline forbids to ask the registry")]
    Offline(Selector),
    // Not transparent, or the place's own error would be missing from the chain, where hints are
    // looked for. Causes that say the same are shown once.
    #[error("{0}")]
    Place(#[source] BoxError),
}

fn at_place(error: impl std::error::Error + Send + Sync + 'static) -> SourceError {
    SourceError::Place(Box::new(error))
}

impl ImageSource for Source {
    type Error = SourceError;

    async fn manifest(&self, selector: &Selector) -> Result<Document, SourceError> {
        match self {
            Self::Registry {
                repository,
                documents,
                offline,
            } => {
                if let Selector::Digest(digest) = selector
                    && let Some(bytes) = documents.read(digest)
                    && let Ok(document) = Document::parse(bytes, None)
                {
                    return Ok(document);
                }
                if *offline {
                    return Err(SourceError::Offline(selector.clone()));
                }
                let document = repository.manifest(selector).await.map_err(at_place)?;
                documents.keep(document.bytes());
                Ok(document)
            }
            Self::Store(image) => image.manifest(selector).await.map_err(at_place),
            Self::Layout(layout) => layout.manifest(selector).await.map_err(at_place),
            Self::Archive(layout) => layout.manifest(selector).await.map_err(at_place),
        }
    }

    fn content(&self, blob: &Descriptor) -> Content {
        match self {
            Self::Registry { repository, .. } => repository.content(blob),
            Self::Store(image) => image.content(blob),
            Self::Layout(layout) => layout.content(blob),
            Self::Archive(layout) => layout.content(blob),
        }
    }
}
