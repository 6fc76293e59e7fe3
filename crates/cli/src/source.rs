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

impl ImageSource for Source {
    type Error = SourceError;

    async fn manifest(&self, selector: &Selector) -> Result<Document, SourceError> {
        let at_place = |error: BoxError| SourceError::Place(error);
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
                let document = repository.manifest(selector).await;
                let document = document.map_err(|error| at_place(error.into()))?;
                documents.keep(document.bytes());
                Ok(document)
            }
            Self::Store(image) => {
                let document = image.manifest(selector).await;
                document.map_err(|error| at_place(error.into()))
            }
            Self::Layout(layout) => {
                let document = layout.manifest(selector).await;
                document.map_err(|error| at_place(error.into()))
            }
            Self::Archive(layout) => {
                let document = layout.manifest(selector).await;
                document.map_err(|error| at_place(error.into()))
            }
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
