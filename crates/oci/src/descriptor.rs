//! A pointer to content by its digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::media_type::MediaType;
use crate::platform::Platform;

/// Media type, digest and size of some content (image-spec, `descriptor.md`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: MediaType,
    /// The content's address.
    pub digest: Digest,
    /// Exact length in bytes.
    pub size: u64,
    /// Free-form facts; empty in Docker V2 Schema 2, which has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What the content runs on; only in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Where else the content may be had. Kept when copied, never followed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// The kind of artifact behind a manifest; only in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// What [`Descriptor::empty`] describes.
    pub const EMPTY_CONTENT: &'static [u8] = b"{}";

    /// A descriptor of `size` bytes at `digest`, with nothing optional.
    pub const fn new(media_type: MediaType, digest: Digest, size: u64) -> Self {
        Self {
            media_type,
            digest,
            size,
            annotations: BTreeMap::new(),
            platform: None,
            urls: Vec::new(),
            artifact_type: None,
        }
    }

    /// Describes the blob that says nothing (image-spec, `manifest.md`, "Guidance for an Empty
    /// Descriptor").
    pub fn empty() -> Self {
        Self::of(MediaType::empty(), Self::EMPTY_CONTENT)
    }

    /// Describes `bytes`.
    pub fn of(media_type: MediaType, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }
}
