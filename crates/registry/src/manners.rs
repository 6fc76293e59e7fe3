//! Ways of single registries that no answer of theirs tells.

use std::num::NonZeroU32;
use std::time::Duration;

/// What is known of a registry beforehand, and must be heeded.
///
/// The default is what the specification says of all registries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Manners {
    /// How fast manifests and blobs may be asked for without credentials.
    pub anonymous_pace: Option<Pace>,
    /// How fast manifests may be put.
    pub manifest_pace: Option<Pace>,
    /// Whether a token that has ended is answered with 400 and no challenge.
    pub answers_400_to_old_tokens: bool,
    /// Whether a token that has ended is answered with 403, to a HEAD without a word of why.
    pub answers_403_to_old_tokens: bool,
    /// Whether a connection that breaks during an upload may mean that the repository is missing.
    pub drops_uploads_to_missing_repositories: bool,
}

/// So many requests in such a time, evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How many requests.
    pub requests: NonZeroU32,
    /// In which time.
    pub per: Duration,
}
