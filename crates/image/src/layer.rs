//! Layers: identity first, bytes when they are asked for.

use serde::{Deserialize, Serialize};
use tierce_oci::{Descriptor, DiffId};

use crate::artifact::BlobAt;
use crate::content::Content;

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Media type, digest and size of the compressed blob.
    pub descriptor: Descriptor,
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Where the blob is.
    pub content: Content,
    /// What made the layer: becomes `created_by` of its history entry.
    pub created_by: Option<String>,
    /// What was learnt when the layer was sealed; `None` for layers that tierce did not make.
    pub facts: Option<Facts>,
}

impl Layer {
    /// The layer as something to be written to a place.
    pub fn to_blob(&self) -> BlobAt {
        BlobAt {
            descriptor: self.descriptor.clone(),
            content: self.content.clone(),
        }
    }
}

/// What sealing learnt about a layer, kept so that nobody has to read the layer again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Facts {
    /// Length of the uncompressed tar in bytes.
    pub uncompressed_size: u64,
    /// Number of entries in the tar.
    pub entries: u64,
}
