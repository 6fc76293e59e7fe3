//! The nouns of container images, as plain data.
//!
//! Everything here is a value: nothing in this crate touches a file, a socket, a clock or the
//! environment. Documents that are hashed (manifests, indexes, configs) are kept as [`Raw`]: the
//! exact bytes beside the parsed view, so that what was hashed is what is sent.
//!
//! `oci-spec` parses the documents and fixes the constants. Its own serialiser is never used: it
//! writes maps in random order and drops fields that it does not know. Every document that tierce
//! writes goes through [`json::to_canonical`].
//!
//! ```
//! use tierce_oci::{Digest, Reference};
//!
//! let reference: Reference = "public.ecr.aws/lambda/python:3.12".parse()?;
//! assert_eq!(reference.repository.registry, "public.ecr.aws");
//! assert_eq!(Digest::of(b"").to_string().len(), "sha256:".len() + 64);
//! # Ok::<(), tierce_oci::ParseReferenceError>(())
//! ```

mod config;
mod descriptor;
mod digest;
pub mod json;
mod manifest;
mod media_type;
mod platform;
mod raw;
mod reference;
mod timestamp;

pub use config::{HistoryEntry, ImageConfig};
pub use descriptor::Descriptor;
pub use digest::{DiffId, Digest, Hasher, HasherState, ParseDigestError};
pub use manifest::{Index, Manifest};
pub use media_type::{Compression, ImageFormat, MediaType, ParseFormatError, ParseMediaTypeError};
pub use platform::{ParsePlatformError, Platform};
pub use raw::{Document, ParseDocumentError, Raw};
pub use reference::{
    ParseReferenceError, ParseTagError, PinnedReference, Reference, Repository, Selector, Tag,
};
pub use timestamp::{ParseTimestampError, Timestamp};
