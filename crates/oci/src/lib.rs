//! The nouns of container images, as plain data.
mod digest;
pub use digest::{Digest, DiffId, Hasher, ParseDigestError};
