//! Where the bytes of a blob are.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tierce_oci::Repository;

use crate::pieces::Piece;

/// Where the bytes of a blob are, as a value: nothing is open, and nothing has been read.
///
/// It tells a sink the cheapest move: mount from a repository of the same registry, link the packs of
/// the same disk, else send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Here.
    Memory(Bytes),
    /// In a file of somebody else's, from `offset` on: a blob of an OCI layout, or a member of an
    /// archive. To be verified whenever it is read.
    File {
        /// The file.
        path: PathBuf,
        /// Where in the file the blob begins.
        offset: u64,
    },
    /// In parts: the bytes around the segments of a sealed layer, and where in which packs the
    /// segments are. The pieces together are the blob, by the word of whoever lists them; a sink on
    /// the file system of the packs may link those and remember the list.
    Pieces(Arc<[Piece]>),
    /// In a repository of a registry.
    Origin(Repository),
}
