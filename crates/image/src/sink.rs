//! Places that images go to.
//!
//! The order of the calls is that of [`write()`](crate::write()): blobs before the manifest that names
//! them, children before their index, the tag last; [`move_ahead()`](crate::move_ahead()) may place and
//! send blobs before all that. So a reader of the place never sees a name whose
//! content is not there, whenever the writer dies.

use std::future::Future;

use tierce_oci::{Digest, Document, Selector, Tag};

use crate::artifact::BlobAt;
use crate::blob::{Blob, BlobSource};
use crate::write::Jobs;

/// How a blob came to be at the place without its bytes being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It was there before.
    AlreadyThere,
    /// The registry took it over from another of its repositories.
    Mounted,
    /// The packs that the blob is made of were linked.
    Linked,
    /// The place noted where the bytes can be had, and takes them when they are needed.
    Noted,
}

/// A place that takes images.
pub trait ImageSink: Sync {
    /// What can go wrong at this place.
    type Error: std::error::Error + Send + Sync + 'static;

    /// How many blobs may be on their way at once, when `wanted` are. An archive takes one.
    fn jobs(&self, wanted: Jobs) -> Jobs {
        wanted
    }

    /// Asks which complete manifest the place holds under `selector`, without side effects.
    ///
    /// `Some` promises that everything below that manifest is there too; a place that cannot
    /// promise it cheaply answers `None` and is then asked blob by blob.
    fn current(
        &self,
        selector: &Selector,
    ) -> impl Future<Output = Result<Option<Digest>, Self::Error>> + Send;

    /// Whether `tag`, which stands for another image, may be made to stand for a new one.
    ///
    /// Asked before anything is sent to a name that is taken. A place that cannot tell says yes, and
    /// refuses the manifest if need be.
    fn can_move(&self, tag: &Tag) -> impl Future<Output = bool> + Send {
        let _ = tag;
        async { true }
    }

    /// Gets the blob to the place without moving its bytes through here, if that is possible.
    fn place(
        &self,
        blob: &BlobAt,
    ) -> impl Future<Output = Result<Option<Placed>, Self::Error>> + Send;

    /// Sends the bytes.
    ///
    /// When it returns the blob is whole at the place; when it fails, or the future is dropped,
    /// nothing is there under the blob's digest. An error of the blob itself (the other end) comes
    /// back inside [`ImageSink::Error`], which must have it in its `source` chain.
    fn send<S: BlobSource>(
        &self,
        blob: &Blob<'_, S>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Puts a manifest or index whose content is all there, under its digest and, when `tag` is
    /// given, under that name.
    fn put_manifest(
        &self,
        document: &Document,
        tag: Option<&Tag>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Makes everything that was put visible at once, for places that work that way (archives).
    ///
    /// Called once, after the last manifest. A sink that is dropped before leaves nothing behind.
    fn finish(&self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        async { Ok(()) }
    }
}
