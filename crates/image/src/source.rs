//! Places that images come from.

use std::future::Future;

use tierce_oci::{Descriptor, Document, Selector};

use crate::content::Content;

/// A place that holds images: a repository of a registry, an OCI layout, an archive, the store.
pub trait ImageSource: Sync {
    /// What can go wrong at this place.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Reads the manifest or index that `selector` stands for.
    ///
    /// For a digest the place checks the bytes against it; for a tag it gives whatever the tag
    /// stands for now. The answer has no more than 4 MiB, the size that every registry must take
    /// (distribution-spec, "Pushing manifests").
    fn manifest(
        &self,
        selector: &Selector,
    ) -> impl Future<Output = Result<Document, Self::Error>> + Send;

    /// Says where the bytes of a blob named by one of this place's manifests are. Reads nothing.
    fn content(&self, blob: &Descriptor) -> Content;
}
