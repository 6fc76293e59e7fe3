//! What a place can hold under one digest.

use tierce_oci::{Descriptor, Document};

use crate::content::Content;

/// A manifest or index with everything below it: all that must arrive for it to be whole.
///
/// Unlike an [`Image`](crate::Image) it need not be runnable: an index may hold attestations and
/// other artifacts, and a copy takes them along unread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The manifest or index.
    pub document: Document,
    /// A manifest's layers, base layer first, then its config. Empty for an index.
    pub blobs: Vec<BlobAt>,
    /// An index's children. Empty for a manifest.
    pub children: Vec<Artifact>,
}

/// A blob, and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobAt {
    /// Media type, digest and size.
    pub descriptor: Descriptor,
    /// Where the bytes are.
    pub content: Content,
}

impl Artifact {
    /// The artifacts of this tree, children before parents: the order in which a place accepts them.
    pub fn bottom_up(&self) -> Vec<&Self> {
        let mut order = Vec::new();
        self.push_bottom_up(&mut order);
        order
    }

    fn push_bottom_up<'a>(&'a self, order: &mut Vec<&'a Self>) {
        for child in &self.children {
            child.push_bottom_up(order);
        }
        order.push(self);
    }
}
