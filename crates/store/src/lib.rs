//! Images on disk: OCI layouts, archives and the local store.
//!
//! Each is a place in the sense of `tierce-image`: an [`ImageSource`](tierce_image::ImageSource), an
//! [`ImageSink`](tierce_image::ImageSink), or both. What they share:
//!
//! - a file appears by rename, whole, or not at all ([`atomic`]);
//! - what is read from a layout or archive is somebody else's: documents are checked against their
//!   digest here, blobs by whoever opens them, sizes and names are never trusted;
//! - no async runtime is assumed. File calls block, in pieces of at most 1 MiB, and a long copy
//!   hands control back between pieces.
//!
//! | transport | source | sink |
//! |---|---|---|
//! | `oci:DIR` | [`Layout`] | [`LayoutSink`] |
//! | `oci-archive:FILE` | [`ArchiveLayout`] | [`ArchiveSink`] |
//! | `docker-archive:FILE` | [`DockerArchive`] | [`ArchiveSink`] |
//! | `store:NAME` | [`StoreImage`] | [`StoreSink`] |
//!
//! ```
//! use tierce_store::{LocalStore, StoreReference};
//!
//! # let directory = tempfile::tempdir()?;
//! let store = LocalStore::open(directory.path().join("store"))?;
//! let reference: StoreReference = "team/hello:1.0".parse()?;
//! assert_eq!(reference.name.as_str(), "team/hello");
//! assert!(store.list()?.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod archive;
pub mod atomic;
mod blobs;
mod damage;
mod document;
mod file;
mod layout;
mod listing;
mod local;
mod patience;
mod pieces;
mod stamp;

pub use archive::{
    ArchiveError, ArchiveKind, ArchiveLayout, ArchiveMember, ArchiveSink, DockerArchive,
    PlainImage, Selected,
};
pub use atomic::PathError;
pub use document::ManifestError;
pub use file::open_file;
pub use layout::{Layout, LayoutError, LayoutSink};
pub use listing::ListingError;
pub use local::{
    Garbage, LocalStore, ParseStoreReferenceError, StoreError, StoreImage, StoreName,
    StoreReference, StoreSink, StoredImage,
};
pub use pieces::{PieceError, open_pieces};

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// Polls to the end: nothing in this crate waits for anything but files.
    pub(crate) fn run<F: Future>(future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
        }
    }
}
