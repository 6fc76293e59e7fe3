//! What one registry does and does not do.

use std::fmt;

use crate::fault::LocationStyle;
use crate::limit::RateLimit;
use crate::token::TokenSettings;

/// Where the registry redirects those who ask for a blob's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirect {
    /// To `127.0.0.1` on another port.
    OtherPort,
    /// To `localhost` on another port.
    OtherName,
    /// To `localhost` on the same port: another name for the same server.
    OtherNameSamePort,
}

/// What becomes of a chunk that does not begin where the upload's bytes end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offsets {
    /// A `Content-Range` that does not fit is answered with 416; a chunk without one is appended.
    Checked,
    /// A chunk without a `Content-Range` begins at byte 0, and one that does not fit is answered
    /// with 416 and ECR's words.
    Ecr,
    /// `Content-Range` is not looked at: every chunk is appended, as docker-registry does.
    Ignored,
}

/// What a push to a repository that is not there comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingRepository {
    /// The repository is made.
    Created,
    /// Everything is answered with 404 `NAME_UNKNOWN`.
    NameUnknown,
    /// The connection of the first `POST` is dropped; reads and manifests get `NAME_UNKNOWN`.
    DropsPost,
    /// The `POST` is taken, and the connection of the `PATCH` or `PUT` dropped when its bytes come.
    DropsUpload,
}

/// Whom the registry lets in.
#[derive(Debug, Clone, Default)]
pub(super) enum Auth {
    #[default]
    None,
    Basic {
        user: String,
        password: Secret,
    },
    /// ECR's way: Basic with passwords that are issued and expire.
    Ecr,
    Bearer(TokenSettings),
}

/// A password that `Debug` does not show.
#[derive(Clone)]
pub(super) struct Secret(pub(super) String);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("…")
    }
}

/// The switches of one instance.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent switch of the builder"
)]
pub(super) struct Rules {
    pub(super) auth: Auth,
    /// The name that the registry has in the world, where it is not that of its port.
    pub(super) name: Option<String>,
    /// The account whose registry it says to be when a repository is missing.
    pub(super) account: Option<String>,
    pub(super) redirect: Option<Redirect>,
    pub(super) redirect_heads: bool,
    pub(super) location: LocationStyle,
    pub(super) missing: MissingRepository,
    pub(super) read_only: bool,
    pub(super) single_post: bool,
    pub(super) ignore_ranges: bool,
    pub(super) require_length: bool,
    pub(super) mount: bool,
    pub(super) referrers: bool,
    pub(super) referrers_page: Option<usize>,
    pub(super) patch_status: u16,
    pub(super) minimum_chunk: Option<u64>,
    pub(super) minimum_part: Option<u64>,
    pub(super) offsets: Offsets,
    pub(super) stale_range: bool,
    pub(super) atomic_chunks: bool,
    pub(super) upload_status: u16,
    pub(super) strict_state: bool,
    pub(super) body_limit: Option<u64>,
    pub(super) immutable_tags: bool,
    pub(super) refuse_identical: bool,
    pub(super) head_refused: bool,
    pub(super) old_tokens_400: bool,
    pub(super) anonymous_limit: Option<RateLimit>,
    pub(super) manifest_limit: Option<RateLimit>,
    pub(super) page_size: Option<usize>,
    pub(super) largest_page: Option<usize>,
}

impl Rules {
    /// A registry that is open to all and keeps the specification.
    pub(super) fn new() -> Self {
        Self {
            auth: Auth::None,
            name: None,
            account: None,
            redirect: None,
            redirect_heads: false,
            location: LocationStyle::AbsoluteWithQuery,
            missing: MissingRepository::Created,
            read_only: false,
            single_post: false,
            ignore_ranges: false,
            require_length: false,
            mount: true,
            referrers: false,
            referrers_page: None,
            patch_status: 202,
            minimum_chunk: None,
            minimum_part: None,
            offsets: Offsets::Checked,
            stale_range: false,
            atomic_chunks: false,
            upload_status: 204,
            strict_state: false,
            body_limit: None,
            immutable_tags: false,
            refuse_identical: false,
            head_refused: false,
            old_tokens_400: false,
            anonymous_limit: None,
            manifest_limit: None,
            page_size: None,
            largest_page: None,
        }
    }
}
